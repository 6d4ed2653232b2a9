"""Packs what a demo guest boots into: busybox, drivers in the order of insertion, an init script.

Source of the archive's form: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.
"""

import gzip
import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import GuestsUnavailable


@dataclass(frozen=True)
class Module:
    """One driver as the guest inserts it: `name` without suffix, `content` uncompressed ELF."""

    name: str
    content: bytes


def pack(init: bytes, busybox: bytes, modules: Sequence[Module]) -> bytes:
    """A gzip-compressed newc archive; the same input gives the same bytes."""
    order = "".join(f"{module.name}.ko\n" for module in modules)
    archive = b"".join(
        (
            _entry("init", stat.S_IFREG | 0o755, init),
            *(_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "proc")),
            _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            _entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
            _entry("modules/order", stat.S_IFREG | 0o644, order.encode()),
            *(
                _entry(f"modules/{module.name}.ko", stat.S_IFREG | 0o644, module.content)
                for module in modules
            ),
            _entry("TRAILER!!!", 0),
        )
    )
    return gzip.compress(archive, compresslevel=6, mtime=0)


def modules_in_order(directory: Path, wanted: Sequence[str]) -> list[Module]:
    """Every wanted module and what it depends on, dependencies first.

    directory: `lib/modules/RELEASE`; drivers built into the kernel (`modules.builtin`) need no
    file and are left out. Dependencies are read from the modules themselves, because a package
    that is only unpacked has no modules.dep yet.
    Raises FileNotFoundError naming the module that is neither a file nor built in.
    """
    files = {_name(path): path for path in directory.glob("kernel/**/*.ko*")}
    builtin = _builtin(directory)
    ordered: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name in ordered or (name in builtin and name not in files):
            return
        if name not in files:
            raise FileNotFoundError(name)
        module = Module(name, _uncompressed(files[name]))
        for dependency in _dependencies(module.content):
            visit(dependency)
        ordered[name] = module

    for name in wanted:
        visit(name)
    return list(ordered.values())


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    # Fields: inode (any, as no entry has a second link), mode, uid, gid, links, time, size,
    # device of the archive (2), device of the node (2), length of the name, checksum (unused).
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    header = b"070701" + "".join(f"{field:08x}" for field in fields).encode()
    return _padded(header + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _name(path: Path | str) -> str:
    return Path(path).name.split(".ko")[0].replace("-", "_")


def _builtin(directory: Path) -> set[str]:
    listing = directory / "modules.builtin"
    return set(map(_name, listing.read_text().split())) if listing.exists() else set()


def _dependencies(content: bytes) -> Iterator[str]:
    """Names from the `depends=` string of the module's .modinfo section."""
    found = re.search(rb"depends=([\w,-]*)\0", content)
    value = found.group(1).decode() if found else ""
    yield from (name.replace("-", "_") for name in value.split(",") if name)


def _uncompressed(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix != ".zst":
        return path.read_bytes()
    zstd = shutil.which("zstd")
    if zstd is None:
        raise GuestsUnavailable(f"{path} is compressed with zstd: install it (apt install zstd)")
    return subprocess.run([zstd, "-dcq", str(path)], check=True, capture_output=True).stdout
