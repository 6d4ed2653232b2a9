"""Runs in an L2: takes orders and makes load: memory, CPU, disk.

Every load is a process of its own that the kernel would kill before this one, and says with its
machine's time what it wants and what it got; it never takes the last memory.
"""

import mmap
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from testbed.inside.port import Port, clock, port_path, run

CHUNK_MIB = 2
SPARE_MIB = 20  # stays available: below it a load waits, as a program that is careful would
LOOK_S = 0.05
SAY_S = 0.25
SCRATCH = "/dev/vdb"


def main() -> None:
    Path("/proc/self/oom_score_adj").write_text("-900")
    worker = Worker(Port(port_path()))
    worker.port.send({"event": "hello", **clock()})
    for message in worker.port.lines():
        threading.Thread(target=worker.obey, args=(message,), daemon=True).start()


class Worker:
    def __init__(self, port: Port) -> None:
        self.port = port
        self._loads: dict[str, int] = {}

    def obey(self, message: dict[str, Any]) -> None:
        try:
            answer = getattr(self, f"do_{message['do']}")(**message.get("with", {}))
        except (OSError, KeyError, AttributeError, TypeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self.port.send({"id": message["id"], **(answer or {})})

    def do_clock(self) -> dict[str, Any]:
        return clock()

    def do_exec(self, command: str, timeout_s: float = 60.0) -> dict[str, Any]:
        return run(command, timeout_s)

    def do_load(self, name: str, kind: str, points: list[list[float]], ramp: bool = False) -> None:
        """points: [second, amount] from now on; the last amount stays until the load is stopped.

        Amounts: memory MiB, cpu millicores, disk MiB/s. ramp: straight lines between the points.
        """
        self.do_stop(name)
        make = {"memory": memory, "cpu": cpu, "disk": disk}[kind]
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                Path("/proc/self/oom_score_adj").write_text("900")
                make(Profile(points, ramp), Saying(writer, name, kind))
            finally:
                os._exit(1)
        os.close(writer)
        self._loads[name] = pid
        threading.Thread(target=self._pass_on, args=(name, kind, pid, reader), daemon=True).start()

    def do_stop(self, name: str) -> None:
        pid = self._loads.pop(name, None)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def _pass_on(self, name: str, kind: str, pid: int, reader: int) -> None:
        with os.fdopen(reader) as lines:
            for line in lines:
                at, wanted, got, more = map(float, line.split())
                report = {"at": at, "wanted": wanted, "got": got, "available_mib": more}
                self.port.send({"event": "load", "load": name, "kind": kind, **report})
        _, status = os.waitpid(pid, 0)
        asked = self._loads.get(name) != pid
        self._loads = {known: one for known, one in self._loads.items() if one != pid}
        ended = {"at": time.time(), "status": status, "asked": asked}
        self.port.send({"event": "load-ended", "load": name, "kind": kind, **ended})


class Profile:
    def __init__(self, points: list[list[float]], ramp: bool) -> None:
        self._points = points
        self._ramp = ramp
        self._began = time.monotonic()

    def now(self) -> float:
        elapsed = time.monotonic() - self._began
        value, since = 0.0, 0.0
        for second, amount in self._points:
            if second > elapsed:
                if self._ramp:
                    value += (amount - value) * (elapsed - since) / (second - since)
                break
            value, since = amount, second
        return value


class Saying:
    """One line at most every quarter of a second, and whenever want and got first agree."""

    def __init__(self, descriptor: int, name: str, kind: str) -> None:
        self._descriptor = descriptor
        self._said_s = 0.0
        self._was_met = False

    def say(self, wanted: float, got: float) -> None:
        now, met = time.monotonic(), got >= wanted
        if now - self._said_s < SAY_S and met == self._was_met:
            return
        self._said_s, self._was_met = now, met
        line = f"{time.time():.3f} {wanted:.3f} {got:.3f} {available_mib():.1f}\n"
        os.write(self._descriptor, line.encode())


def memory(profile: Profile, saying: Saying) -> None:
    """Holds what the profile says in blocks, each touched page by page with bytes of its own."""
    blocks: list[mmap.mmap] = []
    noise = os.urandom(mmap.PAGESIZE) * (CHUNK_MIB * 2**20 // mmap.PAGESIZE)
    while True:
        wanted = profile.now()
        held = len(blocks) * CHUNK_MIB
        if held >= wanted + CHUNK_MIB:
            blocks.pop().close()
        elif held < wanted and available_mib() > CHUNK_MIB + SPARE_MIB:
            block = mmap.mmap(-1, CHUNK_MIB * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            block.write(noise)
            blocks.append(block)
        else:
            time.sleep(LOOK_S)
        saying.say(wanted, len(blocks) * CHUNK_MIB)


def cpu(profile: Profile, saying: Saying) -> None:
    """One thread that burns; `got` is the CPU time that it was really given, in millicores."""
    period_s = 0.1
    window: list[tuple[float, float]] = []
    while True:
        wanted = min(profile.now(), 1000.0)
        began, used = time.monotonic(), time.process_time()
        goal = used + period_s * wanted / 1000
        while time.process_time() < goal and time.monotonic() < began + 10 * period_s:
            pass
        time.sleep(max(0.0, period_s - (time.monotonic() - began)))
        window = [*window[-9:], (time.monotonic() - began, time.process_time() - used)]
        got = 1000 * sum(used for _, used in window) / sum(wall for wall, _ in window)
        saying.say(wanted, got)


def disk(profile: Profile, saying: Saying) -> None:
    """Direct writes to the scratch disk, around and around."""
    block = mmap.mmap(-1, 256 * 1024)
    target = os.open(SCRATCH, os.O_WRONLY | os.O_DIRECT)
    size = os.lseek(target, 0, os.SEEK_END)
    at = 0
    while True:
        wanted = profile.now()
        began, written = time.monotonic(), 0
        while written < wanted * 2**20 / 4 and time.monotonic() < began + 1.0:
            written += os.pwrite(target, block, at)
            at = (at + len(block)) % (size - len(block))
        time.sleep(max(0.0, 0.25 - (time.monotonic() - began)))
        saying.say(wanted, written / 2**20 / (time.monotonic() - began))


def available_mib() -> float:
    with Path("/proc/meminfo").open() as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
