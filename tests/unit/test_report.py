"""What a run reports: moved memory, totals over restarts, the verdict, the file."""

import json

from hypothesis import given
from hypothesis import strategies as st

from controller.up.report import PLANS_MAX, Counters, MemoryMeter, Report, summary, write
from controller.up.view import Ground
from shared.pb import admin_pb2 as pb
from shared.resources import MIB


def status(epoch: int = 1, **values: object) -> pb.Status:
    return pb.Status(epoch=epoch, **values)


def closed_report() -> Report:
    report = Report()
    report.saw_status(
        status(
            telemetry_messages=18,
            cycles=17,
            plans_verified=5,
            commands_sent=6,
            commands_acknowledged=6,
            steps_applied=9,
            dropped={"version": 2},
            rejections={"I6": 1},
            latency_sample_to_command_ms=900,
        )
    )
    report.guest_names = {"a": "hrapaq-demo-memory", "b": "hrapaq-demo-idle"}
    report.meter.read({"a": 256 * MIB, "b": 256 * MIB})
    report.meter.read({"a": 320 * MIB, "b": 216 * MIB})
    return report


def test_memory_moved_is_the_lesser_of_growth_and_shrinkage():
    meter = MemoryMeter()
    for a, b in ((100, 100), (100, 60), (130, 60), (120, 60)):
        meter.read({"a": a, "b": b})
    assert (meter.grown_bytes, meter.shrunk_bytes, meter.moved_bytes) == (30, 50, 30)
    assert (meter.guests["a"].least_bytes, meter.guests["a"].most_bytes) == (100, 130)
    assert (meter.guests["b"].first_bytes, meter.guests["b"].last_bytes) == (100, 60)


def test_only_shrinking_moves_nothing():
    meter = MemoryMeter()
    meter.read({"a": 100})
    meter.read({"a": 40})
    assert meter.moved_bytes == 0


def test_a_guest_that_was_gone_did_not_move_meanwhile():
    meter = MemoryMeter()
    for reading in ({"a": 100, "b": 100}, {"b": 100}, {"a": 512, "b": 100}, {"a": 500, "b": 100}):
        meter.read(reading)
    assert (meter.grown_bytes, meter.shrunk_bytes) == (0, 12)


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), max_size=30))
def test_growth_less_shrinkage_is_what_changed(readings):
    meter = MemoryMeter()
    for a, b in readings:
        meter.read({"a": a, "b": b})
    changed = sum(readings[-1]) - sum(readings[0]) if readings else 0
    assert meter.grown_bytes - meter.shrunk_bytes == changed
    assert 0 <= meter.moved_bytes <= meter.grown_bytes


def test_counters_add_up_over_a_restarted_controller():
    counters = Counters()
    counters.read(status(1, cycles=5, dropped={"size": 1}))
    counters.read(status(1, cycles=7, dropped={"size": 3}))
    counters.read(status(2, cycles=1, dropped={"size": 1, "past": 2}))
    total = counters.total()
    assert total.cycles == 8
    assert dict(total.dropped) == {"size": 4, "past": 2}


def test_the_loop_is_closed_only_when_every_part_was_seen():
    assert closed_report().open_ends() == []
    assert len(Report().open_ends()) == 5
    unseen = closed_report()
    unseen.meter = MemoryMeter()  # acknowledged, but our own look saw nothing
    result = unseen.as_json(60.0)
    assert result["loop_closed"] is False
    assert result["why_not"] == ["no guest's memory was seen to change in the hypervisor"]
    assert any("did NOT close" in line for line in summary(result))


def test_the_report_has_all_promised_keys():
    report = closed_report()
    report.ground = Ground("0.1", "tcg", "why", (), "/state", "v1", "guests", "")
    result = report.as_json(180.0)
    promised = {
        "loop_closed", "hypervisor", "guests", "telemetry_messages", "cycles", "plans_verified",
        "commands_acknowledged", "memory_moved_bytes", "rejections", "dropped", "errors",
    }  # fmt: skip
    assert promised <= result.keys()
    assert result["memory_moved_bytes"] == 40 * MIB
    assert result["rejections"] == {"I6": 1}
    assert result["guests"][0]["memory_bytes"]["most"] == 320 * MIB
    assert result["latency_sample_to_command_ms"]["median"] == 900
    assert any("40 MiB of memory moved" in line for line in summary(result))
    assert json.loads(json.dumps(result)) == result


def test_simulated_memory_is_called_simulated():
    report = closed_report()
    report.ground = Ground("0", "simulated", "no libvirt", (), "/s", "v1", "bus", "guests")
    assert "(simulated)" in summary(report.as_json(1.0))[0]


def test_plans_are_kept_newest_and_bounded():
    report = Report()
    for number in range(PLANS_MAX + 5):
        report.saw_plan(pb.PlanReply(found=True, plan_id=str(number), verdict="verified"))
    report.saw_plan(pb.PlanReply(found=True, plan_id="7", verdict="verified, seen again"))
    plans = report.as_json(1.0)["plans"]
    assert len(plans) == PLANS_MAX
    assert plans[-1]["verdict"] == "verified, seen again"
    assert plans[0]["plan_id"] == "5"


def test_the_file_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "report.json"
    write(path, {"loop_closed": False})
    write(path, {"loop_closed": True})
    assert json.loads(path.read_text()) == {"loop_closed": True}
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]
