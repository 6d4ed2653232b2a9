"""The smaller rooms of the agent: buffer, sampler, discovery, settings, the command line."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.__main__ import cli
from agent.discover import look, open_hypervisor
from agent.metrics import AgentMetrics, Exposition
from agent.publisher import Publisher
from agent.restore import restore
from agent.sampler import PressureWatch, Sampler, Share
from agent.settings import AgentSettings
from agent.simulated import SimulatedHypervisor, SimulatedVm
from agent.state import StateStore
from shared.clock import SECOND_NS, FakeClock
from shared.config import describe, load
from shared.errors import BusError, ConfigError, HypervisorError, HypervisorUnavailable
from shared.resources import MIB
from shared.telemetry import VmState
from shared.testing import FakeBus

SUBJECT = "paq.telemetry.00000000-0000-4000-8000-000000000001"


class Faulty(SimulatedHypervisor):
    """Loses its connection when told."""

    lost = False

    async def read_all(self):
        if self.lost:
            raise HypervisorUnavailable("no libvirt here")
        return await super().read_all()

    async def levers(self):
        if self.lost:
            raise HypervisorUnavailable("no libvirt here")
        return await super().levers()


class Picky(FakeBus):
    async def try_publish(self, subject, data):
        if len(data) > 3:
            raise BusError("too large for the server")
        return await super().try_publish(subject, data)


def machine(root):
    """A root of a machine with 2 CPUs and 4 GiB."""
    for name, text in {
        "proc/meminfo": "MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n",
        "proc/stat": "cpu  1 0 1 10 0 0 0 0 0 0\ncpu0 1\ncpu1 1\n",
        "proc/pressure/cpu": "some avg10=0.00 total=0\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# --- the buffer --------------------------------------------------------------------------------


def publisher(bus, messages_max=3):
    return Publisher(bus, SUBJECT, messages_max, FakeClock(), AgentMetrics())


def test_the_buffer_keeps_the_newest_and_counts_what_it_drops():
    async def scenario():
        bus, got = FakeBus(), []
        await bus.subscribe("paq.telemetry.*", lambda _, data: got.append(data))
        sender = publisher(bus)
        for number in range(5):
            sender.offer(b"%d" % number)
        assert not await sender.flush()
        assert (sender.waiting, sender.dropped, sender.published) == (3, 2, 0)
        await bus.connect()
        assert await sender.flush()
        assert got == [b"2", b"3", b"4"]
        assert (sender.waiting, sender.published) == (0, 3)

    asyncio.run(scenario())


def test_a_message_that_the_server_never_takes_does_not_block_the_others():
    async def scenario():
        bus = Picky()
        await bus.connect()
        sender = publisher(bus)
        sender.offer(b"far too large")
        sender.offer(b"ok")
        assert await sender.flush()
        assert (sender.dropped, sender.published) == (1, 1)

    asyncio.run(scenario())


# --- the sampler -------------------------------------------------------------------------------


def test_the_share_is_all_but_the_reserve_unless_said_otherwise():
    share = Share(memory_reserved_bytes=1024 * MIB).of(4096 * MIB, 2)
    assert (share.memory_bytes, share.cpu_millicores) == (3072 * MIB, 2000)
    assert share.io_bytes_per_s is None
    assert Share(cpu_overcommit=1.5).of(4096 * MIB, 2).cpu_millicores == 3000
    assert Share(memory_reserved_bytes=8192 * MIB).of(4096 * MIB, 2).memory_bytes == 0
    assert Share().of(None, None).memory_bytes is None
    assert Share(memory_bytes=5, cpu_millicores=7).of(None, None).cpu_millicores == 7


def test_when_the_hypervisor_is_away_the_node_goes_on_and_its_vms_are_unknown(tmp_path):
    async def scenario():
        clock = FakeClock()
        hypervisor = Faulty(1, clock)
        sampler = Sampler(machine(tmp_path), hypervisor, clock)
        there = (await sampler.sample()).vms
        assert set((await sampler.levers()).values()) == {""}
        hypervisor.lost = True
        clock.advance(10 * SECOND_NS)
        away = await sampler.sample()
        assert [vm.vm_id for vm in away.vms] == [vm.vm_id for vm in there]
        assert {(vm.state, vm.memory_limit_bytes) for vm in away.vms} == {(VmState.OTHER, None)}
        assert away.node.memory_available_bytes == 1024 * MIB
        assert set((await sampler.levers()).values()) == {"no libvirt here"}
        assert sampler.hypervisor_errors == 1
        with pytest.raises(HypervisorError):
            await sampler.readings()
        hypervisor.lost = False
        clock.advance(10 * SECOND_NS)
        assert (await sampler.sample()).vms[0].memory_limit_bytes == 512 * MIB
        assert set((await sampler.levers()).values()) == {""}

    asyncio.run(scenario())


def test_a_frozen_vm_counts_with_what_it_could_have_before(tmp_path):
    async def scenario():
        clock = FakeClock()
        hypervisor = SimulatedHypervisor(1, clock)
        sampler = Sampler(machine(tmp_path), hypervisor, clock)
        await sampler.sample()
        (vm_id, *_) = hypervisor.vm_ids().values()
        hypervisor.freeze(vm_id)
        seen = {vm.vm_id: vm for vm in (await sampler.sample()).vms}
        assert seen[vm_id].memory_maximum_bytes is None
        assert (await sampler.readings()).vms[vm_id].memory_maximum_bytes == 512 * MIB

    asyncio.run(scenario())


def test_a_vm_that_appears_is_starting_until_its_agent_is_ready(tmp_path):
    async def scenario():
        clock = FakeClock()
        hypervisor = SimulatedHypervisor(1, clock, (SimulatedVm("old"),))
        sampler = Sampler(machine(tmp_path), hypervisor, clock)
        await sampler.sample()
        new = hypervisor.start(SimulatedVm("new"))
        clock.advance(SECOND_NS)
        sample = await sampler.sample()
        assert {vm.name: vm.state.name for vm in sample.vms} == {
            "old": "RUNNING",
            "new": "STARTING",
        }
        assert (await sampler.readings()).vms[new].state is VmState.STARTING
        assert sampler.sample_of(await hypervisor.read(new)).state is VmState.STARTING
        assert sampler.starts.note_ready(new, "boot", SECOND_NS)
        assert (await sampler.readings()).vms[new].state is VmState.RUNNING

    asyncio.run(scenario())


def test_without_a_hypervisor_there_is_nothing_to_judge_by(tmp_path):
    sampler = Sampler(machine(tmp_path), None, FakeClock())
    with pytest.raises(HypervisorError):
        asyncio.run(sampler.readings())
    assert asyncio.run(sampler.levers()) == {}


def test_pressure_peaks_are_the_highest_second(tmp_path):
    clock = FakeClock()
    watch = PressureWatch(machine(tmp_path), clock)
    for total in (0, 1000, 900_000, 901_000):
        (tmp_path / "proc/pressure/cpu").write_text(f"some avg10=0.00 total={total}\n")
        watch.look()
        clock.advance(SECOND_NS)
    assert watch.take() == {"cpu": 899_000}
    assert watch.take() == {}


# --- discovery and settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "virtual", "role", "uri"),
    [
        ({"role": "guest"}, True, "guest", None),
        ({"role": "guest", "libvirt_uri": "qemu:///system"}, True, "guest", None),
        ({"libvirt_uri": "none"}, True, "guest", None),
        ({"libvirt_uri": "none"}, False, "host", None),
        ({"libvirt_uri": "simulated:3"}, True, "host+guest", "simulated:3"),
        ({"libvirt_uri": "test:///default"}, False, "host", "test:///default"),
    ],
)
def test_the_role_follows_from_settings_and_machine(tmp_path, fields, virtual, role, uri):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu hypervisor\n" if virtual else "flags : x\n")
    found = look(AgentSettings(**fields), tmp_path)
    assert (found.role, found.libvirt_uri) == (role, uri)


def test_a_simulated_hypervisor_says_that_it_is_one(tmp_path):
    settings = AgentSettings(libvirt_uri="simulated:3")
    assert open_hypervisor(settings, look(settings, tmp_path), FakeClock()).simulated


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metrics_listn = 'x'", "metrics_listen"),
        ("controller_address = 'nowhere'", "host:port"),
        ("libvirt_uri = 'simulated:x'", "simulated"),
        ("bus_servers = []", "bus_servers"),
        ("role = 'guest'\nlibvirt_uri = 'simulated:1'", "guest"),
        ("sample_interval_s = 0", "sample_interval_s"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, words):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(path, AgentSettings, {})


def test_every_setting_says_what_it_is():
    assert all(len(one.doc) > 20 for one in describe(AgentSettings))
    assert AgentSettings().problems() == []


def test_a_taken_metrics_port_does_not_stop_the_agent():
    first = Exposition(AgentMetrics(), "127.0.0.1:0")
    second = Exposition(AgentMetrics(), f"127.0.0.1:{first.port}")
    assert second.port is None
    second.close()
    first.close()


# --- the command line --------------------------------------------------------------------------


def test_the_command_line_names_every_role():
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert all(word in shown for word in ("host", "guest", "auto", "restore"))


def test_restore_leaves_a_running_agent_alone(tmp_path):
    settings = AgentSettings(libvirt_uri="simulated:1", state_directory=tmp_path)
    store = StateStore(tmp_path, "boot")
    store.open()
    with pytest.raises(ConfigError, match="another agent"):
        asyncio.run(restore(settings, "fallback", print))
    store.close()
    assert asyncio.run(restore(settings, "maximum", print))


def test_restore_needs_a_hypervisor(tmp_path):
    settings = AgentSettings(libvirt_uri="none", state_directory=tmp_path)
    with pytest.raises(ConfigError, match="libvirt_uri"):
        asyncio.run(restore(settings, "found", print, root=Path("/")))
