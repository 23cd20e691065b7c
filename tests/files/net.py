"""Both ends of the tests' traffic, for use inside a network namespace.

serve NAME      answers on port 7000, TCP and UDP, of all addresses
probe           reads a JSON list of checks from stdin, does them all at once, prints the answers
flow NAME       sends a numbered UDP packet to each of a list of others every 10 ms and counts what it gets of them
"""
import concurrent.futures
import hashlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
import time

PORT = 7000


def plain(address):
    """An address without its scope, and IPv4 without its IPv6 coat."""
    ip = ipaddress.ip_address(address.split("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def wildcard(kind):
    try:
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", PORT))
    except OSError:
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", PORT))
    return sock


def serve(name):
    udp, tcp = wildcard(socket.SOCK_DGRAM), wildcard(socket.SOCK_STREAM)
    tcp.listen(64)

    def datagrams():
        while True:
            _, peer = udp.recvfrom(65535)
            # From the address it was sent to only if that is the route's choice: true for pods.
            udp.sendto(f"{name} {plain(peer[0])}".encode(), peer)

    def one(conn, peer):
        with conn:
            digest, size = hashlib.sha256(), 0
            while data := conn.recv(1 << 20):
                digest.update(data)
                size += len(data)
            conn.sendall(f"{name} {plain(peer[0])} {size} {digest.hexdigest()}".encode())

    threading.Thread(target=datagrams, daemon=True).start()
    print("ready", flush=True)
    while True:
        conn, peer = tcp.accept()
        threading.Thread(target=one, args=(conn, peer), daemon=True).start()


def tcp(check):
    with socket.create_connection((check["to"], check["port"]), timeout=check["limit"]) as sock:
        sock.settimeout(max(check["limit"], 30 if check["bytes"] else 0))
        digest, left = hashlib.sha256(), check["bytes"]
        block = os.urandom(1 << 20)
        while left:
            part = block[: min(left, len(block))]
            sock.sendall(part)
            digest.update(part)
            left -= len(part)
        sock.shutdown(socket.SHUT_WR)
        text = b""
        while data := sock.recv(4096):
            text += data
    name, peer, size, sha = text.decode().split()
    if int(size) != check["bytes"] or sha != digest.hexdigest():
        raise OSError(f"{size} bytes arrived with another digest")
    return name, peer


def udp(check):
    family = socket.AF_INET6 if ":" in check["to"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(check["limit"])
        sock.bind(("", check["from_port"]))
        sock.connect((check["to"], check["port"]))
        sock.send(b"x" * max(1, check["bytes"]))
        name, peer = sock.recv(4096).decode().split()
    return name, peer


def ping(check):
    command = ["ping", "-n", "-c1", "-W", str(check["limit"]), check["to"]]
    if check["bytes"]:
        command[1:1] = ["-M", "do", "-s", str(check["bytes"])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError((done.stdout + done.stderr).strip().replace("\n", "; "))
    return "", ""


def probe(check):
    start = time.monotonic()
    answer = {"error": "", "name": "", "peer": ""}
    try:
        answer["name"], answer["peer"] = globals()[check["kind"]](check)
    except (OSError, ValueError) as error:
        answer["error"] = str(error) or type(error).__name__
    answer["ms"] = (time.monotonic() - start) * 1000
    return answer


class Received:
    """What came of one sender."""

    def __init__(self):
        self.seen, self.twice, self.next, self.gap = set(), 0, 0, 0

    def take(self, number):
        if number in self.seen:
            self.twice += 1
            return
        self.seen.add(number)
        # A late packet ends no gap; two that overtake one another are a gap of one.
        self.gap = max(self.gap, number - self.next)
        self.next = max(self.next, number + 1)

    def result(self):
        return {"count": len(self.seen), "twice": self.twice, "next": self.next, "gap": self.gap}


def flow(name):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("0.0.0.0", PORT + 1))
    received, stop = {}, threading.Event()

    def receive():
        while True:
            try:
                text = sock.recv(4096).decode()
            except ConnectionError:
                # The other's "port unreachable" after its end.
                continue
            peer, number = text.split()
            received.setdefault(peer, Received()).take(int(number))

    threading.Thread(target=receive, daemon=True).start()
    print("ready", flush=True)
    peers = json.loads(sys.stdin.readline())
    sent = {peer["name"]: 0 for peer in peers}

    def send():
        due = time.monotonic()
        while not stop.is_set():
            for peer in peers:
                packet = f"{name} {sent[peer['name']]}".encode()
                sent[peer["name"]] += 1
                try:
                    sock.sendto(packet, (peer["to"], PORT + 1))
                except OSError:
                    # No route: a packet that got lost.
                    pass
            due += 0.01
            time.sleep(max(0, due - time.monotonic()))

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    print("sending", flush=True)
    if sys.stdin.readline() == "stop\n":
        stop.set()
        sender.join()
        print("stopped", flush=True)
        sys.stdin.readline()
        time.sleep(0.3)
        counts = {peer: one.result() for peer, one in received.items()}
        print(json.dumps({"sent": sent, "received": counts}), flush=True)


if sys.argv[1] == "serve":
    serve(sys.argv[2])
elif sys.argv[1] == "flow":
    flow(sys.argv[2])
else:
    checks = json.load(sys.stdin)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        print(json.dumps(list(pool.map(probe, checks))))
