"""Control groups of version 1 beside 2 (no systemd) and of version 2 alone (systemd)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cgroup import (
    Cgroup,
    backing_device,
    device_node,
    format_cpu_max,
    format_io_max,
    memory_guard_reason,
    millicores_to_quota,
    parse_cpu_max,
    parse_io_max,
    parse_membership,
    parse_mounts,
    parse_throttle,
    quota_to_millicores,
    vm_cgroup,
    vm_group,
)
from agent.guard_files import GuardFiles
from agent.sample import VmPressure
from agent.vm_cgroups import VmCgroups
from shared.errors import HypervisorError
from shared.resources import MIB

FIXTURES = Path(__file__).parent.parent / "fixtures"
ALPHA, ALPHA_PID = "11111111-2222-4333-8444-555555555555", 4242
BETA, BETA_PID = "22222222-2222-4333-8444-555555555555", 5151
GROUP1 = "machine/qemu-1-alpha.libvirt-qemu"
SCOPE2 = "machine.slice/machine-qemu\\x2d3\\x2dbeta.scope"


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "cgroup1", tmp_path / "root"))


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "cgroup2", tmp_path / "root", symlinks=True))


def test_version_1_is_read_and_the_pressure_comes_from_the_hierarchy_beside_it(
    hybrid: Path,
) -> None:
    group = vm_cgroup(hybrid, ALPHA_PID)
    assert group.memory_used_bytes() == 256 * MIB
    assert group.cpu_quota_millicores() == 500
    assert group.cpu_weight() == 200
    assert group.io_limit_bytes_per_s("254:0") == 2 * MIB
    assert group.io_limit_bytes_per_s("8:0") is None
    assert group.cpu_used_ns() == 5_000_000
    assert group.pressure() == VmPressure(cpu_us=300, memory_us=600, io_us=200)


def test_version_2_is_read_at_the_scope(unified: Path) -> None:
    group = vm_cgroup(unified, BETA_PID)
    assert group.memory_used_bytes() == 512 * MIB
    assert group.cpu_quota_millicores() is None
    assert group.cpu_weight() == 100
    assert group.cpu_used_ns() == 1_234_567_000
    assert group.io_limit_bytes_per_s("8:0") == 4 * MIB
    assert group.io_limit_bytes_per_s("8:16") is None
    assert group.pressure() == VmPressure(memory_us=999)


def test_version_1_is_written(hybrid: Path) -> None:
    group = vm_cgroup(hybrid, ALPHA_PID)
    group.set_cpu_quota_millicores(1500)
    cpu = hybrid / "sys/fs/cgroup/cpu" / GROUP1
    assert (cpu / "cpu.cfs_quota_us").read_text() == "150000"
    assert group.cpu_quota_millicores() == 1500
    group.set_cpu_quota_millicores(None)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "-1"
    assert group.cpu_quota_millicores() is None
    group.set_cpu_weight(50)
    assert group.cpu_weight() == 50
    group.set_io_limit_bytes_per_s("254:0", 3 * MIB)
    assert group.io_limit_bytes_per_s("254:0") == 3 * MIB
    group.set_io_limit_bytes_per_s("254:0", None)
    assert group.io_limit_bytes_per_s("254:0") is None


def test_version_2_is_written(unified: Path) -> None:
    group = vm_cgroup(unified, BETA_PID)
    scope = unified / "sys/fs/cgroup" / SCOPE2
    group.set_cpu_quota_millicores(250)
    assert (scope / "cpu.max").read_text() == "25000 100000"
    group.set_cpu_weight(300)
    assert group.cpu_weight() == 300
    group.set_io_limit_bytes_per_s("8:0", 7 * MIB)
    assert (scope / "io.max").read_text() == f"8:0 rbps={7 * MIB} wbps={7 * MIB}"
    group.set_io_limit_bytes_per_s("8:0", None)
    assert (scope / "io.max").read_text() == "8:0 rbps=max wbps=max"


def test_memory_is_slowed_where_libvirt_has_its_own_group(unified: Path) -> None:
    group, scope = vm_cgroup(unified, BETA_PID), unified / "sys/fs/cgroup" / SCOPE2
    assert group.memory_high_bytes() is None
    group.set_memory_high_bytes(200 * MIB)
    assert (scope / "libvirt/memory.high").read_text() == str(200 * MIB)
    assert group.memory_high_bytes() == 200 * MIB
    group.set_memory_high_bytes(None)
    assert (scope / "libvirt/memory.high").read_text() == "max"
    assert group.memory_high_bytes() is None
    shutil.rmtree(scope / "libvirt")  # without systemd there is none below
    group.set_memory_high_bytes(300 * MIB)
    assert (scope / "memory.high").read_text() == str(300 * MIB)


def test_version_2_has_memory_high_with_its_controller(unified: Path) -> None:
    assert "controller" in memory_guard_reason(unified)
    (unified / "sys/fs/cgroup/cgroup.controllers").write_text("cpu io memory\n")
    assert memory_guard_reason(unified) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, which only root may")
@pytest.mark.parametrize(("mode", "why"), [(0o644, "root's to set"), (0o666, "")])
def test_without_root_memory_high_is_for_whom_it_was_handed_to(mode: int, why: str) -> None:
    with TemporaryDirectory() as name:  # pytest's own folders are closed to others
        root = Path(shutil.copytree(FIXTURES / "cgroup2", Path(name, "root"), symlinks=True))
        (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu io memory\n")
        Path(name).chmod(0o755)
        high = root / "sys/fs/cgroup" / SCOPE2 / "libvirt/memory.high"
        high.write_text("max")
        high.chmod(mode)
        assert why in as_nobody(lambda: said_of_guards(root))
        assert bool(why) == bool(as_nobody(lambda: said_of_guards(root)))
        assert said_of_guards(root) == ""


def said_of_guards(root: Path) -> str:
    files = GuardFiles("qemu:///system", root)
    files.find([BETA])
    return files.why_not()


def as_nobody(ask: Callable[[], str]) -> str:
    """Asked in a child that has given up root: Python's own files may be closed to others."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.write(writes, ask().encode())
        os._exit(0)
    os.close(writes)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(reads) as answer:
        return answer.read()


def test_version_1_has_no_memory_high(hybrid: Path) -> None:
    assert "cgroup v2" in memory_guard_reason(hybrid)
    group = vm_cgroup(hybrid, ALPHA_PID)
    assert group.memory_high_bytes() is None
    with pytest.raises(HypervisorError, match="cgroup v2"):
        group.set_memory_high_bytes(MIB)


def test_shared_and_root_groups_are_not_the_vms(hybrid: Path) -> None:
    group = vm_cgroup(hybrid, 77)
    assert group.places == {}
    assert group.memory_used_bytes() is None and group.pressure() == VmPressure()
    with pytest.raises(HypervisorError, match="no cpu control group"):
        group.set_cpu_quota_millicores(500)


def test_an_unnamed_group_counts_when_the_process_is_alone_in_it(hybrid: Path) -> None:
    (hybrid / "sys/fs/cgroup/memory/shared/cgroup.procs").write_text("77\n")
    assert set(vm_cgroup(hybrid, 77).places) == {"memory"}


def test_a_process_that_ended_has_no_groups(hybrid: Path) -> None:
    assert vm_cgroup(hybrid, 1).places == {}


def test_a_refused_write_says_where(hybrid: Path) -> None:
    group = vm_cgroup(hybrid, ALPHA_PID)
    file = hybrid / "sys/fs/cgroup/cpu" / GROUP1 / "cpu.shares"
    file.unlink()
    file.mkdir()
    with pytest.raises(HypervisorError, match=r"cpu\.shares"):
        group.set_cpu_weight(100)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("/machine/qemu-1-a.libvirt-qemu/vcpu0", "/machine/qemu-1-a.libvirt-qemu"),
        ("/machine.slice/machine-qemu.scope/libvirt/vcpu12", "/machine.slice/machine-qemu.scope"),
        ("/machine/x/iothread1", "/machine/x"),
        ("/user.slice", "/user.slice"),
        ("/emulator", "/"),
        ("/", "/"),
    ],
)
def test_thread_groups_are_stripped(path: str, group: str) -> None:
    assert vm_group(path) == group


def test_pressures_follow_the_vms(hybrid: Path) -> None:
    groups = VmCgroups(hybrid)
    unknown = "33333333-2222-4333-8444-555555555555"
    assert groups.pressures([ALPHA, unknown]) == {ALPHA: VmPressure(300, 600, 200)}
    shutil.rmtree(hybrid / "sys/fs/cgroup/unified" / GROUP1)  # the VM was shut off
    assert groups.pressures([ALPHA]) == {}
    assert groups.pressures([]) == {}
    assert groups.cgroup(ALPHA).places == {}


def test_a_restarted_vm_is_found_again(hybrid: Path) -> None:
    groups = VmCgroups(hybrid)
    assert groups.pressures([ALPHA])
    for name in ("cpu", "memory", "blkio", "unified"):
        machine = hybrid / "sys/fs/cgroup" / name / "machine"
        (machine / "qemu-1-alpha.libvirt-qemu").rename(machine / "qemu-2-alpha.libvirt-qemu")
    (hybrid / "proc/4242").rename(hybrid / "proc/4300")
    membership = hybrid / "proc/4300/cgroup"
    membership.write_text(membership.read_text().replace("qemu-1-", "qemu-2-"))
    assert groups.pressures([ALPHA]) == {ALPHA: VmPressure(300, 600, 200)}


def test_the_device_under_a_file_is_the_whole_disk(unified: Path) -> None:
    image = unified / "image.raw"
    image.write_bytes(b"")
    number = image.stat().st_dev
    entry = unified / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    assert backing_device(unified, image) is None
    entry.symlink_to("../../devices/sda/sda1")
    assert backing_device(unified, image) == "8:0"
    assert device_node(unified, "8:0") == "/dev/sda"
    assert device_node(unified, "9:9") is None
    assert backing_device(unified, unified / "missing") is None


@given(st.integers(10, 10**6))
def test_quotas_survive_both_formats(millicores: int) -> None:
    assert parse_cpu_max(format_cpu_max(millicores)) == millicores
    assert quota_to_millicores(millicores_to_quota(millicores), 100_000) == millicores


@given(st.integers(1, 2**62))
def test_io_limits_survive_their_format(amount: int) -> None:
    assert parse_io_max(format_io_max("8:0", amount), "8:0") == amount


@given(st.text())
def test_no_parser_raises(text: str) -> None:
    parse_mounts(text, Path("/"))
    parse_membership(text)
    parse_cpu_max(text)
    parse_io_max(f"8:0 {text}", "8:0")
    parse_throttle(f"8:0 {text}", "8:0")
    vm_group(text)


def test_an_empty_cgroup_knows_nothing() -> None:
    group = Cgroup({})
    assert group.cpu_weight() is None and group.cpu_used_ns() is None
    assert group.cpu_quota_millicores() is None and group.io_limit_bytes_per_s("8:0") is None
