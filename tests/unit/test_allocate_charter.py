"""The allocator's own pages name what is there: every module, and no file that is not."""

import re
from pathlib import Path

import controller.core.allocate as package

FOLDER = Path(package.__file__).parent
PAGE = (FOLDER / "README.md").read_text()


def test_the_charter_names_every_module():
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    named = set(re.findall(r"\w+", package.__doc__))
    assert modules <= named, modules - named


def test_the_page_names_files_that_exist():
    files = set(re.findall(r"`(\w+\.py)`", PAGE))
    assert files, "the page names no file"
    assert all((FOLDER / name).is_file() for name in files), files
    root = FOLDER.parents[2]
    for name in re.findall(r"`(tests/[\w/.]+)`", PAGE):
        assert (root / name).is_file(), name


def test_the_page_names_modules_as_its_stages():
    stages = re.findall(r"^\d\. \*\*`(\w+)`", PAGE, re.MULTILINE)
    assert stages == ["concave", "bound", "exchange", "search", "windows"]
    assert all((FOLDER / f"{name}.py").is_file() for name in stages)
