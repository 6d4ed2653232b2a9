"""What a run of the scenarios came to: a line for each thing that was wanted, as JSON for programs
and as a table for people. Written after every line, so that a run that dies has said what it knew.
"""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.resources import MIB

JSON_NAME = "report.json"
TABLE_NAME = "report.md"
WHY_SHOWN_MAX = 300  # characters of a reason that the table shows

Figure = float | int | str


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that was wanted of the stack, and what it did."""

    scenario: str
    wanted: str  # in words
    measured: Figure | None  # None: it never came to be measured
    unit: str = ""
    limit: Figure | None = None  # at most this much, where it is a number
    passed: bool | None = None  # None: nothing is demanded of it, it is told
    why: str = ""  # what it failed by, or what one must know of the figure

    @property
    def verdict(self) -> str:
        return {True: "passed", False: "FAILED", None: "told"}[self.passed]


class Report:
    """Collects results and pictures in a directory; made at the start of a run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.results: list[Result] = []
        self.pictures: list[str] = []
        self._machine = machine_facts()
        self._began_unix_s = time.time()
        directory.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        scenario: str,
        wanted: str,
        measured: Figure | None,
        unit: str = "",
        limit: Figure | None = None,
        *,
        passed: bool | None = None,
        why: str = "",
    ) -> Result:
        """Keeps a result. Of figures with a limit it passes by itself what is not above it, and
        fails what was not measured; `passed` says otherwise, and without both it is only told."""
        if passed is None and limit is not None:
            passed = isinstance(measured, float | int) and measured <= float(limit)
        result = Result(scenario, wanted, _rounded(measured), unit, limit, passed, why)
        self.results.append(result)
        self.write()
        return result

    def picture(self, name: str) -> Path:
        """Where to draw a picture of this name, which the report then shows."""
        if name not in self.pictures:
            self.pictures.append(name)
        return self.directory / name

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.passed is False]

    def write(self) -> None:
        """Both files anew."""
        content = {
            "machine": self._machine,
            "began_unix_s": round(self._began_unix_s),
            "lasted_s": round(time.time() - self._began_unix_s),
            "passed": not self.failed,
            "results": [asdict(result) for result in self.results],
            "pictures": self.pictures,
        }
        _replace(self.directory / JSON_NAME, json.dumps(content, indent=2) + "\n")
        _replace(self.directory / TABLE_NAME, self._page())

    def lines(self) -> list[str]:
        """The table for a terminal."""
        return table([_cells(result) for result in self.results])

    def _page(self) -> str:
        facts = [f"- {name}: {fact}" for name, fact in self._machine.items()]
        shown = [f"![{name}]({name})" for name in self.pictures]
        parts = [
            ["# The nested stack: what was wanted and what it did"],
            facts,
            self.lines(),
            shown,
        ]
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def machine_facts() -> dict[str, Figure]:
    """What figures of this machine must be read with."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory // MIB,
        "cpu": _cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


HEAD = ("scenario", "wanted", "measured", "limit", "verdict", "why")


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Markdown with aligned columns, so that it reads as plain text too."""
    cells = [HEAD, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _cells(result: Result) -> tuple[str, ...]:
    why = " ".join(result.why.split()).replace("|", "/")
    return (
        result.scenario,
        result.wanted,
        _text(result.measured, result.unit),
        _text(result.limit, result.unit) if result.limit is not None else "",
        result.verdict,
        why if len(why) <= WHY_SHOWN_MAX else why[: WHY_SHOWN_MAX - 3] + "...",
    )


def _text(figure: Figure | None, unit: str) -> str:
    return "not measured" if figure is None else f"{figure} {unit}".strip()


def _rounded(figure: Figure | None) -> Figure | None:
    return round(figure, 2) if isinstance(figure, float) else figure


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
