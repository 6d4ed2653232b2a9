"""When a machine is ready: by a file, by systemd (a program of that name), by the agent's start."""

import asyncio
import os
from pathlib import Path

import pytest

from agent.readiness import Readiness
from shared.clock import SECOND_NS, FakeClock
from shared.testing import until

WITHIN_S = 10.0
UPTIME_NS = 100 * SECOND_NS


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root of a machine that is up for 100 s."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/uptime").write_text("100.00 150.00\n")
    return tmp_path


def with_systemd(root: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A `systemctl` that is the given script; it finds what it was asked in $1."""
    (root / "run/systemd/system").mkdir(parents=True)
    program = root / "bin/systemctl"
    program.parent.mkdir()
    program.write_text("\n".join(("#!/bin/sh", *lines, "")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def ready_ns(readiness: Readiness) -> int | None:
    async def scenario() -> None:
        async with asyncio.timeout(WITHIN_S):
            await readiness.run()

    asyncio.run(scenario())
    return readiness.ready_ns


def test_without_systemd_the_agents_own_start_counts(machine: Path) -> None:
    readiness = Readiness(machine, FakeClock())
    assert readiness.ready_ns is None
    assert ready_ns(readiness) == UPTIME_NS


@pytest.mark.parametrize("state", ["running", "degraded"])
def test_systemd_tells_when_its_start_up_was_over(
    machine: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """An agent that starts long after the boot still says when the machine was ready."""
    script = f"[ $1 = show ] && echo 17250000 || {{ [ $2 = --wait ] && echo {state}; }}"
    with_systemd(machine, monkeypatch, script)
    assert ready_ns(Readiness(machine, FakeClock())) == 17_250_000_000


def test_the_machine_is_not_ready_while_systemd_starts(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child waits for a line in a pipe, as systemctl waits for the manager's word."""
    pipe = machine / "pipe"
    os.mkfifo(pipe)
    script = f"[ $1 = show ] && echo 0 || {{ read line < {pipe}; echo $line; }}"
    with_systemd(machine, monkeypatch, script)
    readiness = Readiness(machine, FakeClock())

    async def scenario() -> None:
        async with asyncio.timeout(WITHIN_S):
            running = asyncio.create_task(readiness.run())
            await asyncio.to_thread(end_of_start_up)
            await running

    def end_of_start_up() -> None:
        with pipe.open("w") as said:  # opens when the child reads
            assert readiness.ready_ns is None
            said.write("running\n")

    asyncio.run(scenario())
    assert readiness.ready_ns == UPTIME_NS, "no time of its own: the time of its word"


@pytest.mark.parametrize("script", ["exit 1", "echo offline", "echo maintenance"])
def test_where_systemd_cannot_say_the_agents_start_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    with_systemd(machine, monkeypatch, script)
    assert ready_ns(Readiness(machine, FakeClock())) == UPTIME_NS


def test_a_cancelled_wait_leaves_no_child(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_systemd(machine, monkeypatch, f"echo $$ > {machine}/pid", "exec sleep 600")

    async def scenario() -> int:
        running = asyncio.create_task(Readiness(machine, FakeClock()).run())
        await until(lambda: said(machine / "pid"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return int(said(machine / "pid"))

    assert not Path(f"/proc/{asyncio.run(scenario())}").exists()


def test_a_file_tells_and_comes_before_systemd(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_systemd(machine, monkeypatch, "echo running")
    file, clock = machine / "ready", FakeClock()
    file.touch()
    made_ns = clock.unix_ns() - 30 * SECOND_NS
    os.utime(file, ns=(made_ns, made_ns))
    assert ready_ns(Readiness(machine, clock, file)) == UPTIME_NS - 30 * SECOND_NS


def test_a_file_of_an_earlier_boot_does_not_count(machine: Path) -> None:
    file, clock = machine / "ready", FakeClock()
    file.touch()
    old_ns = clock.unix_ns() - 200 * SECOND_NS
    os.utime(file, ns=(old_ns, old_ns))
    readiness = Readiness(machine, clock, file)

    async def scenario() -> None:
        async with asyncio.timeout(WITHIN_S):
            running = asyncio.create_task(readiness.run())
            await asyncio.sleep(0)
            assert readiness.ready_ns is None
            os.utime(file, ns=(clock.unix_ns(), clock.unix_ns()))
            await running

    asyncio.run(scenario())
    assert readiness.ready_ns == UPTIME_NS


def said(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
