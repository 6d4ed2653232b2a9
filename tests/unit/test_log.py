"""Log lines are JSON, one per event, and no stranger can flood them."""

import io
import json
import logging
import warnings

import pytest

from shared import log
from shared.clock import SECOND_NS, FakeClock


@pytest.fixture
def stream():
    """The root logger writes here, and is as it was afterwards."""
    root = logging.getLogger()
    handlers, level = tuple(root.handlers), root.level
    stream = io.StringIO()
    log.setup("info", stream, "agent")
    yield stream
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_with_its_fields(stream):
    logging.getLogger("a.b").info("sample sent", extra={"node": "n1", "vms": 3})
    (line,) = lines(stream)
    assert line.pop("ts").endswith("+00:00")
    assert line == {
        "level": "info",
        "component": "agent",
        "logger": "a.b",
        "event": "sample sent",
        "node": "n1",
        "vms": 3,
    }


def test_what_is_below_the_level_is_not_written(stream):
    logging.getLogger("a").debug("detail")
    assert lines(stream) == []


def test_line_ends_in_a_field_do_not_make_a_second_event(stream):
    logging.getLogger("a").info("x", extra={"name_of_vm": 'a\n{"event": "forged"}', "odd": {1}})
    (line,) = lines(stream)
    assert line["name_of_vm"].startswith("a\n")
    assert line["odd"] == "{1}"


def test_fields_cannot_pass_for_the_event(stream):
    logging.getLogger("a").info("true", extra={"event": "forged", "level": "error"})
    assert lines(stream)[0]["event"] == "true"
    assert lines(stream)[0]["level"] == "info"


def test_an_exception_is_in_the_line(stream):
    try:
        int("deep")
    except ValueError:
        logging.getLogger("a").exception("failed")
    (line,) = lines(stream)
    assert line["error"].endswith("base 10: 'deep'")


def test_warnings_of_the_interpreter_are_log_lines(stream):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.setup("info", stream, "agent")
        warnings.warn("old", stacklevel=1)
    assert lines(stream)[0]["logger"] == "py.warnings"


def test_a_key_is_logged_once_per_interval_with_how_many_were_kept_back(stream):
    clock = FakeClock()
    limited = log.RateLimited(logging.getLogger("a"), clock, per_seconds=60)
    for _ in range(5):
        limited.warning(("n1", "future"), "dropped", node="n1")
    limited.warning(("n2", "future"), "dropped", node="n2")
    clock.advance(60 * SECOND_NS)
    limited.warning(("n1", "future"), "dropped", node="n1")
    limited.error(("n1", "past"), "dropped", node="n1")
    assert [(line["node"], line["level"], line.get("suppressed")) for line in lines(stream)] == [
        ("n1", "warning", None),
        ("n2", "warning", None),
        ("n1", "warning", 4),
        ("n1", "error", None),
    ]


def test_a_clock_that_is_set_back_does_not_silence_anything(stream):
    clock = FakeClock()
    limited = log.RateLimited(logging.getLogger("a"), clock, per_seconds=60)
    limited.warning("k", "one")
    clock.jump(-3600 * SECOND_NS)
    clock.advance(61 * SECOND_NS)
    limited.warning("k", "two")
    assert len(lines(stream)) == 2


def test_strangers_keys_are_forgotten_not_hoarded(stream):
    limited = log.RateLimited(logging.getLogger("a"), FakeClock(), keys_max=10)
    for number in range(100):
        limited.warning(number, "dropped")
    assert len(limited._said) == 10
