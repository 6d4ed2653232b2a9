"""The guard's memory on disk: what an agent must know after it was killed.

Written before anything moves and again after it, each time as a whole: temporary file in the same
folder, fsync, rename, fsync of the folder. A file that is missing or damaged means that nothing is
known, which is safe: no lease, no fallback, epoch 0. It is said, and a damaged file is kept aside.
"""

import asyncio
import fcntl
import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from agent.guard import DONE_MAX, GuardState, interrupted
from agent.leash import Bounds, Leash
from agent.steps import Ack
from shared.errors import ConfigError
from shared.resources import Resource

VERSION = 2
READABLE = (1, VERSION)  # 1: without bounds of the reflex
FILE_NAME = "guard.json"
LOCK_NAME = "agent.lock"
FILE_BYTES_MAX = 64 * 1024 * 1024  # answers of 64 commands of thousands of steps stay below this


class FallbackEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vm_id: str
    resource: Resource
    amount: int


class LeashEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vm_id: str
    resource: Resource
    low_amount: int
    high_amount: int
    plan_amount: int
    is_lent: bool  # the reflex has moved this limit


class ReserveEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    resource: Resource
    amount: int


class StateFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's schema; `version` rises with every change to it."""

    version: int
    boot_id: str  # ticks in this file count within this boot
    epoch_highest: int
    sequence_highest: int
    generation: int
    lease_until_tick_ns: int | None
    fallback: tuple[FallbackEntry, ...]
    done: tuple[Ack, ...]
    intent: Ack | None
    leash: tuple[LeashEntry, ...] = ()
    reserve: tuple[ReserveEntry, ...] = ()
    bounds_number: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """`said` is what a person should know about the file; empty when all is as it should be."""

    state: GuardState
    said: str = ""


class StateStore:
    """One agent's state folder, held by one process at a time."""

    def __init__(self, folder: Path, boot_id: str) -> None:
        self._folder = folder
        self._boot_id = boot_id
        self._lock: int | None = None

    @property
    def path(self) -> Path:
        return self._folder / FILE_NAME

    def open(self) -> Loaded:
        """Takes the folder and reads the state; ConfigError when the folder cannot be had."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._load()
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"another agent holds {self._folder}: stop it, or give this one a"
                " state_directory of its own"
            ) from None
        except OSError as error:
            self.close()
            raise ConfigError(
                f"state_directory {self._folder} cannot be used: {error}; give the agent a folder"
                " that it may write to"
            ) from None

    async def save(self, state: GuardState) -> None:
        """Like `write`, in a thread: a slow disk must not hold up sampling."""
        await asyncio.to_thread(self.write, state)

    def write(self, state: GuardState) -> None:
        """Returns once `state` is on the disk; OSError when it is not: then nothing may move."""
        assert self._lock is not None, "the state folder is not open"
        write_whole(self.path, encode(state, self._boot_id))

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _load(self) -> Loaded:
        if not self.path.exists():
            return Loaded(GuardState(), f"no state in {self.path} yet: starting without a lease")
        with self.path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX)
        try:
            return decode(data, self._boot_id)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            aside = self.path.with_suffix(".damaged")
            self.path.replace(aside)
            return Loaded(
                GuardState(),
                f"{self.path} is damaged ({error}): starting without a lease, a fallback or an"
                f" epoch; the file is kept as {aside.name}",
            )


def write_whole(path: Path, data: bytes) -> None:
    """Returns once `data` is on the disk in place of what was there; OSError when it is not."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def encode(state: GuardState, boot_id: str) -> bytes:
    fallback = tuple(
        FallbackEntry(vm_id, resource, amount)
        for (vm_id, resource), amount in sorted(state.fallback.items())
    )
    file = StateFile(
        VERSION,
        boot_id,
        state.epoch_highest,
        state.sequence_highest,
        state.generation,
        state.lease_until_tick_ns,
        fallback,
        state.done,
        state.intent,
        tuple(
            LeashEntry(
                vm_id,
                resource,
                one.low_amount,
                one.high_amount,
                one.plan_amount,
                (vm_id, resource) in state.lent,
            )
            for (vm_id, resource), one in sorted(state.bounds.leash.items())
        ),
        tuple(ReserveEntry(*pair) for pair in sorted(state.bounds.reserve.items())),
        state.bounds_number,
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=1)


def decode(data: bytes, boot_id: str) -> Loaded:
    """The state in `data` as it holds now; MsgspecError for anything that is none.

    After a boot, ticks of the old one mean nothing: a lease has ended, an epoch stays.
    """
    file = msgspec.json.decode(data, type=StateFile)
    if file.version not in READABLE:
        raise msgspec.ValidationError(f"version {file.version}, this agent reads {VERSION}")
    state = GuardState(
        file.epoch_highest,
        file.sequence_highest,
        file.generation,
        file.lease_until_tick_ns,
        {(entry.vm_id, entry.resource): entry.amount for entry in file.fallback},
        _bounds_of(file),
        file.bounds_number,
        frozenset((entry.vm_id, entry.resource) for entry in file.leash if entry.is_lent),
        file.done[-DONE_MAX:],
        file.intent,
    )
    said = []
    if state.intent is not None:
        said.append(f"command {state.intent.command_id} was under way: its effect is unknown")
        state = interrupted(state)
    if file.boot_id != boot_id and state.lease_until_tick_ns is not None:
        said.append("the machine was booted since: the lease counts as ended")
        state = replace(state, lease_until_tick_ns=0)
    return Loaded(state, "; ".join(said))


def _bounds_of(file: StateFile) -> Bounds:
    leash = {
        (entry.vm_id, entry.resource): Leash(entry.low_amount, entry.high_amount, entry.plan_amount)
        for entry in file.leash
    }
    return Bounds(leash, {entry.resource: entry.amount for entry in file.reserve})
