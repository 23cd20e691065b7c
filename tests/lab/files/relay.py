"""Delay, jitter, loss and rate between two interfaces, for kernels without netem.

relay.py INTERFACE INTERFACE DELAY_MS JITTER_MS LOSS_PERCENT RATE_MBIT

Python, because AF_PACKET with PACKET_VNET_HDR (which keeps segmentation offload and partial checksums intact)
takes unsafe code in Rust, and the workspace forbids it outside one crate that the lab must not need.
"""
import heapq
import random
import select
import socket
import struct
import sys
import time

SOL_PACKET, ADD_MEMBERSHIP, VNET_HDR, IGNORE_OUTGOING, SO_RCVBUFFORCE = 263, 1, 15, 23, 33
names = sys.argv[1:3]
delay, jitter, loss, rate = (float(value) for value in sys.argv[3:7])
delay, jitter, loss, rate = delay / 1e3, jitter / 1e3, loss / 100, rate * 1e6 / 8


def attach(name):
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    end.setsockopt(SOL_PACKET, VNET_HDR, 1)
    end.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    end.bind((name, 0))
    end.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("IHH8s", socket.if_nametoindex(name), 1, 0, b""))
    end.setblocking(False)
    return end


def relay(a, b):
    peer = {a: b, b: a}
    free = {a: 0.0, b: 0.0}
    queue = []
    count = 0
    while True:
        now = time.monotonic()
        wait = max(0, queue[0][0] - now) if queue else 5
        for end in select.select([a, b], [], [], wait)[0]:
            for _ in range(64):
                try:
                    packet = end.recv(70000)
                except BlockingIOError:
                    break
                if loss and random.random() < loss:
                    continue
                now = time.monotonic()
                at = now + delay + (random.uniform(-jitter, jitter) if jitter else 0)
                if rate:
                    free[end] = max(free[end], now) + len(packet) / rate
                    at = max(at, free[end] + delay)
                count += 1
                heapq.heappush(queue, (at, count, peer[end], packet))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, end, packet = heapq.heappop(queue)
            try:
                end.send(packet)
            except OSError:
                pass  # full or down: lost, as on a wire


# A reboot takes the node's interface away and brings a new one by the same name.
while True:
    ends = []
    try:
        for name in names:
            ends.append(attach(name))
        print("ready", flush=True)
        relay(*ends)
    except OSError:
        for end in ends:
            end.close()
        time.sleep(0.02)
