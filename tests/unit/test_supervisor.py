"""The supervisor with real child processes: crashing, stubborn, orphaned."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.up.runfile import is_alive
from controller.up.supervisor import (
    CRASH_WINDOW_S,
    CRASHES_MAX,
    ChildError,
    ChildSpec,
    Crashes,
    Supervisor,
    ended_text,
    log_tail,
)

WRITE_PID = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()));"
WAIT = WRITE_PID + "import time; print('begun', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + WAIT
CRASHING = WRITE_PID + "import sys; print('the reason', flush=True); sys.exit(3)"
# A child with a child of its own, which ignores that its parent is asked to end.
PARENT = (
    "import subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]]); time.sleep(60)"
)


def spec(tmp_path: Path, code: str, *more: str, stop_within_s: float = 5.0) -> ChildSpec:
    """A Python child that is ready once it wrote its pid."""
    mark = tmp_path / "pid"

    async def ready() -> bool:
        return mark.exists() and mark.read_text() != ""

    command = (sys.executable, "-c", code, str(mark), *more)
    return ChildSpec("child", command, tmp_path / "child.log", ready, stop_within_s=stop_within_s)


def pid_in(tmp_path: Path) -> int:
    return int((tmp_path / "pid").read_text())


async def until(condition, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def supervised(said: list[str], backoff_first_s: float = 0.5):
    supervisor = Supervisor(said.append, backoff_first_s)
    try:
        yield supervisor
    finally:
        await supervisor.stop_all()


def test_a_child_is_started_and_stopped(tmp_path):
    async def scenario():
        async with supervised([]) as supervisor:
            await supervisor.start(spec(tmp_path, WAIT))
            assert supervisor.pid("child") == pid_in(tmp_path)
            await supervisor.stop("child")
            assert supervisor.pid("child") is None
            assert not is_alive(pid_in(tmp_path))
            assert supervisor.restarts == []
        assert "begun" in (tmp_path / "child.log").read_text()

    asyncio.run(scenario())


def test_a_killed_child_is_restarted_and_it_is_said(tmp_path):
    async def scenario():
        said: list[str] = []
        async with supervised(said) as supervisor:
            await supervisor.start(spec(tmp_path, WAIT))
            first = supervisor.pid("child")
            os.kill(first, signal.SIGKILL)
            await until(lambda: supervisor.pid("child") not in {None, first})
            assert [restart.ended for restart in supervisor.restarts] == ["killed by SIGKILL"]
            await until(lambda: said[-1:] == ["child runs again"])
            assert "killed by SIGKILL" in said[0] and "0.5 s" in said[0]

    asyncio.run(scenario())


def test_five_crashes_in_a_minute_give_up_with_the_log(tmp_path):
    async def scenario():
        said: list[str] = []
        async with supervised(said, backoff_first_s=0.01) as supervisor:
            await supervisor.start(spec(tmp_path, WRITE_PID + "import time; time.sleep(0.1); 1/0"))
            text = await asyncio.wait_for(supervisor.gave_up, 30)
            assert "crashed 5 times" in text and "ZeroDivisionError" in text
            assert len(supervisor.restarts) == 5
            assert supervisor.pid("child") is None

    asyncio.run(scenario())


def test_a_child_that_ends_at_once_fails_the_start_with_its_log(tmp_path):
    async def scenario():
        async with supervised([]) as supervisor:

            async def never() -> bool:
                return False

            command = (sys.executable, "-c", CRASHING, str(tmp_path / "pid"))
            child = ChildSpec("child", command, tmp_path / "child.log", never)
            with pytest.raises(ChildError, match="exit code 3") as caught:
                await supervisor.start(child)
            assert "the reason" in str(caught.value)
            assert supervisor.pid("child") is None

    asyncio.run(scenario())


def test_a_child_that_never_becomes_ready_is_ended(tmp_path):
    async def scenario():
        async with supervised([]) as supervisor:

            async def never() -> bool:
                return False

            command = (sys.executable, "-c", WAIT, str(tmp_path / "pid"))
            child = ChildSpec("child", command, tmp_path / "log", never, ready_within_s=0.5)
            with pytest.raises(ChildError, match="not ready within"):
                await supervisor.start(child)
            assert not is_alive(pid_in(tmp_path))

    asyncio.run(scenario())


def test_a_stubborn_child_and_its_own_children_are_ended(tmp_path):
    async def scenario():
        async with supervised([]) as supervisor:
            await supervisor.start(spec(tmp_path, PARENT, STUBBORN, stop_within_s=0.5))
            grandchild = pid_in(tmp_path)
            assert grandchild != supervisor.pid("child")
            await supervisor.stop("child")
            await until(lambda: is_gone(grandchild))

    asyncio.run(scenario())


def test_a_child_that_ignores_sigterm_is_killed(tmp_path):
    async def scenario():
        async with supervised([]) as supervisor:
            await supervisor.start(spec(tmp_path, STUBBORN, stop_within_s=0.5))
            await supervisor.stop("child")
            assert is_gone(pid_in(tmp_path))

    asyncio.run(scenario())


ORPHAN = """
import asyncio, pathlib, sys
from controller.up.supervisor import ChildSpec, Supervisor

async def main():
    mark = pathlib.Path(sys.argv[1])
    async def ready():
        return mark.exists() and mark.read_text() != ""
    child = ChildSpec("child", (sys.executable, "-c", sys.argv[2], str(mark)),
                      mark.with_name("log"), ready)
    await Supervisor(print).start(child)
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_killing_the_supervisor_takes_its_children_along(tmp_path):
    command = [sys.executable, "-c", ORPHAN, str(tmp_path / "pid"), STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        try:
            assert supervisor.stdout.readline() == "ready\n"
            child = pid_in(tmp_path)
            assert not is_gone(child)
        finally:
            supervisor.kill()
    asyncio.run(until(lambda: is_gone(child)))


def is_gone(pid: int) -> bool:
    """Ended; whether its new parent has collected it does not matter."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}


def test_words_for_how_a_child_ended():
    assert ended_text(3) == "exit code 3"
    assert ended_text(-9) == "killed by SIGKILL"


def test_the_log_tail_is_short(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    assert log_tail(log).splitlines() == [f"line {n}" for n in range(99_988, 100_000)]
    assert "no log" in log_tail(tmp_path / "none")


def test_what_always_ends_at_once_is_started_five_times_a_minute():
    crashes, now, starts = Crashes(first_delay_s=0.5), 1000.0, []
    while now < 1000 + 10 * CRASH_WINDOW_S:
        crashes.add(now)
        now += crashes.delay_s
        starts.append(now)
    assert starts[0] == 1000.5
    for start in starts:
        within = [other for other in starts if start <= other < start + CRASH_WINDOW_S]
        assert len(within) <= CRASHES_MAX
    assert len(starts) >= 9 * CRASHES_MAX  # and it is never given up


def test_old_crashes_do_not_count():
    crashes = Crashes(first_delay_s=0.5)
    for now in (0.0, 1.0, 2.0, 3.0):
        crashes.add(now)
    crashes.add(1.5 + CRASH_WINDOW_S)
    assert not crashes.are_too_many
    assert crashes.delay_s == 2.0
