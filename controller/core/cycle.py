"""One decision, from what is known to what may be done; pure from end to end, replayable."""

from controller.core.allocate.grants import allocate
from controller.core.bins import to_bins
from controller.core.plan import to_plan
from controller.core.state import (
    Allocation,
    Bins,
    Decision,
    Forecast,
    Mode,
    Policy,
    Snapshot,
    TreeDecision,
    Verdict,
)
from controller.core.verify import verify


def decide(snapshot: Snapshot, forecast: Forecast, policy: Policy) -> Decision:
    """For each tree: what is enforced now, and what recommended VMs would add (DESIGN section 5).

    The decision of a tree depends on nothing outside it.
    """
    bins, allocation, enforced = _verdicts(snapshot, forecast, policy, Mode.ENFORCE)
    advised: dict[int, Verdict] = {}
    if (snapshot.mode == Mode.RECOMMEND).any():
        _, _, advised = _verdicts(snapshot, forecast, policy, Mode.RECOMMEND)
    trees = tuple(
        TreeDecision(root, verdict, _advice(snapshot, advised.get(root)))
        for root, verdict in enforced.items()
    )
    return Decision(trees, bins, allocation)


def _verdicts(
    snapshot: Snapshot, forecast: Forecast, policy: Policy, lowest_mode: Mode
) -> tuple[Bins, Allocation, dict[int, Verdict]]:
    bins = to_bins(snapshot, forecast, policy, lowest_mode)
    allocation = allocate(snapshot, forecast, bins, policy)
    verdicts = {}
    for root in snapshot.roots():
        plan = to_plan(snapshot, forecast, policy, bins, allocation, root)
        verdicts[root] = verify(plan, snapshot, policy, lowest_mode)
    return bins, allocation, verdicts


def _advice(snapshot: Snapshot, verdict: Verdict | None) -> Verdict | None:
    """Advice only where it moves a VM that an operator wants to be asked about."""
    if verdict is None:
        return None
    asks = any(snapshot.mode[step.machine] == Mode.RECOMMEND for step in verdict.plan.steps)
    return verdict if asks else None
