"""What the code itself must look like: sizes that fit the eye, doors that only one module opens."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("agent", "controller", "shared", "proto", "deploy")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "pb" not in path.parts
]
# Whoever makes one of these vouches for it: a single module each.
ONLY_MAKER = {
    "VerifiedPlan": "controller/core/verify.py",
    "AuditedPlan": "controller/audit.py",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_fits_the_eye(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{node.name} is longer than 70 lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module begins with what it is for"


@pytest.mark.parametrize(("value", "maker"), ONLY_MAKER.items())
def test_only_one_module_vouches(value, maker):
    makers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == value
    }
    assert makers == {maker}


def test_broad_excepts_stand_only_in_outermost_loops_and_say_so():
    for path in SOURCES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"except Exception\b|except:", line):
                assert "BLE001" in line and " - " in line, f"{path}:{number} gives no reason"


def test_no_package_below_tests_and_none_in_proto():
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not (ROOT / "proto" / "__init__.py").exists()


def test_generated_code_is_fresh():
    command = [sys.executable, "proto/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
