"""What VMs were like before this agent changed anything of them, kept on disk for the way back.

A record belongs to one run of a VM, from its start to its end: after a restart its definition's
values are in force again, which are none of ours. What migrates takes a note of it along. Until
the agent's first change of a VM's memory, CPU or I/O the record of that follows what is in force;
from then on only a change of the definition, which is its operator's word, changes it. Settings
are plain numbers by name (`memory_bytes`), 0 for no limit.

Each write is a whole file, as for the guard's memory (agent.state). Without a record on disk
nothing of a VM is changed.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.hypervisor import Sight
from agent.state import write_whole
from shared.clock import SECOND_NS, Clock

VERSION = 1
FILE_NAME = "found.json"
FILE_BYTES_MAX = 64 * 1024 * 1024
VMS_MAX = 16_384
FORGET_S = 24 * 3600  # after this without a sight of it, a VM's run is long over
FIRST_LOOK_S = 120  # what is first seen later than this has begun to run under this agent's eyes
STATISTICS = "statistics_period_s"  # set at first sight already, so it never follows what is there


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VM's record."""

    vm_id: str
    name: str
    run: str  # which run of it (agent.hypervisor.Sight)
    settings: dict[str, int]  # as found
    defined: dict[str, int]  # what its definition says, as far as it does
    touched: tuple[str, ...]  # first words of the settings that the agent has, or may have, changed
    doubtful: bool  # begun after an older record was lost: ours may be among the settings
    seen_unix_s: int


class FoundFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's schema; `version` rises with every change to it."""

    version: int
    vms: tuple[Found, ...]


def noted(before: Found | None, sight: Sight, unix_s: int, *, doubtful: bool) -> Found:
    """The record after a look at the VM. Pure."""
    if before is None or before.run != sight.run:
        brought = {name: n for name, n in sight.brought.items() if name in sight.settings}
        settings = {**sight.settings, **brought}
        words = tuple(sorted({_word(name) for name in brought}))
        return Found(
            sight.vm_id,
            sight.name,
            sight.run,
            settings,
            dict(sight.defined),
            words,
            doubtful and not brought,
            unix_s,
        )
    settings = _redefined(before, sight) | _followed(before, sight)
    return msgspec.structs.replace(
        before, name=sight.name, settings=settings, defined=dict(sight.defined), seen_unix_s=unix_s
    )


def differences(settings: Mapping[str, int], found: Found) -> dict[str, tuple[int, int]]:
    """Name -> (in force, as found) of what is other now. A limit that was not there is 0."""
    other = {}
    for name in sorted(settings.keys() | found.settings.keys()):
        without = 0 if _is_limit(name) else None  # a lever that is not there now or then
        now, then = settings.get(name, without), found.settings.get(name, without)
        if now is not None and then is not None and now != then:
            other[name] = (now, then)
    return other


@dataclass(frozen=True, slots=True)
class Loaded:
    """`said` is what a person should know about the file; empty when all is as it should be."""

    vms: Mapping[str, Found]
    said: str = ""
    is_lost: bool = False


class FoundStore:
    """The records of one agent, in the state folder that it holds (agent.state.StateStore)."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._vms: dict[str, Found] = {}
        self._is_lost = False
        self._opened_unix_s = 0
        self._writing = asyncio.Lock()
        self._changes = 0  # made in memory
        self._written = 0  # of these on the disk

    @property
    def path(self) -> Path:
        return self._folder / FILE_NAME

    def open(self, *, has_moved_before: bool) -> str:
        """Reads the file; what a person should know of it. OSError when it cannot be read.

        `has_moved_before`: an agent changed VMs here earlier, so without its records nobody knows
        whose the settings are that are found now.
        """
        loaded = load(self.path)
        self._vms = dict(loaded.vms)
        self._is_lost = loaded.is_lost or (not self.path.exists() and has_moved_before)
        self._opened_unix_s = self._unix_s()
        return loaded.said

    def of(self, vm_id: str) -> Found | None:
        return self._vms.get(vm_id)

    def is_touched(self, vm_id: str, run: str, word: str) -> bool:
        found = self._vms.get(vm_id)
        return found is not None and found.run == run and word in found.touched

    async def note(self, sight: Sight) -> None:
        """Returns when the record is on the disk; OSError when it cannot be."""
        before = self._vms.get(sight.vm_id)
        unix_s = self._unix_s()
        doubtful = self._is_lost and unix_s - self._opened_unix_s < FIRST_LOOK_S
        after = noted(before, sight, unix_s, doubtful=doubtful)
        self._put(after)
        if before is None or msgspec.structs.replace(before, seen_unix_s=unix_s) != after:
            self._changes += 1
        await self._write()

    async def touch(self, vm_id: str, word: str) -> dict[str, int]:
        """Before the first change of the VM's settings that begin with `word`; likewise. Returns
        as found all that was touched, for the VM to bring along where it migrates."""
        found = self._vms[vm_id]
        if word not in found.touched:
            self._put(msgspec.structs.replace(found, touched=(*found.touched, word)))
            self._changes += 1
        await self._write()
        found = self._vms[vm_id]
        return {name: n for name, n in found.settings.items() if _is_touched(found, name)}

    def _put(self, found: Found) -> None:
        """Last in order, so that the first are those that were not seen for longest."""
        self._vms.pop(found.vm_id, None)
        self._vms[found.vm_id] = found

    async def _write(self) -> None:
        """One at a time; a write takes along what was noted while it waited for its turn."""
        wanted = self._changes
        async with self._writing:
            if self._written >= wanted:
                return
            self._forget()
            changes, data = self._changes, encode(self._vms)
            await asyncio.to_thread(write_whole, self.path, data)
            self._written = changes

    def _forget(self) -> None:
        """Not right after the start: what runs may not have been looked at again yet."""
        if self._unix_s() - self._opened_unix_s < FORGET_S:
            return
        oldest = self._unix_s() - FORGET_S
        kept = [found for found in self._vms.values() if found.seen_unix_s >= oldest]
        self._vms = {found.vm_id: found for found in kept[-VMS_MAX:]}

    def _unix_s(self) -> int:
        return self._clock.unix_ns() // SECOND_NS


def let_go(path: Path, vms: Mapping[str, Found]) -> None:
    """All was put back: from now on records follow what is in force. OSError."""
    free = {vm_id: msgspec.structs.replace(found, touched=()) for vm_id, found in vms.items()}
    write_whole(path, encode(free))


def load(path: Path) -> Loaded:
    """The records in `path`; a damaged file is kept aside. OSError when it cannot be read."""
    if not path.exists():
        return Loaded({})
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX)
    try:
        return Loaded(decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        said = (
            f"{path} is damaged ({error}): what VMs were like before this agent is not known of"
            f" those that run now; the file is kept as {aside.name}"
        )
        return Loaded({}, said, is_lost=True)


def encode(vms: Mapping[str, Found]) -> bytes:
    return msgspec.json.format(
        msgspec.json.encode(FoundFile(VERSION, tuple(vms.values()))), indent=1
    )


def decode(data: bytes) -> dict[str, Found]:
    """MsgspecError for anything that is no such file."""
    file = msgspec.json.decode(data, type=FoundFile)
    if file.version != VERSION:
        raise msgspec.ValidationError(f"version {file.version}, this agent reads {VERSION}")
    return {found.vm_id: found for found in file.vms}


def _followed(before: Found, sight: Sight) -> dict[str, int]:
    """What is in force of what the agent has not touched."""
    return {name: value for name, value in sight.settings.items() if not _is_touched(before, name)}


def _redefined(before: Found, sight: Sight) -> dict[str, int]:
    """What the agent has touched: as found, but for what the operator has defined anew since."""
    changed = {
        name: value
        for name, value in sight.defined.items()
        if before.defined.get(name) != value and (name in sight.settings or _is_limit(name))
    }
    kept = {**before.settings, **changed}
    return {name: value for name, value in kept.items() if _is_touched(before, name)}


def _is_touched(before: Found, name: str) -> bool:
    """The agent itself switches the statistics on, before it changes anything else."""
    return name == STATISTICS or _word(name) in before.touched


def _word(name: str) -> str:
    return name.partition("_")[0]


def _is_limit(name: str) -> bool:
    """Settings of single devices are there only while they limit something."""
    return " " in name
