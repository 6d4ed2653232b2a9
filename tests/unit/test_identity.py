"""Identity and role from fixture trees that each test builds."""

from pathlib import Path
from uuid import UUID

import pytest

from agent.identity import discover_role, node_identity
from agent.settings import AgentSettings
from shared.errors import ReadingError

BOOT_ID = "7c9d2f1a-64a4-4f0e-b9a0-0f5f6d1c2b3a"
PRODUCT_UUID = "A1B2C3D4-0001-4002-8003-00000000000F"
MACHINE_ID = "0123456789abcdef0123456789abcdef"


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/sys/kernel/random/boot_id", f"{BOOT_ID}\n")
    write(tmp_path, "proc/sys/kernel/hostname", "alpha\n")
    return tmp_path


def test_the_product_uuid_is_the_identity_in_lower_case(root: Path) -> None:
    write(root, "sys/class/dmi/id/product_uuid", f"{PRODUCT_UUID}\n")
    write(root, "etc/machine-id", f"{MACHINE_ID}\n")
    identity = node_identity(root)
    assert (identity.node_id, identity.name, identity.boot_id) == (
        PRODUCT_UUID.lower(),
        "alpha",
        BOOT_ID,
    )


@pytest.mark.parametrize(
    "product_uuid",
    [
        None,
        "",
        "Not Settable",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "01010101-0101-0101-0101-010101010101",
        "11111111-1111-1111-1111-111111111111",
    ],
)
def test_without_a_sane_product_uuid_the_machine_id_decides(
    root: Path, product_uuid: str | None
) -> None:
    if product_uuid is not None:
        write(root, "sys/class/dmi/id/product_uuid", product_uuid)
    write(root, "etc/machine-id", f"{MACHINE_ID}\n")
    node_id = node_identity(root).node_id
    assert str(UUID(node_id)) == node_id
    assert MACHINE_ID not in node_id.replace("-", "")
    assert node_identity(root).node_id == node_id
    write(root, "etc/machine-id", f"{MACHINE_ID[::-1]}\n")
    assert node_identity(root).node_id != node_id


def test_a_template_s_machine_id_does_not_make_two_vms_one(tmp_path: Path) -> None:
    ids = set()
    for number in (1, 2):
        clone = tmp_path / str(number)
        write(clone, "proc/sys/kernel/random/boot_id", BOOT_ID)
        write(clone, "etc/machine-id", MACHINE_ID)
        write(clone, "sys/class/dmi/id/product_uuid", f"{PRODUCT_UUID[:-1]}{number}")
        ids.add(node_identity(clone).node_id)
    assert len(ids) == 2


def test_without_root_the_unit_s_copy_of_the_product_uuid_counts(root: Path) -> None:
    write(root, "etc/machine-id", f"{MACHINE_ID}\n")
    write(root, "sys/class/dmi/id/sys_vendor", "QEMU\n")
    derived = node_identity(root)
    assert "virsh domuuid" in derived.said
    write(root, "run/hrapaq/product_uuid", f"{PRODUCT_UUID}\n")
    copied = node_identity(root)
    assert (copied.node_id, copied.said) == (PRODUCT_UUID.lower(), "")
    kernels = PRODUCT_UUID.replace("F", "E")
    write(root, "sys/class/dmi/id/product_uuid", f"{kernels}\n")
    assert node_identity(root).node_id == kernels.lower()


def test_a_physical_machine_without_a_uuid_is_no_trouble(root: Path) -> None:
    write(root, "etc/machine-id", f"{MACHINE_ID}\n")
    assert node_identity(root).said == ""


def test_the_operator_s_word_on_the_identity_comes_first(root: Path) -> None:
    write(root, "sys/class/dmi/id/product_uuid", f"{PRODUCT_UUID}\n")
    own = "0f0e0d0c-0b0a-4908-8706-050403020100"
    assert node_identity(root, own).node_id == own
    assert AgentSettings(node_id=own).problems() == []
    (problem,) = AgentSettings(node_id=own.upper()).problems()
    assert "lower-case" in problem


@pytest.mark.parametrize("machine_id", [None, "", "uninitialized\n"])
def test_a_machine_without_any_identity_says_what_to_do(root: Path, machine_id: str | None) -> None:
    if machine_id is not None:
        write(root, "etc/machine-id", machine_id)
    with pytest.raises(ReadingError, match="systemd-machine-id-setup"):
        node_identity(root)


def test_without_a_boot_id_there_is_no_identity(tmp_path: Path) -> None:
    write(tmp_path, "etc/machine-id", MACHINE_ID)
    with pytest.raises(ReadingError, match="boot_id"):
        node_identity(tmp_path)


@pytest.mark.parametrize(
    ("files", "libvirt_reachable", "role"),
    [
        ({}, True, "host"),
        ({}, False, "host"),
        ({"sys/class/dmi/id/sys_vendor": "Dell Inc.\n"}, True, "host"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, False, "guest"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, True, "host+guest"),
        ({"sys/class/dmi/id/product_name": "KVM Virtual Machine\n"}, True, "host+guest"),
        ({"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu hypervisor lm\n"}, False, "guest"),
        ({"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu lm\nbugs: hypervisor\n"}, False, "host"),
    ],
)
def test_the_role_is_found_by_looking(
    root: Path, files: dict[str, str], libvirt_reachable: bool, role: str
) -> None:
    for path, text in files.items():
        write(root, path, text)
    assert discover_role(root, libvirt_reachable) == role


def test_this_machine_has_an_identity() -> None:
    identity = node_identity(Path("/"))
    assert str(UUID(identity.node_id)) == identity.node_id
    assert identity == node_identity(Path("/"))
