"""For all tests: in CI a test of a real part that cannot run is a failure, not a gap."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    """With HRAPAQ_REQUIRE_REAL=1, a skip below tests/integration fails with its reason."""
    report = yield
    required = os.environ.get("HRAPAQ_REQUIRE_REAL") == "1"
    if required and report.skipped and INTEGRATION in item.path.parents:
        report.outcome = "failed"
        report.longrepr = f"HRAPAQ_REQUIRE_REAL=1, but it was skipped: {report.longrepr}"
    return report
