"""Small state that must survive a restart, in files that are whole or not there.

A file is written beside its place, flushed to the disk and renamed; the folder is flushed too, so
that a power cut leaves either the old text or the new one.
"""

import json
import os
from pathlib import Path

from shared.errors import ConfigError

OVERRIDES_FILE = "overrides.json"
EPOCH_FILE = "epoch.json"


def write_durably(path: Path, data: bytes) -> None:
    """`data` at `path`, on the disk when this returns; OSError when it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def claim_epoch(directory: Path, seen_highest: int = 0) -> int:
    """A number higher than any epoch claimed here before and than `seen_highest`, on the disk.

    ConfigError when the file is damaged: guessing could bring back an epoch that agents obeyed.
    """
    path = directory / EPOCH_FILE
    text = read_if_there(path)
    claimed = 0 if text is None else _epoch_in(path, text)
    epoch = max(claimed, seen_highest) + 1
    write_durably(path, json.dumps({"epoch": epoch}).encode())
    return epoch


def _epoch_in(path: Path, text: bytes) -> int:
    try:
        epoch = json.loads(text)["epoch"]
    except (ValueError, KeyError, TypeError):
        epoch = None
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise ConfigError(
            f"{path} holds no epoch. Write one above every agent's `epoch_highest` into it, "
            'as {"epoch": 123}, or remove the file if no agent has ever been commanded'
        )
    return epoch
