"""What a machine must have for a bed, each named with how to get it."""

import importlib.util
import os
import platform
import shutil

from controller.up.nats import NatsServerError, nats_server_binary

PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "unshare": "util-linux",
    "qemu-system-x86_64": "qemu-system-x86",
    "libvirtd": "libvirt-daemon-system",
}
MEMORY_MIB_MIN = 6 * 1024


def missing() -> list[str]:
    """In words for a person; empty where a bed can be built and run."""
    found = []
    if platform.machine() != "x86_64":
        found.append(f"an x86_64 machine (this is {platform.machine()})")
    if os.geteuid() != 0:
        found.append("root: libvirt's system VMs, mounts, an image with a system's files")
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    found += [
        f"{program} (apt-get install {package})"
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=path) is None
    ]
    if importlib.util.find_spec("libvirt") is None:
        found.append("libvirt-python (deploy/setup.sh dev)")
    try:
        nats_server_binary()
    except NatsServerError:
        found.append("nats-server (deploy/setup.sh dev)")
    memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if memory_mib < MEMORY_MIB_MIN:
        found.append(f"{MEMORY_MIB_MIN} MiB of memory (this machine has {memory_mib})")
    return found
