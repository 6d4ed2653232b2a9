"""An agent's process never loads what only the controller or only a host installs."""

import subprocess
import sys

import pytest

PROBE = """
import importlib, pkgutil, sys
BLOCKED = set(sys.argv[1].split(","))
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"an agent has no {name}")
sys.meta_path.insert(0, Block())
for package_name in sys.argv[2].split(","):
    package = importlib.import_module(package_name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), package_name + "."):
        if not module.name.endswith("__main__") and module.name != "agent.libvirt_worker":
            importlib.import_module(module.name)
"""


def imports_without(blocked: str, packages: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, blocked, packages],
        capture_output=True,
        text=True,
        check=False,
    )


def test_agent_and_shared_import_without_the_controllers_libraries():
    done = imports_without("torch,numpy,polars,rich,controller", "agent,shared")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("needed", ["msgspec", "msgpack"])
def test_the_probe_itself_can_fail(needed):
    assert imports_without(needed, "shared.wire").returncode != 0
