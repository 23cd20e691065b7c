"""Both ends of the tests' traffic, for use inside a network namespace.

serve NAME      answers on ports 7000 and 7100, TCP, UDP and SCTP, of all addresses; as NAME:7100 on the other port
probe           reads a JSON list of checks from stdin, does them all at once, prints the answers
boom PORT N     answers N packets of connections to a port with packets that are not theirs
ask             reads such a list, does each again and again, prints what came of it so far for every line of stdin
gaps            sends a datagram to each of a list of services every 10 ms and says how long none was answered
hear            says which ARP and neighbour discovery it heard
resolve IF      asks on an interface who has addresses, by ARP and neighbour discovery
latency IF A N  says how long each of N answers to a question for an address took
flood IF N A..  asks for addresses N times a second
record IF PORT  says which datagrams to a port it heard
send IF         sends frames
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

PORT, OTHER_PORT = 7000, 7100


def plain(address):
    """An address without its scope, and IPv4 without its IPv6 coat."""
    ip = ipaddress.ip_address(address.split("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def wildcard(kind, port):
    try:
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
    except OSError:
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
    return sock


def serve(name):
    def named(port):
        return name if port == PORT else f"{name}:{port}"

    def datagrams(sock, name):
        while True:
            _, peer = sock.recvfrom(65535)
            # From the address it was sent to only if that is the route's choice: true for pods.
            sock.sendto(f"{name} {plain(peer[0])}".encode(), peer)

    def one(conn, peer, name):
        with conn:
            digest, size = hashlib.sha256(), 0
            try:
                while data := conn.recv(1 << 20):
                    digest.update(data)
                    size += len(data)
                conn.sendall(f"{name} {plain(peer[0])} {size} {digest.hexdigest()}".encode())
            except OSError:
                # The client sees it.
                pass

    def connections(sock, name):
        while True:
            conn, peer = sock.accept()
            threading.Thread(target=one, args=(conn, peer, name), daemon=True).start()

    for port in (PORT, OTHER_PORT):
        udp, tcp = wildcard(socket.SOCK_DGRAM, port), wildcard(socket.SOCK_STREAM, port)
        tcp.listen(64)
        threading.Thread(target=datagrams, args=(udp, named(port)), daemon=True).start()
        threading.Thread(target=connections, args=(tcp, named(port)), daemon=True).start()
    start_sctp_servers((PORT, OTHER_PORT), named, plain)
    print("ready", flush=True)
    threading.Event().wait()


def answer_of(sock, size, digest):
    """What a server says of a connection at its end: who it is, whom it saw. It must have all that was sent."""
    sock.shutdown(socket.SHUT_WR)
    text = b""
    while data := sock.recv(4096):
        text += data
    if not text:
        raise OSError("closed without an answer")
    name, peer, seen, sha = text.decode().split()
    if int(seen) != size or sha != digest.hexdigest():
        raise OSError(f"{seen} bytes arrived with another digest")
    return name, peer


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
        return answer_of(sock, check["bytes"], digest)


def udp(check):
    family = socket.AF_INET6 if ":" in check["to"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(check["limit"])
        try:
            sock.bind(("", check["from_port"] or check.get("fresh_port", 0)))
        except OSError:
            if check["from_port"]:
                raise
            sock.bind(("", 0))
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


def with_fresh_ports(checks):
    """Ports that no probe had in the last minutes: nodes know their connections for up to two, and go on as they began."""
    start = int(time.monotonic() * 10) * 16
    return [{**check, "fresh_port": 32768 + (start + number) % 28160} for number, check in enumerate(checks)]


def probe(check):
    start = time.monotonic()
    answer = {"error": "", "name": "", "peer": ""}
    try:
        answer["name"], answer["peer"] = globals()[check["kind"]](check)
    except (OSError, ValueError) as error:
        answer["error"] = str(error) or type(error).__name__
    answer["ms"] = (time.monotonic() - start) * 1000
    return answer


def held(check, stop):
    """One connection until the end, a byte every 10 ms; all of them must have arrived."""
    with socket.create_connection((check["to"], check["port"]), timeout=check["limit"]) as sock:
        digest, size = hashlib.sha256(), 0
        while not stop.wait(0.01):
            sock.sendall(b"x")
            digest.update(b"x")
            size += 1
        return answer_of(sock, size, digest)


def ask():
    checks, stop = json.loads(sys.stdin.readline()), threading.Event()
    results = [{"asked": 0, "failed": 0, "errors": [], "last": "", "names": {}, "peers": {}} for _ in checks]

    def once(check, result):
        try:
            name, peer = held(check, stop) if check["kind"] == "held" else globals()[check["kind"]](check)
            result["names"][name] = result["names"].get(name, 0) + 1
            result["peers"][peer] = result["peers"].get(peer, 0) + 1
            result["last"] = name
        except (OSError, ValueError) as error:
            result["failed"] += 1
            # The first ones tell.
            result["errors"] = [*result["errors"], str(error) or type(error).__name__][:8]
        result["asked"] += 1

    def again(check, result):
        while not stop.is_set():
            once(check, result)
            stop.wait(0.01)

    threads = [threading.Thread(target=again, args=pair, daemon=True) for pair in zip(checks, results)]
    for thread in threads:
        thread.start()
    print("asking", flush=True)
    for line in sys.stdin:
        if line == "stop\n":
            stop.set()
            for thread in threads:
                thread.join()
        print(json.dumps(results), flush=True)


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
elif sys.argv[1] == "ask":
    ask()
elif sys.argv[1] == "gaps":
    gaps()
elif sys.argv[1] == "hear":
    hear()
elif sys.argv[1] == "resolve":
    resolve(sys.argv[2])
elif sys.argv[1] == "latency":
    latency(sys.argv[2], sys.argv[3], int(sys.argv[4]))
elif sys.argv[1] == "flood":
    flood(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
elif sys.argv[1] == "record":
    record(sys.argv[2], int(sys.argv[3]))
elif sys.argv[1] == "send":
    send(sys.argv[2])
elif sys.argv[1] == "boom":
    boom(int(sys.argv[2]), int(sys.argv[3]))
else:
    checks = json.load(sys.stdin)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        print(json.dumps(list(pool.map(probe, with_fresh_ports(checks)))))
