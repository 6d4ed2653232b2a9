"""`hrapaq-agent restore` on a real guest: put back as it was found, also after a kill."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from real_guests import RealGuest, real_guest, wait_for

from agent.found import FILE_NAME, FoundStore, load
from agent.libvirt_host import LibvirtHypervisor
from controller.up.image import GuestImage
from controller.up.libvirtd import Libvirt
from shared.clock import SystemClock
from shared.resources import MIB, Resource

pytest.importorskip("libvirt", reason="libvirt-python is not installed")

LIVE = 1  # VIR_DOMAIN_AFFECT_LIVE
FOUND_QUOTA_US, FOUND_PERIOD_US = 40_000, 50_000  # what the operator has set live


@pytest.fixture(scope="module")
def guest(
    libvirt: Libvirt, image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealGuest]:
    """It runs, up to its load, and its definition asks for no statistics of its memory."""
    with real_guest(libvirt.uri, image, tmp_path_factory.mktemp("guest")) as guest:
        guest.define((r"<stats period='\d+'/>", ""))
        guest.start()
        wait_for(lambda: "hrapaq-idle" in guest.console(), "it boots")
        quota = {"vcpu_quota": FOUND_QUOTA_US, "vcpu_period": FOUND_PERIOD_US}
        guest.call("setSchedulerParametersFlags", quota, LIVE)
        guest.call("setMemory", 224 * 1024)
        wait_for(lambda: state_of(guest)["memory"] == 224, "its balloon works")
        yield guest


def state_of(guest: RealGuest) -> dict[str, Any]:
    """As libvirt says it, past all of our code."""
    scheduler = guest.call("schedulerParametersFlags", LIVE)
    stats = ET.fromstring(guest.call("XMLDesc")).find("devices/memballoon/stats")
    return {
        "memory": guest.call("memoryStats")["actual"] // 1024,
        "cpu": (scheduler["vcpu_quota"], scheduler["vcpu_period"], scheduler["cpu_shares"]),
        "disk": guest.call("blkioParameters", LIVE).get("device_read_bytes_sec", ""),
        "statistics": 0 if stats is None else int(stats.get("period", 0)),
    }


async def agents_life(uri: str, folder: Path, guest: RealGuest) -> None:
    """An agent looks at the machine, moves what it can of the guest, and dies."""
    clock = SystemClock()
    hypervisor = LibvirtHypervisor(uri, clock, may_configure=True)
    store = FoundStore(folder, clock)
    assert store.open(has_moved_before=False) == ""
    hypervisor.record(store)
    try:
        await hypervisor.read_all()
        levers = await hypervisor.levers()
        await hypervisor.set_limit(guest.vm_id, Resource.MEMORY, 160 * MIB)
        if not levers["cpu"]:
            await hypervisor.set_limit(guest.vm_id, Resource.CPU, 300)
        if not levers["io"]:
            await hypervisor.set_limit(guest.vm_id, Resource.IO, 5 * MIB)
    finally:
        await hypervisor.close()


def restoring(uri: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HRAPAQ_LIBVIRT_URI": uri,
        "HRAPAQ_STATE_DIRECTORY": str(folder),
    }
    command = [sys.executable, "-m", "agent", "restore", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("killed_at", [None, "cpu", "memory"])
def test_a_guest_is_put_back_as_it_was_found(libvirt, guest, tmp_path, killed_at):
    found = state_of(guest)
    assert found["cpu"][:2] == (FOUND_QUOTA_US, FOUND_PERIOD_US)
    assert (found["memory"], found["statistics"]) == (224, 0)
    asyncio.run(agents_life(libvirt.uri, tmp_path, guest))
    wait_for(lambda: state_of(guest)["memory"] == 160, "the balloon follows the agent")
    assert state_of(guest)["statistics"] > 0
    record = load(tmp_path / FILE_NAME).vms[guest.vm_id]
    assert "<hrapaq-found:found" in guest.call("XMLDesc")
    assert "memory" in record.touched and record.settings["memory_bytes"] == 224 * MIB

    with restoring(libvirt.uri, tmp_path, "--dry-run") as dry:
        said = dry.communicate(timeout=60)[0]
    assert dry.returncode == 0 and "memory 160 MiB -> 224 MiB" in said, said
    assert state_of(guest)["memory"] == 160

    moved = state_of(guest)
    if killed_at is not None:
        with restoring(libvirt.uri, tmp_path) as first:
            wait_for(
                lambda: first.poll() is not None or state_of(guest)[killed_at] != moved[killed_at],
                f"{killed_at} begins to be put back",
            )
            first.send_signal(signal.SIGKILL)
    for words in (": put back", "as found"):
        with restoring(libvirt.uri, tmp_path) as again:
            said = again.communicate(timeout=60)[0]
        assert again.returncode == 0, said
        assert words in said or killed_at is not None, said
        assert state_of(guest) == found
        assert "hrapaq-found" not in guest.call("XMLDesc")
    assert "as found" in said


def test_a_guest_whose_operator_has_started_it_anew_is_left_alone(libvirt, guest, tmp_path):
    asyncio.run(agents_life(libvirt.uri, tmp_path, guest))
    guest.call("destroy")
    guest.start()
    before = state_of(guest)["cpu"]
    with restoring(libvirt.uri, tmp_path) as done:
        said = done.communicate(timeout=60)[0]
    assert done.returncode == 0 and "started anew" in said, said
    assert state_of(guest)["cpu"] == before
