"""Parsers on a small tree of a machine with disks, a partition, loop, dm and zram devices."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.need import Look
from agent.procfs import (
    LookReader,
    count_cpus,
    has_steal_clock,
    parse_diskstats,
    parse_loadavg,
    parse_meminfo,
    parse_net_dev,
    parse_pressure,
    parse_runnable,
    parse_stat_cpu,
    parse_uptime,
    read_counters,
    with_a_device,
)
from agent.sample import NodeCounters

ROOT = Path(__file__).parent.parent / "fixtures" / "proc"
TICKS_PER_S = 100


def test_the_whole_fixture() -> None:
    assert read_counters(ROOT) == NodeCounters(
        memory_total_bytes=8_000_000 * 1024,
        memory_available_bytes=5_000_000 * 1024,
        swap_used_bytes=250_000 * 1024,
        cpu_count=2,
        cpu_used_ns=(1000 + 20 + 300 + 5 + 6) * 10_000_000,
        cpu_steal_ns=70 * 10_000_000,
        io_bytes=(3000 + 5000 + 100 + 200) * 512,
        cpu_pressure_us=4_568_896,
        memory_pressure_us=12,
        io_pressure_us=None,
        memory_pressure_full_us=3,
        net_bytes=1_000_000 + 200_000 + 30_000 + 4_000,
        load_milli=520,
        uptime_ns=5_025_730_000_000,
    )


def test_an_empty_tree_is_all_unknown(tmp_path: Path) -> None:
    assert read_counters(tmp_path) == NodeCounters()


def test_a_quick_look_reads_the_same_figures() -> None:
    counters, reader = read_counters(ROOT), LookReader(ROOT)
    assert reader.look(7) == Look(
        7,
        memory_total_bytes=counters.memory_total_bytes,
        memory_available_bytes=counters.memory_available_bytes,
        memory_pressure_us=counters.memory_pressure_us,
        cpu_count=2,
        cpu_used_ns=counters.cpu_used_ns,
        cpu_steal_ns=counters.cpu_steal_ns,
        cpu_pressure_us=counters.cpu_pressure_us,
        runnable=2,  # of three, one is the agent that looks
    )
    reader.close()


def test_a_quick_look_at_nothing_is_all_unknown(tmp_path: Path) -> None:
    reader = LookReader(tmp_path)
    assert reader.look(7) == Look(7)
    reader.close()


def test_looks_at_open_files_see_what_changes(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    reader, path = LookReader(tmp_path), tmp_path / "proc/stat"
    for runnable in (4, 1):
        path.write_text(f"cpu 1\nprocs_running {runnable}\n")
        assert reader.look(1).runnable == runnable - 1
    reader.close()


@pytest.mark.parametrize(
    ("clocks", "tells"), [("tsc kvm-clock \n", True), ("tsc hpet acpi_pm\n", False), ("", False)]
)
def test_a_hypervisor_that_gives_a_clock_tells_of_steal(
    tmp_path: Path, clocks: str, tells: bool
) -> None:
    path = tmp_path / "sys/devices/system/clocksource/clocksource0/available_clocksource"
    path.parent.mkdir(parents=True)
    path.write_text(clocks)
    assert has_steal_clock(tmp_path) == tells


def test_only_whole_devices_count() -> None:
    assert with_a_device(ROOT / "sys/block") == ("nvme0n1", "vda")


def test_only_interfaces_that_are_devices_count() -> None:
    assert with_a_device(ROOT / "sys/class/net") == ("enp1s0", "enp2s0")


def test_this_machine_can_be_read() -> None:
    counters = read_counters(Path("/"))
    assert counters.memory_total_bytes and counters.memory_total_bytes > 2**26
    assert counters.cpu_count and counters.cpu_used_ns


def test_details_of_the_formats() -> None:
    assert parse_meminfo("HugePages_Total:   3\nMemFree:  2 kB\nOdd: x kB\n\n") == {
        "HugePages_Total": 3,
        "MemFree": 2048,
    }
    assert parse_stat_cpu("cpu  1 2 3 4 5 6 7\n", TICKS_PER_S) == (190_000_000, None)
    assert parse_stat_cpu("cpu  1 2\n", TICKS_PER_S) == (None, None)
    assert count_cpus("cpu  1\ncpu0 1\ncpu11 1\nctxt 5\n") == 2
    assert parse_pressure("full avg10=0.00 total=5\n") is None
    assert parse_pressure("full avg10=0.00 total=5\n", "full") == 5
    assert parse_diskstats("8 0 sda 1\n", ["sda"]) is None
    assert parse_net_dev("eth0: 1 2\n", ["eth0"]) is None
    assert parse_net_dev("eth0:12 0 0 0 0 0 0 0 30 0\n", ["eth0"]) == 42, "no blank after it"
    assert parse_net_dev("eth0: 1 0 0 0 0 0 0 0 2 0\n", []) is None
    assert parse_loadavg("1.005 0.3 0.1 1/80 4\n") == 1005
    assert [parse_loadavg(text) for text in ("", "nan 1", "-1.0", "1e3", "1.2.3")] == [None] * 5
    texts = ("cpu 1\nprocs_running 3\nprocs_blocked 1\n", "cpu 1\n", "cpu\nprocs_running \n")
    assert [parse_runnable(text) for text in texts] == [3, None, None]
    assert parse_uptime("0.07 0.01\n") == 70_000_000
    assert parse_uptime("soon\n") is None


@given(st.text())
def test_no_parser_raises(text: str) -> None:
    parse_meminfo(text)
    parse_stat_cpu(text, TICKS_PER_S)
    count_cpus(text)
    parse_pressure(f"some {text}")
    parse_diskstats(text, ["sda"])
    parse_net_dev(f"eth0:{text}", ["eth0"])
    parse_loadavg(text)
    parse_runnable(f"cpu 1\nprocs_running {text}")
    parse_uptime(text)
