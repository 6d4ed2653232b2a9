"""How the controller's parts are, in words. Pure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from controller.claims import Trouble
from controller.forecast.empirical import BORROWED
from controller.forecast.empirical import METHOD as EMPIRICAL
from controller.forecast.protocol import Said, Standing
from controller.forecast.skill import SkillBook
from controller.ingest import IngestStatus
from controller.sessions import Agent
from controller.table import Node
from controller.view import Judged, NodeInfo, Part
from shared.resources import Resource

_TROUBLES_SHOWN = 3
_COMPARED_MIN = 20  # series, before their share says anything
_NOVEL_SHARE_MAX = 0.2  # one in twenty is as usual


def telemetry_part(status: IngestStatus) -> Part:
    words = [status.detail, f"{status.nodes} node{'' if status.nodes == 1 else 's'}"]
    if not status.alive:
        words.insert(0, "the ingest thread is not running")
    elif status.connected and not status.ready:
        words.append("reading what the stream kept")
    if status.lost:
        words.append(f"{status.lost} messages missing in sequences")
    return Part("telemetry", status.alive and status.connected, ", ".join(words))


def topology_part(troubles: Sequence[Trouble]) -> Part:
    """What a person has to put right in the tree of machines."""
    wrong = [trouble for trouble in troubles if trouble.kind != "orphan"]
    if not troubles:
        return Part("topology", healthy=True, detail="every machine has one place")
    shown = (wrong or list(troubles))[:_TROUBLES_SHOWN]
    words = [*(trouble.text for trouble in shown), shown[0].advice]
    more = len(wrong or troubles) - len(shown)
    if more:
        words.insert(-1, f"{more} more")
    return Part("topology", healthy=not wrong, detail="; ".join(words))


def audit_part(*, healthy: bool, bus: str, detail: str) -> Part:
    """Unhealthy means that nothing is dispatched (I10)."""
    if healthy:
        return Part("audit", healthy=True, detail=detail)
    return Part("audit", healthy=False, detail=f"{detail}; nothing is dispatched (bus: {bus})")


def agents_part(agents: Mapping[str, Agent]) -> Part:
    gone = [agent.name for agent in agents.values() if not agent.connected]
    if not agents:
        return Part("agents", healthy=False, detail="none has connected yet")
    detail = f"{len(agents) - len(gone)} connected"
    if gone:
        detail += f", gone: {', '.join(sorted(gone)[:8])}"
    return Part("agents", healthy=not gone, detail=detail)


def cycle_part(*, cycles: int, trouble: str, waiting: bool) -> Part:
    if trouble:
        return Part("cycle", healthy=False, detail=trouble)
    if waiting:
        return Part("cycle", healthy=True, detail="waiting for agents to say Hello")
    return Part("cycle", healthy=True, detail=f"{cycles} run")


def forecast_part(standing: Standing, horizon_s: int, judged: Judged | None) -> Part:
    """Ill where it works with less than it should have; the loop goes on all the same."""
    words = [f"{standing.method}, {horizon_s / 60:g} min ahead"]
    if judged is None:
        words.append("none yet")
    else:
        words.extend(_newcomers(standing, judged.series))
    if judged is not None and judged.compared >= _COMPARED_MIN:
        novel, every = sum(judged.novel.values()), judged.compared
        if novel > _NOVEL_SHARE_MAX * every:
            words.append(f"{novel} of {every} series are unlike what the network was taught")
    detail = ", ".join(words)
    if standing.trouble:
        return Part("forecast", healthy=False, detail=f"{detail}: {standing.trouble}")
    return Part("forecast", healthy=True, detail=detail)


def _newcomers(standing: Standing, series: Mapping[str, int]) -> Iterator[str]:
    others = {name: count for name, count in series.items() if count and name != standing.method}
    if others:
        new, every = sum(others.values()), sum(series.values())
        many = "all" if new == every else f"{new} of {every}"
        yield f"{many} series are too new for it: {', '.join(sorted(others))}"


def judged(said: Said, standing: Standing, book: SkillBook, ids: tuple[str, ...]) -> Judged:
    """What is shown of a forecast and of those before it."""
    forecast = said.forecast
    known = ~np.isnan(forecast.quantile[..., 0])
    learnt, borrowed = int((known & said.learnt).sum()), int((known & said.borrowed).sum())
    series = {EMPIRICAL: int(known.sum()) - learnt - borrowed}
    if forecast.method != EMPIRICAL:
        series |= {forecast.method: learnt, BORROWED: borrowed}
    novel = {resource.word: int(said.novel[:, resource].sum()) for resource in Resource}
    return Judged(
        said,
        standing,
        book.coverage(ids),
        book.compared(ids),
        series,
        int(said.compared.sum()),
        novel,
    )


def node_info(node: Node) -> NodeInfo:
    return NodeInfo(
        node_id=node.node_id,
        name=node.name,
        role=node.role,
        received_tick_ns=node.received_tick_ns,
        levers=dict(node.levers),
        readings=node.readings,
        roles=node.roles,
        vm_ids=node.vm_ids,
        vm_delay_us_per_s=node.vm_delay_us_per_s,
        vm_net_used_bytes_per_s=node.vm_net_used_bytes_per_s,
        vm_net_limit_bytes_per_s=node.vm_net_limit_bytes_per_s,
        vm_idle_levers=node.vm_idle_levers,
    )
