"""How long it takes from a reading to the command that it leads to, and to its answer.

`python tests/bench/bench_latency.py [--seconds 40] [--cycle 2]`. Real processes on this machine:
nats-server, controller, one host agent with SIMULATED guests, set up as `hrapaq up --guests
simulated` sets them up. All times are of the machine's wall clock (CLOCK_REALTIME), which the
processes share, but for "receipt to command", which the controller measures on CLOCK_BOOTTIME and
tells in whole milliseconds.

Three watchers look on from outside: a subscriber to the same telemetry, the controller's event
stream (events carry the controller's own stamps), and its status after each command.
"""

import argparse
import asyncio
import re
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from measuring import (
    START_S,
    BenchError,
    Program,
    loopback,
    machine,
    quantile,
    say,
    say_table,
)

from controller.up.configs import Addresses, Demo, agent_toml, controller_toml
from shared.bus import NatsBus
from shared.clock import MILLISECOND_NS, SystemClock
from shared.pb import admin_pb2 as pb
from shared.pb.admin_pb2_grpc import AdminStub
from shared.subjects import TELEMETRY_ALL
from shared.testing import NatsServer, until
from shared.wire import decode

if TYPE_CHECKING:
    from shared.pb.admin_pb2_grpc import AdminAsyncStub  # exists for the type checker only

MEMORY_POOL_MIB = 1536  # scarce for the four guests, so that there is something to move
CPU_POOL_MILLICORES = 4000  # of five that they could use
SEED = 7
SHARES = (0.5, 0.95, 1.0)
SAMPLE_INTERVAL_S = 0.7  # no part of a cycle, so that samples are of every age when it begins
PINNED = "sim-idle"
PINS_MILLICORES = (1000, 850)  # within what one step may take of a CPU limit


@dataclass(slots=True)
class Seen:
    """In the order in which it was seen."""

    messages: list[tuple[int, int]] = field(default_factory=list)  # unix ns: sampled, received
    events: list[pb.Event] = field(default_factory=list)
    first_commands: list[tuple[pb.Event, int]] = field(default_factory=list)  # and ms since receipt
    pins: int = 0
    refused_pin: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--cycle", type=int, default=2)
    options = parser.parse_args()
    say(machine())
    seen = asyncio.run(observe(options.seconds, options.cycle))
    say_latencies(seen, options.seconds, options.cycle)


async def observe(seconds: float, cycle_s: int) -> Seen:
    """Starts everything, looks on for `seconds` from the first telemetry on, stops everything."""
    seen = Seen()
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hrapaq-bench-")))
        at = loopback(stack.enter_context(NatsServer()))
        programs = [stack.enter_context(each) for each in both(at, directory, cycle_s)]
        bus = NatsBus([at.nats], "bench", lambda error: say(f"bus: {error}"))
        await bus.connect()
        stack.push_async_callback(bus.close)
        await bus.subscribe(TELEMETRY_ALL, lambda _subject, data: take_message(seen, data))
        channel = grpc.aio.insecure_channel(at.admin, options=[("grpc.enable_http_proxy", 0)])
        stub = AdminStub(await stack.enter_async_context(channel))
        await channel_ready(channel, programs)
        following = asyncio.create_task(follow(stub, seen))
        await until(lambda: seen.messages, START_S)
        done, _ = await asyncio.wait({following}, timeout=seconds)
        for task in done:  # it ends only when the controller does
            raise BenchError(f"the controller went away: {task.exception()}")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return seen


def both(at: Addresses, directory: Path, cycle_s: int) -> tuple[Program, Program]:
    """The controller and the agent of a simulated demo."""
    demo = Demo(
        cycle_s=cycle_s,
        enforced=(),
        simulated_seed=SEED,
        libvirt_uri="none",
        memory_allocatable_mib=MEMORY_POOL_MIB,
        cpu_allocatable_millicores=CPU_POOL_MILLICORES,
        io_allocatable_mib_per_s=None,
    )
    agent = agent_toml(demo, at, directory / "agent")
    texts = {
        "controller": controller_toml(demo, at, directory / "controller"),
        "agent": re.sub("(?m)^(sample_interval_s) = .*$", rf"\1 = {SAMPLE_INTERVAL_S}", agent),
    }
    for name, text in texts.items():
        (directory / f"{name}.toml").write_text(text)
    return (
        Program("controller", "controller", "serve", *_files(directory / "controller.toml"),
                log=directory / "controller.log"),
        Program("agent", "agent", "host", *_files(directory / "agent.toml"),
                log=directory / "agent.log"),
    )  # fmt: skip


async def channel_ready(channel: grpc.aio.Channel, programs: Sequence[Program]) -> None:
    try:
        await asyncio.wait_for(channel.channel_ready(), START_S)
    except TimeoutError:
        raise BenchError(f"no controller:\n{programs[0].log_text()[-2000:]}") from None


# ---- what is seen from outside ----


def take_message(seen: Seen, data: bytes) -> None:
    received = SystemClock().unix_ns()
    seen.messages.append((decode(data).sampled_at_unix_ns, received))


async def follow(stub: "AdminAsyncStub", seen: Seen) -> None:
    """A plan's latency stands in the status once its cycle is over."""
    first: pb.Event | None = None
    async for event in stub.Watch(pb.WatchRequest()):
        seen.events.append(event)
        if event.kind == "command" and first is None:
            first = event
        elif event.kind == "cycle":
            if first is not None:
                status = await stub.GetStatus(pb.StatusRequest(), timeout=START_S)
                seen.first_commands.append((first, status.latency_sample_to_command_ms))
                first = None
            await stir(stub, seen)


async def stir(stub: "AdminAsyncStub", seen: Seen) -> None:
    """Something to do in each cycle: the loads of the guests alone move little in a minute."""
    seen.pins += 1
    amount = PINS_MILLICORES[seen.pins % len(PINS_MILLICORES)]
    pin = pb.PinRequest(vm=PINNED, resource="cpu", amount=amount, by="benchmark")
    reply = await stub.Pin(pin, timeout=START_S)
    if not reply.done and not seen.refused_pin:
        seen.refused_pin = reply.detail


# ---- what comes of it ----


def say_latencies(seen: Seen, seconds: float, cycle_s: int) -> None:
    acknowledged = command_to_ack_ms(seen.events)
    say(
        f"SIMULATED guests, {seconds:.0f} s, cycles of {cycle_s} s, samples every "
        f"{SAMPLE_INTERVAL_S:g} s: {len(seen.messages)} samples, {len(seen.first_commands)} plans, "
        f"{len(acknowledged)} commands acknowledged"
    )
    if seen.refused_pin:
        say(f"the stirring was refused: {seen.refused_pin}")
    say(
        "A cycle takes the newest sample, which is up to a sample interval old by then: that is\n"
        "most of the second line. No gate; a service samples every 10 s.\n"
    )
    parts = [
        # The first one waits for the agent's connection to the bus.
        ("sample -> receipt", [_ms(then, now) for then, now in seen.messages[1:]], "wall clock"),
        (
            "receipt -> first command sent",
            [float(ms) for _, ms in seen.first_commands],
            "controller's CLOCK_BOOTTIME",
        ),
        ("sample -> first command sent", sample_to_command_ms(seen), "wall clock"),
        ("command sent -> acknowledged", acknowledged, "controller's wall clock"),
    ]
    rows = [
        [name, str(len(each)), *(f"{quantile(each, share):.1f}" for share in SHARES), clock]
        for name, each, clock in parts
        if each
    ]
    say_table(["ms", "n", "p50", "p95", "max", "clock"], rows)
    say(
        "An acknowledgement comes with the effect as measured, so the way of a balloon is in it\n"
        "(64 MiB/s for these guests, and 5 s of patience with one that stands still)."
    )


def sample_to_command_ms(seen: Seen) -> list[float]:
    """The sample is the one that was received when the controller says that it took it in."""
    found = []
    for command, latency_ms in seen.first_commands:
        taken = command.at_unix_ns - latency_ms * MILLISECOND_NS
        sampled, _ = min(seen.messages, key=lambda one: abs(one[1] - taken))
        found.append(_ms(sampled, command.at_unix_ns))
    return found


def command_to_ack_ms(events: Sequence[pb.Event]) -> list[float]:
    """A node's commands are answered in their order."""
    waiting: dict[tuple[str, str], list[int]] = {}
    found = []
    for event in events:
        sent = waiting.setdefault((event.node_id, event.plan_id), [])
        if event.kind == "command":
            sent.append(event.at_unix_ns)
        elif event.kind == "ack" and sent:
            found.append(_ms(sent.pop(0), event.at_unix_ns))
    return found


def _files(config: Path) -> tuple[str, str]:
    return "--config", str(config)


def _ms(then_ns: int, now_ns: int) -> float:
    return (now_ns - then_ns) / MILLISECOND_NS


if __name__ == "__main__":
    main()
