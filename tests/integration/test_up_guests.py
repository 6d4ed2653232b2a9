"""Real guests under the real libvirt and QEMU. Where these are missing, skipped with the reason."""

import asyncio
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from agent.act import Executor
from agent.admission import Admitted
from agent.libvirt_host import LibvirtHypervisor
from agent.sampler import Sampler, Share
from agent.steps import Outcome, Step, StepResult
from controller.up.guest_xml import MIB, Guest, domain_xml
from controller.up.guests import (
    NAME_PREFIX,
    DemoGuests,
    _qemu_processes,
    default_guests,
    remove_leftovers,
)
from controller.up.image import GuestImage
from controller.up.libvirtd import Libvirt, answers, connect, guarded, require_libvirt
from controller.up.owner import Owner
from shared.clock import SystemClock
from shared.errors import GuestsUnavailable, HypervisorError, HypervisorTimeout
from shared.resources import Resource

DEADLINE_S = 90.0


def demo(libvirt: Libvirt, image: GuestImage, state: Path, guests: list[Guest]) -> DemoGuests:
    return DemoGuests(libvirt.uri, image, "tcg", state, guests)


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.2)


def sees(guests: DemoGuests, guest: Guest) -> bool:
    """A libvirt that has just started may answer nobody while it finds its guests again."""
    try:
        return guest.uuid in guests.memory()
    except HypervisorError:
        return False


def domain_names(uri: str) -> set[str]:
    connection: Any = connect(uri)
    names = {domain.name() for domain in connection.listAllDomains()}
    connection.close()
    return names


def test_guests_boot_balloon_and_leave_nothing(libvirt, image, tmp_path):
    memory = dataclasses.replace(
        default_guests()[0], parameters={"start_s": 0, "period_s": 600, "busy_s": 599}
    )
    idle = default_guests()[3]
    guests = demo(libvirt, image, tmp_path, [memory, idle])
    said: list[str] = []
    try:
        guests.start(said.append)
        guests.wait_until_ready(DEADLINE_S)
        assert guests.actual_bytes() == {memory.uuid: 256 * MIB, idle.uuid: 256 * MIB}
        assert any(memory.name in line for line in said)
        assert "hrapaq-idle" in guests.console(idle).read_text()

        # The load wants 240 MiB, which do not fit: it must press against its balloon and live.
        wait_for(lambda: guests.memory()[memory.uuid].usable_bytes < 40 * MIB, "the step up")
        connection: Any = connect(libvirt.uri)
        connection.lookupByUUIDString(idle.uuid).setMemory(160 * 1024)
        wait_for(lambda: guests.actual_bytes()[idle.uuid] == 160 * MIB, "the idle guest shrinks")
        connection.lookupByUUIDString(memory.uuid).setMemory(400 * 1024)
        wait_for(lambda: guests.actual_bytes()[memory.uuid] == 400 * MIB, "the other one grows")
        connection.close()
        wait_for(lambda: guests.memory()[memory.uuid].rss_bytes > 380 * MIB, "it uses what it got")
        assert len(_qemu_processes(set(guests.uuids.values()))) == 2
        with pytest.raises(GuestsUnavailable, match=f"process {os.getpid()}"):
            demo(libvirt, image, tmp_path, default_guests()).start(print)
    finally:
        guests.stop()
    guests.stop()
    assert not domain_names(libvirt.uri) & set(guests.uuids)
    assert _qemu_processes(set(guests.uuids.values())) == []
    assert list(tmp_path.iterdir()) == []
    assert guests.memory() == {}


def test_a_guest_that_vanishes_before_its_step_does_not_stop_the_others(libvirt, image, tmp_path):
    goes, stays = (dataclasses.replace(guest, load="idle") for guest in default_guests()[1:4:2])
    guests = demo(libvirt, image, tmp_path, [goes, stays])

    async def scenario() -> tuple[StepResult, ...]:
        clock = SystemClock()
        hypervisor = LibvirtHypervisor(libvirt.uri, clock)
        try:
            sampler = Sampler(Path("/"), hypervisor, clock, Share(memory_bytes=1024 * MIB))
            judged = await sampler.readings()
            assert judged.vms.keys() == {goes.uuid, stays.uuid}
            connection: Any = connect(libvirt.uri)
            connection.lookupByUUIDString(goes.uuid).destroy()
            connection.close()
            steps = [
                Admitted(Step(index, guest.uuid, Resource.MEMORY, 256 * MIB, 320 * MIB))
                for index, guest in enumerate((goes, stays))
            ]
            executor = Executor(hypervisor, clock, sampler.sample_of)
            return await executor.carry_out(steps, judged, lambda _step: None)
        finally:
            await hypervisor.close()

    try:
        guests.start(print)
        guests.wait_until_ready(DEADLINE_S)
        gone, done = asyncio.run(scenario())
        assert gone.outcome is Outcome.GONE
        assert (done.outcome, done.detail) == (Outcome.APPLIED, "")
        assert guests.actual_bytes() == {stays.uuid: 320 * MIB}
    finally:
        guests.stop()


CHILD = """
import sys, time
from pathlib import Path
from controller.up.guests import DemoGuests, default_guests
from controller.up.image import GuestImage
uri, kernel, initrd, state, uuid = sys.argv[1:]
guests = DemoGuests(uri, GuestImage(Path(kernel), Path(initrd), ""), "tcg", Path(state))
guests.guests = [type(guests.guests[3])("hrapaq-demo-idle", uuid, "idle")]
guests.start(lambda line: None)
print("started", flush=True)
time.sleep(600)
"""


def test_a_killed_owner_takes_its_guests_along(libvirt, image, tmp_path):
    uuid = str(uuid4())
    arguments = [libvirt.uri, str(image.kernel), str(image.initrd), str(tmp_path), uuid]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n"
            assert _qemu_processes({uuid}) != []
        finally:
            child.kill()
    wait_for(lambda: _qemu_processes({uuid}) == [], "libvirt ends the guest of a killed process")


def test_leftovers_of_a_dead_owner_are_removed(libvirt, image, tmp_path):
    guest = Guest(f"{NAME_PREFIX}left", str(uuid4()), "idle")
    files = demo(libvirt, image, tmp_path, [guest])
    try:
        files.start(print)
        directory = files.console(guest).parent
        text = domain_xml(
            dataclasses.replace(guest, name=f"{NAME_PREFIX}orphan", uuid=str(uuid4())),
            accelerator="tcg",
            directory=directory,
            console=directory / "orphan.console",
        )
        dead = str(Owner(os.getpid(), 1))
        connection: Any = connect(libvirt.uri)
        connection.createXML(text.replace(str(Owner.this_process()), dead))
        connection.close()
        # One guest here belongs to a living process: then nothing at all is touched.
        with pytest.raises(GuestsUnavailable, match="stop that one first"):
            remove_leftovers(libvirt.uri)
        assert f"{NAME_PREFIX}orphan" in domain_names(libvirt.uri)
    finally:
        files.stop()
    assert remove_leftovers(libvirt.uri) == [f"{NAME_PREFIX}orphan"]
    assert f"{NAME_PREFIX}orphan" not in domain_names(libvirt.uri)


def test_a_libvirt_of_another_run_is_not_called_the_machines_own(libvirt, tmp_path):
    if not libvirt.processes():
        pytest.skip("libvirt is the machine's own here, not started by us")
    said: list[str] = []
    with Libvirt(tmp_path, said.append) as second:
        assert second.processes() == {}
    assert any(f"another `hrapaq up`, process {os.getpid()}," in line for line in said), said
    assert answers(libvirt.uri)


def test_a_dead_daemon_of_ours_is_started_again(libvirt, image, tmp_path):
    if not libvirt.processes():
        pytest.skip("libvirt is the machine's own here, not started by us")
    guest = Guest(f"{NAME_PREFIX}idle", str(uuid4()), "idle")
    guests = demo(libvirt, image, tmp_path, [guest])
    try:
        guests.start(print)
        name, pid = next(item for item in libvirt.processes().items() if item[0] != "virtlogd")
        os.kill(pid, 9)
        wait_for(lambda: libvirt.revive() == [name], f"{name} is found dead and started")
        wait_for(lambda: sees(guests, guest), "the guest, which lived on, is seen again")
    finally:
        guests.stop()
    assert _qemu_processes({guest.uuid}) == []


def test_a_call_that_blocks_or_fails_is_bounded():
    try:
        libvirt = require_libvirt()
    except GuestsUnavailable as reason:
        pytest.skip(str(reason))
    with pytest.raises(HypervisorTimeout, match="stuck: no answer"):
        guarded(lambda: time.sleep(5), 0.05, "stuck")
    connection = libvirt.open("test:///default")
    with pytest.raises(HypervisorError, match="looking"):
        guarded(lambda: connection.lookupByName("nobody"), 5, "looking")
    assert guarded(lambda: connection.lookupByName("test").name(), 5, "looking") == "test"
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0, 5, "a bug")
    connection.close()
