"""Makes one report of all scenarios of a run, in $HRAPAQ_NESTED_REPORT (default ./nested-report).

conftest.py takes these hooks. A test says what it measured with `report.add(...)` and goes on; it
fails at its end by every line that did not pass. One that fails otherwise gets a line as well.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from testbed.report import Report

VARIABLE = "HRAPAQ_NESTED_REPORT"
DEFAULT = "nested-report"

_the_report: list[Report] = []  # of this run, once a test has asked for it


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    directory = Path(os.environ.get(VARIABLE) or pytestconfig.rootpath / DEFAULT)
    _the_report.append(Report(directory))
    return _the_report[0]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    made = _the_report[0] if _the_report else None
    before = 0 if made is None else len(made.results)
    try:
        done = yield
    except (Exception, pytest.fail.Exception) as error:
        if made is not None:
            first_line = str(error).strip().partition("\n")[0]
            made.add(_scenario(item), "goes through", None, passed=False, why=first_line)
        raise
    missed = [] if made is None else [one for one in made.results[before:] if one.passed is False]
    if missed:
        lines = [f"{one.wanted}: {one.measured} {one.unit}, {one.why}" for one in missed]
        pytest.fail("\n".join(lines), pytrace=False)
    return done


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for made in _the_report:
        if made.results:
            terminalreporter.section("the nested stack")
            for line in made.lines():
                terminalreporter.write_line(line)
            terminalreporter.write_line(f"report and pictures: {made.directory}")


def _scenario(item: pytest.Item) -> str:
    return item.name.removeprefix("test_").replace("_", " ")
