"""Loopback ports for servers that come back after they were killed."""

import random
import socket
from pathlib import Path

LOWEST = 15_000  # above what well-known services use
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES = 1000


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody uses now, all different; OSError when none are to be had.

    They lie below the range that the kernel takes for outgoing connections. Within it, a client
    that keeps trying the port of a server that is down sooner or later connects to itself (TCP
    simultaneous open) and holds the port, and the server cannot come back.
    """
    outgoing = int(RANGE_FILE.read_text().split()[0]) if RANGE_FILE.exists() else 32_768
    highest = outgoing - 1 if outgoing > LOWEST + TRIES else 65_535
    found: list[int] = []
    for port in random.sample(range(LOWEST, highest), TRIES):
        if len(found) == count:
            break
        if _can_listen(port):
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports between {LOWEST} and {highest}")
    return found


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
