"""The units and the examples: systemd and the programs themselves accept them."""

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.__main__ import cli as agent_cli
from agent.identity import HANDED_OVER
from agent.settings import AgentSettings
from controller.__main__ import cli as controller_cli

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
AGENTS = [path for path in UNITS if "agent" in path.name]
# The scale of `systemd-analyze security` goes to 10; up to 2 is what an agent cannot do without:
# the network, a shared /proc, and files of VMs that it must see.
EXPOSURE_MAX = 2.0

by_name = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def words(unit, name):
    """All values of a key, in order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path):
    for unit in (*UNITS, DEPLOY / "systemd" / "hrapaq.slice"):
        text = re.sub(r"/opt/hrapaq/bin/\S+", "/bin/true", unit.read_text())
        (tmp_path / unit.name).write_text(text)
    code, said = run("systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir()))
    ours = [line for line in said.splitlines() if "hrapaq" in line]
    assert (code, ours) == (0, [])


@needs_systemd
@by_name
def test_a_unit_exposes_little(unit):
    _, said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit))
    if "offline" in said and "Overall" not in said:
        pytest.skip("this systemd cannot judge files")
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= EXPOSURE_MAX


@by_name
def test_a_unit_runs_nothing_as_root_but_what_hands_things_over(unit):
    assert words(unit, "DynamicUser") == ["yes"] or words(unit, "User") == ["hrapaq"]
    starts = [line for name in ("ExecStart", "ExecStartPre") for line in words(unit, name)]
    as_root = [line for line in starts if line.startswith(("+", "-+"))]
    copy = f"-+/usr/bin/install -D -m 0444 /sys/class/dmi/id/product_uuid /{HANDED_OVER}"
    of_vms = "-+/bin/sh /opt/hrapaq/share/hrapaq/hand-over.sh"
    moves_vms = unit in AGENTS and "guest" not in unit.name
    assert as_root == [copy, of_vms][: (unit in AGENTS) + moves_vms]


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_the_shell_understands_the_scripts(path):
    shell = "bash" if path.read_text().startswith("#!/usr/bin/env bash") else "sh"
    assert run(shell, "-n", str(path)) == (0, "")


def test_the_wheel_carries_what_the_units_and_the_installer_use():
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    carried = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    for source, place in carried.items():
        assert (DEPLOY.parent / source).exists()
        assert place == source.replace("deploy/", "share/hrapaq/")
    texts = [path.read_text() for path in (*UNITS, DEPLOY / "install.sh")]
    named = {
        name for text in texts for name in re.findall(r"/opt/hrapaq/(share/\S+?\.(?:sh|md))", text)
    }
    assert named <= set(carried.values())


def test_the_way_back_uses_what_the_agent_uses_and_reads_no_file():
    agent, back = (DEPLOY / "systemd" / f"hrapaq-agent{word}.service" for word in ("", "-restore"))
    assert words(agent, "OnFailure") == [back.name]
    assert "--config" not in words(back, "ExecStart")[0]
    for name in ("User", "Group", "StateDirectory"):
        assert words(agent, name) == words(back, name)
    state = f"HRAPAQ_STATE_DIRECTORY={AgentSettings().state_directory}"
    assert state in words(back, "Environment")
    assert AgentSettings().state_directory.name == words(agent, "StateDirectory")[0]


@by_name
def test_every_command_of_a_unit_exists(unit):
    (start,) = words(unit, "ExecStart")
    program, _, rest = start.removeprefix("/opt/hrapaq/bin/").partition(" ")
    commands = {"hrapaq-agent": agent_cli, "hrapaq-controller": controller_cli}
    if program in commands:
        assert rest.split()[0] in commands[program].commands
        assert CliRunner().invoke(commands[program], [*rest.split(), "--help"]).exit_code == 0


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "examples").glob("*.toml")), ids=lambda path: path.name
)
def test_the_programs_accept_the_examples(path):
    cli = controller_cli if path.name.startswith("controller") else agent_cli
    done = CliRunner().invoke(cli, ["check-config", "--config", str(path)])
    assert done.exit_code == 0, done.output


def test_the_polkit_rule_names_the_units_user():
    rule = (DEPLOY / "polkit" / "60-hrapaq.rules").read_text()
    users = {user for unit in AGENTS for user in words(unit, "User")}
    assert {f'subject.user == "{user}"' in rule for user in users} == {True}


@by_name
def test_a_unit_says_nothing_twice(unit):
    """But what systemd adds up: lists."""
    lists = {"SystemCallFilter", "Environment", "After", "ExecStartPre"}
    keys = re.findall(r"^(\w+)=", unit.read_text(), re.MULTILINE)
    assert {key for key in keys if keys.count(key) > 1} <= lists
    configparser.RawConfigParser(strict=False, allow_no_value=True).read(unit)
