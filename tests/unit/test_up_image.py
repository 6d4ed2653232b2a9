import gzip
import lzma
import os
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.up.guest_xml import Guest, command_line, domain_xml
from controller.up.guests import DIRECTORY_PREFIX, _sweep, make_directory
from controller.up.image import INIT_SCRIPT, GuestImage, Places, default_cache, prepare_image
from controller.up.initramfs import Module, modules_in_order, pack
from controller.up.owner import Owner, owner_of
from controller.up.probe import _unusable, boot_with_kvm
from shared.errors import GuestsUnavailable


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of the newc form: mode and content by name."""
    data, at, entries = gzip.decompress(archive), 0, {}
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return entries
        entries[name] = (fields[1], data[start : start + size])
        at = (start + size + 3) // 4 * 4


def module_file(depends: str, body: bytes = b"") -> bytes:
    return b"\x7fELF" + body + b"\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def kernel_tree(root: Path, release: str, modules: dict[str, bytes], builtin: str = "") -> None:
    (root / "boot").mkdir(parents=True, exist_ok=True)
    (root / "boot" / f"vmlinuz-{release}").write_bytes(b"kernel " + release.encode())
    drivers = root / "lib/modules" / release / "kernel/drivers"
    drivers.mkdir(parents=True)
    for name, content in modules.items():
        (drivers / name).write_bytes(content)
    (drivers.parents[1] / "modules.builtin").write_text(builtin)


def elf(*segment_types: int) -> bytes:
    """A 64-bit ELF header with program headers of these types; 3 asks for an interpreter."""
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    header[32:40] = (64).to_bytes(8, "little")
    header[54:56] = (56).to_bytes(2, "little")
    header[56:58] = len(segment_types).to_bytes(2, "little")
    return bytes(header) + b"".join(t.to_bytes(4, "little") + bytes(52) for t in segment_types)


def machine(root: Path) -> Path:
    """A machine's root directory with all that an image needs."""
    drivers = {
        "virtio.ko": module_file(""),
        "virtio_pci.ko": module_file("virtio"),
        "virtio_balloon.ko": module_file("virtio"),
        "virtio_blk.ko": module_file("virtio"),
    }
    kernel_tree(root, "6.1.0-9-cloud", drivers)
    (root / "bin").mkdir()
    (root / "bin/busybox").write_bytes(elf(1, 1))
    return root


@given(st.binary(max_size=50), st.binary(max_size=50), st.lists(st.binary(max_size=20), max_size=4))
def test_every_packed_byte_is_found_again(init, busybox, contents):
    modules = [Module(f"m{i}", content) for i, content in enumerate(contents)]
    entries = unpack(pack(init, busybox, modules))
    assert entries["init"] == (0o100755, init)
    assert entries["bin/busybox"] == (0o100755, busybox)
    assert entries["modules/order"][1].decode().split() == [f"{m.name}.ko" for m in modules]
    assert all(entries[f"modules/{m.name}.ko"][1] == m.content for m in modules)
    assert entries["dev/console"][0] == 0o020600


def test_modules_come_after_what_they_depend_on(tmp_path):
    modules = {
        "virtio_pci.ko": module_file("virtio_ring,virtio-legacy"),
        "virtio_ring.ko.xz": lzma.compress(module_file("")),
        "virtio.ko.gz": gzip.compress(module_file("virtio_ring")),
        "virtio-legacy.ko": module_file("virtio"),
    }
    kernel_tree(tmp_path, "6", modules)
    ordered = modules_in_order(tmp_path / "lib/modules/6", ["virtio_pci"])
    assert [m.name for m in ordered] == ["virtio_ring", "virtio", "virtio_legacy", "virtio_pci"]
    assert all(m.content.startswith(b"\x7fELF") for m in ordered)


def test_built_in_drivers_need_no_file_and_missing_ones_are_named(tmp_path):
    kernel_tree(tmp_path, "6", {}, builtin="kernel/drivers/virtio/virtio_pci.ko\n")
    directory = tmp_path / "lib/modules/6"
    assert modules_in_order(directory, ["virtio_pci"]) == []
    with pytest.raises(FileNotFoundError, match="virtio_balloon"):
        modules_in_order(directory, ["virtio_pci", "virtio_balloon"])


def test_image_comes_from_the_machine_and_then_from_the_cache(tmp_path):
    places = Places(tmp_path / "cache", root=machine(tmp_path / "root"), apt=False)
    said: list[str] = []
    image = prepare_image(places, said.append)
    assert image.release == "6.1.0-9-cloud"
    entries = unpack(image.initrd.read_bytes())
    assert entries["init"][1] == INIT_SCRIPT.read_bytes()
    written = image.initrd.stat().st_mtime_ns
    assert prepare_image(places, said.append) == image
    assert image.initrd.stat().st_mtime_ns == written

    (places.root / "bin/busybox").write_bytes(elf(1))
    assert prepare_image(places, said.append).initrd != image.initrd


def test_the_newest_kernel_that_has_the_drivers_is_taken(tmp_path):
    root = machine(tmp_path / "root")
    kernel_tree(root, "6.12.0-1-own", {})
    (root / "boot/vmlinuz-7.0").write_bytes(b"without modules")
    said: list[str] = []
    image = prepare_image(Places(tmp_path / "cache", root=root, apt=False), said.append)
    assert image.release == "6.1.0-9-cloud"
    assert any("6.12.0-1-own is passed over: it has no module virtio" in line for line in said)


def test_what_is_missing_without_apt_is_said(tmp_path):
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(elf(1, 3))  # needs libraries, which the guest has not
    with pytest.raises(GuestsUnavailable, match="install a static busybox"):
        prepare_image(Places(tmp_path / "cache", root=root, apt=False), print)


def test_cache_follows_the_environment():
    assert default_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/hrapaq/demo-guest")
    assert default_cache({}) == Path.home() / ".cache/hrapaq/demo-guest"


def test_probe_tells_a_boot_from_a_hang_and_from_a_refusal():
    python = [sys.executable, "-c"]
    booted = [*python, "import time; print('hrapaq-probe 1.2 ready', flush=True); time.sleep(60)"]
    assert boot_with_kvm(booted, 20).accelerator == "kvm"
    hung = boot_with_kvm([*python, "import time; time.sleep(60)"], 0.3)
    assert hung.accelerator == "tcg" and "hung at boot" in hung.reason
    refused = boot_with_kvm([*python, "import sys; sys.exit('no such device')"], 20)
    assert refused.accelerator == "tcg" and "no such device" in refused.reason


def test_probe_names_an_unusable_device(tmp_path):
    assert "there is no" in str(_unusable(tmp_path / "kvm"))
    (tmp_path / "kvm").mkdir()
    assert "cannot be opened" in str(_unusable(tmp_path / "kvm"))
    assert _unusable(Path("/dev/null")) is None


@pytest.mark.parametrize(("accelerator", "kind"), [("kvm", "kvm"), ("tcg", "qemu")])
def test_domain_is_what_libvirt_needs_for_ballooning(accelerator, kind):
    guest = Guest("hrapaq-demo-x", "5f1b0e4c-9d1f-4a38-8f2e-0d6c0c7e0a11", "memory", {"low_mib": 9})
    directory = Path("/it's <here>")
    root = ET.fromstring(
        domain_xml(
            guest,
            accelerator=accelerator,
            directory=directory,
            console=directory / "console",
            disk=directory / "disk",
            direct=False,
        )
    )
    assert root.get("type") == kind
    assert root.findtext("uuid") == guest.uuid
    assert root.findtext("os/kernel") == str(directory / "kernel")
    assert root.findtext("os/cmdline") == command_line(guest)
    assert {"hrapaq.load=memory", "hrapaq.low_mib=9"} <= set(command_line(guest).split())
    balloon = root.find("devices/memballoon")
    assert balloon is not None
    assert balloon.attrib == {"model": "virtio", "autodeflate": "on", "freePageReporting": "on"}
    assert root.find("devices/disk/driver").get("cache") == "writethrough"
    assert root.find("devices/disk/source").get("file") == str(directory / "disk")
    assert owner_of(root.findtext("description")) == Owner.this_process()


def test_an_owner_is_a_process_and_its_start():
    me = Owner.this_process()
    assert me.is_alive()
    assert not Owner(me.pid, me.started_ticks + 1).is_alive()  # the id was used again
    assert owner_of("someone else's guest") is None


def test_directory_holds_copies_that_another_user_can_read(tmp_path):
    (tmp_path / "kernel").write_bytes(b"k")
    (tmp_path / "initrd").write_bytes(b"i")
    image = GuestImage(tmp_path / "kernel", tmp_path / "initrd", "6")
    directory = make_directory(tmp_path / "state", image)
    try:
        assert (directory / "kernel").read_bytes() + (directory / "initrd").read_bytes() == b"ki"
        assert all(path.stat().st_mode & 0o004 for path in directory.iterdir())
        if os.geteuid() == 0:  # whose guests run as another user
            assert all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents))
    finally:
        shutil.rmtree(directory)


def test_what_a_killed_run_left_is_removed(tmp_path):
    for name, owner in (("dead", Owner(os.getpid(), 1)), ("alive", Owner.this_process())):
        (tmp_path / f"{DIRECTORY_PREFIX}{name}").mkdir()
        (tmp_path / f"{DIRECTORY_PREFIX}{name}" / "owner").write_text(str(owner))
    _sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{DIRECTORY_PREFIX}alive"]
