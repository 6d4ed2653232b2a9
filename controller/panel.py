"""How the controller's parts are, in words. Pure."""

from collections.abc import Mapping

from controller.core.state import Forecast
from controller.ingest import IngestStatus
from controller.sessions import Agent
from controller.table import Node
from controller.view import NodeInfo, Part


def telemetry_part(status: IngestStatus) -> Part:
    words = [status.detail, f"{status.nodes} nodes"]
    if not status.alive:
        words.insert(0, "the ingest thread is not running")
    elif status.connected and not status.ready:
        words.append("reading what the stream kept")
    if status.lost:
        words.append(f"{status.lost} messages missing in sequences")
    return Part("telemetry", status.alive and status.connected, ", ".join(words))


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


def forecast_part(forecast: Forecast | None) -> Part:
    if forecast is None:
        return Part("forecast", healthy=True, detail="none yet")
    minutes = forecast.horizon_ns / 60e9
    return Part("forecast", healthy=True, detail=f"{forecast.method}, {minutes:g} min ahead")


def node_info(node: Node) -> NodeInfo:
    return NodeInfo(
        node_id=node.node_id,
        name=node.name,
        role=node.role,
        received_tick_ns=node.received_tick_ns,
        levers=dict(node.levers),
    )
