"""When a VM asks for more, for how much, and when it stops; played through in half seconds."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.need import MARGIN_BYTES_MIN, WANTED_TIMES_MAX, Look, Need, NeedJudge
from shared.clock import SECOND_NS
from shared.resources import GIB, MIB

HALF_NS = SECOND_NS // 2
TOTAL = 512 * MIB
MARGIN = int(TOTAL * 0.08)


@dataclass
class Vm:
    """A VM of two CPUs, looked at every half second; counters go on at the given rates."""

    judge: NeedJudge = field(default_factory=lambda: NeedJudge(sees_steal=True))
    total: int = TOTAL
    used: int = TOTAL - 4 * MARGIN
    now: Look = field(
        default_factory=lambda: Look(
            0,
            memory_pressure_us=0,
            cpu_count=2,
            cpu_used_ns=0,
            cpu_steal_ns=0,
            cpu_pressure_us=0,
            runnable=0,
        )
    )

    def step(
        self,
        *,
        grows: int = 0,
        stall_us_per_s: int = 0,
        used_millicores: int = 100,
        steal_millicores: int = 0,
        wait_us_per_s: int = 0,
        runnable: int = 0,
    ) -> Need:
        """Half a second in which use grows by `grows` bytes."""
        self.used += grows
        was = self.now
        self.now = replace(
            was,
            tick_ns=was.tick_ns + HALF_NS,
            memory_total_bytes=self.total,
            memory_available_bytes=max(0, self.total - self.used),
            memory_pressure_us=_plus(was.memory_pressure_us, stall_us_per_s // 2),
            cpu_used_ns=_plus(was.cpu_used_ns, used_millicores * 500_000),
            cpu_steal_ns=_plus(was.cpu_steal_ns, steal_millicores * 500_000),
            cpu_pressure_us=_plus(was.cpu_pressure_us, wait_us_per_s // 2),
            runnable=runnable,
        )
        return self.judge.judge(self.now)

    def rest(self, seconds: int) -> Need:
        for _ in range(2 * seconds):
            need = self.step()
        return need


def _plus(counter: int | None, more: int) -> int:
    assert counter is not None
    return counter + more


# --- memory ------------------------------------------------------------------------------------


def test_a_vm_at_rest_needs_nothing() -> None:
    assert not Vm().rest(10)


def test_little_left_wants_the_margin_back() -> None:
    vm = Vm(used=TOTAL - MARGIN)
    assert not vm.rest(3)
    vm.step(grows=4 * MIB)
    vm.rest(6)  # by then nothing grows any more: what is left of the wish is the margin
    need = vm.step()
    assert need.memory_bytes == pytest.approx(MARGIN * 1.25 - (MARGIN - 4 * MIB), abs=2 * MIB)


def test_it_is_calm_only_while_there_is_plenty_for_the_next_seconds() -> None:
    vm = Vm(used=TOTAL - 6 * MARGIN)
    vm.rest(3)
    assert vm.judge.is_calm
    vm.step(grows=MARGIN // 2)
    assert vm.judge.is_calm is False, "two more seconds of that leave less than four margins"
    assert not vm.judge.need
    vm.rest(3)
    assert vm.judge.is_calm
    vm.step(grows=2 * MARGIN)
    assert not vm.judge.is_calm


def test_a_burst_is_seen_before_the_memory_is_gone() -> None:
    """200 MiB within two seconds, in a VM that has 160 MiB available."""
    vm = Vm()
    vm.rest(3)
    needs = [vm.step(grows=50 * MIB) for _ in range(4)]
    first = next(place for place, need in enumerate(needs) if need)
    assert first <= 1, "within a second, with 60 MiB and more still available"
    assert max(need.memory_bytes for need in needs) >= 200 * MIB - 4 * MARGIN + MARGIN


def test_a_wish_falls_by_what_is_given_and_ends() -> None:
    vm = Vm()
    vm.rest(3)
    for _ in range(4):
        wanted = vm.step(grows=50 * MIB).memory_bytes
    vm.total += wanted
    assert vm.step() == Need(), "it has what it wanted"
    assert vm.rest(10) == Need()


def test_a_need_does_not_come_and_go_at_the_margin() -> None:
    vm = Vm(used=TOTAL - MARGIN + MIB)
    assert vm.rest(1)
    seen = [bool(vm.step(grows=change * MIB)) for change in (-2, 2, -2, 2, -2, 2, -2, 2, -2)]
    assert all(seen), "between one margin and a quarter more it goes on"
    vm.step(grows=-MARGIN)
    assert not vm.rest(4)


def test_a_host_that_takes_memory_back_is_no_growth() -> None:
    """The balloon takes 100 MiB: less is available, nothing more is used."""
    vm = Vm()
    vm.rest(3)
    vm.total -= 50 * MIB
    assert not vm.step()
    vm.total -= 50 * MIB
    assert not vm.step(), "164 MiB less 100 are still above the margin"


def test_stalling_on_memory_is_a_need_while_little_is_available() -> None:
    scarce, plenty = Vm(used=TOTAL - 3 * MARGIN), Vm(used=TOTAL - 6 * MARGIN)
    for vm in (scarce, plenty):
        vm.rest(3)
        for _ in range(3):
            vm.step(stall_us_per_s=300_000)
    assert scarce.judge.need.memory_bytes >= MARGIN
    assert not plenty.judge.need, "the limit of a group inside stalls too; no VM's size helps it"
    for _ in range(6):
        scarce.step(stall_us_per_s=50_000)
    assert scarce.judge.need, "not over yet"
    assert not scarce.rest(5)


def test_a_small_vm_has_a_margin_that_a_process_fits_in() -> None:
    vm = Vm(total=128 * MIB, used=128 * MIB - MARGIN_BYTES_MIN + MIB)
    assert vm.rest(1).memory_bytes >= MARGIN_BYTES_MIN // 4


def test_no_vm_wants_more_than_four_times_what_it_has() -> None:
    vm = Vm(total=128 * MIB, used=0)
    vm.step()
    need = vm.step(grows=128 * MIB)
    assert need.memory_bytes == WANTED_TIMES_MAX * 128 * MIB


def test_memory_that_cannot_be_read_is_no_need() -> None:
    vm = Vm(used=TOTAL)
    assert vm.rest(2)
    blind = Look(vm.now.tick_ns + HALF_NS)
    assert vm.judge.judge(blind) == Need()


# --- CPU ---------------------------------------------------------------------------------------


def test_a_quota_looks_like_steal_and_wants_what_was_taken() -> None:
    """One busy task in a VM that is held at half a core."""
    vm = Vm()
    vm.rest(3)
    needs = [
        vm.step(used_millicores=500, steal_millicores=500, runnable=1).cpu_millicores
        for _ in range(4)
    ]
    assert needs[-1] == 500
    assert any(needs[:3]), "within a second and a half"
    assert not vm.rest(2)


def test_tasks_that_wait_behind_the_stolen_cpu_are_counted_too() -> None:
    vm = Vm()
    for _ in range(6):
        need = vm.step(used_millicores=800, steal_millicores=200, runnable=5)
    assert need.cpu_millicores == 2000 - 800, "no more than its CPUs can run"


def test_a_little_steal_is_no_need() -> None:
    vm = Vm()
    for _ in range(6):
        assert not vm.step(used_millicores=1900, steal_millicores=90, runnable=4)


def test_busy_cpus_are_a_need_only_where_no_clock_tells_of_steal() -> None:
    for sees_steal, wanted in ((True, 0), (False, 3000)):
        vm = Vm(NeedJudge(sees_steal=sees_steal))
        for _ in range(6):
            need = vm.step(used_millicores=1950, wait_us_per_s=700_000, runnable=5)
        assert need.cpu_millicores == wanted


def test_a_busy_vm_in_which_nothing_waits_needs_no_more() -> None:
    vm = Vm(NeedJudge(sees_steal=False))
    for _ in range(6):
        assert not vm.step(used_millicores=1950, wait_us_per_s=100_000, runnable=2)


def test_counters_of_another_boot_are_no_need() -> None:
    vm = Vm()
    vm.rest(3)
    vm.now = replace(vm.now, cpu_used_ns=0, cpu_steal_ns=0, memory_pressure_us=0)
    assert not vm.step(used_millicores=100)


# --- whatever comes ----------------------------------------------------------------------------

AMOUNT = st.none() | st.integers(0, 64 * GIB)
LOOKS = st.lists(
    st.builds(
        Look,
        tick_ns=st.integers(0, 10 * SECOND_NS),
        memory_total_bytes=AMOUNT,
        memory_available_bytes=AMOUNT,
        memory_pressure_us=AMOUNT,
        cpu_count=st.none() | st.integers(1, 64),
        cpu_used_ns=AMOUNT,
        cpu_steal_ns=AMOUNT,
        cpu_pressure_us=AMOUNT,
        runnable=st.none() | st.integers(0, 1000),
    ),
    max_size=12,
)


@given(LOOKS, st.booleans())
def test_no_look_breaks_the_judge_and_no_wish_is_without_bounds(
    looks: list[Look], sees_steal: bool
) -> None:
    judge = NeedJudge(sees_steal=sees_steal)
    for look in looks:
        need = judge.judge(look)
        assert 0 <= need.memory_bytes <= WANTED_TIMES_MAX * (look.memory_total_bytes or 0) + MIB
        assert 0 <= need.cpu_millicores <= WANTED_TIMES_MAX * 1000 * (look.cpu_count or 0)
        assert look.memory_available_bytes is not None or need.memory_bytes == 0
