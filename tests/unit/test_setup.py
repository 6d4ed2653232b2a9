"""`deploy/setup.sh` in a checkout of its own, with a Python, a pip and an apt-get that only write
down what they are asked for: nothing is downloaded or installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cp", "dirname", "env", "grep", "mkdir", "mktemp", "rm", "sed",
         "sha256sum", "tail", "tr")  # fmt: skip

# Good enough for `setup.sh`: new enough, without headers and libvirt, makes environments.
PYTHON = """#!/usr/bin/env bash
case "$*" in
--version) echo Python 3.11.2 ;;
*"-m venv"*)
    mkdir -p "${@: -1}/bin"
    cp "$0" "${@: -1}/bin/python"
    cp "$(dirname "$0")/pip" "${@: -1}/bin/pip" ;;
*"import libvirt"*) exit 1 ;;
*"import sysconfig"*) echo /nowhere ;;
esac
"""
PIP = """#!/usr/bin/env bash
[ "$1" != --version ] || exit 0
echo "pip $*" >>"$CALLS"
case "$*" in
*torch==*) echo "ERROR: ${TORCH_FAILS:-}" >&2; [ -z "${TORCH_FAILS:-}" ] ;;
*) [ -z "${PIP_FAILS:-}" ] ;;
esac
"""
# Knows no package before `update`.
APT_GET = """#!/usr/bin/env bash
echo "apt-get $*" >>"$CALLS"
[ "$1" != update ] || { echo >"$CALLS.lists"; exit 0; }
[ -e "$CALLS.lists" ] && [ -z "${APT_FAILS:-}" ] || { echo "E: Unable to locate package" >&2; exit 100; }
"""  # noqa: E501 - as it runs


class Checkout:
    """A copy of what `setup.sh` reads, and the only programs that it finds."""

    def __init__(self, place: Path) -> None:
        self.root, self.bin, self.calls_file = place / "check out", place / "bin", place / "calls"
        (self.root / "deploy").mkdir(parents=True)
        shutil.copy(ROOT / "deploy/setup.sh", self.root / "deploy")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.put("python3", PYTHON)
        self.put("pip", PIP)
        self.put("id", "#!/usr/bin/env bash\necho 1000\n")

    def put(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def setup(self, purpose: str = "run", **variables: str) -> subprocess.CompletedProcess:
        environment = {"PATH": str(self.bin), "CALLS": str(self.calls_file), **variables}
        self.calls_file.write_text("")
        return subprocess.run(
            ["bash", "deploy/setup.sh", purpose],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_a_second_run_finds_everything_done(checkout):
    first = checkout.setup()
    assert first.returncode == 0, first.stderr
    package, torch = checkout.calls
    assert package.endswith("--editable .[embedded]") and "libvirt-python cannot" in first.stdout
    assert "torch==" in torch
    assert checkout.setup().returncode == 0
    assert checkout.calls == []


@pytest.mark.parametrize("purpose", ["run", "dev"])
def test_torch_is_only_ever_asked_for_as_the_cpu_build(checkout, purpose):
    checkout.setup(purpose)
    asked = [call for call in checkout.calls if "torch" in call or "forecast" in call]
    assert len(asked) == 1
    assert asked[0].endswith("+cpu")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("No matching distribution found for torch", "no package index that pip knows has it"),
        ("No space left on device", "it could not be installed, see"),
    ],
)
def test_without_torch_it_goes_on_and_asks_again_only_elsewhere(checkout, failure, said):
    done = checkout.setup(TORCH_FAILS=failure)
    assert done.returncode == 0
    assert said in done.stdout
    assert checkout.setup(TORCH_FAILS=failure).returncode == 0
    assert checkout.calls == []
    checkout.setup(PIP_EXTRA_INDEX_URL="https://index.example/cpu")
    assert ["torch" in call for call in checkout.calls] == [True]


def test_torch_may_be_left_out(checkout):
    assert checkout.setup(HRAPAQ_TORCH="0").returncode == 0
    assert not any("torch" in call for call in checkout.calls)


def test_a_failed_install_says_so_and_is_done_again(checkout):
    failed = checkout.setup(PIP_FAILS="yes")
    assert failed.returncode == 1
    assert "pip could not install hrapaq[embedded]" in failed.stderr
    assert checkout.setup().returncode == 0
    assert any("--editable" in call for call in checkout.calls)


def test_changed_requirements_are_installed(checkout):
    checkout.setup()
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    checkout.setup()
    assert [call.rpartition(" ")[2] for call in checkout.calls] == [".[embedded]"]


def test_who_is_not_root_is_told_what_to_install(checkout):
    checkout.put("apt-get", APT_GET)
    done = checkout.setup()
    assert done.returncode == 0
    assert "as root: apt-get install -y --no-install-recommends qemu-system-x86" in done.stdout
    assert not any("apt-get" in call for call in checkout.calls)


def as_root(checkout: Checkout) -> None:
    checkout.put("apt-get", APT_GET)
    checkout.put("id", "#!/usr/bin/env bash\necho 0\n")


def test_root_gets_what_is_missing_with_fresh_package_lists(checkout):
    as_root(checkout)
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    first, update, again = (call for call in checkout.calls if call.startswith("apt-get"))
    assert update == "apt-get update -qq"
    assert first == again
    assert {"qemu-system-x86", "gcc", "pkg-config", "libvirt-dev"} <= set(again.split())


def test_root_may_want_no_system_packages(checkout):
    as_root(checkout)
    assert checkout.setup(HRAPAQ_SYSTEM="0").returncode == 0
    assert not any("apt-get" in call for call in checkout.calls)


def test_packages_that_cannot_be_had_end_in_simulated_guests(checkout):
    as_root(checkout)
    done = checkout.setup(APT_FAILS="yes")
    assert done.returncode == 0
    assert "Unable to locate package" in done.stderr
    assert "guests will be simulated" in done.stdout


def test_no_python_ends_with_advice(checkout):
    done = checkout.setup(PYTHON="/nowhere/python3")
    assert done.returncode == 1
    assert "PYTHON=/path/to/python3" in done.stderr


def test_an_unknown_purpose_is_refused(checkout):
    done = checkout.setup("everything")
    assert (done.returncode, checkout.calls) == (1, [])
    assert "run|dev" in done.stderr


def test_make_alone_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in makefile.splitlines() if line.startswith(".PHONY:")]
    environment = {**os.environ, "MAKEFLAGS": "", "MAKELEVEL": "0"}
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT)],
        env=environment, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert [line.split()[1] for line in done.stdout.splitlines()] == targets


def test_peers_of_the_benchmarks_get_an_environment_of_their_own(checkout):
    """Beside the tests' one, whose protobuf they would replace; without them it goes on."""
    wanted = "echo ortools==9.15.6755 numba==0.68.1"
    checkout.put(
        "python3", PYTHON.replace("case", f'case "$*" in *tomllib*) {wanted} ;; esac\ncase', 1)
    )
    done = checkout.setup("bench")
    assert done.returncode == 0, done.stderr
    assert [call for call in checkout.calls if "ortools" in call] == [
        "pip install -qq --disable-pip-version-check ortools==9.15.6755 numba==0.68.1"
    ]
    assert any(call.endswith("--editable .[dev]") for call in checkout.calls)
    assert (checkout.root / ".venv/peers/bin/pip").exists()
    assert checkout.setup("bench").returncode == 0
    assert checkout.calls == []
