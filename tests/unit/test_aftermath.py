"""Whose guests and daemons a start may end: those of this machine's dead runs, nobody else's."""

import contextlib
import subprocess
from pathlib import Path

import pytest

from controller.up.aftermath import is_elsewhere


def test_a_process_beside_us_is_here():
    assert not is_elsewhere(Path("/proc/self"))
    assert not is_elsewhere(Path("/proc/no-such-process"))


def test_a_process_in_a_container_of_its_own_is_elsewhere():
    # The inner `cat` echoes once it runs, in the namespace that `unshare` made.
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as outer:
        try:
            assert outer.stdin is not None and outer.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended: refused
                outer.stdin.write(b"here\n")
                outer.stdin.flush()
            if outer.stdout.readline() != b"here\n":
                pytest.skip("this machine lets us make no process namespace")
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            assert [is_elsewhere(Path("/proc") / child) for child in children] == [True]
            assert not is_elsewhere(Path(f"/proc/{outer.pid}"))
        finally:
            outer.kill()
