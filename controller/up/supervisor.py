"""Child processes: started, made to die with us, restarted with back-off, stopped in order.

Every restart is said, to the listener and on the record. Five crashes of one child within a minute
are no accident: `gave_up` then holds the text that says so, with the end of the child's log.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from controller.up import launch
from shared.errors import HrapaqError

CRASHES_MAX = 5
CRASH_WINDOW_S = 60.0
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 8.0
LOG_TAIL_LINES = 12
LOG_TAIL_BYTES = 16 * 1024


class ChildError(HrapaqError):
    """A child did not start, or crashed too often; the text carries the end of its log."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One program to keep running. `ready` says whether it does its work yet."""

    name: str
    command: tuple[str, ...]
    log_path: Path
    ready: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of our own
    ready_within_s: float = 20.0
    stop_within_s: float = 8.0  # after SIGTERM; then SIGKILL


@dataclass(frozen=True, slots=True)
class Restart:
    """A child ended without being asked to."""

    name: str
    at_unix_ns: int
    ended: str  # "exit code 3", "killed by SIGKILL"


@dataclass(slots=True)
class Crashes:
    """When one child ended by itself, as far as it matters; monotonic seconds."""

    first_delay_s: float = BACKOFF_FIRST_S
    _at_s: deque[float] = field(default_factory=deque)  # newest last, all within the window

    def add(self, now_s: float) -> None:
        self._at_s.append(now_s)
        while self._at_s[0] <= now_s - CRASH_WINDOW_S:
            self._at_s.popleft()

    @property
    def are_too_many(self) -> bool:
        return len(self._at_s) >= CRASHES_MAX

    @property
    def delay_s(self) -> float:
        """Before the next start: longer with each crash; when they are too many, until the oldest
        no longer counts."""
        if self.are_too_many:
            until_one_is_old = self._at_s[0] + CRASH_WINDOW_S - self._at_s[-1]
            return max(until_one_is_old, self.first_delay_s)  # never zero: nor by rounding
        return float(min(self.first_delay_s * 2 ** (len(self._at_s) - 1), BACKOFF_MAX_S))


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: asyncio.subprocess.Process
    crashes: Crashes
    watcher: asyncio.Task[None] | None = None


class Supervisor:
    """Starts children in the order of the calls; `stop_all` stops them in the reverse order."""

    def __init__(
        self, say: Callable[[str], None], backoff_first_s: float = BACKOFF_FIRST_S
    ) -> None:
        self._say = say
        self._backoff_first_s = backoff_first_s
        self._children: dict[str, _Child] = {}
        self.restarts: list[Restart] = []
        self.gave_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self, spec: ChildSpec) -> None:
        """Runs the child and waits until it is ready; ChildError with its log otherwise."""
        assert spec.name not in self._children, spec.name
        child = _Child(spec, await _spawn(spec), Crashes(self._backoff_first_s))
        self._children[spec.name] = child
        try:
            await _until_ready(child)
        except ChildError:
            await self.stop(spec.name)
            raise
        child.watcher = asyncio.create_task(self._watch(child), name=f"watch {spec.name}")

    def pid(self, name: str) -> int | None:
        """Of the child as it runs now; None when it does not."""
        child = self._children.get(name)
        if child is None or child.process.returncode is not None:
            return None
        return child.process.pid

    async def stop(self, name: str) -> None:
        """Asks the child to end, ends it when it does not; its whole process group goes with it."""
        child = self._children.pop(name, None)
        if child is None:
            return
        if child.watcher is not None:
            child.watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await child.watcher
        await _end(child)

    async def stop_all(self) -> None:
        for name in reversed(list(self._children)):
            await self.stop(name)

    async def _watch(self, child: _Child) -> None:
        """Restarts the child as long as that makes sense."""
        while True:
            await child.process.wait()
            _signal_group(child.process.pid, signal.SIGKILL)  # what it may have started itself
            ended = ended_text(child.process.returncode)
            self.restarts.append(Restart(child.spec.name, time.time_ns(), ended))
            if not self._may_restart(child, ended):
                return
            delay = child.crashes.delay_s
            self._say(f"{child.spec.name} ended ({ended}); it is started again in {delay:g} s")
            await asyncio.sleep(delay)
            child.process = await _spawn(child.spec)
            try:
                await _until_ready(child)
            except ChildError as error:
                if child.process.returncode is None:
                    _signal_group(child.process.pid, signal.SIGKILL)
                self._say(f"{child.spec.name} did not become ready: {first_line(error)}")
            else:
                self._say(f"{child.spec.name} runs again")

    def _may_restart(self, child: _Child, ended: str) -> bool:
        child.crashes.add(time.monotonic())
        if not child.crashes.are_too_many:
            return True
        text = (
            f"{child.spec.name} crashed {CRASHES_MAX} times within a minute (last: {ended}); "
            f"the end of {child.spec.log_path}:\n{log_tail(child.spec.log_path)}"
        )
        if not self.gave_up.done():
            self.gave_up.set_result(text)
        return False


def ended_text(returncode: int | None) -> str:
    assert returncode is not None
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def log_tail(path: Path) -> str:
    """The last lines of a log, at most 12 and 16 KiB."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:]) or "(empty)"


async def _spawn(spec: ChildSpec) -> asyncio.subprocess.Process:
    """In a session of its own, so that Ctrl-C in the terminal reaches us alone."""
    launcher = (sys.executable, "-I", "-S", launch.__file__, str(os.getpid()))
    with spec.log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *launcher,
            *spec.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_inherited(), **spec.environment},
            start_new_session=True,
        )


def _inherited() -> dict[str, str]:
    """Our environment without HRAPAQ_*: children take their settings from their files alone."""
    return {name: text for name, text in os.environ.items() if not name.startswith("HRAPAQ_")}


async def _until_ready(child: _Child) -> None:
    """Polls: what makes a child ready (a port, a file) tells nobody by itself."""
    spec, deadline = child.spec, time.monotonic() + child.spec.ready_within_s
    while time.monotonic() < deadline:
        if child.process.returncode is not None:
            ended = ended_text(child.process.returncode)
            tail = log_tail(spec.log_path)
            raise ChildError(f"{spec.name} ended at once ({ended}); its log says:\n{tail}")
        if await spec.ready():
            return
        await asyncio.sleep(0.05)
    raise ChildError(
        f"{spec.name} was not ready within {spec.ready_within_s:g} s; "
        f"its log says:\n{log_tail(spec.log_path)}"
    )


async def _end(child: _Child) -> None:
    pid = child.process.pid
    if child.process.returncode is None:
        _signal_group(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.process.wait(), child.spec.stop_within_s)
    _signal_group(pid, signal.SIGKILL)  # the stubborn, and whatever it left in its group
    await child.process.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    """The child leads a group of its own; nobody left in it is as good as done."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
