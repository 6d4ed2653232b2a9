"""`hrapaq up` as a whole, with simulated guests: real bus, controller, agent, all as processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROMISED = {
    "loop_closed", "hypervisor", "guests", "telemetry_messages", "cycles", "plans_verified",
    "commands_acknowledged", "memory_moved_bytes", "rejections", "dropped", "errors",
}  # fmt: skip
WITHIN_S = 90.0


class Run:
    """One `hrapaq up` in a directory of its own, invisible to any other on this machine."""

    def __init__(self, directory: Path, *more: str) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.report_path = directory / "report.json"
        runtime = directory / "runtime"
        runtime.mkdir()
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
        self.run_file = runtime / "hrapaq" / "up.json"
        words = ("up", "--guests", "simulated", "--cycle", "2", "--json", str(self.report_path))
        command = (*hrapaq(), *words, "--state-dir", str(self.state), *more)
        with (directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another `hrapaq` command, which finds the run by itself."""
        return subprocess.run(
            (*hrapaq(), *words), env=self.environment, capture_output=True, text=True, check=False
        )

    def status(self) -> dict | None:
        done = self.ask("status", "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def memory_limits(self) -> set[int]:
        """As telemetry last brought them to the controller, in bytes."""
        done = self.ask("vms", "--json")
        vms = json.loads(done.stdout)["vms"] if done.returncode == 0 else []
        amounts = [one for vm in vms for one in vm["resources"] if one["resource"] == "memory"]
        return {one["limit"] for one in amounts if one["limit"] is not None}

    def children(self) -> dict[str, int]:
        """Process ids of bus, controller and agent as they are now, by name."""
        found = {}
        marks = {"nats": "nats.conf", "controller": "controller.toml", "agent": "agent.toml"}
        for name, mark in marks.items():
            for pid in processes_with(str(self.state), mark):
                found[name] = pid
        return found

    def output(self) -> str:
        return (self.directory / "output").read_text()

    def report(self) -> dict:
        return json.loads(self.report_path.read_text())


def hrapaq() -> tuple[str, ...]:
    return (sys.executable, "-c", "from controller.ctl import main; main()")


def processes_with(*marks: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = entry.read_bytes().decode(errors="replace")
            if all(mark in line for mark in marks) and "controller.ctl" not in line:
                found.append(int(entry.parent.name))
    return found


def until(condition, run: Run, what: str):
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        assert run.process.poll() is None, f"it ended before {what}:\n{run.output()}"
        time.sleep(0.1)
    pytest.fail(f"not within {WITHIN_S:g} s: {what}\n{run.output()}")


@contextlib.contextmanager
def running(directory: Path, *more: str):
    run = Run(directory, *more)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def test_the_loop_closes_though_every_part_is_killed_once(tmp_path):
    with running(tmp_path) as run:
        until(lambda: len(run.memory_limits()) > 1, run, "some guests give memory up")
        cycles = run.status()["cycles"]  # up looks each second, a cycle takes two
        until(lambda: run.status()["cycles"] > cycles, run, "up has seen it too")
        second = run.ask("up", "--guests", "none")
        assert second.returncode == 1 and "runs already" in second.stderr
        for name in ("agent", "nats", "controller"):
            pid = until(lambda name=name: run.children().get(name), run, f"{name} runs")
            os.kill(pid, signal.SIGKILL)
            until(
                lambda name=name, pid=pid: run.children().get(name, pid) != pid,
                run,
                f"{name} runs again",
            )
            before = until(run.status, run, "the controller answers again")
            until(
                lambda before=before: (
                    (now := run.status())
                    and now["agents_connected"] == 1
                    and (now["epoch"], now["telemetry_messages"])
                    > (before["epoch"], before["telemetry_messages"])
                ),
                run,
                f"telemetry comes in after {name} was killed",
            )
        names = [vm["name"] for vm in json.loads(run.ask("vms", "--json").stdout)["vms"]]
        assert len(names) == 4
        assert run.ask("explain", names[0]).returncode == 0
        assert "intent" in run.ask("audit", "--tail", "100").stdout
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0, run.output()
    report = run.report()
    assert report.keys() >= PROMISED
    assert report["loop_closed"] is True
    assert report["hypervisor"] == "simulated"
    assert report["left_behind"] == []
    assert {restart["name"] for restart in report["restarts"]} == {"agent", "nats", "controller"}
    assert {restart["ended"] for restart in report["restarts"]} == {"killed by SIGKILL"}
    assert any("agent ended (killed by SIGKILL)" in error for error in report["errors"])
    assert processes_with(str(run.state)) == []
    assert not run.run_file.exists()
    replayed = run.ask("replay", "--from", report["audit_file"])
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_killing_up_takes_everything_along_and_the_next_run_starts(tmp_path):
    with running(tmp_path) as run:
        until(lambda: len(run.children()) == 3, run, "three children")
        run.process.kill()
        run.process.wait()
        deadline = time.monotonic() + 10
        while processes_with(str(run.state)):
            assert time.monotonic() < deadline, "children outlived a killed `hrapaq up`"
            time.sleep(0.05)
        assert run.run_file.exists(), "nobody could remove it"
        assert run.ask("status").returncode == 2
    (tmp_path / "again").mkdir()
    with running(tmp_path / "again") as again:
        until(lambda: len(again.children()) == 3, again, "three children of the next run")
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(30) in {0, 1}
        assert again.report()["left_behind"] == []


def test_it_ends_by_itself_and_says_why_the_loop_did_not_close(tmp_path):
    with running(tmp_path, "--minutes", "0.01") as run:
        assert run.process.wait(WITHIN_S) == 1
    report = run.report()
    assert report["loop_closed"] is False
    assert report["why_not"]
    assert "did NOT close" in run.output()


def test_a_part_that_cannot_start_stops_the_whole_with_its_log(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "agent").write_text("a file where a directory belongs")
    with running(tmp_path) as run:
        assert run.process.wait(WITHIN_S) == 1
    assert "File exists" in run.report()["errors"][0]
    assert processes_with(str(run.state)) == []
