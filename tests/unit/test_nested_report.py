"""The report of the nested scenarios: what it says, and that it survives a run that dies."""

import json
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
sys.path.insert(0, str(DEPLOY))

from testbed.report import JSON_NAME, TABLE_NAME, WHY_SHOWN_MAX, Report  # noqa: E402 - path first


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "report")


def _on_disk(report):
    return json.loads((report.directory / JSON_NAME).read_text())


def test_a_figure_is_judged_by_its_limit(report):
    assert report.add("burst", "satisfied", 9.999, "s", 10).passed
    assert report.add("burst", "satisfied", 10.0, "s", 10).passed
    assert report.add("burst", "satisfied", 10.01, "s", 10).passed is False
    assert report.failed == report.results[2:]


def test_what_was_not_measured_has_not_passed(report):
    assert report.add("burst", "satisfied", None, "s", 10).passed is False


def test_what_nothing_is_demanded_of_is_told(report):
    assert report.add("boot", "time to ready", 23.456, "s").passed is None
    assert not report.failed
    assert report.results[0].measured == 23.46


def test_its_own_verdict_goes_before_the_limit(report):
    assert report.add("kill", "tree complete", "6 of 6", "VMs", "6 of 6", passed=True).passed
    assert report.add("kill", "as small", 5, "MiB", 8, passed=False).passed is False


def test_every_line_is_on_the_disk_at_once(report):
    report.add("kill", "safe", 3.0, "s", 30)
    assert _on_disk(report)["passed"]
    report.add("kill", "safe again", 31.0, "s", 30, why="l0/agent did not come back")
    found = _on_disk(report)
    assert not found["passed"]
    assert [one["wanted"] for one in found["results"]] == ["safe", "safe again"]
    assert found["machine"]["cores"] >= 1
    assert "l0/agent did not come back" in (report.directory / TABLE_NAME).read_text()


def test_the_table_is_aligned_and_stays_one_line_a_result(report):
    report.add("kill", "safe", None, "s", 30, why="many\nlines | and bars " + "x" * WHY_SHOWN_MAX)
    report.add("boot", "ready", 7, "s")
    lines = report.lines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert len({line.count("|") for line in lines}) == 1
    assert "not measured" in lines[2] and "FAILED" in lines[2] and "told" in lines[3]


def test_a_picture_is_shown_once(report):
    assert (
        report.picture("burst.png")
        == report.picture("burst.png")
        == (report.directory / "burst.png")
    )
    report.add("burst", "satisfied", 1.0, "s", 10)
    assert (report.directory / TABLE_NAME).read_text().count("(burst.png)") == 1
