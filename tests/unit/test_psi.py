"""PSI triggers on this machine's own kernel, where it has them."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from agent.psi import PsiTriggers
from shared.testing import until

CPU = Path("/proc/pressure/cpu")
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
WITHIN_S = 20.0


def why_none() -> str:
    """Why this machine has no triggers; empty where it has."""

    async def ask() -> str:
        triggers = PsiTriggers([CPU], 100_000, 1_000_000, lambda _: None)
        refused = triggers.refused.get(CPU, "")
        triggers.close()
        return refused

    return asyncio.run(ask())


needs_psi = pytest.mark.skipif(bool(why_none()), reason=f"no PSI triggers here: {why_none()}")


@needs_psi
def test_tasks_that_wait_for_cpu_are_told_of() -> None:
    async def scenario() -> Path:
        told: asyncio.Queue[Path] = asyncio.Queue()
        triggers = PsiTriggers([CPU], 5_000, 500_000, told.put_nowait)
        # More tasks than CPUs: some of them have to wait, whatever else runs here.
        burners = [burn() for _ in range(2 * (os.cpu_count() or 1))]
        try:
            return await asyncio.wait_for(told.get(), WITHIN_S)
        finally:
            stop(burners)
            triggers.close()

    assert asyncio.run(scenario()) == CPU


@needs_psi
def test_what_is_closed_holds_no_descriptor_and_no_reader() -> None:
    async def scenario() -> None:
        before = open_files()
        triggers = PsiTriggers([CPU], 5_000, 500_000, lambda _: None)
        assert triggers.watched == {CPU}
        triggers.watch([CPU])
        assert triggers.watched == {CPU}
        triggers.close()
        assert not triggers.watched
        assert open_files() == before

    asyncio.run(scenario())


def test_a_group_that_goes_is_let_go() -> None:
    group = fresh_group()
    if group is None:
        pytest.skip("no cgroup v2 hierarchy with PSI that we may write to")
    told: list[Path] = []

    async def scenario() -> None:
        path = group / "cpu.pressure"
        triggers = PsiTriggers([path], 100_000, 1_000_000, told.append)
        assert triggers.watched == {path}, triggers.refused
        group.rmdir()
        await until(lambda: not triggers.watched)
        assert triggers.refused == {path: "its group is gone"}
        triggers.watch([path])
        assert triggers.refused == {path: "No such file or directory"}
        triggers.close()
        assert not triggers.refused

    asyncio.run(scenario())
    assert told == []


def test_files_that_are_none_of_psi_are_refused_with_the_reason(tmp_path: Path) -> None:
    plain, missing = tmp_path / "plain", tmp_path / "missing"
    plain.write_text("some avg10=0.00\n")

    async def scenario() -> None:
        before = open_files()
        triggers = PsiTriggers([plain, missing], 100_000, 1_000_000, lambda _: None)
        assert not triggers.watched
        assert triggers.refused == {
            plain: "Operation not permitted",
            missing: "No such file or directory",
        }
        assert open_files() == before, "what was refused is closed"
        triggers.close()

    asyncio.run(scenario())


def fresh_group() -> Path | None:
    """A control group of our own, without processes, whose pressure can be watched."""
    for root in GROUPS:
        group = root / f"hrapaq-test-{uuid4().hex[:8]}"
        with suppress(OSError):
            group.mkdir()
            if (group / "cpu.pressure").exists():
                return group
            group.rmdir()
    return None


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def burn() -> int:
    """The pid of a child that uses a CPU until it is stopped, or for a while at most."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(2 * WITHIN_S))
        while True:
            pass
    return pid


def stop(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
