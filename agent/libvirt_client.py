"""The libvirt worker process as seen from the agent: calls with a budget, killed when one is up."""

import asyncio
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgpack  # type: ignore[import-untyped]  # it ships no types

from shared.clock import SECOND_NS, Clock
from shared.errors import (
    HypervisorError,
    HypervisorTimeout,
    HypervisorUnavailable,
    VmGone,
    how_to_install,
)

logger = logging.getLogger(__name__)

CALLS_MAX = 4  # in flight per lane; the worker has as many threads
_FRAME_BYTES_MAX = 64 * 1024 * 1024
_BACKOFF_NS_MIN = SECOND_NS // 2
_BACKOFF_NS_MAX = 30 * SECOND_NS


class WorkerLost(HypervisorUnavailable):
    """The worker died under this call; whether it was carried out is not known."""


@dataclass(slots=True)
class _Worker:
    process: asyncio.subprocess.Process
    pending: dict[int, asyncio.Future[tuple[str, Any]]] = field(default_factory=dict)
    reader: asyncio.Task[None] | None = None


class WorkerClient:
    """Starts the worker when first needed, and again after it died, with a growing pause.

    `on_event` hears what libvirt tells by itself (agent.libvirt_events), as long as a worker runs.
    """

    def __init__(
        self, uri: str, clock: Clock, on_event: Callable[[list[Any]], None] = lambda _event: None
    ) -> None:
        self._uri = uri
        self._clock = clock
        self._on_event = on_event
        self._worker: _Worker | None = None
        self._starting = asyncio.Lock()
        self._lanes = {lane: asyncio.Semaphore(CALLS_MAX) for lane in ("statistics", "control")}
        self._number = 0
        self._deaths = 0  # since the last good reply
        self._start_not_before_tick_ns = 0
        self._closed = False
        self.starts = 0  # of a worker, so far; more than one means that some were lost

    @property
    def pid(self) -> int | None:
        """Of the worker that runs now."""
        return None if self._worker is None else self._worker.process.pid

    async def call(self, lane: str, method: str, *arguments: object, budget_s: float) -> Any:  # noqa: ANN401 - each method has its own result
        """The result of one of agent.libvirt_worker's METHODS.

        HypervisorTimeout after `budget_s` (the worker is killed: its thread is stuck and cannot be
        had back), WorkerLost when it died, VmGone, HypervisorUnavailable, HypervisorError.
        """
        async with self._lanes[lane]:
            worker = await self._running()
            self._number += 1
            number = self._number
            reply = worker.pending[number] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(budget_s):
                    _send(worker.process, (number, lane, method, arguments))
                    kind, content = await reply
            except TimeoutError:
                await self._kill(worker)
                raise HypervisorTimeout(
                    f"libvirt did not answer {method} within {budget_s:g} s"
                    f" at {self._uri}; its worker process was replaced"
                ) from None
            finally:
                worker.pending.pop(number, None)
        if kind != "ok":
            _fail(kind, content, arguments)
        self._deaths = 0
        return content

    async def close(self) -> None:
        """Kills the worker and waits for its end; calls in flight fail with WorkerLost."""
        self._closed = True
        async with self._starting:
            if self._worker is not None:
                await self._kill(self._worker)

    async def _running(self) -> _Worker:
        async with self._starting:
            if self._closed:
                raise HypervisorUnavailable("the connection to libvirt was closed")
            if self._worker is None:
                self._worker = await self._start()
            return self._worker

    async def _start(self) -> _Worker:
        wait_ns = self._start_not_before_tick_ns - self._clock.tick_ns()
        if wait_ns > 0:
            raise HypervisorUnavailable(
                f"the libvirt worker for {self._uri} died {self._deaths} times in a row;"
                f" the next start is in {wait_ns / SECOND_NS:.1f} s"
            )
        if importlib.util.find_spec("libvirt") is None:
            raise HypervisorUnavailable(
                f"libvirt-python is not installed: {how_to_install('host')} (it is built against"
                " the installed libvirt: libvirt-dev, pkg-config, gcc, python3-dev)"
            )
        try:
            process = await _spawn(self._uri)
        except OSError as error:
            raise HypervisorUnavailable(f"cannot start the libvirt worker: {error}") from error
        self.starts += 1
        worker = _Worker(process)
        worker.reader = asyncio.create_task(self._read(worker))
        return worker

    async def _read(self, worker: _Worker) -> None:
        """Hands out replies until the worker's end, whatever brought it about."""
        stream = worker.process.stdout
        assert stream is not None
        try:
            while True:
                length = int.from_bytes(await stream.readexactly(4), "big")
                assert length <= _FRAME_BYTES_MAX, length
                number, kind, content = msgpack.unpackb(await stream.readexactly(length))
                if kind == "event":
                    self._on_event(content)
                    continue
                reply = worker.pending.get(number)
                if reply is not None and not reply.done():
                    reply.set_result((kind, content))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        if not self._closed:  # also where it was killed for a hanging call: nobody listens now
            self._on_event(["closed", "", 0, 0])
        if self._worker is worker:
            logger.warning("the libvirt worker ended by itself; the next call starts another")
            self._deaths += 1
            self._start_not_before_tick_ns = self._clock.tick_ns() + _pause_ns(self._deaths)
            self._worker = None
        await self._bury(worker)

    async def _kill(self, worker: _Worker) -> None:
        """Not a death of its own: the next call may start another at once."""
        if self._worker is worker:
            self._worker = None
        if worker.process.returncode is None:
            worker.process.kill()  # also works on a stopped process
        if worker.reader is not None:
            await asyncio.wait({worker.reader})  # a caller's own cancellation must not reach it

    async def _bury(self, worker: _Worker) -> None:
        code = await worker.process.wait()
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        for reply in worker.pending.values():
            if not reply.done():
                text = f"the libvirt worker for {self._uri} ended with {code} during the call"
                reply.set_exception(WorkerLost(text))


def _pause_ns(deaths: int) -> int:
    """None after the first death, then doubling."""
    return 0 if deaths < 2 else min(_BACKOFF_NS_MAX, _BACKOFF_NS_MIN << min(deaths - 2, 10))  # noqa: PLR2004


async def _spawn(uri: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent.libvirt_worker",
        uri,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is the agent's to handle; the worker ends with it
        # Its threads wait for libvirt most of the time: a heap for each of them is a MiB wasted.
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )


def _send(process: asyncio.subprocess.Process, request: object) -> None:
    """Does not wait: requests are small and their number is limited by CALLS_MAX."""
    body = msgpack.packb(request)
    assert process.stdin is not None
    process.stdin.write(len(body).to_bytes(4, "big") + body)


def _fail(kind: str, text: str, arguments: tuple[object, ...]) -> NoReturn:
    if kind == "gone":
        raise VmGone(str(arguments[0]) if arguments else text)
    failures: dict[str, Callable[[str], HypervisorError]] = {
        "unavailable": HypervisorUnavailable,
        "timeout": HypervisorTimeout,
        "refused": HypervisorError,
    }
    raise failures[kind](f"libvirt: {text}")
