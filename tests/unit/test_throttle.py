"""How long quotas held VMs back, from files as both versions of control groups have them."""

from agent.cgroup import UNIFIED, Place
from agent.throttle import VmThrottle, stat_files, throttled_us

V1 = "nr_periods 10\nnr_throttled 3\nthrottled_time 4500000\n"
V2 = "usage_usec 9\nnr_periods 10\nnr_throttled 3\nthrottled_usec 4500\nnr_bursts 0\n"
VM = "10000000-0000-4000-8000-000000000001"


def test_both_versions_count_in_their_own_unit():
    assert throttled_us(V1) == throttled_us(V2) == 4500
    assert throttled_us("usage_usec 9\n") is None  # no controller: nothing is counted
    assert throttled_us(None) is None


def test_the_groups_of_the_vcpus_count_or_that_of_the_vm(tmp_path):
    place = Place(tmp_path, 1)
    assert stat_files(place) == (tmp_path / "cpu.stat",)
    for name in ("vcpu0", "vcpu1", "emulator"):
        (tmp_path / name).mkdir()
    assert [path.parent.name for path in stat_files(place)] == ["vcpu0", "vcpu1"]
    (tmp_path / "libvirt/vcpu0").mkdir(parents=True)
    assert stat_files(place) == (tmp_path / "libvirt/vcpu0/cpu.stat",)


def machine(root, group):
    """A VM whose process is in `group` of a version 1 hierarchy."""
    process = root / "proc/77"
    process.mkdir(parents=True)
    (process / "cmdline").write_bytes(b"qemu\0-uuid\0" + VM.encode() + b"\0")
    (process / "cgroup").write_text(f"4:cpu:/{group}\n")
    mount = root / "sys/fs/cgroup/cpu"
    mount.mkdir(parents=True)
    (root / "proc/self").mkdir()
    (root / "proc/self/mountinfo").write_text(
        "30 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    )
    (root / "proc/self/mounts").write_text("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n")
    (root / "proc/mounts").write_text("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n")
    for number, spent in enumerate((1_000_000, 2_000_000)):
        vcpu = mount / group / f"vcpu{number}"
        vcpu.mkdir(parents=True)
        (vcpu / "cpu.stat").write_text(f"nr_periods 1\nnr_throttled 1\nthrottled_time {spent}\n")
    return mount / group


def test_the_vcpus_of_a_vm_are_added_up(tmp_path):
    group = machine(tmp_path, "machine/qemu-1-a.libvirt-qemu")
    throttle = VmThrottle(tmp_path)
    assert throttle.throttled_us([VM]) == {VM: 3000}
    (group / "vcpu0/cpu.stat").write_text("nr_periods 1\nthrottled_time 5000000\n")
    assert throttle.throttled_us([VM, "another"]) == {VM: 7000}
    assert throttle.throttled_us([]) == {}


def test_only_version_2_has_pressure_files(tmp_path):
    machine(tmp_path, "machine/qemu-1-a.libvirt-qemu")
    throttle = VmThrottle(tmp_path)
    throttle.throttled_us([VM])
    assert throttle.cpu_pressure_files([VM]) == ()
    (tmp_path / "cpu.pressure").touch()
    throttle._cgroups.cgroup(VM).places[UNIFIED] = Place(tmp_path, 2)
    assert throttle.cpu_pressure_files([VM, "another"]) == (tmp_path / "cpu.pressure",)
