"""`python deploy/testbed COMMAND`, from anywhere."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
# Run as a directory, only that one is on the path; the package and the project lie above it.
sys.path[:1] = [str(HERE.parent), str(HERE.parents[1])]

from testbed.cli import main  # noqa: E402 - the path first

main()
