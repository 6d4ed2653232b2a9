"""What operators said while the controller runs: pins, freezes and modes, each with an end. Pure.

Ends count on the controller's tick. A file holds them with both clocks' stamps: after a restart
the time that the wall clock says has passed is taken off what was left.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec import Struct

from controller.core.state import Mode
from shared.errors import ConfigError
from shared.resources import Resource

FLEET = "fleet"
NODE = "node"
VM = "vm"
NET = "net"  # what a network limit is called where people name resources


class Pin(Struct, frozen=True, tag="pin", forbid_unknown_fields=True):
    """A VM's grant of one resource stays at `amount` (the resource's unit)."""

    vm_id: str
    resource: Resource
    amount: int
    by: str = ""
    expires_tick_ns: int | None = None  # None: until released

    @property
    def key(self) -> tuple[str, ...]:
        return ("pin", self.vm_id, self.resource.word)


class NetPin(Struct, frozen=True, tag="net", forbid_unknown_fields=True):
    """A VM's network passes at most so many bytes/s each way; networks are not planned."""

    vm_id: str
    amount: int
    by: str = ""
    expires_tick_ns: int | None = None
    resource: str = NET  # for the record, where pins of planned resources name theirs

    @property
    def key(self) -> tuple[str, ...]:
        return ("pin", self.vm_id, self.resource)


class Freeze(Struct, frozen=True, tag="freeze", forbid_unknown_fields=True):
    """A VM does not move at all."""

    vm_id: str
    by: str = ""
    expires_tick_ns: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return ("freeze", self.vm_id)


class ModeChange(Struct, frozen=True, tag="mode", forbid_unknown_fields=True):
    """Another mode for the fleet, for a node with all VMs below it, or for one VM."""

    scope: str  # FLEET, NODE or VM
    target: str  # machine id; empty for the fleet
    mode: Mode
    by: str = ""
    expires_tick_ns: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return ("mode", self.scope, self.target)


Override = Pin | NetPin | Freeze | ModeChange
_Kind = TypeVar("_Kind", Pin, NetPin, Freeze, ModeChange)


class Overrides(Struct, frozen=True):
    """All that is in force; a later word on the same thing replaces the earlier one."""

    items: tuple[Override, ...] = ()

    def with_(self, override: Override) -> "Overrides":
        return Overrides((*self.without(override.key).items, override))

    def without(self, key: tuple[str, ...]) -> "Overrides":
        """Released; the same value where nothing stood under `key`."""
        return Overrides(tuple(item for item in self.items if item.key != key))

    def at(self, tick_ns: int) -> "Overrides":
        """What is still in force at `tick_ns`."""
        return self._where(lambda item: not _over(item, tick_ns))

    def expired(self, tick_ns: int) -> tuple[Override, ...]:
        return self._where(lambda item: _over(item, tick_ns)).items

    def pins(self) -> tuple[Pin, ...]:
        return self._of(Pin)

    def net_pins(self) -> tuple[NetPin, ...]:
        return self._of(NetPin)

    def freezes(self) -> tuple[Freeze, ...]:
        return self._of(Freeze)

    def modes(self) -> tuple[ModeChange, ...]:
        return self._of(ModeChange)

    def _of(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        return tuple(item for item in self.items if isinstance(item, kind))

    def _where(self, keep: Callable[[Override], bool]) -> "Overrides":
        return Overrides(tuple(item for item in self.items if keep(item)))


def to_bytes(overrides: Overrides, tick_ns: int, unix_ns: int) -> bytes:
    """For the state file."""
    return msgspec.json.encode(_Saved(tick_ns=tick_ns, unix_ns=unix_ns, items=overrides.items))


def from_bytes(data: bytes, tick_ns: int, unix_ns: int, source: str = "overrides") -> Overrides:
    """As saved, ends moved onto the present tick, the ended ones gone; ConfigError for damage."""
    try:
        saved = msgspec.json.decode(data, type=_Saved)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"{source} cannot be read: {error}. Frozen and pinned VMs are named in it: mend it, "
            "or remove it to start without any"
        ) from None
    passed_ns = max(0, unix_ns - saved.unix_ns)
    moved = tuple(_moved(item, tick_ns - saved.tick_ns - passed_ns) for item in saved.items)
    return Overrides(moved).at(tick_ns)


class _Saved(Struct, frozen=True, forbid_unknown_fields=True):
    tick_ns: int
    unix_ns: int
    items: tuple[Override, ...]


def _over(override: Override, tick_ns: int) -> bool:
    return override.expires_tick_ns is not None and override.expires_tick_ns <= tick_ns


def _moved(override: Override, by_ns: int) -> Override:
    if override.expires_tick_ns is None:
        return override
    return msgspec.structs.replace(override, expires_tick_ns=override.expires_tick_ns + by_ns)
