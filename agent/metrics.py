"""What Prometheus may ask of an agent, in a registry of its own.

Names begin with `hrapaq_agent_`; units stand last in them, as Prometheus wants.
"""

import logging
import threading
from collections.abc import Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from agent.look import LADDER
from agent.steps import StepResult

logger = logging.getLogger(__name__)

PREFIX = "hrapaq_agent"
LEASE_STATES = ("none", "held", "ended")


class AgentMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._samples = self._counter("samples", "Samples taken of this node and its VMs.")
        self._published = self._counter("published", "Messages handed to the bus.")
        self._dropped = self._counter("dropped", "Messages lost, by cause.", "cause")
        self._steps = self._counter("steps", "Steps by what became of them.", "outcome")
        self._refusals = self._counter(
            "refusals", "Commands and steps refused, by invariant.", "invariant"
        )
        self._errors = self._counter("hypervisor_errors", "Readings that the hypervisor owed.")
        self._lease = self._gauge("lease", "1 for the state that the lease is in.", "state")
        self._connected = self._gauge("connected", "1 while connected, by peer.", "peer")
        self._generation = self._gauge("generation", "Rises with every change to a VM.")
        self._vms = self._gauge("vms", "VMs in the last sample.")
        self._pressure = self._gauge(
            "pressure_peak_us_per_s",
            "Highest one-second pressure (PSI some) of the node since the last sample.",
            "resource",
        )
        self._words = self._counter("words", "Words to the host below: need and readiness.")
        self._wanted_memory = self._gauge(
            "wanted_memory_bytes", "What this VM needs above what it has; 0: enough."
        )
        self._wanted_cpu = self._gauge("wanted_cpu_millicores", "Likewise, of CPU.")
        self._guest_words = self._counter(
            "guest_words", "Words of guests, by what became of them.", "outcome"
        )
        self._reflex = self._gauge("reflex", "1 for the state that the reflex is in.", "state")
        self._lent = self._gauge(
            "lent", "Lent beyond the plan, in bytes and millicores.", "resource"
        )
        self.lease("none")

    def sample(self, vms: int) -> None:
        self._samples.inc()
        self._vms.set(vms)

    def published(self) -> None:
        self._published.inc()

    def dropped(self, cause: str) -> None:
        self._dropped.labels(cause).inc()

    def step(self, result: StepResult) -> None:
        self._steps.labels(result.outcome.name.lower()).inc()

    def refusal(self, invariant: str) -> None:
        self._refusals.labels(invariant).inc()

    def guest_word(self, outcome: str) -> None:
        self._guest_words.labels(outcome).inc()

    def reflex(self, word: str, lent: Mapping[str, int]) -> None:
        for each in LADDER:
            self._reflex.labels(each).set(each == word)
        for resource, amount in lent.items():
            self._lent.labels(resource).set(amount)

    def hypervisor_errors(self, count: int) -> None:
        self._errors.inc(count)

    def lease(self, state: str) -> None:
        for each in LEASE_STATES:
            self._lease.labels(each).set(each == state)

    def connected(self, peer: str, *, is_connected: bool) -> None:
        self._connected.labels(peer).set(is_connected)

    def generation(self, generation: int) -> None:
        self._generation.set(generation)

    def pressure_peak(self, resource: str, us_per_s: int) -> None:
        self._pressure.labels(resource).set(us_per_s)

    def word(self) -> None:
        self._words.inc()

    def wanted(self, memory_bytes: int, cpu_millicores: int) -> None:
        self._wanted_memory.set(memory_bytes)
        self._wanted_cpu.set(cpu_millicores)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)


class Exposition:
    """/metrics on its own thread; a port that is taken is said, and the agent goes on."""

    def __init__(self, metrics: AgentMetrics, listen: str) -> None:
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        if not listen:
            return
        host, _, port = listen.rpartition(":")
        try:
            self._server, self._thread = start_http_server(
                int(port), host.strip("[]"), metrics.registry
            )
        except OSError as error:
            fields = {"metrics_listen": listen, "cause": str(error)}
            logger.warning("no /metrics: the port cannot be had", extra=fields)

    @property
    def port(self) -> int | None:
        return None if self._server is None else self._server.server_port

    def close(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1.0)
