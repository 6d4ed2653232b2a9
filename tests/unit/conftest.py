"""Lets the files of this folder import what stands in tests/fuzz: the allocator's oracle."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
