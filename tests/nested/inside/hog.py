"""Runs in a host of the testbed and takes its memory: what a program of the host itself might do.

hog.py LEFT_MIB SECONDS: takes memory until only so much is available, keeps touching it, and keeps
reading files, which then have no room in the page cache.
"""

import mmap
import sys
import time
from pathlib import Path

CHUNK_MIB = 4
FILES_MIB = 96


def main() -> None:
    left_mib, seconds = map(float, sys.argv[1:])
    Path("/proc/self/oom_score_adj").write_text("1000")
    files = some_files()
    ends = time.monotonic() + seconds
    blocks = []
    noise = bytes(range(256)) * (CHUNK_MIB * 4096)
    # What is available at the start decides, or it would take whatever relief brings.
    goal = int((available_mib() - left_mib) / CHUNK_MIB)
    say(f"available {available_mib():.0f} MiB, taking {goal * CHUNK_MIB} MiB")
    while len(blocks) < goal and time.monotonic() < ends:
        block = mmap.mmap(-1, CHUNK_MIB * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.write(noise)
        blocks.append(block)
    say(f"taken, available {available_mib():.0f} MiB")
    while time.monotonic() < ends:
        for path in files:
            path.read_bytes()
        for block in blocks:
            for at in range(0, len(block), mmap.PAGESIZE):
                block[at] = 1
        time.sleep(0.2)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def some_files() -> list[Path]:
    found, size = [], 0
    for path in sorted(Path("/usr/lib").rglob("*.so*")):
        if path.is_file() and not path.is_symlink():
            found.append(path)
            size += path.stat().st_size
            if size > FILES_MIB * 2**20:
                break
    return found


def available_mib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return 0.0


main()
