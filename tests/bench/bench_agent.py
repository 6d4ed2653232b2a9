"""What an agent costs: memory of both roles, CPU of a host agent with many VMs.

`python tests/bench/bench_agent.py [--vms 50] [--seconds 60]`. Real processes: nats-server, a
controller that observes, a host agent with its libvirt worker, a guest agent. Its peers, on the
same VMs in the same run: a libvirt exporter, and one call after the other in place of the bulk call
(agent_peers).
"""

import argparse
import json
import re
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

from agent_peers import Cost, compare_with_exporter, say_calls
from measuring import (
    START_S,
    BenchError,
    Memory,
    MemoryGroup,
    Program,
    children_of,
    cpu_seconds,
    loopback,
    machine,
    memory_after,
    memory_of,
    mib,
    say,
    say_table,
    wait_for,
)
from paused_vms import Vms, some_vms

from controller.settings import ControllerSettings
from controller.up.configs import Addresses
from shared.settings_text import as_toml
from shared.testing import NatsServer

WARM_UP_SAMPLES = 3  # the first asks each VM for its XML and limits, which is not repeated
IDLE_S = 10.0  # of the daemon alone, before there is an agent
HOST_GATE_MIB, GUEST_GATE_MIB, CPU_GATE_PERCENT, FIRST_GATE_S = 64, 36, 1.0, 2.0
GUEST_CPU_GATE_PERCENT = 0.2
STARTS = 3  # the first one meets VMs that no agent has seen yet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="of agent CPU measured")
    parser.add_argument("--rounds", type=int, default=10, help="of reading all VMs at once")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between samples")
    options = parser.parse_args()
    say(machine())
    with (
        tempfile.TemporaryDirectory(prefix="hrapaq-bench-") as name,
        some_vms(options.vms, Path(name)) as vms,
    ):
        compare(vms, Path(name), options.seconds, options.interval, options.rounds)


def compare(vms: Vms, directory: Path, seconds: float, interval_s: float, rounds: int) -> None:
    """All tables, with the VMs as they are."""
    with ExitStack() as stack:
        say(f"{vms.count} VMs: {vms.what}\n")
        nats = stack.enter_context(NatsServer())
        at = loopback(nats)
        stack.enter_context(controller(at, directory))
        idle_share = idle_daemon_share(vms)
        say_starts("host", at, directory, vms.uri, interval_s)
        say_starts("guest", at, directory, "none", interval_s)
        say()
        group = stack.enter_context(MemoryGroup())
        with agent("host", at, directory, vms.uri, interval_s, group) as host:
            spent = watch_cpu(host, vms, seconds)
            say_cpu(spent, idle_share)
            of_host = memory_of(host.pid), *map(memory_of, children_of(host.pid))
            of_group = group.usage()
        with agent("guest", at, directory, "none", interval_s) as guest:
            wait_for_samples(guest, WARM_UP_SAMPLES)
            say_guest_cpu(guest, seconds)
            say_memory(of_host, memory_of(guest.pid), of_group)
        if vms.connection is not None:
            say_import()
            ours = Cost(spent.agent + spent.worker, spent.daemon, sum(of_host[1:], of_host[0]))
            compare_with_exporter(vms, directory, interval_s, seconds, idle_share, ours)
            say_calls(vms, rounds)


# ---- real processes ----


class Agent(Program):
    """`python -m agent ROLE`, and what it says of itself at /metrics."""

    def __init__(
        self,
        role: str,
        config: Path,
        metrics: str,
        interval_s: float,
        group: MemoryGroup | None = None,
    ) -> None:
        super().__init__(
            f"{role} agent",
            *("agent", role, "--config", str(config)),
            log=config.with_suffix(".log"),
            group=group,
        )
        self.interval_s = interval_s
        self._metrics = f"http://{metrics}/metrics"

    def metric(self, name: str) -> float | None:
        """None while nobody answers or the agent knows none of that name."""
        try:
            with urllib.request.urlopen(self._metrics, timeout=2) as reply:
                text = reply.read().decode()
        except OSError:
            return None
        found = re.search(rf"^hrapaq_agent_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else None


def controller(at: Addresses, directory: Path) -> Program:
    settings = ControllerSettings(
        bus_servers=(at.nats,),
        commands_listen=at.commands,
        admin_listen=at.admin,
        metrics_listen=at.controller_metrics,
        state_directory=directory / "controller",
        mode="observe",
    )
    config = directory / "controller.toml"
    config.write_text(as_toml(settings))
    log = config.with_suffix(".log")
    return Program("controller", "controller", "serve", "--config", str(config), log=log)


def agent(
    role: str,
    at: Addresses,
    directory: Path,
    libvirt_uri: str,
    interval_s: float,
    group: MemoryGroup | None = None,
) -> Agent:
    values = {
        "bus_servers": [at.nats],
        "controller_address": at.commands,
        "sample_interval_s": interval_s,
        "state_directory": str(directory / role),
        "libvirt_uri": libvirt_uri,
        "metrics_listen": at.agent_metrics,
    }
    config = directory / f"{role}.toml"
    # JSON's strings, numbers and lists are TOML's too.
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return Agent(role, config, at.agent_metrics, interval_s, group)


def wait_for_samples(program: Agent, count: int) -> None:
    within_s = START_S + count * program.interval_s

    def published() -> bool | None:
        return (program.metric("published_total") or 0) >= count or None

    wait_for(f"{count} samples of the {program.name}", published, program, within_s=within_s)


def say_starts(role: str, at: Addresses, directory: Path, uri: str, interval_s: float) -> None:
    """From the start of the process to the first sample handed to the bus."""
    took = []
    for _ in range(STARTS):
        with agent(role, at, directory, uri, interval_s) as program:
            wait_for_samples(program, 1)
            took.append(time.monotonic() - program.started_s)
    times = ", ".join(f"{each:.2f}" for each in took)
    say(f"first sample of a {role} agent, seconds after its start (gate {FIRST_GATE_S:g}): {times}")


# ---- CPU ----


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds over a window of `seconds`, by who spent them."""

    seconds: float
    interval_s: float
    agent: float
    worker: float
    daemon: float | None
    samples: float
    vms: int


def watch_cpu(host: Agent, vms: Vms, seconds: float) -> Spent:
    """From the middle between two samples, so that the window holds whole ones."""
    wait_for_samples(host, WARM_UP_SAMPLES)
    connected = partial(host.metric, 'connected{peer="controller"}')
    wait_for("the agent's stream to the controller", lambda: connected() == 1 or None, host)
    time.sleep(host.interval_s / 2)
    seen = int(host.metric("vms") or 0)
    if seen < vms.count:
        raise BenchError(f"the agent sees {seen} of {vms.count} VMs")
    before, began = _spent(host, vms), time.monotonic()
    time.sleep(seconds)
    after, took = _spent(host, vms), time.monotonic() - began
    agent_s, worker_s, daemon_s, samples = (
        now - then for now, then in zip(after, before, strict=True)
    )
    return Spent(
        took, host.interval_s, agent_s, worker_s, daemon_s if vms.daemon else None, samples, seen
    )


def _spent(host: Agent, vms: Vms) -> tuple[float, float, float, float]:
    samples = host.metric("samples_total") or 0
    workers = sum(map(cpu_seconds, children_of(host.pid)))
    return cpu_seconds(host.pid), workers, cpu_seconds(vms.daemon) if vms.daemon else 0, samples


def idle_daemon_share(vms: Vms) -> float:
    """CPU seconds per second of libvirtd while nobody asks it anything; 0 without one."""
    if vms.daemon is None:
        return 0.0
    before, began = cpu_seconds(vms.daemon), time.monotonic()
    time.sleep(IDLE_S)
    return (cpu_seconds(vms.daemon) - before) / (time.monotonic() - began)


def say_cpu(spent: Spent, idle_share: float) -> None:
    say(
        f"CPU of a host agent, {spent.vms} VMs, a sample every {spent.interval_s:g} s, over "
        f"{spent.seconds:.0f} s with {spent.samples:.0f} samples"
    )
    gate = f"<= {CPU_GATE_PERCENT:g} %"
    lines: list[tuple[str, float | None, str]] = [
        ("agent", spent.agent, ""),
        ("its libvirt worker", spent.worker, ""),
        ("host agent (both)", spent.agent + spent.worker, gate),
        ("libvirtd, beside it", spent.daemon, ""),
        ("libvirtd before the agent came", spent.daemon and idle_share * spent.seconds, ""),
    ]
    rows = [[name, *_shares(cpu, spent), limit] for name, cpu, limit in lines if cpu is not None]
    say_table(["", "% of a core", "ms per sample", "gate"], rows)


def say_guest_cpu(guest: Agent, seconds: float) -> None:
    """Of the guest role on this machine, with the processes that it has here."""
    time.sleep(guest.interval_s / 2)
    before, began = cpu_seconds(guest.pid), time.monotonic()
    time.sleep(seconds)
    spent, took = cpu_seconds(guest.pid) - before, time.monotonic() - began
    processes = sum(entry.name.isdecimal() for entry in Path("/proc").iterdir())
    say(f"\nCPU of a guest agent, {processes} processes, a look a second, over {took:.0f} s")
    share = f"{100 * spent / took:.2f}"
    say_table(
        ["", "% of a core", "gate"], [["guest agent", share, f"<= {GUEST_CPU_GATE_PERCENT:g} %"]]
    )


def _shares(cpu: float, spent: Spent) -> tuple[str, str]:
    per_sample = f"{1000 * cpu / spent.samples:.1f}" if spent.samples else "-"
    return f"{100 * cpu / spent.seconds:.2f}", per_sample


# ---- memory ----


def say_memory(
    of_host: Sequence[Memory], of_guest: Memory, of_group: tuple[int, int] | None
) -> None:
    say(
        "Memory, MiB. In RSS a page of a shared library counts in each process that maps it, so\n"
        "that a sum of RSS counts it several times; in PSS it is divided among all that map it,\n"
        "libvirtd included. The gates are on RSS. What the machine gives up: the group's figure."
    )
    host_gate, guest_gate = f"<= {HOST_GATE_MIB}", f"<= {GUEST_GATE_MIB}"
    lines = [("host: agent", of_host[0], "")]
    lines += [("host: libvirt worker", each, "") for each in of_host[1:]]
    lines.append(("host role (all)", sum(of_host[1:], of_host[0]), host_gate))
    lines.append(("guest role", of_guest, guest_gate))
    rows = [
        [name, mib(one.resident), mib(one.proportional), mib(one.private), gate]
        for name, one, gate in lines
    ]
    say_table(["", "RSS", "PSS", "private", "gate RSS"], rows)
    if of_group is not None:
        total, kept = map(mib, of_group)
        say(
            f"The host role in a control group of its own, each page counted once: {total} MiB,"
            f"\nof which {kept} MiB cannot be had back (the rest is cache of files).\n"
        )


def say_import() -> None:
    say("What the worker pays for libvirt's library alone, MiB:")
    bare, loaded = astuple(memory_after("")), astuple(memory_after("import libvirt"))
    rows = [
        ["a bare Python", *map(mib, bare)],
        ["with `import libvirt`", *map(mib, loaded)],
        ["difference", *(mib(more - less) for more, less in zip(loaded, bare, strict=True))],
    ]
    say_table(["", "RSS", "PSS", "private"], rows)


if __name__ == "__main__":
    main()
