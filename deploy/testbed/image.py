"""Builds what all machines of the testbed boot from, in a cache: one image, a kernel, an initrd.

The same image is the disk of every L1 (below a layer of its own) and, read-only, of every L2: only
one has to be built, and an L2 reads no more of it than it runs. Two stages: a Debian root with the
packages and our dependencies, built anew when these change (a minute), and the image with our wheel
and scripts on top of it (a quarter of that).
"""

import contextlib
import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from controller.up.initramfs import modules_in_order, pack
from shared.errors import HrapaqError

Say = Callable[[str], None]

PROJECT = Path(__file__).parents[2]
HERE = Path(__file__).parent
INSIDE = HERE / "inside"
SUITE = "bookworm"
PYTHON = "3.11"  # the suite's
PACKAGES = (
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "iproute2",
    "busybox-static",  # the initrd's shell
    "qemu-system-x86",
    "libvirt-daemon-system",
    "libvirt-clients",
    "polkitd",  # libvirt asks it whether our agent, which is not root, may manage VMs
    "python3-libvirt",  # the suite's own, so that nothing has to be compiled
    "python3-venv",
)
KERNEL_PACKAGE = "linux-image-cloud-amd64"
DRIVERS = (
    "virtio_pci",
    "virtio_blk",
    "virtio_balloon",
    "virtio_net",
    "virtio_console",
    "crc32c_generic",  # ext4 asks for it by its algorithm, which no dependency says
    "ext4",
    "overlay",
    "kvm_amd",  # of an L1, and before its libvirt looks what its QEMU can do
)
MASKED = (
    "libvirt-guests",  # waits five minutes for guests that do not listen
    *("libvirtd-tls.socket", "libvirtd-tcp.socket"),
    *("getty@tty1", "serial-getty@ttyS0", "systemd-logind", "systemd-networkd-wait-online"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap"),
)
DISK_BYTES = 4 << 30  # sparse: room for an L1 to write
KEPT = 2  # images of earlier inputs that stay in the cache
COMMAND_DEADLINE_S = 900


class ImageError(HrapaqError):
    """An image could not be built; the text carries the end of what the tool said."""


@dataclass(frozen=True, slots=True)
class Image:
    disk: Path  # raw ext4
    kernel: Path
    initrd: Path


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/hrapaq/testbed`, by default below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hrapaq" / "testbed"


def build(cache: Path, say: Say) -> Image:
    """The image for the inputs as they are now, from the cache where it is there already.

    Needs root, mmdebstrap, and pip's and apt's own ways to the network when something is missing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        root = _root(cache, say)
        made = cache / f"image-{_digest(_image_inputs(root))}"
        if not made.exists():
            say("building the image: our wheel and scripts on top of the packages")
            _whole(made, lambda scratch: _build_image(root, scratch))
        _forget_old(cache, "image-")
        _forget_old(cache, "root-")
    os.utime(made)
    return Image(made / "disk.raw", made / "kernel", made / "initrd")


# --- the root: packages and dependencies ---------------------------------------------------------


def _root(cache: Path, say: Say) -> Path:
    inputs = [SUITE, KERNEL_PACKAGE, *PACKAGES, *_dependencies(), _code(_build_root)]
    root = cache / f"root-{_digest(text.encode() for text in inputs)}"
    if not root.exists():
        say(f"building the root: {len(PACKAGES)} packages and what they need (a minute)")
        _whole(root, _build_root)
    os.utime(root)
    return root


def _build_root(root: Path) -> None:
    _command(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--skip=cleanup/reproducible",
        "--aptopt=Acquire::Languages none",
        *(f"--aptopt={line}" for line in _proxies()),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")),
        f"--include={','.join(PACKAGES)}",
        # Unpacked, not installed: no initrd has to be made for it.
        f"--customize-hook=cd /tmp && chroot \"$1\" sh -c '{_FETCH_KERNEL}'",
        SUITE,
        str(root),
        *_apt_sources(),
    )
    wheels = root / "wheels"
    _command(
        *(sys.executable, "-m", "pip", "download", "-qq", "--dest", str(wheels)),
        *("--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"),
        *(f"--platform=manylinux_2_{minor}_x86_64" for minor in (36, 28, 17)),
        "--platform=manylinux2014_x86_64",
        *_dependencies(),
    )
    _command("chroot", str(root), "python3", "-m", "venv", "--system-site-packages", "/opt/hrapaq")
    _pip_inside(root, *_dependencies())
    shutil.rmtree(wheels)


# Not unpacked over the root: the package's /lib is a directory, the root's a link.
# Not unpacked over the root: the package's /lib is a directory, the root's a link.
_FETCH_KERNEL = f"""
mkdir /kernel && cd /kernel &&
package=$(apt-cache depends {KERNEL_PACKAGE} | sed -n "s/.*Depends: //p" | head -n 1) &&
apt-get -q download $package && dpkg-deb -x $package*.deb . &&
mv boot/vmlinuz-* /boot && mv lib/modules /usr/lib && cd / && rm -r kernel &&
depmod $(ls /usr/lib/modules)
"""


def _pip_inside(root: Path, *wanted: str) -> None:
    pip = ("/opt/hrapaq/bin/python", "-m", "pip", "install", "-qq", "--no-index")
    _command("chroot", str(root), *pip, "--find-links", "/wheels", *wanted)


def _dependencies() -> list[str]:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        return list(tomllib.load(file)["project"]["dependencies"])


def _apt_sources() -> list[str]:
    """This machine's own way to the distribution, where it is the same one."""
    found = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("debian.sources")]
    return [str(path) for path in found if path.exists() and SUITE in path.read_text()]


def _proxies() -> list[str]:
    """What apt needs on this machine to get out, as options."""
    answer = subprocess.run(
        ["/usr/bin/apt-config", "dump"], capture_output=True, text=True, check=False
    )
    lines = (line.strip() for line in answer.stdout.splitlines())
    return [line for line in lines if line.startswith("Acquire::") and "::Proxy" in line]


# --- the image: our wheel and scripts on top -----------------------------------------------------


def _image_inputs(root: Path) -> Iterator[bytes]:
    yield root.name.encode()
    yield Path(__file__).read_bytes()
    for path in sorted([*_sources(), *INSIDE.iterdir()]):
        if path.is_file():
            yield str(path.relative_to(PROJECT)).encode()
            yield path.read_bytes()


def _sources() -> Iterator[Path]:
    yield PROJECT / "pyproject.toml"
    for part in ("agent", "controller", "shared", "deploy"):
        for path in (PROJECT / part).rglob("*"):
            if path.suffix != ".pyc" and path.is_file() and HERE not in path.parents:
                yield path


def _build_image(root: Path, made: Path) -> None:
    ours = made / "root"
    _command("cp", "--archive", "--reflink=auto", str(root), str(ours))
    wheels = ours / "wheels"
    _command(
        *(sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(wheels)),
        str(PROJECT),
    )
    _pip_inside(ours, "hrapaq[host]")
    shutil.rmtree(wheels)
    _command("chroot", str(ours), "sh", "/opt/hrapaq/share/hrapaq/install.sh", "host")
    shutil.copytree(INSIDE, ours / "opt/testbed/inside")
    (ours / "opt/testbed/inside/l2_init.sh").chmod(0o755)
    # Nobody can write there later, and to compile takes seconds in an L2.
    _command("chroot", str(ours), "python3", "-m", "compileall", "-q", "/opt/testbed")
    _configure(ours)
    _kernel_and_initrd(ours, made)
    disk = made / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    _command("mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", str(ours), str(disk))
    shutil.rmtree(ours)


def _configure(root: Path) -> None:
    units = root / "etc/systemd/system"
    for unit in INSIDE.glob("*.service"):
        shutil.copy(unit, units)
        _command("chroot", str(root), "systemctl", "-q", "enable", unit.name)
    _command("chroot", str(root), "systemctl", "-q", "enable", "systemd-networkd")
    _command("chroot", str(root), "systemctl", "-q", "mask", *MASKED)
    network = root / "etc/systemd/network/ether.network"
    network.write_text("[Match]\nName=e*\n[Network]\nDHCP=ipv4\n")
    # A hypervisor promises its guests more than it has: the balloon takes back what is too much.
    (root / "etc/sysctl.d/testbed.conf").write_text("vm.overcommit_memory = 1\n")
    # Guests' memory comes in huge pages, without which an emulated host is far slower and now and
    # then hangs; but what a balloon took out of them must not be filled up again: a guest of
    # 176 MiB was seen to hold 287.
    (root / "etc/tmpfiles.d/testbed.conf").write_text(
        "w /sys/kernel/mm/transparent_hugepage/khugepaged/defrag - - - - 0\n"
        "w /sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none - - - - 0\n"
    )
    (root / "etc/machine-id").write_text("uninitialized\n")
    (root / "etc/fstab").write_text("")


def _kernel_and_initrd(root: Path, made: Path) -> None:
    kernel = next((root / "boot").glob("vmlinuz-*"))
    release = kernel.name.removeprefix("vmlinuz-")
    modules = modules_in_order(root / "lib/modules" / release, DRIVERS)
    busybox = (root / "bin/busybox").read_bytes()
    (made / "initrd").write_bytes(pack((INSIDE / "init.sh").read_bytes(), busybox, modules))
    shutil.copy(kernel, made / "kernel")
    # An L1 boots its own guests with them.
    shutil.copy(made / "initrd", root / "opt/testbed/initrd")
    shutil.copy(kernel, root / "opt/testbed/kernel")


# --- tools ---------------------------------------------------------------------------------------


def _command(*words: str) -> None:
    """ImageError with the end of what it said where it fails."""
    clean = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # In a root that does not run, systemd's tools only change files.
            env={**clean, "SYSTEMD_OFFLINE": "1", "LC_ALL": "C.UTF-8"},
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"{words[0]} did not end within {COMMAND_DEADLINE_S} s") from None
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise ImageError(f"`{' '.join(words)[:300]}` failed ({done.returncode}):\n{tail}")


def _whole(target: Path, make: Callable[[Path], None]) -> None:
    """The directory appears only when it is whole."""
    scratch = Path(tempfile.mkdtemp(prefix="making-", dir=target.parent))
    try:
        scratch.chmod(0o755)
        make(scratch)
        scratch.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _forget_old(cache: Path, prefix: str) -> None:
    by_age = sorted(cache.glob(f"{prefix}*"), key=lambda path: path.stat().st_mtime)
    for old in [*by_age[:-KEPT], *cache.glob("making-*")]:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def _code(function: Callable[..., object]) -> str:
    return inspect.getsource(function) + _FETCH_KERNEL
