"""Becomes another program that dies with its parent: run as a script, before a child's own start.

`python -I -S launch.py PARENT_PID PROGRAM ARGUMENT...`. A preexec function would do the same inside
the parent, but is not safe there: gRPC and libvirt run threads in it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent was gone before its child began")  # no signal will come any more
    os.execvp(command[0], command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main()
