"""The network's weights in a file: safetensors, plain arrays with a few words about them.

A file is written whole or not at all. One of another version or shape is refused with the reason;
who reads it goes on without a network and says so.
"""

import os
from dataclasses import fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from controller.forecast.features import CHANNELS, FACTS
from controller.forecast.network import BINS, EDGES, Network, NetworkMember
from shared.errors import HrapaqError

FORMAT = "hrapaq-network-1"
SHIPPED = Path(__file__).parent / "weights" / "network.safetensors"
SHIPPED_HORIZON_S = 600


class CheckpointError(HrapaqError):
    """A file of weights that cannot be used; the text says which and why."""


def write(network: Network, path: Path, about: dict[str, str]) -> None:
    """Weights and words about them; the file appears when it is complete."""
    arrays = {one.name: np.ascontiguousarray(getattr(network, one.name)) for one in fields(network)}
    text = save(arrays | {"edges": EDGES}, metadata={"format": FORMAT, **about})
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read(path: Path) -> tuple[Network, dict[str, str]]:
    """The weights and what was written about them; CheckpointError."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {about.get('format')!r}, this version reads {FORMAT}"
        )
    hidden = len(arrays.get("state", ()))
    _check(path, arrays, hidden)
    del arrays["edges"]
    return Network(**arrays), about


def shipped(horizon_s: int, target: str) -> NetworkMember | None:
    """The network that comes with the program; None for a horizon that it was not taught.

    CheckpointError where its file cannot be used.
    """
    if horizon_s != SHIPPED_HORIZON_S:
        return None
    return NetworkMember(read(SHIPPED)[0], peak_target=target == "peak")


def _check(path: Path, arrays: dict[str, np.ndarray], hidden: int) -> None:
    shapes = {
        "sequence": (CHANNELS, 4 * hidden),
        "state": (hidden, 4 * hidden),
        "gates": (4 * hidden,),
        "first": (hidden + FACTS, hidden),
        "first_bias": (hidden,),
        "second": (hidden, BINS),
        "second_bias": (BINS,),
        "edges": (BINS + 1,),
    }
    if set(arrays) != set(shapes):
        odd = sorted(set(arrays) ^ set(shapes))
        raise CheckpointError(f"{path}: arrays missing or unknown: {', '.join(odd)}")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            found = arrays[name].shape
            raise CheckpointError(f"{path}: {name} has shape {found}, {shape} is needed")
        if not np.isfinite(arrays[name]).all():
            raise CheckpointError(f"{path}: {name} holds values that are no numbers")
    if not np.array_equal(arrays["edges"], EDGES):
        raise CheckpointError(f"{path}: made for other bins than those of this version")
