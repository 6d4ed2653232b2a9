"""The screen at several sizes, as text: what must be readable is looked for."""

import io

import pytest
from rich.console import Console

from controller.up.screen import clock, render
from controller.up.view import Ground, PartHealth, View
from shared.pb import admin_pb2 as pb
from shared.resources import MIB

SIZES = [(120, 40), (80, 24), (200, 60), (100, 30)]


def amounts(resource: str, **values: int) -> pb.Amounts:
    return pb.Amounts(resource=resource, **values)


def vm(name: str, used: int, grant: int, planned: int, state: str = "steady") -> pb.VmRow:
    return pb.VmRow(
        vm_id=f"id of {name}",
        name=name,
        node_id="n",
        mode="enforce",
        state=state,
        resources=[
            amounts("cpu", used=40, limit=1000, ceiling=1000, forecast_p50=60, forecast_p95=180),
            amounts(
                "memory", used=used * MIB, limit=grant * MIB, planned=planned * MIB,
                ceiling=512 * MIB, forecast_p50=used * MIB, forecast_p95=(used + 40) * MIB,
            ),
            amounts("io", used=3 * MIB, forecast_p95=4 * MIB),
        ],
    )  # fmt: skip


def full_view() -> View:
    view = View(started_tick_s=100.0, ends_tick_s=280.0, stage="running")
    view.ground = Ground(
        version="0.1.0",
        hypervisor="tcg",
        hypervisor_why="no KVM: a guest did not boot with it within 15 s",
        guests=("hrapaq-demo-memory", "hrapaq-demo-cpu"),
        state_directory="/var/lib/hrapaq/run-20260101-000000",
        cgroup="v1",
        real="guests, libvirt, cgroup v1, /proc, nats-server",
        simulated="",
    )
    view.status = pb.Status(cycles=12, plans_verified=9, steps_applied=31)
    view.nodes = [
        pb.NodeRow(
            node_id="n",
            name="this-host",
            role="host",
            connected=True,
            age_ms=3200,
            resources=[
                amounts("cpu", used=700, capacity=2000),
                amounts("memory", used=500 * MIB, capacity=1216 * MIB, ceiling=1216 * MIB),
            ],
        )
    ]
    view.vms = [
        vm("hrapaq-demo-memory", 250, 256, 336, "growing"),
        vm("hrapaq-demo-cpu", 60, 184, 144, "shrinking"),
        vm("hrapaq-demo-disk", 60, 256, 256, "held: I6 statistics are 40 s old"),
    ]
    view.plan = pb.PlanReply(found=True, plan_id="p", cycle=12, verdict="verified")
    for index in range(6):
        view.plan.steps.add(
            index=index,
            phase=index // 3,
            vm_name="hrapaq-demo-cpu",
            resource="memory",
            from_amount=184 * MIB,
            to_amount=144 * MIB,
            why="demand is at most 120 MiB with 95 %; feeds hrapaq-demo-memory",
            outcome="applied: 40 MiB came free" if index < 3 else "",
        )
    view.parts = [
        PartHealth("nats", True, "120 messages in, 4 connections"),
        PartHealth("controller", True, "epoch 1, last cycle 12 ms"),
        PartHealth("agent", False, "killed by SIGKILL, restarting"),
    ]
    for number in range(40):
        view.note(f"12:00:{number:02} intent plan {number} for 3 steps")
    return view


def draw(view: View, width: int, height: int) -> list[str]:
    console = Console(
        width=width, height=height, file=io.StringIO(), color_system=None, force_terminal=True
    )
    console.print(render(view, 160.0, width, height), height=height)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fits_and_says_the_main_things(width, height):
    lines = draw(full_view(), width, height)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert "real guests, emulated (TCG)" in text
    assert "1:00, ends in 2:00" in text
    assert "this-host" in text
    assert "└ demo-memory" in text
    assert "256M→336M" in text
    assert "184 MiB → 144 MiB" in text
    assert "12:00:39" in text, "the newest record line is shown"
    assert "agent" in text, "an ill part is named at every size"


def test_what_is_simulated_is_said():
    view = full_view()
    view.ground = Ground("0", "simulated", "libvirt is missing", (), "/x", "v2", "bus", "guests")
    text = "\n".join(draw(view, 120, 40))
    assert "SIMULATED" in text and "simulated: guests" in text and "libvirt is missing" in text


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_before_anything_is_known(width, height):
    view = View(stage="booting four guests")
    lines = draw(view, width, height)
    assert len(lines) == height
    assert "booting four guests" in lines[0]


def test_unknown_is_a_question_mark_and_markup_stays_text():
    view = full_view()
    view.vms[0].name = "[red]evil[/]"
    del view.vms[0].resources[:]
    text = "\n".join(draw(view, 120, 40))
    assert "[red]evil" in text and "?" in text


def test_many_machines_are_cut_and_it_is_said():
    view = full_view()
    view.vms = [vm(f"vm-{number}", 100, 200, 200) for number in range(80)]
    text = "\n".join(draw(view, 120, 40))
    assert "more" in text and "last plan" in text and "parts" in text


def test_what_may_move_stands_first():
    view = full_view()
    view.vms.append(vm("a-vm-of-somebody", 100, 200, 200, "observe"))
    view.vms[-1].mode = "observe"
    text = "\n".join(draw(view, 120, 40))
    assert text.index("demo-memory") < text.index("└ a-vm-of-somebody")
    assert "observe observe" not in text


def test_why_a_step_did_not_come_about_is_shown_instead_of_why_it_was_wanted():
    view = full_view()
    view.plan.steps[0].outcome = "refused: I6: no fresh guest statistics"
    text = "\n".join(draw(view, 120, 40))
    assert "I6: no fresh guest statistics" in text and "refused" in text


def test_clock():
    assert [clock(s) for s in (-1, 0, 65, 3665)] == ["0:00", "0:00", "1:05", "1:01:05"]
