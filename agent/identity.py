"""Who this machine is and which parts it plays; found by looking, nothing to configure.

The SMBIOS product UUID of a VM equals its domain UUID one level down, so nodes that report their
own and their domains' UUIDs give the whole tree. Only root may read it; an agent without root
finds it where its unit, started by root, has put it (`HANDED_OVER`). What is first there counts:

    node_id of the settings, product UUID of the kernel, the unit's copy of it, /etc/machine-id

The machine-id comes last since images carry it along: clones of one template share it. And in a VM
it joins nothing: no host knows its VM by it.
"""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from shared.errors import ReadingError
from shared.subjects import is_machine_id

# A fixed namespace: the id stays the same over reinstalls of the agent, and the raw machine-id,
# which systemd asks to keep confidential, cannot be read back from it.
_MACHINE_ID_NAMESPACE = UUID("5b0c1ab6-3d0f-4b0e-9d0b-6a4c9f1e7a52")

HANDED_OVER = Path("run/hrapaq/product_uuid")  # below the root; world-readable, written by root

# Boards whose maker never filled the field in share these; two such nodes would be taken for one.
_DIGITS_MIN = 3  # different ones; boards of all zeros, all F or all 01 share theirs as well
_SHARED_UUIDS = frozenset(
    {
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "01020304-0506-0708-090a-0b0c0d0e0f10",
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
        "12345678-1234-5678-90ab-cddeefaabbcc",
    }
)

# sys_vendor or product_name of machines that exist only as programs.
_VIRTUAL_WORDS = (
    "qemu",
    "kvm",
    "bochs",
    "vmware",
    "virtualbox",
    "innotek",
    "xen",
    "virtual machine",
    "openstack",
    "kubevirt",
    "bhyve",
    "google compute engine",
    "amazon ec2",
    "parallels",
)

_NOT_JOINED = (
    "the product UUID of this VM cannot be read, so its host's word on it and its own are not"
    f" joined; let root copy /sys/class/dmi/id/product_uuid to /{HANDED_OVER} (mode 0444) before"
    " the agent starts, or set node_id to the VM's UUID (`virsh domuuid` on its host)"
)


@dataclass(frozen=True, slots=True)
class Identity:
    node_id: str  # lower-case UUID
    name: str  # host name, for people
    boot_id: str  # the kernel's; changes with every boot
    said: str = ""  # what a person should know about it; empty when all is as it should be


def node_identity(root: Path, given_id: str = "") -> Identity:
    """Reads the identity below `root` ("/" on a real machine); `given_id` comes before all.

    Source: /sys/class/dmi/id/product_uuid, else HANDED_OVER, else /etc/machine-id; ReadingError
    where nothing helps.
    """
    boot_id = _first_line(root / "proc/sys/kernel/random/boot_id")
    if boot_id is None:
        raise ReadingError(f"no boot id in {root / 'proc/sys/kernel/random/boot_id'}: is /proc up?")
    product_uuid = given_id or _product_uuid(root)
    node_id = product_uuid or _machine_uuid(root)
    if node_id is None:
        raise ReadingError(
            f"this machine has no identity: neither a usable {root / 'sys/class/dmi/id'}/"
            f"product_uuid (needs root) nor {root / HANDED_OVER} nor {root / 'etc/machine-id'};"
            " run `systemd-machine-id-setup` or write 32 random hex digits there"
        )
    said = "" if product_uuid is not None or not is_virtual(root) else _NOT_JOINED
    name = _first_line(root / "proc/sys/kernel/hostname") or _first_line(root / "etc/hostname")
    return Identity(node_id=node_id, name=name or node_id[:8], boot_id=boot_id, said=said)


def discover_role(root: Path, libvirt_reachable: bool) -> str:
    """ "host", "guest" or "host+guest"; bare metal without a hypervisor is a host without VMs."""
    if not is_virtual(root):
        return "host"
    return "host+guest" if libvirt_reachable else "guest"


def is_virtual(root: Path) -> bool:
    """Whether the machine below `root` is itself a VM, by DMI or by the CPU's hypervisor bit."""
    for name in ("sys_vendor", "product_name"):
        text = (_first_line(root / "sys/class/dmi/id" / name) or "").lower()
        if any(word in text for word in _VIRTUAL_WORDS):
            return True
    return _has_hypervisor_flag(root / "proc/cpuinfo")


def _product_uuid(root: Path) -> str | None:
    for path in (Path("sys/class/dmi/id/product_uuid"), HANDED_OVER):
        text = (_first_line(root / path) or "").lower()
        if is_machine_id(text) and not _is_shared(text):
            return text
    return None


def _is_shared(text: str) -> bool:
    return text in _SHARED_UUIDS or len(set(text) - {"-"}) < _DIGITS_MIN


def _machine_uuid(root: Path) -> str | None:
    text = _first_line(root / "etc/machine-id")
    if text is None or text == "uninitialized":
        return None
    return str(uuid5(_MACHINE_ID_NAMESPACE, text))


def _has_hypervisor_flag(cpuinfo: Path) -> bool:
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return False
    flags = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return "hypervisor" in next(flags, "").split()


def _first_line(path: Path) -> str | None:
    """The first line without its blanks; None when unreadable or empty."""
    try:
        text = path.read_text(errors="replace").strip("\0 \n\t")
    except OSError:
        return None
    return text.splitlines()[0].strip() if text else None
