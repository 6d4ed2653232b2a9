"""PSI triggers: the kernel says by itself when tasks have stalled for too long.

A trigger is a line written into a pressure file (/proc/pressure/memory, a cgroup's cpu.pressure)
that stays open; the kernel then raises POLLPRI on it at most once per window. It looks ten times
per window where the process has CAP_SYS_RESOURCE. To others it gives windows of whole 2 s only
(from Linux 6.4 on) and looks every 2 s: no sooner than reading the totals would show it.
"""

import asyncio
import os
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNPRIVILEGED_WINDOW_US = 2_000_000

_WINDOW_US_MIN, _WINDOW_US_MAX = 500_000, 10_000_000


class PsiTriggers:
    """Watches pressure files on the running event loop, until `close`.

    `on_trigger` gets the path of the file in which tasks stalled for `stall_us` within one
    `window_us`; with `kind` "full", all of them at once. A file that cannot be watched, or no
    longer because its group is gone, stands in `refused` with the reason: read its total instead.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        stall_us: int,
        window_us: int,
        on_trigger: Callable[[Path], None],
        *,
        kind: Literal["some", "full"] = "some",
    ) -> None:
        assert 0 < stall_us <= window_us, "a window holds its stall"
        assert _WINDOW_US_MIN <= window_us <= _WINDOW_US_MAX, "the kernel takes no other window"
        self._stall_us, self._window_us, self._kind = stall_us, window_us, kind
        self._on_trigger = on_trigger
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Path, _Trigger] = {}
        self.refused: dict[Path, str] = {}
        self.watch(paths)

    @property
    def watched(self) -> frozenset[Path]:
        return frozenset(self._watched)

    @property
    def slow(self) -> bool:
        """Whether some trigger is an unprivileged one, which says what happened 2 s late."""
        return any(one.window_us != self._window_us for one in self._watched.values())

    def watch(self, paths: Iterable[Path]) -> None:
        """These and no others from now on; what was refused is tried again."""
        wanted = dict.fromkeys(paths)
        for path in self._watched.keys() - wanted.keys():
            self._drop(path)
        self.refused = {}
        for path in wanted:
            if path not in self._watched:
                self._add(path)

    def close(self) -> None:
        self.watch(())

    def _add(self, path: Path) -> None:
        try:
            trigger = self._open(path)
        except OSError as error:
            self.refused[path] = error.strerror or str(error)
            return
        self._watched[path] = trigger
        self._loop.add_reader(trigger.poller.fileno(), self._fired, path)

    def _open(self, path: Path) -> "_Trigger":
        try:
            return _open_trigger(path, self._kind, self._stall_us, self._window_us)
        except OSError:
            # The same share of a window that anybody may have; what is not permitted stays so.
            window_us = -(-self._window_us // UNPRIVILEGED_WINDOW_US) * UNPRIVILEGED_WINDOW_US
            stall_us = self._stall_us * window_us // self._window_us
            return _open_trigger(path, self._kind, stall_us, window_us)

    def _drop(self, path: Path) -> None:
        trigger = self._watched.pop(path)
        self._loop.remove_reader(trigger.poller.fileno())
        trigger.close()

    def _fired(self, path: Path) -> None:
        trigger = self._watched[path]
        # The event was taken by whoever polled last, here the loop: only an error still shows.
        trigger.poller.poll(0)
        if trigger.is_gone():
            self._drop(path)
            self.refused[path] = "its group is gone"
            return
        self._on_trigger(path)


@dataclass(frozen=True, slots=True)
class _Trigger:
    """One open pressure file in an epoll of its own.

    The loop asks its files whether they can be read, and pressure files always can; an epoll can
    just when what it was told to look for is there, and one of its own tells which file it was.
    """

    descriptor: int
    poller: select.epoll
    window_us: int

    def is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLPRI)
        return any(event & select.POLLERR for _, event in poll.poll(0))

    def close(self) -> None:
        self.poller.close()
        os.close(self.descriptor)


def _open_trigger(path: Path, kind: str, stall_us: int, window_us: int) -> _Trigger:
    """OSError where the kernel has no PSI, does not let us, or the file is none of PSI."""
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    poller = None
    try:
        os.write(descriptor, f"{kind} {stall_us} {window_us}\0".encode())
        poller = select.epoll()
        poller.register(descriptor, select.EPOLLPRI)
    except OSError:
        if poller is not None:
            poller.close()
        os.close(descriptor)
        raise
    return _Trigger(descriptor, poller, window_us)
