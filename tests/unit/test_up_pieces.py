"""Pieces of `hrapaq up`: the settings it writes, its directories, what it finds left behind."""

import asyncio
import socket
import subprocess
import sys

import pytest

from agent.settings import AgentSettings
from controller.settings import ControllerSettings
from controller.up.aftermath import OWNER_VARIABLE
from controller.up.configs import Addresses, Demo, agent_toml, controller_toml
from controller.up.leftovers import ends_left
from controller.up.libvirtd import owner_listening
from controller.up.machine import (
    RUNS_KEPT,
    cgroup_version,
    default_state_root,
    make_state_directory,
    our_cgroups,
    remove_cgroups,
)
from controller.up.nats import EmbeddedNats, http_get, nats_server_binary, port_is_free
from controller.up.owner import Owner
from controller.up.supervisor import Supervisor
from shared.config import load
from shared.errors import ConfigError
from shared.ports import free_ports
from shared.resources import MIB

AT = Addresses("nats://127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4", "127.0.0.1:5")
UUID = "11111111-0000-4000-8000-000000000001"


def both(tmp_path, demo: Demo) -> tuple[ControllerSettings, AgentSettings]:
    """What the programs themselves read from the files."""
    (tmp_path / "c.toml").write_text(controller_toml(demo, AT, tmp_path / 'it\'s "c"'))
    (tmp_path / "a.toml").write_text(agent_toml(demo, AT, tmp_path / "a"))
    controller = load(tmp_path / "c.toml", ControllerSettings, {})
    return controller, load(tmp_path / "a.toml", AgentSettings, {})


@pytest.mark.parametrize("cycle_s", [2, 10, 60, 600])
def test_real_guests_are_enforced_and_nothing_else(tmp_path, cycle_s):
    demo = Demo(cycle_s, (UUID,), None, "qemu:///system", 1500, 2800, None)
    controller, agent = both(tmp_path, demo)
    assert controller.mode == "observe"
    assert {name: vm.mode for name, vm in controller.vms.items()} == {UUID: "enforce"}
    assert controller.cycle_interval_s == cycle_s
    assert controller.policy.memory_quantum_mib == 8
    assert agent.libvirt_uri == "qemu:///system"
    assert agent.memory_allocatable_bytes == 1500 * MIB
    assert agent.cpu_allocatable_millicores == 2800
    assert agent.io_allocatable_bytes_per_s is None
    assert agent.sample_interval_s <= cycle_s
    assert agent.controller_address == controller.commands_listen
    assert agent.bus_servers == controller.bus_servers


def test_simulated_guests_are_all_that_is_enforced(tmp_path):
    controller, agent = both(tmp_path, Demo(10, (), 42, "none", 2400, 3500, 64))
    assert controller.mode == "enforce"
    assert agent.simulated_seed == 42
    assert agent.io_allocatable_bytes_per_s == 64 * MIB


def test_state_directories(tmp_path):
    assert str(default_state_root({}, 0)) == "/var/lib/hrapaq"
    assert str(default_state_root({"HOME": "/home/a"}, 1)) == "/home/a/.local/state/hrapaq"
    assert str(default_state_root({"XDG_STATE_HOME": "/s"}, 1)) == "/s/hrapaq"
    assert make_state_directory(tmp_path / "mine" / "deep", tmp_path).is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        make_state_directory(tmp_path / "file" / "below", tmp_path)


def test_old_runs_are_pruned(tmp_path):
    for number in range(RUNS_KEPT + 3):
        (tmp_path / f"run-20200101-0000{number:02}").mkdir()
    made = make_state_directory(None, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[-1] == made.name
    assert names[0] == "run-20200101-000003"
    assert len(names) == RUNS_KEPT + 1


def test_control_groups_of_our_guests(tmp_path):
    assert cgroup_version(tmp_path) == "none"
    ours = tmp_path / "memory/machine/qemu-1-hrapaq-demo-cpu.libvirt-qemu"
    scope = tmp_path / "cpu/machine.slice/machine-qemu\\x2d1\\x2dhrapaq\\x2ddemo\\x2dcpu.scope"
    (ours / "emulator").mkdir(parents=True)
    scope.mkdir(parents=True)
    (tmp_path / "memory/machine/qemu-2-other.libvirt-qemu").mkdir()
    assert cgroup_version(tmp_path) == "v1"
    found = our_cgroups(tmp_path)
    assert set(found) == {ours, ours / "emulator", scope}
    (scope / "cgroup.procs").write_text("1")  # as one that is in use: it cannot be removed
    assert remove_cgroups(found) == [scope]
    assert our_cgroups(tmp_path) == [scope]


def test_what_is_left_is_found(tmp_path):
    async def scenario():
        mark = tmp_path.name + "-mark"
        assert await ends_left([mark], free_ports(2), tmp_path) == []
        group = tmp_path / "cpu/machine/qemu-1-hrapaq-demo-cpu.libvirt-qemu"
        group.mkdir(parents=True)
        (group / "tasks").write_text("1")  # as one that is in use: it cannot be removed
        code = "import time; time.sleep(60)"
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, mark)
            left = await ends_left([mark], [port], tmp_path, within_s=0.3)
            child.kill()
            await child.wait()
        assert [text.split()[0] for text in left] == ["process", "port", "control"]
        assert mark in left[0] and str(port) in left[1]

    asyncio.run(scenario())


@pytest.mark.parametrize("owner", [None, Owner(4711, 12)])
def test_who_started_the_daemon_behind_a_socket(tmp_path, owner):
    path = tmp_path / "libvirt-sock"
    code = f"import socket; s = socket.socket(1); s.bind({str(path)!r}); s.listen(); "
    variables = {} if owner is None else {OWNER_VARIABLE: str(owner)}
    assert owner_listening(path) is None
    with subprocess.Popen(
        [sys.executable, "-c", code + "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables,
    ) as daemon:
        assert daemon.stdout.readline()
        assert owner_listening(path) == owner
        daemon.communicate(b"\n")
    assert owner_listening(path) is None


def test_the_embedded_bus(tmp_path):
    async def scenario():
        ports = free_ports(2)
        nats = EmbeddedNats(tmp_path / "nats", *ports)
        supervisor = Supervisor(print)
        try:
            await supervisor.start(nats.spec())
            varz = await http_get(nats.monitor_port, "/varz")
            assert b'"sync_always": true' in varz
            assert str(tmp_path / "nats" / "jetstream").encode() in varz
            assert await http_get(nats.monitor_port, "/nothing-here") is None
        finally:
            await supervisor.stop_all()
        assert port_is_free(nats.port) and port_is_free(nats.monitor_port)
        assert await http_get(nats.monitor_port, "/varz") is None

    asyncio.run(scenario())


def test_the_bus_binary_is_beside_our_python():
    assert nats_server_binary().endswith("bin/nats-server")
