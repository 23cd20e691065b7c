"""SCTP without the kernel's (RFC 9260): an association's four first packets, by raw sockets. Stands before net.py."""
import os
import random
import socket
import struct
import threading
import time

SCTP = 132
INIT, INIT_ACK, COOKIE_ECHO, COOKIE_ACK = 1, 2, 10, 11
STATE_COOKIE = 7


def crc32c_table():
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        yield byte


CRC32C = tuple(crc32c_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def sctp_packet(source_port, port, tag, kind, value):
    """A packet of one chunk."""
    chunk = struct.pack("!BBH", kind, 0, 4 + len(value)) + value
    chunk += bytes(-len(chunk) % 4)
    head = struct.pack("!HHI", source_port, port, tag)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def sctp_parse(data):
    """Ports, tag, kind and value of the first chunk. A wrong checksum is told: a translation has to mend it."""
    source_port, port, tag = struct.unpack("!HHI", data[:8])
    if struct.unpack("<I", data[8:12])[0] != crc32c(data[:8] + bytes(4) + data[12:]):
        raise ValueError("a wrong checksum")
    kind, _, length = struct.unpack("!BBH", data[12:16])
    return source_port, port, tag, kind, data[16 : 12 + length]


def sctp_init(tag):
    """Tag, window, streams out and in, first TSN."""
    return struct.pack("!IIHHI", tag, 65536, 1, 1, 1)


def sctp_socket(family):
    return socket.socket(family, socket.SOCK_RAW, SCTP)


def sctp_receive(sock):
    data, peer = sock.recvfrom(65535)
    # IPv4 comes with its header.
    return (data[(data[0] & 15) * 4 :] if sock.family == socket.AF_INET else data), peer


def sctp_serve(sock, ports, name, seen):
    """Answers whoever begins an association; the cookie says who answered, and whom it saw."""
    while True:
        data, peer = sctp_receive(sock)
        try:
            source_port, port, _, kind, value = sctp_parse(data)
        except ValueError as error:
            print(f"{peer}: {error}", flush=True)
            continue
        if port not in ports or len(value) < 4:
            continue
        if kind == INIT:
            text = f"{name(port)} {seen(peer[0])}".encode()
            theirs = struct.unpack("!I", value[:4])[0]
            # A cookie has the other's tag, so that nothing need be remembered.
            cookie = struct.pack("!I", theirs) + text
            parameter = struct.pack("!HH", STATE_COOKIE, 4 + len(cookie)) + cookie
            parameter += bytes(-len(parameter) % 4)
            answer = sctp_packet(port, source_port, theirs, INIT_ACK, sctp_init(1) + parameter)
        elif kind == COOKIE_ECHO:
            answer = sctp_packet(port, source_port, struct.unpack("!I", value[:4])[0], COOKIE_ACK, b"")
        else:
            continue
        try:
            sock.sendto(answer, (peer[0], 0))
        except OSError as error:
            print(f"{peer}: {error}", flush=True)


def start_sctp_servers(ports, name, seen):
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock = sctp_socket(family)
        except OSError:
            # No IPv6 here.
            continue
        threading.Thread(target=sctp_serve, args=(sock, ports, name, seen), daemon=True).start()


def sctp(check):
    """Begins an association, up to the cookie's acknowledgement: then conntrack takes it to be established."""
    tag = random.randrange(1, 1 << 32)
    source_port = check["from_port"] or random.randrange(20000, 30000)
    with sctp_socket(socket.AF_INET6 if ":" in check["to"] else socket.AF_INET) as sock:
        # Refusals by ICMP are told to a raw socket that is connected.
        sock.connect((check["to"], 0))
        end = time.monotonic() + check["limit"]

        def exchange(packet, wanted):
            sock.send(packet)
            while (left := end - time.monotonic()) > 0:
                sock.settimeout(left)
                data, _ = sctp_receive(sock)
                port, own_port, own_tag, kind, value = sctp_parse(data)
                if (port, own_port, kind) == (check["port"], source_port, wanted) and own_tag == tag:
                    return value
            raise socket.timeout("timed out")

        value = exchange(sctp_packet(source_port, check["port"], 0, INIT, sctp_init(tag)), INIT_ACK)
        theirs = struct.unpack("!I", value[:4])[0]
        kind, length = struct.unpack("!HH", value[16:20])
        if kind != STATE_COOKIE:
            raise ValueError(f"parameter {kind} instead of a cookie")
        cookie = value[20 : 16 + length]
        exchange(sctp_packet(source_port, check["port"], theirs, COOKIE_ECHO, cookie), COOKIE_ACK)
    name, peer = cookie[4:].decode().split()
    return name, peer


