"""What a domain's XML tells of its levers, and the calls that set them; the XML is libvirt 9's."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hypervisor import MemoryBlocks, VmReading
from agent.libvirt_devices import (
    DeviceFacts,
    Interface,
    blocks_of,
    format_rate,
    interface_limit,
    parse_devices,
    resized,
    why_no_net_lever,
)
from agent.libvirt_levers import VmLevers, look, reason_of, weight_of, with_levers
from shared.errors import HypervisorError
from shared.resources import MIB, Resource
from shared.telemetry import VmState

XML = """<domain type='qemu'>
 <metadata>
  <hrapaq-guard:guard xmlns:hrapaq-guard='urn:hrapaq:guard' amount='268435456'/>
  <other:guard xmlns:other='urn:other' amount='1'/>
 </metadata>
 <memory unit='KiB'>1310720</memory>
 <devices>
  <memory model='dimm'><target><size unit='KiB'>262144</size><node>0</node></target></memory>
  {memory}
  <interface type='ethernet'><target dev='vnet0'/>{bandwidth}</interface>
  <interface type='bridge'><target dev='vnet1'/><bandwidth>
   <inbound average='2048' burst='64'/><outbound average='1024'/></bandwidth></interface>
 </devices></domain>"""
DEVICE = """<memory model='virtio-mem'><target>
   <size unit='KiB'>524288</size><node>0</node><block unit='KiB'>{block}</block>
   <requested unit='KiB'>{requested}</requested>{current}
  </target><alias name='{alias}'/></memory>"""


def device(alias="virtiomem0", requested=131072, current=131072, block=2048):
    said = "" if current is None else f"<current unit='KiB'>{current}</current>"
    return DEVICE.format(alias=alias, requested=requested, current=said, block=block)


def facts_of(*devices: str, bandwidth: str = "") -> DeviceFacts:
    return parse_devices(XML.format(memory="".join(devices), bandwidth=bandwidth))


def test_what_the_xml_tells() -> None:
    facts = facts_of(device())
    (memory,) = facts.memory
    assert (memory.size_bytes, memory.block_bytes) == (512 * MIB, 2 * MIB)
    assert (memory.requested_bytes, memory.current_bytes) == (128 * MIB, 128 * MIB)
    assert facts.guarded_bytes == 256 * MIB
    assert facts.net_found_bytes_per_s is None
    assert facts.interfaces == (
        Interface("ethernet", "vnet0", None),
        Interface("bridge", "vnet1", 2 * MIB),
    )


def test_a_domain_with_nothing_of_it() -> None:
    facts = parse_devices("<domain><devices/></domain>")
    assert facts == DeviceFacts((), (), None, None)
    assert blocks_of(facts.memory, 512 * MIB) is None


def test_a_memory_device_without_a_present_size_is_left_alone() -> None:
    assert facts_of(device(current=None)).memory == ()


def test_memory_is_asked_for_in_whole_blocks_and_never_more_than_the_change() -> None:
    (memory,) = facts_of(device(block=131072)).memory
    assert blocks_of((memory,), 1280 * MIB) == MemoryBlocks(128 * MIB, 768 * MIB)
    assert resized((memory,), 896 * MIB + 200 * MIB, 896 * MIB) == {memory: 256 * MIB}
    assert resized((memory,), 896 * MIB - 100 * MIB, 896 * MIB) == {}
    assert resized((memory,), 0, 896 * MIB) == {memory: 0}
    assert resized((memory,), 4096 * MIB, 896 * MIB) == {memory: 512 * MIB}


def test_a_request_that_stalled_is_taken_back() -> None:
    (memory,) = facts_of(device(requested=0, current=131072)).memory
    assert resized((memory,), 896 * MIB, 896 * MIB) == {memory: 128 * MIB}


def test_growing_begins_with_the_first_device_and_shrinking_with_the_last() -> None:
    first, last = facts_of(device(), device(alias="virtiomem1")).memory
    grown = resized((first, last), 1024 * MIB + 400 * MIB, 1024 * MIB)
    assert grown == {first: 512 * MIB, last: 144 * MIB}
    assert resized((first, last), 1024 * MIB - 160 * MIB, 1024 * MIB) == {last: 0, first: 96 * MIB}


@given(st.integers(0, 1024), st.integers(0, 1024), st.integers(0, 2048), st.sampled_from([2, 8]))
def test_whatever_is_asked_for_the_devices_hold_it(first, last, amount, block) -> None:
    devices = facts_of(
        device(current=first // 2 // block * block * 1024, block=block * 1024),
        device(alias="b", current=last // 2 // block * block * 1024, block=block * 1024),
    ).memory
    actual = 512 * MIB + sum(each.current_bytes for each in devices)
    wanted = resized(devices, amount * MIB, actual)
    total = 512 * MIB + sum(
        wanted.get(each, each.requested_bytes if each in wanted else each.current_bytes)
        for each in devices
    )
    assert all(
        0 <= to <= each.size_bytes and to % (block * MIB) == 0 for each, to in wanted.items()
    )
    assert min(actual, amount * MIB) <= total <= max(actual, amount * MIB)


def test_the_device_that_is_sent_back_is_the_one_that_came() -> None:
    (memory,) = facts_of(device()).memory
    sent = memory.asking_for(64 * MIB)
    assert '<requested unit="KiB">65536</requested>' in sent
    assert 'alias name="virtiomem0"' in sent and '<block unit="KiB">2048</block>' in sent
    assert memory.requested_bytes == 128 * MIB


def test_a_network_limit_counts_where_every_interface_has_it() -> None:
    both = "<bandwidth><inbound average='512'/><outbound average='512'/></bandwidth>"
    assert interface_limit(facts_of(bandwidth=both).interfaces) == 2 * MIB
    one_way = "<bandwidth><inbound average='512'/></bandwidth>"
    assert interface_limit(facts_of(bandwidth=one_way).interfaces) is None
    assert interface_limit(()) is None


@pytest.mark.parametrize(
    ("interfaces", "word"),
    [
        ((), "no network interface"),
        ((Interface("user", "", None),), "type user"),
        ((Interface("ethernet", "vnet0", None), Interface("hostdev", "", None)), "type hostdev"),
        ((Interface("bridge", "", None),), "names no device"),
        ((Interface("bridge", "vnet0", None),), ""),
    ],
)
def test_interfaces_without_a_device_say_so(interfaces, word) -> None:
    why = why_no_net_lever(interfaces)
    assert word in why if word else why == ""


def test_rates_are_kib_with_a_burst_that_lets_a_segment_through() -> None:
    assert format_rate(10 * MIB)["inbound.average"] == 10 * 1024
    assert format_rate(10 * MIB)["outbound.burst"] == 1024
    assert format_rate(100) == format_rate(1024)
    assert min(format_rate(100).values()) == 1
    assert set(format_rate(None).values()) == {0}


UNSEEN = VmLevers()


def looked(scheduler, defined, before=UNSEEN, cpu_count=2) -> VmLevers:
    inspected = ["<domain><devices/></domain>", scheduler, "none", defined]
    return look(inspected, cpu_count, before, "qemu:///system", Path("/nonexistent"))


QUOTA = {"vcpu_period": 100_000, "vcpu_quota": 25_000}
NO_QUOTA = {"vcpu_period": 100_000, "vcpu_quota": -1}


def test_the_weight_follows_the_grant_and_comes_back_with_it() -> None:
    levers = looked({**NO_QUOTA, "cpu_shares": 1024}, {})
    assert levers.calls(Resource.CPU, 500, None) == [
        ("set_scheduler", ({"vcpu_period": 100_000, "vcpu_quota": 25_000, "cpu_shares": 256},))
    ]
    (whole,) = levers.calls(Resource.CPU, 2000, None)
    assert whole == ("set_scheduler", ({"vcpu_quota": -1, "cpu_shares": 1024},))
    assert weight_of(10, 64, 100) == 2


def test_a_weight_under_a_quota_is_ours_so_the_definition_tells_the_vms_own() -> None:
    ours = {**QUOTA, "cpu_shares": 256}
    assert looked(ours, {"cpu_shares": 2048}).shares == 2048
    assert (
        looked(ours, {"cpu_shares": 2048}, looked({**NO_QUOTA, "cpu_shares": 77}, {})).shares == 77
    )
    for defined in ("the domain is transient", {"cpu_shares": 0}, {}):
        unknown = looked(ours, defined)
        assert unknown.shares is None
        ((_, (wanted,)),) = unknown.calls(Resource.CPU, 500, None)
        assert "cpu_shares" not in wanted


def test_levers_that_are_missing_say_why() -> None:
    levers = looked("no cpu controller", "transient")
    for resource, why in ((Resource.CPU, "no cpu controller"), (Resource.IO, "none")):
        with pytest.raises(HypervisorError, match=why):
            levers.calls(resource, 500, None)
    with pytest.raises(HypervisorError, match="no network interface"):
        levers.net_calls(MIB)
    assert reason_of([levers.cpu_reason, ""]) == ""
    assert "seen" in reason_of([])


def with_devices(devices: DeviceFacts) -> VmLevers:
    limit = interface_limit(devices.interfaces)
    return VmLevers(net_reason="", net_limit_bytes_per_s=limit, devices=devices)


def test_a_vm_without_memory_devices_has_its_balloon_moved() -> None:
    assert VmLevers().calls(Resource.MEMORY, 256 * MIB, None) == [("set_memory", (256 * 1024,))]
    levers = with_devices(facts_of(device()))
    ((method, (xml,)),) = levers.calls(Resource.MEMORY, 900 * MIB, 896 * MIB)
    assert method == "update_device" and ">135168<" in xml
    with pytest.raises(HypervisorError, match="not known"):
        levers.calls(Resource.MEMORY, 900 * MIB, None)


def test_the_mark_stands_as_long_as_the_limit_may() -> None:
    limited = "<bandwidth><inbound average='1024'/><outbound average='1024'/></bandwidth>"
    levers = with_devices(facts_of(bandwidth=limited))
    calls = levers.net_calls(MIB)
    assert [call[0] for call in calls] == ["set_mark", "set_interface", "set_interface"]
    assert calls[0][1] == ("net", 2 * MIB)  # what the operator had set
    calls = levers.net_calls(None)
    assert [call[0] for call in calls] == ["set_interface", "set_interface", "set_mark"]
    assert calls[0][1] == ("vnet0", format_rate(2 * MIB))
    assert with_devices(facts_of()).net_calls(MIB)[0][1] == ("net", 0)


def test_a_reading_gets_what_bulk_statistics_do_not_tell() -> None:
    bare = VmReading("a", "a", VmState.RUNNING, memory_maximum_bytes=1280 * MIB)
    levers = replace(with_devices(facts_of(device())), quota_millicores=500, io_limit_bytes_per_s=7)
    vm = with_levers(bare, levers)
    assert (vm.cpu_quota_millicores, vm.io_limit_bytes_per_s) == (500, 7)
    assert vm.memory_blocks == MemoryBlocks(2 * MIB, 768 * MIB)
    assert vm.memory_guarded_bytes == 256 * MIB
    assert (vm.net_limit_bytes_per_s, vm.net_found_bytes_per_s) == (None, None)
