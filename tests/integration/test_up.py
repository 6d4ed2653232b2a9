"""`hrapaq up` as a whole, with simulated guests: real bus, controller, agent, all as processes."""

import json
import os
import signal
import time

from running_up import WITHIN_S, processes_with, running, until

from shared.resources import MIB

SIMULATED = ("--guests", "simulated", "--cycle", "2")
FULL = 512 * MIB  # what simulated guests start with
PROMISED = {
    "loop_closed", "hypervisor", "guests", "telemetry_messages", "cycles", "plans_verified",
    "commands_acknowledged", "memory_moved_bytes", "rejections", "dropped", "errors",
}  # fmt: skip


def test_the_loop_closes_though_every_part_is_killed_once(tmp_path):
    with running(tmp_path, *SIMULATED) as run:
        until(lambda: min(run.memory_limits(), default=FULL) < FULL, run, "guests give memory up")
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
    with running(tmp_path, *SIMULATED) as run:
        until(lambda: len(run.children()) == 3, run, "three children")
        run.process.kill()
        run.process.wait()
        deadline = time.monotonic() + 10
        while processes_with(str(run.state)):
            assert time.monotonic() < deadline, "children outlived a killed `hrapaq up`"
            time.sleep(0.05)
        assert run.run_file.exists(), "nobody could remove it"
        assert run.ask("status").returncode == 2
    with running(tmp_path / "again", *SIMULATED) as again:
        until(lambda: len(again.children()) == 3, again, "three children of the next run")
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(30) in {0, 1}
        assert again.report()["left_behind"] == []


def test_it_ends_by_itself_and_says_why_the_loop_did_not_close(tmp_path):
    with running(tmp_path, *SIMULATED, "--minutes", "0.01") as run:
        assert run.process.wait(WITHIN_S) == 1
    report = run.report()
    assert report["loop_closed"] is False
    assert report["why_not"]
    assert "did NOT close" in run.output()


def test_a_part_that_cannot_start_stops_the_whole_with_its_log(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "agent").write_text("a file where a directory belongs")
    with running(tmp_path, *SIMULATED) as run:
        assert run.process.wait(WITHIN_S) == 1
    assert "File exists" in run.report()["errors"][0]
    assert processes_with(str(run.state)) == []
