"""Fills the README's generated blocks from the code; `--check` only says whether they are fresh.

Run from the repository root: `python deploy/readme.py [--check]`. A block stands between
`<!-- begin NAME -->` and `<!-- end NAME -->`; NAME is one of the functions below.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
from click.testing import CliRunner
from msgspec import Struct

from agent.__main__ import cli as agent_cli
from agent.metrics import AgentMetrics
from agent.settings import AgentSettings
from controller.ctl import cli
from controller.metrics import ControllerMetrics
from controller.settings import ControllerSettings
from shared.config import describe

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- begin (\S+) -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = README.read_text()
    fresh = BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]]()}{m[4]}", text)
    if check:
        print("README is fresh" if fresh == text else "README is stale: python deploy/readme.py")
        return int(fresh != text)
    README.write_text(fresh)
    return 0


def command_help() -> str:
    """`--help` of the `hrapaq` command and of each of its commands."""
    return _help("hrapaq", cli) + "".join(
        _help(f"hrapaq {name}", command) for name, command in sorted(cli.commands.items())
    )


def agent_help() -> str:
    return _help("hrapaq-agent", agent_cli)


def _help(name: str, command: click.Command) -> str:
    shown = CliRunner().invoke(command, ["--help"], prog_name=name, terminal_width=96)
    return f"```console\n$ {name} --help\n{shown.output.strip()}\n```\n\n"


def controller_settings() -> str:
    return _settings(ControllerSettings)


def agent_settings() -> str:
    return _settings(AgentSettings)


def _settings(kind: type[Struct]) -> str:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for one in describe(kind):
        default = "must be given" if one.default is None else f"`{one.default}`"
        doc = " ".join(one.doc.split()).replace("|", "\\|")
        rows.append(f"| `{one.name}` | {one.type} | {default} | {doc} |")
    return "\n".join(rows) + "\n"


def invariants() -> str:
    """The numbered invariants as the verifier states them."""
    source = Path(__file__).parents[1] / "controller" / "core" / "verify.py"
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    rows = ["| | | |", "|---|---|---|"]
    rows += [
        f"| **{m[1]}** | {m[2]} | {m[3].strip()} |"
        for m in re.finditer(r"^(I\d+) (\S+(?: \S+)*?)  +(.*)$", text, re.MULTILINE)
    ]
    return "\n".join(rows) + "\n"


def metrics() -> str:
    """Every metric that the controller and the agents expose."""
    rows = ["| metric | kind | meaning |", "|---|---|---|"]
    for make in (ControllerMetrics, AgentMetrics):
        registry = make().registry
        rows += [f"| `{f.name}` | {f.type} | {f.documentation} |" for f in registry.collect()]
    return "\n".join(rows) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "command_help": command_help,
    "agent_help": agent_help,
    "controller_settings": controller_settings,
    "agent_settings": agent_settings,
    "invariants": invariants,
    "metrics": metrics,
}

if __name__ == "__main__":
    sys.exit(main())
