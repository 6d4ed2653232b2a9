"""When this machine was up and ready: the uptime at which its own start-up was over.

Asked once, not with every sample. Where a file is named (`ready_file`), it is ready when somebody
makes that file; with systemd, when its start-up is over (running or degraded), which one child
waits for; anywhere else, when this agent began.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from agent.procfs import parse_uptime
from shared.clock import SECOND_NS, Clock

logger = logging.getLogger(__name__)

READY_STATES = ("running", "degraded")  # of systemd: all of its first jobs are done, one way or not
WAIT_FOR_SYSTEMD = ("systemctl", "is-system-running", "--wait")
ASK_FINISHED = ("systemctl", "show", "--property=FinishTimestampMonotonic", "--value")
FILE_LOOK_S = 0.5
AGAIN_S = 10.0  # after systemd could not say
_ANSWER_S = 30.0
_SLACK_NS = 2 * SECOND_NS  # of a file's time: clocks are set by a little at the start


class Readiness:
    """`run` once; `ready_ns` is None until the machine is ready."""

    def __init__(self, root: Path, clock: Clock, ready_file: Path | None = None) -> None:
        self._root = root
        self._clock = clock
        self._file = ready_file
        self.ready_ns: int | None = None

    async def run(self) -> None:
        """Returns once the machine is ready; never where its file never comes."""
        if self._file is not None:
            self.ready_ns = await self._made(self._file)
        elif (self._root / "run/systemd/system").is_dir():
            self.ready_ns = await self._systemd()
        else:
            self.ready_ns = self._uptime_ns()
        logger.info("ready", extra={"uptime_s": (self.ready_ns or 0) / SECOND_NS})

    async def _made(self, path: Path) -> int:
        said = False
        while True:
            age_ns = self._age_ns(path)
            uptime_ns = self._uptime_ns()
            if age_ns is not None and age_ns <= uptime_ns + _SLACK_NS:
                return max(0, uptime_ns - max(0, age_ns))
            if age_ns is not None and not said:
                said = True
                fields = {"ready_file": str(path), "do": "let it be made anew at every boot"}
                logger.warning("ready_file is older than this boot", extra=fields)
            await asyncio.sleep(FILE_LOOK_S)

    async def _systemd(self) -> int:
        """When systemd says that it had finished; without a word of it, when this agent began."""
        began_ns = self._uptime_ns()
        state = await _output(WAIT_FOR_SYSTEMD, None)
        while state in {"initializing", "starting"}:  # of a systemd before 240, which does not wait
            await asyncio.sleep(AGAIN_S)
            state = await _output(WAIT_FOR_SYSTEMD, None)
        if state not in READY_STATES:
            fields = {"systemd": state or "no answer", "taken_instead": "the start of this agent"}
            logger.warning("systemd does not say when it was ready", extra=fields)
            return began_ns
        finished_us = await _output(ASK_FINISHED, _ANSWER_S)
        if finished_us.isdecimal() and int(finished_us) > 0:
            return int(finished_us) * 1000
        return self._uptime_ns()

    def _age_ns(self, path: Path) -> int | None:
        """Since the file was last written; None while there is none."""
        try:
            return self._clock.unix_ns() - path.stat().st_mtime_ns
        except OSError:
            return None

    def _uptime_ns(self) -> int:
        """By /proc, as in telemetry; the agent's own clock where it cannot be read."""
        text = ""
        with contextlib.suppress(OSError):
            text = (self._root / "proc/uptime").read_text()
        uptime_ns = parse_uptime(text)
        return self._clock.tick_ns() if uptime_ns is None else uptime_ns


async def _output(command: Sequence[str], within_s: float | None) -> str:
    """What the command wrote, without its end of line; empty when it could not be run in time."""
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(within_s):
            written, _ = await child.communicate()
    except TimeoutError:
        written = b""
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return written.decode(errors="replace").strip()
