"""One bed for all tests of this folder: short (one L1 with two L2s), or with HRAPAQ_NESTED=full the
whole one. With HRAPAQ_NESTED=keep a bed that is up is used as it is and stays up."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy"))
sys.path.insert(0, str(Path(__file__).parent))

from reporting import pytest_runtest_call, pytest_terminal_summary, report
from testbed.bed import Bed
from testbed.image import build, default_cache
from testbed.layout import Places
from testbed.lifetime import is_answering, start_keeper, take_down
from testbed.needs import missing

__all__ = ["pytest_runtest_call", "pytest_terminal_summary", "report"]  # pytest finds them here

KIND = os.environ.get("HRAPAQ_NESTED", "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scenarios that need the whole bed are left out of the short share, not skipped in it."""
    if KIND != "short":
        return
    here = Path(__file__).parent
    left_out = [
        item for item in items if here in item.path.parents and item.get_closest_marker("full")
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="package")
def bed() -> Iterator[Bed]:
    """All machines are up, and the controller sees them."""
    places = Places()
    if KIND == "keep" and is_answering(places):
        yield Bed(places)
        return
    lacking = missing()
    if lacking:
        pytest.skip(f"a nested bed needs {'; '.join(lacking)}")
    if os.environ.get("HRAPAQ_TESTBED") == "0":
        pytest.skip("HRAPAQ_TESTBED=0")
    cache = default_cache()
    build(cache, print)
    keeper = start_keeper("short" if KIND == "short" else "full", cache, places, with_us=True)
    try:
        bed = Bed(places)
        bed.wait_until_ready()
        yield bed
        bed.close()
    finally:
        left = take_down(places)
        keeper.wait(10)
    assert not left, left
