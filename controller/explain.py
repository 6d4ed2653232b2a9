"""Why a VM has what it has: each option's worth, what was chosen, and what stopped more. Pure."""

from dataclasses import replace

import numpy as np

from controller.core.allocate.grants import shortfall
from controller.core.cycle import decide
from controller.core.record import tree
from controller.core.state import (
    MISSING,
    Decision,
    Hold,
    Ints,
    Mode,
    Policy,
    Snapshot,
)
from controller.forecast.protocol import NOVEL
from controller.inside import cpu_waiting, inside_of
from controller.rows import (
    HOLD_TEXT,
    VALUE_SCALE,
    known,
    novelty_of,
    price_micro,
    quantile,
    vm_row,
)
from controller.view import View
from shared.pb import admin_pb2 as pb
from shared.resources import Resource, amount_text

# Words of core's allocation.
OPTIMAL, UNKNOWN, OVER = "optimal", "unknown", "over"


def explanation(view: View, machine: int) -> pb.Explanation:
    """`found` is False as long as no decision was made about the machine."""
    snapshot, decision = view.snapshot, view.decision
    if snapshot is None or decision is None:
        return pb.Explanation(found=False)
    without = without_forecast(view, machine)
    return pb.Explanation(
        found=True,
        vm=vm_row(view, snapshot, machine, cpu_waiting(view, snapshot)),
        resources=[
            _resource_message(view, _Case(view, snapshot, decision, machine, resource, without))
            for resource in Resource
        ],
        inside=inside_of(view, snapshot.ids[machine]),
    )


class _Case:
    """One resource of one VM in the newest decision."""

    def __init__(
        self,
        view: View,
        snapshot: Snapshot,
        decision: Decision,
        machine: int,
        resource: Resource,
        without: Ints,
    ) -> None:
        self.view = view
        self.snapshot = snapshot
        self.machine = machine
        self.resource = resource
        self.bins, self.allocation = bins, allocation = decision.bins, decision.allocation
        count = int(bins.count[machine, resource])
        self.level: Ints = bins.level[machine, resource, :count]
        self.value: Ints = allocation.value[machine, resource, :count]
        mass = bins.probability[machine, resource, :count]
        self.enough = np.clip(np.cumsum(mass), 0.0, 1.0)
        self.needed = int(bins.needed[machine, resource])
        self.lowest = int(bins.lowest[machine, resource])
        self.chosen = int(allocation.level[machine, resource])
        self.limit = int(snapshot.limit[machine, resource])
        self.status = allocation.status[self._place()][resource]
        self.host = int(snapshot.parent[machine])
        self.price = price_micro(view, self.host, resource)
        self.without = known(int(without[resource])) if len(self.level) > 1 else None

    def _place(self) -> int:
        """Of the VM's root among the roots."""
        machine = self.machine
        while self.snapshot.parent[machine] >= 0:
            machine = int(self.snapshot.parent[machine])
        return self.snapshot.roots().index(machine)

    def least_allowed(self) -> int:
        """With room for all, each VM gets what its violation budget needs; else what is safe."""
        return self.needed if self.status == OPTIMAL and self.needed != MISSING else self.lowest

    def net(self, place: int) -> int | None:
        """An option's value less what its quanta cost at its host's shadow price."""
        if self.price is None or self.snapshot.below[self.machine]:
            return None  # what guests would make of it is not in its own value
        quanta = -(-int(self.level[place]) // self.view.policy.quantum[self.resource])
        return int(self.value[place]) - round(quanta * self.price * VALUE_SCALE / 1_000_000)

    def text(self, amount: int) -> str:
        return amount_text(self.resource, amount)


def _resource_message(view: View, case: _Case) -> pb.ResourceExplanation:
    least = min(case.least_allowed(), int(case.level.max(initial=0)))
    return pb.ResourceExplanation(
        resource=case.resource.word,
        options=[
            pb.Option(
                level=level,
                value=value,
                probability_enough=enough,
                allowed=level >= least,
                net_value=case.net(place),
            )
            for place, (level, value, enough) in enumerate(
                zip(case.level.tolist(), case.value.tolist(), case.enough.tolist(), strict=True)
            )
        ],
        chosen=case.chosen,
        why=why(case),
        price_micro=case.price,
        without_forecast=case.without,
        forecast_mattered=_mattered(case),
        forecast_unlike=_unlike(case),
    )


def without_forecast(view: View, machine: int) -> Ints:
    """(3,) what the VM would be granted now if its present use were all that it will need.

    Its tree is decided again, all else as it was recorded. MISSING where present use is not known.
    """
    snapshot, forecast = view.snapshot, view.forecast
    assert snapshot is not None, "nothing was decided yet"
    assert forecast is not None, "nothing was decided yet"
    root = machine
    while snapshot.parent[root] >= 0:
        root = int(snapshot.parent[root])
    few, said = tree(snapshot, forecast, root)
    place = few.ids.index(snapshot.ids[machine])
    used = np.where(few.used[place] == MISSING, np.nan, few.used[place])
    quantile = said.quantile.copy()
    quantile[place] = used[:, None]
    level = decide(few, replace(said, quantile=quantile), view.policy).allocation.level[place]
    return np.where(np.isnan(used), MISSING, level)


def _mattered(case: _Case) -> str:
    """Whether the forecast made a difference to the grant."""
    if case.without is None:
        return ""
    used = int(case.snapshot.used[case.machine, case.resource])
    alone = f"its present use of {case.text(used)} alone"
    if case.without == case.chosen:
        return f"the forecast made no difference: {alone} would get {case.text(case.chosen)} too"
    return (
        f"the forecast mattered: {alone} would get {case.text(case.without)}, "
        f"with it {case.text(case.chosen)}"
    )


def _unlike(case: _Case) -> str:
    """Where the network cannot know better."""
    novelty = novelty_of(case.view, case.machine, case.resource)
    if novelty is None or novelty <= NOVEL:
        return ""
    return (
        f"unlike what the network was taught: novelty {novelty:.2f}, where 95 % of that has 1 or "
        "less; how good its forecasts are all the same, their skill tells"
    )


def why(case: _Case) -> str:
    """What the forecast says, which option that makes best, and what stops more or less."""
    left_alone = _left_alone(case)
    if left_alone:
        return left_alone
    return f"{_demand(case)}: {_choice(case)}; {_stopped(case)}{_runner_up(case)}{_short(case)}"


def _demand(case: _Case) -> str:
    forecast = case.view.forecast
    assert forecast is not None, "an option was weighed without a forecast"
    middle = quantile(forecast, case.machine, case.resource, 0.5)
    high = quantile(forecast, case.machine, case.resource, 0.95)
    if middle is None or high is None:
        return "no forecast"
    return f"demand p50 {case.text(middle)}, p95 {case.text(high)}"


def _choice(case: _Case) -> str:
    if case.chosen == case.limit:
        return f"stays at {case.text(case.limit)}"
    word = "grows" if case.chosen > case.limit else "shrinks"
    return f"{word} from {case.text(case.limit)} to {case.text(case.chosen)}"


def _stopped(case: _Case) -> str:
    """Which bound or invariant keeps the grant from being what is worth most by itself."""
    best = int(case.level[int(case.value.argmax())])
    if case.status == OVER:
        return "its host has given out more than it has, so limits there only fall (I1)"
    if case.chosen < best:
        at_price = (
            f", at a shadow price of {case.price / 1e6:.3f} per quantum" if case.price else ""
        )
        gain = (int(case.value.max()) - _value_of(case, case.chosen)) / VALUE_SCALE
        return f"{case.text(best)} would be worth {gain:.3f} more, its host is full (I1){at_price}"
    if case.chosen > best:
        return "less is worth more, but not enough with the probability that is asked for"
    if case.chosen == int(case.level[-1]):
        return "more than that it may not or cannot have (I2)"
    if case.chosen == case.lowest:
        return f"less is not safe in one step: {_lowest_rule(case)}"
    return "no option is worth more"


def _runner_up(case: _Case) -> str:
    """The next best option when every quantum costs the host's shadow price; often as good."""
    chosen = case.net(int(np.flatnonzero(case.level == case.chosen)[0]))
    least = case.least_allowed()
    nets = [
        (net, level)
        for place, level in enumerate(case.level.tolist())
        if (net := case.net(place)) is not None and level != case.chosen and level >= least
    ]
    if chosen is None or not nets:
        return ""
    net, level = max(nets, key=lambda one: (one[0], -one[1]))
    less = (chosen - net) / VALUE_SCALE
    return f"; next best is {case.text(level)}, worth {less:.3f} less after paying for its quanta"


def _short(case: _Case) -> str:
    less = shortfall(case.bins, case.allocation, case.machine, case.resource)
    if not less:
        return ""
    short = f"{case.text(less)} short of what its violation budget asks for"
    return f"; {short}, as the host cannot give it to all"


def _lowest_rule(case: _Case) -> str:
    floor = int(case.snapshot.floor[case.machine, case.resource])
    if floor >= case.lowest:
        return "its floor (I2)"
    if case.resource is not Resource.MEMORY:
        return "what one step may take (I4)"
    policy: Policy = case.view.policy
    limit = case.snapshot.limit[case.machine : case.machine + 1, Resource.MEMORY]
    margin = int(policy.margin_bytes(limit)[0])
    used = int(case.snapshot.used[case.machine, Resource.MEMORY])
    quantum = policy.quantum[Resource.MEMORY]
    if used + margin > case.lowest - quantum:
        return f"its working set and a margin of {case.text(margin)} (I3)"
    return "what one step may take (I4)"


def _value_of(case: _Case, amount: int) -> int:
    found = np.flatnonzero(case.level == amount)
    return int(case.value[found[0]]) if len(found) else 0


def _left_alone(case: _Case) -> str:
    """Why there was nothing to choose from; empty when there was."""
    if case.limit == MISSING:
        return f"left alone: its {case.resource.word} limit is not known (I6)"
    if case.status == UNKNOWN:
        return "left alone: a capacity or a limit at its host is not known (I6)"
    if len(case.level) > 1:
        return ""
    return f"left alone at {case.text(case.limit)}: {_held_by(case)}"


def _held_by(case: _Case) -> str:
    """The first reason that holds, strongest first."""
    snapshot, machine, policy = case.snapshot, case.machine, case.view.policy
    hold, mode = Hold(int(snapshot.hold[machine])), Mode(int(snapshot.mode[machine]))
    pin = int(snapshot.pin[machine, case.resource])
    stats_matter = case.resource is Resource.MEMORY
    stale = _is_old(int(snapshot.sample_age_ns[machine]), policy.sample_age_ns_max)
    stale_stats = _is_old(int(snapshot.memory_stats_age_ns[machine]), policy.stats_age_ns_max)
    forecast = case.view.forecast
    unknown = forecast is None or quantile(forecast, machine, case.resource, 0.5) is None
    reasons = (
        (hold is not Hold.NONE, f"{HOLD_TEXT.get(hold, 'frozen')} (I8)"),
        (mode is not Mode.ENFORCE, f"its mode is {mode.name.lower()} (I8)"),
        (
            not snapshot.lever[machine, case.resource],
            f"its host has no lever for {case.resource.word}, or it lately had no effect",
        ),
        (stale, "its readings are stale (I6)"),
        (stats_matter and stale_stats, "the guest's memory figures are stale or missing (I6)"),
        (pin != MISSING, f"pinned at {case.text(pin)} (I8)"),
        (unknown, "there is no forecast for it yet (I6)"),
    )
    otherwise = "floor, ceiling and safe steps leave one amount (I2, I3, I4)"
    return next((text for holds, text in reasons if holds), otherwise)


def _is_old(age_ns: int, age_ns_max: int) -> bool:
    return age_ns == MISSING or age_ns > age_ns_max
