"""Who this machine is and which parts it plays; found by looking, nothing to configure.

The SMBIOS product UUID of a VM equals its domain UUID one level down, so nodes that report their
own and their domains' UUIDs give the whole tree. Reading it needs root.
"""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from shared.errors import ReadingError
from shared.subjects import is_machine_id

# A fixed namespace: the id stays the same over reinstalls of the agent, and the raw machine-id,
# which systemd asks to keep confidential, cannot be read back from it.
_MACHINE_ID_NAMESPACE = UUID("5b0c1ab6-3d0f-4b0e-9d0b-6a4c9f1e7a52")

# Boards whose maker never filled the field in share these; two such nodes would be taken for one.
_SHARED_UUIDS = frozenset(
    {
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
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


@dataclass(frozen=True, slots=True)
class Identity:
    node_id: str  # lower-case UUID
    name: str  # host name, for people
    boot_id: str  # the kernel's; changes with every boot


def node_identity(root: Path) -> Identity:
    """Reads the identity below `root` ("/" on a real machine).

    Source: /sys/class/dmi/id/product_uuid, else /etc/machine-id; ReadingError where neither helps.
    """
    boot_id = _first_line(root / "proc/sys/kernel/random/boot_id")
    if boot_id is None:
        raise ReadingError(f"no boot id in {root / 'proc/sys/kernel/random/boot_id'}: is /proc up?")
    node_id = _product_uuid(root) or _machine_uuid(root)
    if node_id is None:
        raise ReadingError(
            f"this machine has no identity: neither a usable {root / 'sys/class/dmi/id'}/"
            f"product_uuid (needs root) nor {root / 'etc/machine-id'};"
            " run `systemd-machine-id-setup` or write 32 random hex digits there"
        )
    name = _first_line(root / "proc/sys/kernel/hostname") or _first_line(root / "etc/hostname")
    return Identity(node_id=node_id, name=name or node_id[:8], boot_id=boot_id)


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
    text = (_first_line(root / "sys/class/dmi/id/product_uuid") or "").lower()
    return text if is_machine_id(text) and text not in _SHARED_UUIDS else None


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
