"""Logs as one JSON object per line: what happened, where, and the facts as fields.

An event is a short fixed text; what varies goes into `extra`, so that lines can be counted:
`logger.warning("telemetry dropped", extra={"node": node_id, "cause": cause})`.
"""

import json
import logging
import traceback
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TextIO

from shared.clock import SECOND_NS, Clock


def setup(level: str, stream: TextIO, component: str) -> None:
    """Sends everything from `level` ("debug" to "error") up to `stream`, and nothing elsewhere.

    Replaces what was set up before; warnings of the interpreter arrive as log lines too.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(component))
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)


class JsonLines(logging.Formatter):
    """ts (UTC), level, component, logger, event; then the fields; then `error` with its trace."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "component": self._component,
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in record.__dict__.items():
            if name not in _RECORD_ATTRIBUTES:
                line.setdefault(name, value)
        if record.exc_info:
            line["error"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return json.dumps(line, default=str)


# What every record has; whatever else stands in one came through `extra`.
_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class RateLimited:
    """Logs a key at most once per interval and says how many were kept back since.

    What is kept back is not lost to the operator: whoever drops something counts it by cause.
    """

    def __init__(
        self,
        logger: logging.Logger,
        clock: Clock,
        per_seconds: float = 60,
        keys_max: int = 10_000,  # remembered; strangers choose keys, memory must not follow
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._interval_ns = int(per_seconds * SECOND_NS)
        self._keys_max = keys_max
        self._said: OrderedDict[object, list[int]] = OrderedDict()  # key -> [tick, kept back]

    def warning(self, key: object, event: str, **fields: object) -> None:
        self.log(logging.WARNING, key, event, **fields)

    def error(self, key: object, event: str, **fields: object) -> None:
        self.log(logging.ERROR, key, event, **fields)

    def log(self, level: int, key: object, event: str, **fields: object) -> None:
        """`key` is what is limited, such as (node, cause); `fields` go into the line."""
        now_ns = self._clock.tick_ns()
        said = self._said.get(key)
        if said is not None and now_ns - said[0] < self._interval_ns:
            said[1] += 1
            return
        if said is not None:
            fields["suppressed"] = said[1]
        self._remember(key, now_ns)
        self._logger.log(level, event, extra=fields)

    def _remember(self, key: object, now_ns: int) -> None:
        self._said[key] = [now_ns, 0]
        self._said.move_to_end(key)
        if len(self._said) > self._keys_max:
            self._said.popitem(last=False)
