"""What Prometheus may ask of the controller, in a registry of its own.

Names begin with `hrapaq_controller_`; units stand last in them, as Prometheus wants.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from controller.outcome import PlanOutcome

PREFIX = "hrapaq_controller"
LATENCY_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120)
STEP_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ControllerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._cycles = self._counter("cycles", "Cycles that were run to their end.")
        self._early = self._counter("cycles_early", "Trees that were decided out of turn.")
        self._skipped = self._counter("cycles_skipped", "Cycles left out, the one before ran on.")
        self._failed = self._counter("cycles_failed", "Cycles that ended in an error of our own.")
        self._step_seconds = Histogram(
            f"{PREFIX}_cycle_step_seconds",
            "How long each named step of a cycle took.",
            ("step",),
            registry=self.registry,
            buckets=STEP_BUCKETS_S,
        )
        self._messages = self._counter("telemetry_messages", "Telemetry messages taken in.")
        self._dropped = self._counter("telemetry_dropped", "Messages dropped, by cause.", "cause")
        self._verified = self._counter("plans_verified", "Plans with steps that were verified.")
        self._rejections = self._counter(
            "plan_rejections", "Broken invariants of rejected plans.", "invariant"
        )
        self._commands = self._counter("commands", "Commands sent to agents.")
        self._acknowledged = self._counter("commands_acknowledged", "Commands that were answered.")
        self._steps = self._counter("steps", "Steps of plans by what became of them.", "outcome")
        self._moved = self._counter(
            "memory_changed_bytes", "Changes of memory limits, both ways, as agents measured them."
        )
        self._agents = self._gauge("agents_connected", "Agents with a stream to this controller.")
        self._skill = self._gauge("forecast_skill", "Mean skill against persistence.", "resource")
        self._pinball = self._gauge("forecast_pinball", "Mean pinball loss.", "resource")
        self._coverage = self._gauge(
            "forecast_coverage",
            "Mean share of outcomes at or below the .95 quantile: .95 where forecasts are true.",
            "resource",
        )
        self._series = self._gauge(
            "forecast_series", "Series (a VM's resource) that each method forecasts.", "method"
        )
        self._novel = self._gauge(
            "forecast_novel_series", "Series unlike what the network was taught.", "resource"
        )
        self._latency = Histogram(
            f"{PREFIX}_sample_to_command_seconds",
            "From the newest telemetry that a plan was made of to its first command.",
            registry=self.registry,
            buckets=LATENCY_BUCKETS_S,
        )
        self._seen: dict[tuple[Counter, str], int] = {}

    def cycle(self, seconds_by_step: Mapping[str, float]) -> None:
        self._cycles.inc()
        for step, seconds in seconds_by_step.items():
            self._step_seconds.labels(step).observe(seconds)

    def early(self, trees: int) -> None:
        self._early.inc(trees)

    def cycle_skipped(self, count: int) -> None:
        self._skipped.inc(count)

    def cycle_failed(self) -> None:
        self._failed.inc()

    def telemetry(self, messages: int, dropped: Mapping[str, int]) -> None:
        """Totals since the start; what was there at the last call is taken off."""
        self._raise_to(self._messages, "", messages)
        for cause, count in dropped.items():
            self._raise_to(self._dropped, cause, count)

    def plan_verified(self) -> None:
        self._verified.inc()

    def rejected(self, invariant: str) -> None:
        self._rejections.labels(invariant).inc()

    def outcome(self, outcome: PlanOutcome) -> None:
        self._commands.inc(outcome.commands_sent)
        self._acknowledged.inc(outcome.commands_acknowledged)
        self._moved.inc(outcome.memory_changed_bytes)
        for one in outcome.steps:
            self._steps.labels(one.result.value).inc()

    def latency(self, seconds: float) -> None:
        self._latency.observe(seconds)

    def agents(self, connected: int) -> None:
        self._agents.set(connected)

    def forecast(self, resource: str, skill: float, pinball: float) -> None:
        """Means over the fleet; NaN, not known yet, is left out rather than shown as 0."""
        if not math.isnan(skill):
            self._skill.labels(resource).set(skill)
        if not math.isnan(pinball):
            self._pinball.labels(resource).set(pinball)

    def coverage(self, resource: str, share: float) -> None:
        self._coverage.labels(resource).set(share)

    def series(self, by_method: Mapping[str, int]) -> None:
        for method, count in by_method.items():
            self._series.labels(method.partition(" (")[0]).set(count)  # without the reason

    def novel(self, by_resource: Mapping[str, int]) -> None:
        for resource, count in by_resource.items():
            self._novel.labels(resource).set(count)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _raise_to(self, counter: Counter, label: str, total: int) -> None:
        before = self._seen.get((counter, label), 0)
        if total > before:
            (counter.labels(label) if label else counter).inc(total - before)
            self._seen[counter, label] = total


@dataclass(frozen=True, slots=True)
class Exposition:
    """The HTTP server behind /metrics, in a thread of its own."""

    server: WSGIServer
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.server.server_port)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def expose(metrics: ControllerMetrics, host: str, port: int) -> Exposition:
    """Serves /metrics at host:port, 0 picks a free one; OSError when it cannot."""
    server, thread = start_http_server(port, host, metrics.registry)
    return Exposition(server, thread)
