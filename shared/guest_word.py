"""What a guest's agent tells the host below it between samples: "ready", and "I need more, now".

Sent on `guest_subject(vm_id)`, whose id says who speaks; the host of that VM listens. A guest may
lie: a host lends on its own measurements, and a word only makes it look (agent.reflex).
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec
from msgspec import Meta, Struct

from shared.errors import WireError

VERSION = 1
MESSAGE_BYTES_MAX = 1024
AMOUNT_MAX = 2**62


@dataclass(frozen=True, slots=True)
class GuestWord:
    """One word; a newer one of the same boot replaces it."""

    boot_id: str  # of the guest's kernel; sequences count within it
    sequence: int
    ready_ns: int | None = None  # uptime at which it was up and ready; None: not yet
    memory_wanted_bytes: int = 0  # more than it has, now; 0: it has enough
    cpu_wanted_millicores: int = 0  # likewise


def encode(word: GuestWord) -> bytes:
    packed: bytes = msgpack.packb({"version": VERSION, **asdict(word)})
    return packed


def decode(data: bytes) -> GuestWord:
    """The word in `data`; WireError for any other bytes."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise WireError("oversized", f"{len(data)} bytes, {MESSAGE_BYTES_MAX} are allowed")
    try:
        message = _DECODER.decode(data)
    except msgspec.ValidationError as error:
        raise WireError("schema", str(error)[:200]) from None
    except (ValueError, RecursionError, TypeError, OverflowError) as error:
        raise WireError("malformed", str(error)[:200]) from None
    content: dict[str, Any] = msgspec.structs.asdict(message)
    del content["version"]
    return GuestWord(**content)


_Amount = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]


class _Message(Struct, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    boot_id: Annotated[str, Meta(max_length=64)]
    sequence: _Amount
    ready_ns: _Amount | None
    memory_wanted_bytes: _Amount
    cpu_wanted_millicores: _Amount


_DECODER = msgspec.msgpack.Decoder(_Message)
