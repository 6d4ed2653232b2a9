"""Finds or fetches what a demo guest boots from: a kernel, its virtio drivers, a static busybox.

Nothing is installed and no root is needed: what the machine lacks is downloaded with apt and
unpacked into the cache directory.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.up.initramfs import Module, modules_in_order, pack
from shared.errors import GuestsUnavailable

Say = Callable[[str], None]

INIT_SCRIPT = Path(__file__).with_name("guest_init.sh")
DRIVERS = ("virtio_pci", "virtio_balloon", "virtio_blk")

# Small kernels for virtual machines, by distribution: Debian's, then Ubuntu's.
KERNEL_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64")
BUSYBOX_PACKAGE = "busybox-static"

DOWNLOAD_DEADLINE_S = 300
QUERY_DEADLINE_S = 60


@dataclass(frozen=True)
class GuestImage:
    kernel: Path
    initrd: Path
    release: str  # of the kernel, as in `uname -r`


@dataclass(frozen=True)
class Places:
    """Where things are looked for; a test points them elsewhere."""

    cache: Path
    root: Path = Path("/")  # boot/vmlinuz-*, lib/modules/*, bin/busybox lie below it
    apt: bool = True  # whether apt may be asked for what is missing


def default_cache(environment: dict[str, str] | None = None) -> Path:
    """`$XDG_CACHE_HOME/hrapaq/demo-guest`, by default below ~/.cache."""
    values = os.environ if environment is None else environment
    home = values.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hrapaq" / "demo-guest"


def prepare_image(
    places: Places,
    say: Say,
    drivers: Sequence[str] = DRIVERS,
    init: Path = INIT_SCRIPT,
) -> GuestImage:
    """The image, from the cache where its content is there already.

    Raises GuestsUnavailable with what to install where something can neither be found nor fetched.
    """
    if platform.machine() != "x86_64":
        raise GuestsUnavailable(f"demo guests need an x86_64 machine, this is {platform.machine()}")
    places.cache.mkdir(parents=True, exist_ok=True)
    busybox = _busybox(places, say)
    kernel, modules = _kernel(places, say, drivers)
    content = pack(init.read_bytes(), busybox.read_bytes(), modules)
    initrd = places.cache / f"initrd-{hashlib.sha256(content).hexdigest()[:16]}.gz"
    if not initrd.exists():
        _write_whole(initrd, content)
    release = kernel.name.removeprefix("vmlinuz-")
    say(f"demo guests boot {kernel} with {len(modules)} drivers and {busybox}")
    return GuestImage(kernel, initrd, release)


def _kernel(places: Places, say: Say, wanted: Sequence[str]) -> tuple[Path, list[Module]]:
    for root in (*_unpacked(places, "linux-image-"), places.root):
        for kernel, directory in _kernels(root):
            try:
                return kernel, modules_in_order(directory, wanted)
            except FileNotFoundError as missing:
                say(f"{kernel} is passed over: it has no module {missing}")
    return next(_fetched_kernels(places, say, wanted))


def _fetched_kernels(
    places: Places, say: Say, wanted: Sequence[str]
) -> Iterator[tuple[Path, list[Module]]]:
    package = _newest_kernel_package(places)
    # Ubuntu keeps the drivers in a package of their own, named for the same release.
    drivers = package.replace("linux-image-", "linux-modules-")
    separate = [drivers] if drivers in _dependencies(package) else []
    root = _fetch(places, [package, *separate], say)
    for kernel, directory in _kernels(root):
        try:
            yield kernel, modules_in_order(directory, wanted)
        except FileNotFoundError as missing:
            raise GuestsUnavailable(f"package {package} has no module {missing}") from None
    raise GuestsUnavailable(f"package {package} holds no kernel with its modules")


def _kernels(root: Path) -> Iterator[tuple[Path, Path]]:
    """Readable kernels whose modules lie beside them, newest first."""
    for kernel in sorted(root.glob("boot/vmlinuz-*"), key=_version_key, reverse=True):
        release = kernel.name.removeprefix("vmlinuz-")
        for modules in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
            if modules.is_dir() and os.access(kernel, os.R_OK):
                yield kernel, modules
                break


def _version_key(kernel: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", kernel.name)]


def _busybox(places: Places, say: Say) -> Path:
    roots = [places.root, *_unpacked(places, BUSYBOX_PACKAGE)]
    for root in roots:
        for path in (root / "bin/busybox", root / "usr/bin/busybox"):
            if path.is_file() and _is_static(path):
                return path
    return _first_busybox(_fetch(places, [BUSYBOX_PACKAGE], say))


def _first_busybox(root: Path) -> Path:
    for path in (root / "bin/busybox", root / "usr/bin/busybox"):
        if path.is_file():
            return path
    raise GuestsUnavailable(f"package {BUSYBOX_PACKAGE} holds no busybox; install it by hand")


def _is_static(path: Path) -> bool:
    """True without a program interpreter: it then runs where there are no libraries."""
    header = path.read_bytes()
    if header[:5] != b"\x7fELF\x02":
        return False
    table = int.from_bytes(header[32:40], "little")
    entry_size = int.from_bytes(header[54:56], "little")
    count = int.from_bytes(header[56:58], "little")
    interpreter = 3  # PT_INTERP
    starts = (table + entry_size * index for index in range(count))
    return all(int.from_bytes(header[at : at + 4], "little") != interpreter for at in starts)


def _unpacked(places: Places, prefix: str) -> list[Path]:
    return sorted((places.cache / "packages").glob(f"{prefix}*"), reverse=True)


def _newest_kernel_package(places: Places) -> str:
    _require_apt(places, "no kernel with its modules was found that this user can read")
    for package in KERNEL_PACKAGES:
        for dependency in _dependencies(package):
            if dependency.startswith("linux-image-"):
                return dependency
    raise GuestsUnavailable(
        f"apt knows none of {', '.join(KERNEL_PACKAGES)}: run `apt-get update` as root, "
        "or install a kernel package with its modules"
    )


def _dependencies(package: str) -> list[str]:
    answer = subprocess.run(
        ["apt-cache", "depends", package],  # noqa: S607 - found on PATH, checked by _require_apt
        capture_output=True,
        text=True,
        timeout=QUERY_DEADLINE_S,
        check=False,
    )
    return re.findall(r"Depends: (\S+)", answer.stdout)


def _fetch(places: Places, packages: list[str], say: Say) -> Path:
    """Downloads packages and unpacks them into one directory, named for the first.

    The directory appears only when it is whole.
    """
    _require_apt(places, f"{packages[0]} is missing")
    target = places.cache / "packages" / packages[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=places.cache, prefix="fetch-") as scratch:
        unpacked = Path(scratch) / "unpacked"
        for package in packages:
            say(f"downloading package {package} (it is unpacked into {target}, not installed)")
            _apt_download(package, Path(scratch))
        for archive in Path(scratch).glob("*.deb"):
            subprocess.run(
                ["dpkg-deb", "-x", str(archive), str(unpacked)],  # noqa: S607 - as above
                check=True,
                timeout=DOWNLOAD_DEADLINE_S,
            )
        unpacked.replace(target)
    return target


def _apt_download(package: str, directory: Path) -> None:
    # apt as root would hand over to its own user, who cannot write into our directory.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
    try:
        answer = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GuestsUnavailable(
            f"`{' '.join(command)}` did not end within {DOWNLOAD_DEADLINE_S} s"
        ) from None
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise GuestsUnavailable(
            f"`{' '.join(command)}` failed ({last}): run `apt-get update` as root, or install "
            f"{package} yourself"
        )


def _require_apt(places: Places, missing: str) -> None:
    if not places.apt or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise GuestsUnavailable(
            f"{missing}, and there is no apt to fetch it with: install a static busybox and a "
            "kernel with its modules (/boot/vmlinuz-* must be readable)"
        )


def _write_whole(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        scratch.write(content)
    Path(scratch.name).replace(path)
