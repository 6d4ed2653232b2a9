"""Runs in a guest of the testbed and lies on the bus, as fast as that takes it.

hostile.py HOST:PORT SECONDS OWN_UUID OTHER_UUID...: absurd needs on its own subject and on those of
others, bytes that are no words, telemetry that is none. Prints how many of each it sent.
"""

import os
import random
import socket
import sys
import time

import msgpack

ABSURD_BYTES = 2**50
ROUND_S = 0.02


def main() -> None:
    address, seconds, own, *others = sys.argv[1:]
    host, _, port = address.rpartition(":")
    sent = {"absurd": 0, "garbage": 0, "others": 0}
    with socket.create_connection((host, int(port)), timeout=10) as bus:
        bus.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
        bus.settimeout(0.001)
        ends, number = time.monotonic() + float(seconds), 0
        while time.monotonic() < ends:
            number += 1
            say(bus, f"paq.guest.{own}", absurd(number))
            say(bus, f"paq.guest.{own}", os.urandom(random.randrange(2000)))
            say(bus, f"paq.telemetry.{own}", os.urandom(random.randrange(2000)))
            for other in others:
                say(bus, f"paq.guest.{other}", absurd(number))
            sent["absurd"] += 1
            sent["garbage"] += 2
            sent["others"] += len(others)
            answer_pings(bus)
            time.sleep(ROUND_S)
    sys.stdout.write(f"{sent}\n")


def absurd(number: int) -> bytes:
    return msgpack.packb(
        {
            "version": 1,
            "boot_id": f"liar-{number // 100}",
            "sequence": number,
            "ready_ns": None if number % 2 else 2**60,
            "memory_wanted_bytes": ABSURD_BYTES,
            "cpu_wanted_millicores": 10**9,
        }
    )


def say(bus: socket.socket, subject: str, data: bytes) -> None:
    bus.settimeout(10)
    bus.sendall(f"PUB {subject} {len(data)}\r\n".encode() + data + b"\r\n")


def answer_pings(bus: socket.socket) -> None:
    bus.settimeout(0.001)
    try:
        if b"PING" in bus.recv(65536):
            bus.sendall(b"PONG\r\n")
    except TimeoutError:
        pass


main()
