"""libvirt's figures in our units; the statistics are those of a real guest under QEMU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hypervisor import VmEvent, VmEventKind
from agent.libvirt_readings import (
    DomainFacts,
    event_of,
    format_blkio,
    format_scheduler,
    parse_blkio,
    parse_device_rates,
    parse_domain_xml,
    parse_scheduler,
    state_of,
    to_reading,
)
from shared.telemetry import VmState

VM = "0a0a0a0a-1111-4222-8333-444444444444"
STATS = {
    "state.state": 1,
    "state.reason": 1,
    "cpu.time": 3_673_469_000,
    "balloon.current": 262_144,
    "balloon.maximum": 524_288,
    "balloon.swap_in": 4,
    "balloon.major_fault": 12,
    "balloon.unused": 195_100,
    "balloon.usable": 198_448,
    "balloon.last-update": 1_795_345_831,
    "balloon.disk_caches": 2276,
    "balloon.rss": 207_964,
    "vcpu.current": 2,
    "vcpu.0.delay": 24_726_904,
    "vcpu.1.delay": 17_447_044,
    "block.0.rd.bytes": 4608,
    "block.0.wr.bytes": 100,
    "block.1.rd.bytes": 1,
    "net.0.rx.bytes": 70,
    "net.0.tx.bytes": 20,
}

XML = """<domain type='qemu'><devices>
 <disk type='file' device='disk'><source file='/var/lib/a.qcow2'/></disk>
 <disk type='block' device='disk'><source dev='/dev/vg/b'/></disk>
 <disk type='network' device='disk'><source protocol='rbd' name='pool/c'/></disk>
 <disk type='file' device='cdrom'><source file='/iso/d.iso'/></disk>
 <disk type='file' device='disk'></disk>
 <memballoon model='{model}'>{stats}</memballoon>
</devices></domain>"""


def test_a_full_record() -> None:
    vm = to_reading("id", "name", STATS)
    assert (vm.state, vm.cpu_count, vm.cpu_time_ns) == (VmState.RUNNING, 2, 3_673_469_000)
    assert vm.cpu_delay_ns == 24_726_904 + 17_447_044
    assert (vm.memory_actual_bytes, vm.memory_maximum_bytes) == (262_144 * 1024, 524_288 * 1024)
    assert (vm.memory_usable_bytes, vm.memory_unused_bytes) == (198_448 * 1024, 195_100 * 1024)
    assert (vm.memory_cache_bytes, vm.memory_resident_bytes) == (2276 * 1024, 207_964 * 1024)
    assert (vm.memory_major_faults, vm.memory_swap_in_bytes) == (12, 4096)
    assert vm.memory_last_update_unix_s == 1_795_345_831
    assert vm.io_bytes == 4709
    assert vm.net_bytes == 90


def test_a_record_without_figures_is_all_unknown() -> None:
    vm = to_reading("id", "name", {"state.state": 1, "state.reason": 1})
    assert vm.memory_actual_bytes is None and vm.cpu_time_ns is None
    assert vm.cpu_delay_ns is None and vm.io_bytes is None


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (1, 1, VmState.RUNNING),
        (2, 0, VmState.RUNNING),
        (3, 1, VmState.PAUSED),
        (3, 2, VmState.MIGRATING),
        (1, 10, VmState.MIGRATING),
        (5, 1, VmState.SHUT_DOWN),
        (6, 0, VmState.OTHER),
        (99, 0, VmState.OTHER),
    ],
)
def test_states(state: int, reason: int, expected: VmState) -> None:
    assert state_of({"state.state": state, "state.reason": reason}) == expected


def test_what_the_xml_tells() -> None:
    paths = ("/var/lib/a.qcow2", "/dev/vg/b")
    silent = XML.format(model="virtio", stats="")
    assert parse_domain_xml(silent) == DomainFacts(paths, balloon=True, stats_period_s=0)
    asked = XML.format(model="virtio", stats="<stats period='5'/>")
    assert parse_domain_xml(asked).stats_period_s == 5
    assert not parse_domain_xml(XML.format(model="none", stats="")).balloon


def test_the_quota_is_per_vcpu_and_the_amount_for_the_whole_vm() -> None:
    assert format_scheduler(1500, 2) == {"vcpu_period": 100_000, "vcpu_quota": 75_000}
    assert format_scheduler(2000, 2) == {"vcpu_quota": -1}
    assert format_scheduler(1, 4)["vcpu_quota"] == 1000
    assert parse_scheduler({"vcpu_quota": 75_000, "vcpu_period": 100_000}, 2) == 1500
    for none in (-1, 0, 17_592_186_044_415):
        assert parse_scheduler({"vcpu_quota": none, "vcpu_period": 100_000}, 2) is None
    assert parse_scheduler({}, 2) is None


@given(st.integers(1, 64), st.data())
def test_a_quota_comes_back_within_the_kernels_grain(cpu_count: int, data: st.DataObject) -> None:
    millicores = data.draw(st.integers(10 * cpu_count, max(10 * cpu_count, 1000 * cpu_count - 1)))
    back = parse_scheduler(format_scheduler(millicores, cpu_count), cpu_count)
    assert back is not None and 0 <= millicores - back <= cpu_count


def test_device_limits() -> None:
    devices = ("/dev/vda", "/dev/vdb")
    limits = format_blkio(1000, devices)
    assert limits["device_write_bytes_sec"] == "/dev/vda,1000,/dev/vdb,1000"
    assert parse_blkio(limits, devices) == 1000
    assert parse_blkio(limits, (*devices, "/dev/vdc")) is None
    assert parse_blkio({"device_read_bytes_sec": "/dev/vda,5"}, ("/dev/vda",)) is None
    assert parse_blkio({"weight": 100}, devices) is None
    assert parse_blkio(limits, ()) is None
    assert parse_device_rates("/dev/vda,x,/dev/vdb") == {}


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (["lifecycle", VM, 2, 0], VmEventKind.STARTED),
        (["lifecycle", VM, 2, 1], VmEventKind.ARRIVED),
        (["lifecycle", VM, 2, 4], VmEventKind.STARTED),  # woken up by the guest's own means
        (["lifecycle", VM, 5, 3], VmEventKind.LEFT),
        (["lifecycle", VM, 5, 1], VmEventKind.STOPPED),
        (["lifecycle", VM, 0, 1], VmEventKind.DEFINED),
        (["lifecycle", VM, 3, 1], VmEventKind.PAUSED),
        (["lifecycle", VM, 4, 0], VmEventKind.RESUMED),
        (["migration", VM, 1, 0], VmEventKind.MIGRATING),
        (["reboot", VM, 0, 0], VmEventKind.REBOOTED),
        (["opened", "", 0, 0], VmEventKind.HEARD_AGAIN),
        (["closed", "", 0, 0], VmEventKind.LOST),
    ],
)
def test_events_become_ours(told, kind):
    assert event_of(told) == VmEvent(told[1], kind)


@pytest.mark.parametrize(
    "told", [["lifecycle", VM, 6, 0], ["lifecycle", VM, 99, 0], ["?", "", 0, 0]]
)
def test_what_tells_nothing_is_no_event(told):
    assert event_of(told) is None
