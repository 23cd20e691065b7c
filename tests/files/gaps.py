def gaps():
    """Sends a datagram to each of a list of addresses every 10 ms, each from another port, and counts those without an
    answer. For every line of stdin it prints what came of those since the line before; `stop` ends it."""
    import selectors

    step, patience, ports = 0.01, 0.8, 128
    targets = json.loads(sys.stdin.readline())
    wakes = selectors.DefaultSelector()
    wakes.register(sys.stdin, selectors.EVENT_READ)
    # By target and turn: a socket of its own, so that conntrack knows every datagram for the first of a connection, or
    # for one of a connection that is over a second old.
    socks, answered = {}, {}
    for number, target in enumerate(targets):
        for turn in range(ports):
            family = socket.AF_INET6 if ":" in target["to"] else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
            wakes.register(sock, selectors.EVENT_READ, (number, turn))
            socks[number, turn] = sock
    sent = [0] * len(targets)
    oldest = [0] * len(targets)
    due = time.monotonic()

    def report():
        out = []
        for number, target in enumerate(targets):
            run = longest = lost = 0
            for index in range(oldest[number], sent[number]):
                if answered.pop((number, index), False):
                    run = 0
                else:
                    lost, run = lost + 1, run + 1
                    longest = max(longest, run)
            out.append({"sent": sent[number] - oldest[number], "lost": lost, "longest": longest})
            oldest[number] = sent[number]
        print(json.dumps(out), flush=True)

    asked_until = None
    print("sending", flush=True)
    while True:
        now = time.monotonic()
        # What was asked for comes when the last datagrams had their time; no others are sent meanwhile.
        if asked_until is not None and now >= asked_until:
            report()
            asked_until, due = None, now
        if asked_until is None and now >= due:
            for number, target in enumerate(targets):
                try:
                    text = str(sent[number]).encode()
                    socks[number, sent[number] % ports].sendto(text, (target["to"], target["port"]))
                except OSError:
                    # No route, no neighbour: it is lost.
                    pass
                sent[number] += 1
            due += step
        until = due if asked_until is None else asked_until
        for key, _ in wakes.select(max(0, until - time.monotonic())):
            if key.data is None:
                line = sys.stdin.readline()
                if line in ("", "stop\n"):
                    return
                asked_until = time.monotonic() + patience
                continue
            number, turn = key.data
            try:
                socks[key.data].recv(4096)
            except OSError:
                continue
            # The last one that went out of this port.
            index = sent[number] - 1 - (sent[number] - 1 - turn) % ports
            answered[number, index] = True


def hear():
    """Hears ARP and neighbour discovery on eth0 from all machines; prints the frames in hex for every line of stdin."""
    import select

    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind(("eth0", 0))
    frames = []
    print("listening", flush=True)
    while True:
        for ready in select.select([sock, sys.stdin], [], [])[0]:
            if ready is sock:
                frame, (_, _, kind, *_) = sock.recvfrom(65535)
                discovery = frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] in (135, 136)
                # 4: its own.
                if kind != 4 and (frame[12:14] == b"\x08\x06" or discovery):
                    frames.append(frame.hex())
            elif not sys.stdin.readline():
                return
            else:
                print(json.dumps(frames), flush=True)
                frames.clear()


