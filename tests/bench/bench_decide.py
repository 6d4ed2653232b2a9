"""How long one decision takes, stage by stage, from one host to a hundred.

`python tests/bench/bench_decide.py [--rounds 5] [--hosts 100]`. Fleets at random from a seed: 50
VMs of 128 MiB to 1 GiB and 1 to 4 CPUs per host, quanta of 8 MiB and 50 millicores. A host has 80 %
of what its VMs could have at most: a programme of some 2,900 quanta of memory and 2,000 of CPU,
the size of a host of 280 GiB at the default quantum. One core is used.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from measuring import machine, say, say_table

from controller.core.allocate.grants import OPTIMAL, SHORT, allocate
from controller.core.bins import to_bins
from controller.core.cycle import decide
from controller.core.plan import to_plan
from controller.core.state import Forecast, Hold, Mode, Policy, Snapshot, VerifiedPlan
from controller.core.verify import verify
from controller.testing import SMALL_POLICY, Machine, make_forecast, make_snapshot, random_fleet

VMS = 50
SEED = 1
STAGES = ("bins", "allocate", "plan", "verify")


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    hosts: int
    machines: list[Machine]


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds, medians; `whole` is `decide` itself, which also looks for advice."""

    stages: dict[str, float]
    whole: float
    steps: int
    verified: int
    solved: int  # exact solutions of a host's resource
    roots: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=100, help="of the largest fleet")
    options = parser.parse_args()
    say(machine())
    say(f"One decision: median of {options.rounds}, shares of the stages; one core used\n")
    sizes = sorted({1, min(10, options.hosts), options.hosts})
    cases = [Case(f"{n} x {VMS} VMs, flat", n, fleet(n, nested=0)) for n in sizes]
    cases.append(Case(f"1 x {VMS} VMs, nested", 1, fleet(1, nested=4)))
    rows = [row(case, measure(case.machines, SMALL_POLICY, options.rounds)) for case in cases]
    heads = ["hosts x VMs", "machines", "decide ms", "ms/host", *(f"{name} %" for name in STAGES)]
    say_table([*heads, "solved", "steps", "verified"], rows)


def fleet(hosts: int, nested: int) -> list[Machine]:
    """Without the gaps and holds of a random fleet: one unknown limit spares its host's solution.

    Every VM may be moved, since what is merely observed costs little.
    """
    drawn = [whole(one) for one in random_fleet(SEED, hosts, VMS, nested)]
    by_parent: dict[str | None, list[Machine]] = {}
    for one in drawn:
        by_parent.setdefault(one.parent, []).append(one)
    grown = {one.name: around(one, by_parent.get(one.name, [])) for one in drawn if one.parent}
    roots = {one.name: roomy(one, grown.values()) for one in drawn if one.parent is None}
    return [(roots if one.parent is None else grown)[one.name] for one in drawn]


def whole(vm: Machine) -> Machine:
    """With every reading, and with 60 % of its CPUs, so that limits fit into the host."""
    cpu, memory, _ = vm.maximum
    limit = vm.limit[1] or (memory or 0) // 2
    used = min(vm.used[1] or limit // 2, limit)
    return replace(
        vm,
        mode=Mode.ENFORCE,
        hold=Hold.NONE,
        stats_age_ns=0,
        limit=((cpu or 0) * 6 // 10, limit, None),
        used=(vm.used[0], used, None),
        memory_free=(limit - used) // 2,
        memory_cache=(limit - used) // 2,
    )


def around(vm: Machine, guests: Sequence[Machine]) -> Machine:
    """A hypervisor VM is a quarter larger than its guests together, and may double."""
    if not guests:
        return vm
    cpu, memory = (sum(one.limit[place] or 0 for one in guests) * 5 // 4 for place in (0, 1))
    memory += vm.overhead[1]
    return replace(
        vm,
        limit=(cpu, memory, None),
        maximum=(2 * cpu, 2 * memory, None),
        used=(cpu // 2, memory // 2, None),
        demand=(cpu, memory * 3 // 4, 1),
        memory_free=memory // 4,
        memory_cache=memory // 4,
    )


def roomy(host: Machine, machines: Iterable[Machine]) -> Machine:
    """80 % of what its VMs could have at most."""
    vms = [one for one in machines if one.parent == host.name]
    cpu, memory = (sum(vm.maximum[place] or 0 for vm in vms) * 8 // 10 for place in (0, 1))
    return replace(host, capacity=(cpu, memory, None))


def measure(machines: list[Machine], policy: Policy, rounds: int) -> Timed:
    snapshot, forecast = make_snapshot(machines), make_forecast(machines)
    staged = [stages_of(snapshot, forecast, policy) for _ in range(rounds)]
    wholes = [seconds_of(lambda: decide(snapshot, forecast, policy)) for _ in range(rounds)]
    decision = decide(snapshot, forecast, policy)
    verdicts = [tree.verdict for tree in decision.trees]
    return Timed(
        {name: statistics.median(one[name] for one in staged) for name in STAGES},
        statistics.median(wholes),
        sum(len(verdict.plan.steps) for verdict in verdicts),
        sum(isinstance(verdict, VerifiedPlan) for verdict in verdicts),
        sum(word in {OPTIMAL, SHORT} for root in decision.allocation.status for word in root),
        len(verdicts),
    )


def stages_of(snapshot: Snapshot, forecast: Forecast, policy: Policy) -> dict[str, float]:
    """As `decide` goes through them."""
    seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - began

    with stage("bins"):
        bins = to_bins(snapshot, forecast, policy, Mode.ENFORCE)
    with stage("allocate"):
        allocation = allocate(snapshot, forecast, bins, policy)
    for root in snapshot.roots():
        with stage("plan"):
            plan = to_plan(snapshot, forecast, policy, bins, allocation, root)
        with stage("verify"):
            verify(plan, snapshot, policy, Mode.ENFORCE)
    return seconds


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def row(case: Case, timed: Timed) -> list[str]:
    together = sum(timed.stages.values())
    return [
        case.name,
        f"{len(case.machines):,}",
        f"{1000 * timed.whole:,.0f}",
        f"{1000 * timed.whole / case.hosts:.1f}",
        *(f"{100 * timed.stages[name] / together:.0f}" for name in STAGES),
        f"{timed.solved}/{2 * timed.roots}",
        f"{timed.steps:,}",
        f"{timed.verified}/{timed.roots}",
    ]


if __name__ == "__main__":
    main()
