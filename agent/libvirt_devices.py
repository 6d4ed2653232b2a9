"""What of a domain's XML the levers need, and the XML that moves memory devices. Pure.

A VM with virtio-mem devices has its memory moved by their requested sizes, in whole blocks; its
balloon is left as it is. What libvirt calls the balloon's current size counts plugged blocks, so
it is what the VM has either way. Source: libvirt `formatdomain.html`, memory devices.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from agent.hypervisor import MemoryBlocks

_KIB = 1024
# Interfaces with a device on this host that the kernel can slow down.
_WITH_DEVICE = frozenset({"network", "bridge", "ethernet", "direct"})
_UNITS = {"b": 1, "bytes": 1, "kib": _KIB, "mib": _KIB**2, "gib": _KIB**3, "tib": _KIB**4}
MARK_URI = "urn:hrapaq:"  # and the mark's word: what we wrote beside a VM, for who comes after us


@dataclass(frozen=True, slots=True)
class MemoryDevice:
    """One virtio-mem device; sizes in bytes, all of them whole blocks."""

    element: ET.Element
    size_bytes: int
    block_bytes: int
    requested_bytes: int
    current_bytes: int

    def asking_for(self, amount_bytes: int) -> str:
        """Its XML with another requested size, for virDomainUpdateDeviceFlags."""
        element = deepcopy(self.element)
        requested = element.find("target/requested")
        assert requested is not None, "a virtio-mem device without a requested size"
        requested.text, requested.attrib["unit"] = str(amount_bytes // _KIB), "KiB"
        return ET.tostring(element, encoding="unicode")


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface; `device` is its tap or macvtap on this host, "" without one."""

    kind: str
    device: str
    limit_bytes_per_s: int | None  # of the faster way; None unless both are limited


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    memory: tuple[MemoryDevice, ...]
    interfaces: tuple[Interface, ...]
    guarded_bytes: int | None  # the grant that our guard was set for; None: no guard of ours
    net_found_bytes_per_s: int | None  # the limit before ours, 0 for none; None: no limit of ours


def parse_devices(text: str) -> DeviceFacts:
    """Of a running domain's XML; written by libvirt, a trusted source."""
    root = ET.fromstring(text)  # noqa: S314 - written by libvirt, not by a guest
    memory = map(_memory_device, root.findall("devices/memory[@model='virtio-mem']"))
    return DeviceFacts(
        memory=tuple(device for device in memory if device is not None),
        interfaces=tuple(map(_interface, root.findall("devices/interface"))),
        guarded_bytes=_mark(root, "guard"),
        net_found_bytes_per_s=_mark(root, "net"),
    )


def resized(
    devices: Iterable[MemoryDevice], amount_bytes: int, actual_bytes: int
) -> dict[MemoryDevice, int]:
    """The requested size of each device that has to be told, for the VM to have `amount_bytes`
    where it has `actual_bytes` now.

    In whole blocks, and never more of a change than asked for. Growing fills the first device
    first, shrinking empties the last first.
    """
    devices = tuple(devices)
    missing = amount_bytes - actual_bytes
    wanted: dict[MemoryDevice, int] = {}
    for device in devices if missing >= 0 else reversed(devices):
        room = device.size_bytes - device.current_bytes if missing >= 0 else device.current_bytes
        blocks = min(room, abs(missing)) // device.block_bytes
        change = blocks * device.block_bytes * (1 if missing >= 0 else -1)
        wanted[device] = device.current_bytes + change
        missing -= change
    return {device: to for device, to in wanted.items() if to != device.requested_bytes}


def blocks_of(devices: Sequence[MemoryDevice], maximum_bytes: int | None) -> MemoryBlocks | None:
    """How a VM's memory moves that can have `maximum_bytes`; None without any such device."""
    if not devices or maximum_bytes is None:
        return None
    largest = max(device.block_bytes for device in devices)
    return MemoryBlocks(largest, maximum_bytes - sum(device.size_bytes for device in devices))


def interface_limit(interfaces: tuple[Interface, ...]) -> int | None:
    """The limit in bytes/s on each interface; None unless every one has both ways limited."""
    known = [each.limit_bytes_per_s for each in interfaces if each.limit_bytes_per_s is not None]
    return max(known) if known and len(known) == len(interfaces) else None


def why_no_net_lever(interfaces: tuple[Interface, ...]) -> str:
    """ "" where each interface has a device on this host."""
    if not interfaces:
        return "it has no network interface"
    for each in interfaces:
        if each.kind not in _WITH_DEVICE:
            return f"its interface of type {each.kind} has no device on this host to limit"
        if not each.device:
            return f"libvirt names no device on this host for its interface of type {each.kind}"
    return ""


def format_rate(bytes_per_s: int | None) -> dict[str, int]:
    """Parameters of virDomainSetInterfaceParameters: each way gets it; None lifts both limits.

    libvirt counts whole KiB/s. A burst of a tenth of a second lets short packets through at once,
    and no more than what a limit of seconds still evens out.
    """
    average = 0 if bytes_per_s is None else max(1, bytes_per_s // _KIB)
    burst = 0 if bytes_per_s is None else max(_BURST_KIB_MIN, average // 10)
    ways = ("inbound", "outbound")
    return {f"{way}.{name}": n for way in ways for name, n in _named(average, burst)}


_BURST_KIB_MIN = 64  # one segment as large as virtio makes them; a smaller bucket lets none through


def _named(average: int, burst: int) -> tuple[tuple[str, int], ...]:
    return ("average", average), ("burst", burst)


def _memory_device(element: ET.Element) -> MemoryDevice | None:
    """None for one that libvirt describes in part: then it is not moved."""
    amounts = [
        _size(element.find(f"target/{name}")) for name in ("size", "block", "requested", "current")
    ]
    size, block, requested, current = amounts
    if size is None or not block or requested is None or current is None:
        return None
    return MemoryDevice(element, size, block, requested, current)


def _interface(element: ET.Element) -> Interface:
    target = element.find("target")
    device = "" if target is None else target.get("dev", "")
    rates = [element.find(f"bandwidth/{way}") for way in ("inbound", "outbound")]
    known = [int(rate.get("average", "0")) * _KIB for rate in rates if rate is not None]
    both = len(known) == len(rates) and all(known)
    return Interface(element.get("type", ""), device, max(known) if both else None)


def _size(element: ET.Element | None) -> int | None:
    if element is None or not (element.text or "").strip().isdecimal():
        return None
    return int(element.text or "") * _UNITS.get(element.get("unit", "KiB").lower(), _KIB)


def _mark(root: ET.Element, word: str) -> int | None:
    element = root.find(f"metadata/{{{MARK_URI}{word}}}{word}")
    text = "" if element is None else element.get("amount", "")
    return int(text) if text.isdecimal() else None
