"""A server whose connections see packets out of their window, as after a spurious retransmission. Stands before net.py."""
import ipaddress
import socket
import struct

TCP_ACK, TCP_PUSH = 16, 8


def tcp_sum(source, to, segment):
    data = ipaddress.ip_address(source).packed + ipaddress.ip_address(to).packed
    data += struct.pack("!HH", 6, len(segment)) + segment + bytes(len(segment) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def boom(port, count):
    """Answers `count` packets of data to this port, IPv4, with one far outside of the window that acknowledges them: a
    reset that it provoked would be the right one."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    sock.settimeout(10)
    while count:
        data = sock.recv(65535)
        source, to = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
        segment = data[(data[0] & 15) * 4 :]
        source_port, own_port, seq, ack, offset = struct.unpack("!HHIIB", segment[:13])
        size = len(segment) - (offset >> 4) * 4
        if own_port != port or not size:
            continue
        answer = struct.pack("!HHIIBB", port, source_port, (ack + (1 << 30)) & 0xFFFFFFFF, (seq + size) & 0xFFFFFFFF, 5 << 4, TCP_ACK | TCP_PUSH)
        head, tail = answer + struct.pack("!H", 512), struct.pack("!H", 0) + b"boom"
        checksum = tcp_sum(to, source, head + bytes(2) + tail)
        sock.sendto(head + struct.pack("!H", checksum) + tail, (source, 0))
        count -= 1
    print("boom", flush=True)


