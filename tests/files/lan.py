class Ear:
    """A packet socket on an interface, and the interface's own addresses."""

    def __init__(self, interface):
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.bind((interface, 0))
        self.sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 23)  # SO_RCVBUFFORCE
        self.mac = self.sock.getsockname()[4]
        text = subprocess.run(["ip", "-json", "address", "show", "dev", interface], capture_output=True, check=True).stdout
        own = [a["local"] for a in json.loads(text)[0]["addr_info"] if a["scope"] == "global"]
        self.own = {ip.version: ip for ip in map(ipaddress.ip_address, own)}

    def only_arp_replies(self):
        """What else comes in, as a flood does, is no work for this process (linux/filter.h)."""
        import ctypes
        import struct

        # Half-word at 12 is ARP, half-word at 20 is 2: whole, else nothing.
        code = [(0x28, 0, 0, 12), (0x15, 0, 3, 0x806), (0x28, 0, 0, 20), (0x15, 0, 1, 2), (6, 0, 0, 0x40000), (6, 0, 0, 0)]
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
        head = struct.pack("HL", len(code), ctypes.addressof(program))
        self.sock.setsockopt(socket.SOL_SOCKET, 26, head)  # SO_ATTACH_FILTER

    def question(self, address):
        """An ARP request (RFC 826) or a neighbour solicitation (RFC 4861 4.3), to everybody."""
        ip = ipaddress.ip_address(address)
        own = self.own[ip.version].packed
        if ip.version == 4:
            return b"\xff" * 6 + self.mac + bytes.fromhex("08060001080006040001") + self.mac + own + bytes(6) + ip.packed
        group = bytes.fromhex("ff0200000000000000000001ff") + ip.packed[13:]
        icmp = bytes([135]) + bytes(7) + ip.packed + b"\x01\x01" + self.mac
        words = own + group + len(icmp).to_bytes(4, "big") + bytes([0, 0, 0, 58]) + icmp
        total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        icmp = icmp[:2] + (total ^ 0xFFFF).to_bytes(2, "big") + icmp[4:]
        head = b"\x33\x33" + group[12:] + self.mac + b"\x86\xdd\x60\0\0\0" + len(icmp).to_bytes(2, "big") + b"\x3a\xff"
        return head + own + group + icmp

    def answers(self, until):
        """Claims that come in, with the MAC address of who makes them, until a time."""
        while (rest := until - time.monotonic()) > 0:
            self.sock.settimeout(rest)
            try:
                frame, (_, _, kind, *_) = self.sock.recvfrom(2048)
            except OSError:
                return
            if kind == 4:  # Its own.
                continue
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02":
                yield str(ipaddress.ip_address(frame[28:32])), frame[22:28].hex(":")
            elif frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 136:
                yield str(ipaddress.ip_address(frame[62:78])), frame[6:12].hex(":")


def resolve(interface):
    """Asks on an interface who has addresses, a list on every line of stdin; prints the MAC addresses that claim each."""
    ear = Ear(interface)
    print("listening", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        found = {address: set() for address in wanted}
        # What came before is of no interest.
        ear.sock.setblocking(False)
        try:
            while True:
                ear.sock.recv(64)
        except OSError:
            pass
        for pause in (0.1, 0.1, 0.3):
            for address in wanted:
                if not found[address]:
                    ear.sock.send(ear.question(address))
            for address, mac in ear.answers(time.monotonic() + pause):
                if address in found:
                    found[address].add(mac)
        print(json.dumps({address: sorted(macs) for address, macs in found.items()}), flush=True)


def latency(interface, address, count):
    """Asks for an IPv4 address again and again; prints how long each answer took, microseconds, -1 for none within a second."""
    ear = Ear(interface)
    ear.only_arp_replies()
    question, out = ear.question(address), []
    for _ in range(count):
        start = time.monotonic()
        ear.sock.send(question)
        took = -1
        for who, _ in ear.answers(start + 1):
            if who == address:
                took = round((time.monotonic() - start) * 1e6)
                break
        out.append(took)
        time.sleep(0.005)
    print(json.dumps(out), flush=True)


def flood(interface, rate, addresses):
    """Asks for addresses in turn, so many times a second, as many other machines; prints how often and for how long."""
    ear = Ear(interface)
    ear.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    questions = [ear.question(address) for address in addresses]
    # Senders that nobody has: what is said to one of them is not the next one's.
    questions = [q[:28] + bytes([192, 168, 50, 101 + n % 49]) + q[32:] for n in range(49) for q in questions]
    stop, sent, start = threading.Event(), 0, time.monotonic()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("flooding", flush=True)
    while not stop.is_set():
        due = int((time.monotonic() - start) * rate)
        # What could not be sent in time is not made up for.
        for _ in range(min(due - sent, 500)):
            try:
                ear.sock.send(questions[sent % len(questions)])
            except OSError:
                pass
            sent += 1
        if sent >= due:
            time.sleep(0.001)
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - start}), flush=True)


def record(interface, port):
    """Keeps the frames with datagrams to a port that come in on an interface; prints them for every line of stdin."""
    import select

    ear = Ear(interface)
    frames = []
    print("listening", flush=True)
    while True:
        for ready in select.select([ear.sock, sys.stdin], [], [])[0]:
            if ready is not sys.stdin:
                frame, (_, _, kind, *_) = ear.sock.recvfrom(65535)
                if kind != 4 and frame[12:14] == b"\x08\0" and frame[23] == 17 and frame[36:38] == port.to_bytes(2, "big"):
                    frames.append(frame.hex())
            elif not sys.stdin.readline():
                return
            else:
                print(json.dumps(frames), flush=True)
                frames.clear()


def send(interface):
    """Sends lists of frames, with its own MAC address for sender; prints how many after each."""
    ear = Ear(interface)
    ear.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        frames = json.loads(line)
        for number, frame in enumerate(frames):
            frame = bytes.fromhex(frame)
            ear.sock.send(frame[:6] + ear.mac + frame[12:])
            if number % 50 == 49:
                # Nobody's queue is to overflow: what is lost is not counted.
                time.sleep(0.01)
        print(len(frames), flush=True)


