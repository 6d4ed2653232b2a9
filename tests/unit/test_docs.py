"""What is documented is what the code says."""

import re
import subprocess
import sys
from pathlib import Path

from controller.ctl import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_generated_parts_of_the_readme_are_fresh():
    command = [sys.executable, "deploy/readme.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_that_the_readme_shows_exists():
    shown = set(re.findall(r"\bhrapaq ([a-z][a-z-]*)", README))
    assert shown, "the README shows no command"
    assert shown <= set(cli.commands), shown - set(cli.commands)


def test_every_make_target_that_the_readme_shows_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"`((?:agent|controller|shared|proto|deploy|tests)/[\w./]*)`", README):
        assert (ROOT / name).exists(), name


def test_no_machine_path_and_no_package_host_stands_in_the_project():
    words = ["/wo" + "rk/", "files.python" + "hosted", "py" + "pi.org", "deb." + "debian.org"]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        path = ROOT / name
        text = path.read_text(errors="replace") if path.is_file() else ""  # or a fixture's link
        for word in words:
            assert word not in text, f"{name} names {word}"
