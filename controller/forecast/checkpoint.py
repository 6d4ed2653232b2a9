"""What was learnt, in a file: safetensors, plain arrays with a few words about them.

A file is written whole or not at all. One of another version or shape is refused with the reason;
who reads it goes on without a network and says so.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from controller.forecast.features import CHANNELS, FACTS
from controller.forecast.fingerprint import SIZE, Archetypes
from controller.forecast.network import BINS, EDGES, Network, NetworkMember
from shared.errors import HrapaqError

FORMAT = "hrapaq-network-2"
SHIPPED = Path(__file__).parent / "weights" / "network.safetensors"
SHIPPED_HORIZON_S = 600
Arrays = dict[str, NDArray[np.generic]]


class CheckpointError(HrapaqError):
    """A file of weights that cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What `hrapaq train` finds out."""

    network: Network
    archetypes: Archetypes
    about: dict[str, str]


def write(learnt: Checkpoint, path: Path) -> None:
    """All of it; the file appears when it is complete."""
    network = {one.name: getattr(learnt.network, one.name) for one in fields(Network)}
    arrays = network | {
        "edges": EDGES,
        "archetypes.centre": learnt.archetypes.centre,
        "archetypes.scale": learnt.archetypes.scale,
        "archetypes.usual": np.array([learnt.archetypes.usual]),
    }
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = save(plain, metadata={"format": FORMAT, **learnt.about})
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read(path: Path) -> Checkpoint:
    """Everything in the file; CheckpointError."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged, or no file of weights ({error})") from error
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {about.get('format')!r}, this version reads {FORMAT}"
        )
    _check(path, arrays)
    return Checkpoint(
        Network(**{one.name: arrays[one.name] for one in fields(Network)}),
        Archetypes(
            arrays["archetypes.centre"],
            arrays["archetypes.scale"],
            float(arrays["archetypes.usual"][0]),
        ),
        about,
    )


def shipped(horizon_s: int, target: str) -> NetworkMember | None:
    """The network that comes with the program; None for a horizon that it was not taught.

    CheckpointError where its file cannot be used.
    """
    if horizon_s != SHIPPED_HORIZON_S:
        return None
    return NetworkMember(read(SHIPPED).network, peak_target=target == "peak")


def _check(path: Path, arrays: Arrays) -> None:
    hidden = len(arrays.get("state", ()))
    around = len(arrays.get("archetypes.centre", ()))
    shapes = {
        "sequence": (CHANNELS, 4 * hidden),
        "state": (hidden, 4 * hidden),
        "gates": (4 * hidden,),
        "first": (hidden + FACTS, hidden),
        "first_bias": (hidden,),
        "second": (hidden, BINS),
        "second_bias": (BINS,),
        "edges": (BINS + 1,),
        "archetypes.centre": (around, SIZE),
        "archetypes.scale": (SIZE,),
        "archetypes.usual": (1,),
    }
    if set(arrays) != set(shapes):
        odd = sorted(set(arrays) ^ set(shapes))
        raise CheckpointError(f"{path}: arrays missing or unknown: {', '.join(odd)}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            found = arrays[name].shape
            raise CheckpointError(f"{path}: {name} has shape {found}, {shape} is needed")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} holds values that are no numbers")
    if not hidden or not around:
        raise CheckpointError(f"{path}: empty")
    if not np.array_equal(arrays["edges"], EDGES):
        raise CheckpointError(f"{path}: made for other bins than those of this version")
