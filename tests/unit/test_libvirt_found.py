"""libvirt's XML and parameters as plain settings, and the way back; texts of libvirt 9.0."""

from agent.libvirt_found import Runs, calls_for, note_of, sight_of

LIVE = """<domain type='kvm' id='3'>
  <name>web</name>
  <memory unit='KiB'>524288</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <cputune><shares>512</shares><period>100000</period><quota>50000</quota></cputune>
  <devices><memballoon model='virtio'><stats period='2'/></memballoon></devices>
</domain>"""
DEFINED = """<domain type='kvm'>
  <name>web</name>
  <currentMemory unit='KiB'>524288</currentMemory>
  <cputune><shares>2048</shares></cputune>
  <blkiotune><device><path>/dev/vda</path><read_bytes_sec>7</read_bytes_sec></device></blkiotune>
  <devices><memballoon model='virtio'/></devices>
</domain>"""
SCHEDULER = {"cpu_shares": 512, "vcpu_period": 100_000, "vcpu_quota": 50_000, "global_quota": -1}
BLKIO = {
    "weight": 500,
    "device_read_bytes_sec": "/dev/vda,1048576,/dev/vdb,0",
    "device_write_bytes_sec": "",
}


def test_settings_and_definition_of_a_vm():
    sight = sight_of("a", "run", [LIVE, SCHEDULER, BLKIO, {}, DEFINED, None])
    assert (sight.name, sight.run) == ("web", "run")
    assert sight.settings == {
        "memory_bytes": 256 << 20,
        "statistics_period_s": 2,
        "cpu_period_us": 100_000,
        "cpu_quota_us": 50_000,
        "cpu_shares": 512,
        "io_read_bytes_per_s /dev/vda": 1 << 20,
    }
    assert sight.defined == {
        "memory_bytes": 512 << 20,
        "statistics_period_s": 0,
        "cpu_quota_us": 0,
        "cpu_shares": 2048,
        "io_read_bytes_per_s /dev/vda": 7,
    }


def test_without_cgroups_a_definition_or_a_balloon_there_is_less():
    xml = LIVE.replace("<memballoon model='virtio'>", "<memballoon model='none'>")
    sight = sight_of("a", "run", [xml, "no cgroup", "no cgroup", "no", "", None])
    assert sight.settings == {"memory_bytes": 256 << 20}
    assert sight.defined == {}


def test_no_quota_is_zero_in_every_way_that_libvirt_says_it():
    for quota in (-1, 0, 17_592_186_044_415, 18_446_744_073_709_551):
        inspected = [LIVE, {**SCHEDULER, "vcpu_quota": quota}, BLKIO, {}, "", None]
        assert sight_of("a", "run", inspected).settings["cpu_quota_us"] == 0


def test_the_way_back():
    calls = calls_for(
        {
            "cpu_quota_us": 0,
            "cpu_period_us": 50_000,
            "io_read_bytes_per_s /dev/vda": 0,
            "io_read_bytes_per_s /dev/vdb": 5,
            "statistics_period_s": 0,
        }
    )
    assert calls == [
        ("set_scheduler", ({"vcpu_period": 50_000, "vcpu_quota": -1},)),
        ("set_blkio", ({"device_read_bytes_sec": "/dev/vda,0,/dev/vdb,5"},)),
        ("set_stats_period", (0,)),
    ]
    assert calls_for({}) == []


def process(root, pid, vm_id, started):
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cmdline").write_bytes(f"qemu\0-uuid\0{vm_id}\0".encode())
    fields = " ".join(["S", *["0"] * 18, str(started), "0"])
    (folder / "stat").write_text(f"{pid} (qemu (a) b) {fields}\n")


def test_a_run_is_a_process_and_the_moment_of_its_start(tmp_path):
    boot = tmp_path / "proc/sys/kernel/random"
    boot.mkdir(parents=True)
    (boot / "boot_id").write_text("boot\n")
    runs = Runs(tmp_path)
    assert runs.of("a", 4) == "domain 4"
    process(tmp_path, 17, "a", 1000)
    assert runs.of("a", 4) == "boot/17/1000"
    process(tmp_path, 17, "a", 2000)  # another process under the same number
    assert runs.of("a", 4) == "boot/17/2000"
    process(tmp_path, 18, "b", 3000)
    assert runs.of("b", 5) == "boot/18/3000"


def test_the_balloon_itself_knows_best():
    sight = sight_of("a", "run", [LIVE, SCHEDULER, BLKIO, {}, "", 131_072])
    assert sight.settings["memory_bytes"] == 128 << 20


def test_a_note_of_an_agent_elsewhere_is_read():
    note = (
        "<metadata><hrapaq-found:found xmlns:hrapaq-found='urn:hrapaq:found' cpu_quota_us='0'"
        " memory_bytes='5'/></metadata><devices>"
    )
    xml = LIVE.replace("<devices>", note)
    sight = sight_of("a", "run", [xml, SCHEDULER, BLKIO, {}, "", None])
    assert sight.brought == {"cpu_quota_us": 0, "memory_bytes": 5}
    assert note_of({"io_read_bytes_per_s /dev/vda": 3, "memory_bytes": 5}) == {"memory_bytes": 5}
