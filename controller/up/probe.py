"""Finds out whether a guest really boots with KVM here: only a boot tells.

A /dev/kvm that opens, and even answers its version, may still hang at the first instruction.
"""

import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from controller.up.image import GuestImage, Say
from shared.errors import GuestsUnavailable

Accelerator = Literal["kvm", "tcg"]

QEMU = "qemu-system-x86_64"
READY_MARKER = b"hrapaq-probe"  # the first word of the init script's ready line, with load=probe
BOOT_DEADLINE_S = 15.0  # a KVM guest boots in 1 to 2 s; a busy machine may need more


@dataclass(frozen=True)
class Probe:
    accelerator: Accelerator
    reason: str  # in plain words, for a person


def require_qemu() -> str:
    """The path of QEMU; raises GuestsUnavailable with what to install."""
    path = shutil.which(QEMU)
    if path is None:
        raise GuestsUnavailable(
            f"{QEMU} is not installed: apt install qemu-system-x86 libvirt-daemon-system"
        )
    return path


def probe_hypervisor(
    image: GuestImage,
    cache: Path,
    say: Say,
    *,
    device: Path = Path("/dev/kvm"),
    deadline_s: float = BOOT_DEADLINE_S,
) -> Probe:
    """Which accelerator works, and why. A boot is tried once per kernel, QEMU and host boot."""
    qemu = require_qemu()
    refusal = _unusable(device)
    if refusal is not None:
        return Probe("tcg", refusal)
    key = "/".join((image.release, _version(qemu), _boot_id()))
    known = _recall(cache / "probe.json", key)
    if known is not None:
        return known
    say(f"trying whether a guest boots with KVM (at most {deadline_s:.0f} s)")
    probe = boot_with_kvm(kvm_command(qemu, image), deadline_s)
    (cache / "probe.json").write_text(
        json.dumps({"key": key, "accelerator": probe.accelerator, "reason": probe.reason})
    )
    return probe


def kvm_command(qemu: str, image: GuestImage) -> list[str]:
    """Boots the image with KVM, its serial console on standard output."""
    arguments = "console=ttyS0 mitigations=off quiet panic=-1 hrapaq.load=probe"
    machine = ["-machine", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256"]
    devices = ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
    kernel = ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", arguments]
    return [qemu, *machine, *devices, "-no-reboot", *kernel]


def boot_with_kvm(command: Sequence[str], deadline_s: float) -> Probe:
    """Runs the command until its output holds the marker, it ends, or the deadline passes."""
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            ready = _marker_appears(process.stdout, started + deadline_s)
        finally:
            process.kill()
        took_s = time.monotonic() - started
        complaint = process.stderr.read().decode(errors="replace").strip().splitlines()
    if ready:
        return Probe("kvm", f"a guest booted with KVM in {took_s:.1f} s")
    if took_s >= deadline_s:
        return Probe("tcg", f"/dev/kvm opens, but a guest hung at boot for {deadline_s:.0f} s")
    detail = complaint[-1] if complaint else "no message"
    return Probe("tcg", f"QEMU gave up booting a guest with KVM ({detail})")


def _marker_appears(output: IO[bytes], until: float) -> bool:
    """Reads in a thread, because a pipe's read has no deadline of its own."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        for line in output:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True, name="probe-console").start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return False
        if line is None or READY_MARKER in line:
            return line is not None


def _unusable(device: Path) -> str | None:
    if not device.exists():
        return f"there is no {device}"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device} cannot be opened ({error.strerror})"
    return None


def _recall(path: Path, key: str) -> Probe | None:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if record.get("key") != key or record.get("accelerator") not in ("kvm", "tcg"):
        return None
    return Probe(record["accelerator"], str(record.get("reason")))


def _version(qemu: str) -> str:
    answer = subprocess.run(
        [qemu, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    return answer.stdout.splitlines()[0]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
