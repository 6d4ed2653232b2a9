"""A VM is starting until its agent says ready, or its balloon has spoken for a while."""

from agent.hypervisor import VmEvent, VmEventKind, VmReading
from agent.starting import SPEAKERS_MAX, Starts
from shared.telemetry import VmState
from shared.units import SECOND_NS

QUIET_S, LONGEST_S = 20, 180
UNIX_S = 1_700_000_000


class Scene:
    """One host; times in seconds since it was made."""

    def __init__(self) -> None:
        self.starts = Starts(QUIET_S * SECOND_NS, LONGEST_S * SECOND_NS)

    def look(self, at_s: float, *readings: VmReading, asked_s: float | None = None) -> set[str]:
        asked_ns = int((1000 + (at_s if asked_s is None else asked_s)) * SECOND_NS)
        tick_ns = int((1000 + at_s) * SECOND_NS)
        unix_ns = int((UNIX_S + at_s) * SECOND_NS)
        return set(self.starts.look(readings, asked_ns, tick_ns, unix_ns))

    def hear(self, at_s: float, kind: VmEventKind, vm_id: str = "a") -> None:
        self.starts.hear(VmEvent(vm_id, kind), int((1000 + at_s) * SECOND_NS))


def vm(cpu_s: float, vm_id: str = "a", figures_s: int | None = None, **fields) -> VmReading:
    """`figures_s`: when its balloon's figures were stamped."""
    if figures_s is not None:
        fields |= {"memory_usable_bytes": 1, "memory_last_update_unix_s": UNIX_S + figures_s}
    fields = {"state": VmState.RUNNING, **fields}
    return VmReading(vm_id=vm_id, name=vm_id, cpu_time_ns=int(cpu_s * SECOND_NS), **fields)


def test_what_runs_when_the_agent_starts_is_not_starting():
    scene = Scene()
    assert scene.look(0, vm(0.1)) == set()
    assert scene.look(10, vm(0.2)) == set()


def test_readings_that_overlap_and_come_late_start_nothing():
    """A sample and a reflex read at the same time, and the older one may be in last."""
    scene = Scene()
    scene.look(0, vm(100))
    scene.look(10, vm(110), vm(5, "b"), asked_s=9.5)
    assert scene.starts.starting == {"b"}
    assert scene.look(10.2, vm(109), asked_s=9.4) == {"b"}
    assert scene.look(20, vm(119), vm(9, "b")) == {"b"}


def test_a_vm_that_appears_starts_until_its_agent_is_ready():
    scene = Scene()
    scene.look(0)
    assert scene.look(10, vm(1)) == {"a"}
    assert not scene.starts.note_ready("a", "boot", None)
    assert scene.look(60, vm(9, figures_s=59)) == {"a"}, "its agent speaks, so its word counts"
    assert scene.look(90, vm(19, figures_s=89)) == {"a"}
    assert scene.starts.note_ready("a", "boot", 80 * SECOND_NS)
    assert scene.look(91, vm(20, figures_s=89)) == set()
    assert not scene.starts.note_ready("a", "boot", 80 * SECOND_NS)


def test_without_an_agent_figures_and_a_while_are_enough():
    scene = Scene()
    scene.look(0)
    scene.look(10, vm(1))
    assert scene.look(20, vm(2, figures_s=18)) == {"a"}
    assert scene.look(39, vm(3, figures_s=38)) == {"a"}
    assert scene.look(40, vm(3, figures_s=38)) == set()


def test_no_start_takes_longer_than_the_longest():
    scene = Scene()
    scene.look(0)
    scene.hear(5, VmEventKind.STARTED)
    scene.starts.note_ready("a", "boot", None)
    assert scene.look(184, vm(50)) == {"a"}
    assert scene.look(185, vm(51)) == set()


def test_a_start_counts_from_its_event_and_also_before_it_is_seen():
    scene = Scene()
    scene.look(0)
    scene.hear(1, VmEventKind.STARTED)
    assert scene.look(2) == {"a"}, "the readings were under way when it began"
    assert scene.look(181, vm(30)) == set()


def test_a_restart_shows_in_fallen_cpu_time_without_any_event():
    scene = Scene()
    scene.look(0, vm(100))
    assert scene.look(10, vm(2)) == {"a"}


def test_an_event_and_the_fallen_counter_are_one_start():
    scene = Scene()
    scene.look(0)
    scene.hear(1, VmEventKind.STARTED)
    assert scene.look(10, vm(2)) == {"a"}
    scene.starts.note_ready("a", "boot", 1)
    assert scene.look(20, vm(5)) == set()


def test_what_migrated_here_is_not_starting():
    scene = Scene()
    scene.look(0)
    scene.hear(1, VmEventKind.ARRIVED)
    assert scene.look(2, vm(0.5)) == set()
    assert scene.look(12, vm(1.5)) == set()


def test_what_went_and_came_back_between_two_looks_is_not_starting():
    scene = Scene()
    scene.look(0, vm(100))
    scene.hear(1, VmEventKind.STOPPED)
    scene.hear(2, VmEventKind.ARRIVED)
    assert scene.look(10, vm(0.5)) == set()


def test_a_late_word_of_the_last_boot_does_not_end_a_start():
    scene = Scene()
    scene.look(0, vm(100))
    scene.starts.note_ready("a", "old", 5)
    scene.hear(10, VmEventKind.REBOOTED)
    assert not scene.starts.note_ready("a", "old", 5)
    assert scene.look(11, vm(101)) == {"a"}
    assert scene.look(100, vm(130, figures_s=99)) == {"a"}, "an agent spoke here before"
    assert scene.starts.note_ready("a", "new", 5)


def test_figures_of_before_a_reboot_do_not_count():
    scene = Scene()
    scene.look(0, vm(100))
    scene.hear(10, VmEventKind.REBOOTED)
    scene.look(11, vm(101, figures_s=9))
    assert scene.look(35, vm(102, figures_s=9)) == {"a"}
    scene.look(36, vm(103, figures_s=36))
    assert scene.look(56, vm(103, figures_s=36)) == set()


def test_time_that_a_vm_stands_still_does_not_count():
    scene = Scene()
    scene.look(0)
    scene.hear(1, VmEventKind.STARTED)
    for at_s in range(10, 400, 10):
        assert scene.look(at_s, vm(0.1, state=VmState.PAUSED)) == {"a"}
    assert scene.look(400, vm(0.2)) == {"a"}
    assert scene.look(570, vm(9)) == set()


def test_a_gap_in_the_readings_is_no_restart():
    scene = Scene()
    scene.look(0, vm(100))
    gap = VmReading("a", "a", VmState.RUNNING)
    assert scene.look(10, gap) == set()
    assert scene.look(20, vm(101)) == set()


def test_a_stopped_vm_is_not_starting_and_memory_of_speakers_is_bounded():
    scene = Scene()
    scene.look(0)
    scene.hear(1, VmEventKind.STARTED)
    scene.hear(2, VmEventKind.STOPPED)
    assert scene.look(3) == set()
    for number in range(SPEAKERS_MAX + 10):
        scene.starts.note_ready(str(number), "boot", 1)
    assert len(scene.starts._spoken) == SPEAKERS_MAX
