"""The hypervisor's side of a run: real demo guests where they work, else why they do not.

All of it happens in one thread kept for it: calls to libvirt block, and come one after the other.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from controller.up.guest_xml import MIB
from controller.up.guests import DemoGuests, GuestMemory, remove_leftovers
from controller.up.image import Places, default_cache, prepare_image
from controller.up.libvirtd import Libvirt, connect, guarded
from controller.up.probe import probe_hypervisor
from shared.errors import GuestsUnavailable, HypervisorError

T = TypeVar("T")

Kind = Literal["kvm", "tcg", "simulated", "none"]
LIST_DEADLINE_S = 10.0
DOMAIN_OVERHEAD_MIB = 32  # of other domains, as the controller counts it


@dataclass(frozen=True, slots=True)
class Others:
    """What domains that are not ours have; their limits count, so our pools are laid on top."""

    memory_mib: int = 0  # with their overhead
    cpu_millicores: int = 0


class Hypervisor:
    """Call `prepare` once, then the others; `stop` always."""

    def __init__(self, state_directory: Path, say: Callable[[str], None]) -> None:
        self.kind: Kind = "none"
        self.why = ""
        self.guests: DemoGuests | None = None
        self.libvirt: Libvirt | None = None
        self.others = Others()
        self._state_directory = state_directory
        self._say = say
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hypervisor")

    async def prepare(self, choice: str) -> None:
        """Real guests boot when this returns with kind kvm or tcg; GuestsUnavailable only when
        they were asked for by name."""
        if choice == "simulated":
            self.kind, self.why = "simulated", "asked for with --guests simulated"
            return
        if choice == "none":
            self.why = "asked for with --guests none"
        try:
            await self._in_thread(self._start_libvirt)
            if choice != "none":
                await self._in_thread(self._start_guests)
        except GuestsUnavailable as error:
            await self.stop()
            if choice == "libvirt":
                raise
            self.kind = "simulated" if choice == "auto" else "none"
            self.others = Others()  # nobody reports them any more
            self.why = f"no real guests: {error}"

    @property
    def uri(self) -> str:
        return "none" if self.libvirt is None else self.libvirt.uri

    @property
    def uuids(self) -> Mapping[str, str]:
        """UUID by name of the real demo guests."""
        return {} if self.guests is None else self.guests.uuids

    async def memory(self) -> dict[str, GuestMemory]:
        """By UUID, read from the hypervisor now; HypervisorError when it does not answer."""
        guests = self.guests
        return {} if guests is None else await self._in_thread(guests.memory)

    def are_ready(self, memory: Mapping[str, GuestMemory]) -> bool:
        """Whether every guest runs, has its statistics, and came down to its starting size."""
        if self.guests is None:
            return False
        readings = [(guest, memory.get(guest.uuid)) for guest in self.guests.guests]
        return all(
            reading is not None
            and reading.updated_s is not None
            and reading.actual_bytes <= guest.current_mib * MIB
            for guest, reading in readings
        )

    async def revive(self) -> list[str]:
        """Starts daemons of ours that have ended; their names."""
        libvirt = self.libvirt
        return [] if libvirt is None else await self._in_thread(libvirt.revive)

    async def start_again(self, uuid: str) -> None:
        """A guest that has ended; HypervisorError where libvirt does not do it now."""
        guests = self.guests
        if guests is not None:
            await self._in_thread(lambda: guests.start_again(uuid))

    async def stop_guests(self) -> None:
        await self._in_thread(lambda: None)  # a start that was interrupted comes to its end first
        guests, self.guests = self.guests, None
        if guests is not None:
            await self._in_thread(guests.stop)

    async def stop(self) -> None:
        """Guests first, then the daemons that we started."""
        await self.stop_guests()
        libvirt, self.libvirt = self.libvirt, None
        if libvirt is not None:
            await self._in_thread(libvirt.stop)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start_libvirt(self) -> None:
        libvirt = Libvirt(self._state_directory / "libvirt", self._say)
        try:
            libvirt.start()
            removed = remove_leftovers(libvirt.uri)
            self.others = _others(libvirt.uri)
        except (GuestsUnavailable, HypervisorError) as error:
            libvirt.stop()
            raise GuestsUnavailable(str(error)) from error
        if removed:
            self._say(f"removed the guests of an earlier run: {', '.join(removed)}")
        self.libvirt = libvirt

    def _start_guests(self) -> None:
        assert self.libvirt is not None
        cache = default_cache()
        image = prepare_image(Places(cache), self._say)
        probe = probe_hypervisor(image, cache, self._say)
        guests = DemoGuests(self.uri, image, probe.accelerator, self._state_directory)
        guests.start(self._say)
        self.guests = guests
        self.kind, self.why = probe.accelerator, probe.reason

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _others(uri: str) -> Others:
    """What all domains that run now have together."""
    connection = connect(uri)
    try:
        domains = guarded(connection.listAllDomains, LIST_DEADLINE_S, "listing domains")
        running = [
            guarded(domain.info, LIST_DEADLINE_S, "reading a domain")
            for domain in domains
            if domain.isActive()
        ]
    finally:
        connection.close()
    return Others(
        memory_mib=sum(int(info[2]) // 1024 + DOMAIN_OVERHEAD_MIB for info in running),
        cpu_millicores=sum(int(info[3]) * 1000 for info in running),
    )
