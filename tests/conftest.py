"""For all tests: in CI a test of a real part that cannot run is a failure, not a gap; and how long
a random example takes says more about the machine than about us."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

REAL = [Path(__file__).parent / name for name in ("integration", "nested")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    """With REQUIRE_REAL_PARTS=1, a skip of a test of real parts fails with its reason; not where
    the machine's own kernel decides, which no installation changes."""
    report = yield
    required = os.environ.get("REQUIRE_REAL_PARTS") == "1"
    required = required and item.get_closest_marker("kernel") is None
    if required and report.skipped and any(folder in item.path.parents for folder in REAL):
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_REAL_PARTS=1, but it was skipped: {report.longrepr}"
    return report
