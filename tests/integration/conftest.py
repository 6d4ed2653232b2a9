"""Lets the files of this folder import the helpers that stand beside them, and shares what real
guests need: an image to boot, and a libvirt. Where these are missing, skipped with the reason."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from controller.up.image import GuestImage, Places, default_cache, prepare_image
from controller.up.libvirtd import Libvirt
from controller.up.probe import require_qemu
from shared.errors import GuestsUnavailable


@pytest.fixture(scope="module")
def image() -> GuestImage:
    try:
        require_qemu()
        return prepare_image(Places(default_cache()), print)
    except GuestsUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    service = Libvirt(tmp_path_factory.mktemp("libvirt"), print)
    try:
        service.start()
    except GuestsUnavailable as reason:
        service.stop()
        pytest.skip(str(reason))
    yield service
    pids = service.processes().values()
    service.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
