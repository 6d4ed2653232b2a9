"""What systemd is told of a unit with Type=notify: that it is up, and that it still turns.

The protocol is one datagram of KEY=value lines to the socket in NOTIFY_SOCKET (sd_notify(3)), so
no library is needed. Outside of systemd there is no such socket, and nothing is said.
"""

import contextlib
import socket
from collections.abc import Mapping


class ServiceManager:
    """`address` as NOTIFY_SOCKET has it: a path, or @name of an abstract socket; None: nobody."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._ready = False

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> "ServiceManager":
        return cls(environ.get("NOTIFY_SOCKET") or None)

    def ready(self) -> None:
        """Start-up is over; said once."""
        if not self._ready:
            self._ready = True
            self._tell("READY=1")

    def alive(self) -> None:
        """To be said more often than WatchdogSec, by what must not stand still."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, word: str) -> None:
        """Never fails: what is not heard ends in systemd's own time-out, which says so."""
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as there,
        ):
            there.sendto(word.encode(), address)
