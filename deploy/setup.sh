#!/usr/bin/env bash
# Makes this checkout runnable: `deploy/setup.sh run` for `hrapaq up`, `deploy/setup.sh dev` for the
# tests as well, `deploy/setup.sh bench` for the peers that benchmarks compare with, too. Called by
# `make`; a second call finds everything done and takes no time.
#
#   HRAPAQ_SYSTEM=0   installs no system packages, even as root
#   HRAPAQ_TORCH=0    leaves PyTorch out
#   HRAPAQ_TESTBED=0  builds no image for the tests on nested VMs
#   PYTHON=...        the Python to make the environment with (`make clean` first, to change it)
set -euo pipefail

purpose=${1:-run}
with_peers=
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"
venv=$here/.venv

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

main() {
    case $purpose in
    run | dev) ;;
    bench) purpose=dev with_peers=yes ;;
    *) die "usage: deploy/setup.sh run|dev|bench" ;;
    esac
    # Before Python is chosen: the system packages may bring it.
    install_system_packages
    python=$(find_python) || die "no Python >= 3.11 with venv was found: $(python_advice)"
    make_venv
    install_package
    install_torch
    [ -z "$with_peers" ] || install_peers
    [ "$purpose" = run ] || build_testbed
}

# --- system packages ---------------------------------------------------------------------------

# Prints the packages that are missing here, by what they would bring. A kernel and a busybox for the
# demo guests are fetched by `hrapaq up` itself, which installs neither.
missing_packages() {
    has qemu-system-x86_64 || echo qemu-system-x86
    has libvirtd || has virtqemud || echo libvirt-daemon-system
    has gcc || echo gcc
    has pkg-config || echo pkg-config
    has pkg-config && pkg-config --exists libvirt || echo libvirt-dev
    [ "$purpose" = run ] || has mmdebstrap || echo mmdebstrap
    local python
    if python=$(find_python); then
        missing_headers "$python"
    else
        echo python3 python3-venv python3-dev
    fi
}

# The package with the headers of a Python of the distribution; another Python comes with its own.
missing_headers() {
    "$1" -c 'if True:
        import os, sys, sysconfig
        there = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
        if not there and sys.base_prefix == "/usr":
            print("python%d.%d-dev" % sys.version_info[:2])'
}

has() {
    local found
    found=$(command -v "$1") || found=/usr/sbin/$1
    [ -x "$found" ]
}

install_system_packages() {
    local missing advice
    missing=$(missing_packages | tr '\n' ' ')
    missing=${missing% }
    [ -n "$missing" ] || return 0
    advice="apt-get install -y --no-install-recommends $missing"
    if ! has apt-get; then
        say "real guests need what Debian and Ubuntu call: $missing"
    elif [ "${HRAPAQ_SYSTEM:-1}" = 0 ] || [ "$(id -u)" != 0 ]; then
        say "real guests need system packages; as root: $advice"
    else
        say "installing system packages (minutes on a bare system): $missing"
        # Guests can be simulated without them, and where Python is missing that is said next.
        # shellcheck disable=SC2086 # a list of names
        apt_install $missing || say "that failed, see above; to try it by hand: apt-get update && $advice"
    fi
}

# With the lists that are there; they are fetched only when they are missing or too old to do.
apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    if ! apt-get install -qq -y --no-install-recommends "$@" >"$log" 2>&1; then
        say "the package lists are missing or old: apt-get update"
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"; } >"$log" 2>&1 ||
            { tail -n 20 "$log" >&2; rm -f "$log"; return 1; }
    fi
    rm -f "$log"
}

# --- Python ------------------------------------------------------------------------------------

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

python_advice() {
    if [ -z "${PYTHON:-}" ] && has python3 && python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "apt-get install python3-venv"
    else
        echo "install Python 3.11 or newer with venv, or name one: PYTHON=/path/to/python3 make run"
    fi
}

make_venv() {
    # A moved checkout has an environment whose scripts point elsewhere.
    if [ -x "$venv/bin/python" ] && [ -x "$venv/bin/pip" ] && "$venv/bin/pip" --version >/dev/null 2>&1; then
        return 0
    fi
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

# --- our package -------------------------------------------------------------------------------

# libvirt-python is built here against the installed libvirt: it needs headers and a compiler.
can_build_libvirt() {
    has gcc && has pkg-config && pkg-config --exists libvirt &&
        [ -f "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]
}

extras() {
    local libvirt=without
    if can_build_libvirt || "$venv/bin/python" -c 'import libvirt' 2>/dev/null; then libvirt=with; fi
    case $purpose-$libvirt in
    run-with) echo up ;;
    run-without) echo embedded ;;
    dev-with) echo dev,up ;;
    dev-without) echo dev ;;
    esac
}

# What must be as it was for the environment to be complete.
fingerprint() {
    echo "$1 $here $("$venv/bin/python" --version) $(sha256sum <pyproject.toml)"
}

install_package() {
    local extras stamp fresh
    extras=$(extras)
    stamp=$venv/.hrapaq-$purpose
    fresh=$(fingerprint "$extras")
    case $extras in *up*) ;; *)
        say "libvirt-python cannot be built (libvirt-dev, pkg-config, gcc, Python.h): guests will be simulated" ;;
    esac
    # The tests' environment holds all that the run needs.
    if [ "$purpose" = run ] && [ "$(cat "$venv/.hrapaq-dev" 2>/dev/null)" = "$(fingerprint dev,up)" ]; then
        return 0
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" = "$fresh" ]; then
        return 0
    fi
    say "installing hrapaq[$extras] into .venv (about half a minute)"
    "$venv/bin/pip" install -qq --disable-pip-version-check --editable ".[$extras]" ||
        die "pip could not install hrapaq[$extras], see above; \`make\` again goes on from here"
    echo "$fresh" >"$stamp"
}

# The plain wheel pulls in several GB of CUDA libraries; `+cpu` exists only as the CPU build, so that
# pip finds that or nothing. Asked for once for each version and set of indexes: it is optional.
install_torch() {
    [ "${HRAPAQ_TORCH:-1}" != 0 ] || return 0
    local version stamp fresh
    version=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
    stamp=$venv/.hrapaq-torch
    fresh="$version $(echo "${PIP_INDEX_URL:-} ${PIP_EXTRA_INDEX_URL:-} ${PIP_FIND_LINKS:-}" | sha256sum)"
    [ "$(cat "$stamp" 2>/dev/null)" != "$fresh" ] || return 0
    say "looking for the CPU build of PyTorch $version (optional; HRAPAQ_TORCH=0 leaves it out)"
    if ! "$venv/bin/pip" install -qq --disable-pip-version-check --retries 1 \
        "torch==$version+cpu" >"$stamp.log" 2>&1; then
        say "$(torch_failure "$stamp.log"); everything runs without it"
    fi
    echo "$fresh" >"$stamp"
}

# Solvers to compare with, in an environment of their own: OR-Tools and the project want different
# protobufs. The benchmarks name what is missing, so that a failure here stops nothing.
install_peers() {
    local peers=$venv/peers wanted stamp fresh
    wanted=$("$venv/bin/python" -c 'if True:
        import tomllib
        with open("pyproject.toml", "rb") as file:
            print(*tomllib.load(file)["dependency-groups"]["peers"])')
    stamp=$venv/.hrapaq-peers
    fresh="$("$venv/bin/python" --version) $wanted"
    [ "$(cat "$stamp" 2>/dev/null)" != "$fresh" ] || return 0
    say "installing what allocator and forecaster are compared with into .venv/peers (minutes, 1.1 GB)"
    # shellcheck disable=SC2086 # a list of names
    if "$venv/bin/python" -m venv --clear "$peers" &&
        "$peers/bin/pip" install -qq --disable-pip-version-check $wanted; then
        echo "$fresh" >"$stamp"
    else
        say "that failed, see above: the benchmarks go on without them"
    fi
}

# What nested VMs boot from: tests have no network to build it with. Found done when nothing changed.
build_testbed() {
    [ "${HRAPAQ_TESTBED:-1}" != 0 ] && [ "$(id -u)" = 0 ] && [ -d deploy/testbed ] || return 0
    "$venv/bin/python" deploy/testbed build --quietly ||
        say "no image for nested VMs, see above: tests of them are left out"
}

torch_failure() {
    if grep -q 'No matching distribution' "$1"; then
        echo "no package index that pip knows has it (PIP_EXTRA_INDEX_URL names one more)"
    else
        echo "it could not be installed, see $1"
    fi
}

main
