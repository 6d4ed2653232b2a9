"""Processes by role on a small tree, one with secrets in it that must not leave the machine."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.processes import Process, ProcessWatch, parse_stat, read_processes
from agent.roles import COMM_LENGTH, OTHER, TABLE, role_of
from shared.clock import SECOND_NS
from shared.telemetry import NodeSample, RoleUse
from shared.wire import decode, encode

ROOT = Path(__file__).parent.parent / "fixtures" / "proc"
OWN_PID = 950
PAGE = 4096
DATABASE, MASQUERADER = 701, 900
OWN_UUID = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The fixture's processes, to be changed."""
    shutil.copytree(ROOT / "proc", tmp_path / "proc")
    return tmp_path


def at(roles: tuple[RoleUse, ...], role: str) -> RoleUse:
    (found,) = (one for one in roles if one.role == role)
    return found


def change(root: Path, pid: int, **values: int) -> None:
    """Sets fields of a process by their names in proc(5)."""
    path = root / f"proc/{pid}/stat"
    head, _, rest = path.read_text().rpartition(")")
    words = rest.split()
    places = {"utime": 11, "stime": 12, "starttime": 19, "rss": 21}
    for name, value in values.items():
        words[places[name]] = str(value)
    path.write_text(f"{head}) {' '.join(words)}\n")


def test_the_whole_fixture_by_role() -> None:
    roles = ProcessWatch(ROOT, OWN_PID).look(0)
    assert {one.role: one.processes for one in roles} == {
        "agent": 2,  # its python child is its own, not the machine's
        "database": 2,
        "kernel": 2,
        "other": 2,  # one of them calls itself a thread of the kernel
        "system": 1,
    }
    assert at(roles, "database") == RoleUse("database", 2, None, 12_000 * PAGE)
    assert [one.role for one in roles] == sorted(one.role for one in roles)


def test_cpu_is_a_mean_over_the_time_between_two_looks(machine: Path) -> None:
    watch = ProcessWatch(machine, OWN_PID)
    watch.look(0)
    change(machine, DATABASE, utime=2100, stime=50)
    roles = watch.look(10 * SECOND_NS)
    assert at(roles, "database").cpu_used_millicores == 150, "150 ticks of 10 ms in 10 s"
    assert at(roles, "system").cpu_used_millicores == 0


def test_a_pid_that_is_used_again_is_another_process(machine: Path) -> None:
    watch = ProcessWatch(machine, OWN_PID)
    watch.look(0)
    change(machine, DATABASE, utime=30, stime=0, starttime=9000)
    assert at(watch.look(10 * SECOND_NS), "database").cpu_used_millicores == 30
    change(machine, DATABASE, utime=5, stime=0, starttime=9000)  # no counter falls by right
    assert at(watch.look(20 * SECOND_NS), "database").cpu_used_millicores == 0


def test_an_old_process_seen_for_the_first_time_did_not_use_it_all_now(machine: Path) -> None:
    stat = machine / f"proc/{MASQUERADER}/stat"
    hidden = stat.read_text()
    stat.unlink()
    watch = ProcessWatch(machine, OWN_PID)
    watch.look(0)
    stat.write_text(hidden)
    assert at(watch.look(10 * SECOND_NS), "other").cpu_used_millicores == 0
    change(machine, MASQUERADER, utime=100_020)
    assert at(watch.look(20 * SECOND_NS), "other").cpu_used_millicores == 20


def test_a_sample_out_of_turn_reads_no_processes(machine: Path) -> None:
    watch = ProcessWatch(machine, OWN_PID, 5 * SECOND_NS)
    first = watch.look(0)
    shutil.rmtree(machine / "proc")
    assert watch.look(SECOND_NS) == first
    assert watch.look(6 * SECOND_NS) == ()


def test_no_more_are_read_than_are_allowed() -> None:
    roles = ProcessWatch(ROOT, OWN_PID, processes_max=3).look(0)
    assert at(roles, "unread") == RoleUse("unread", 6)
    assert {one.role for one in roles} == {"kernel", "system", "unread"}


def test_nothing_but_the_tables_own_words_leaves_the_machine() -> None:
    """The fixture's processes have a password in their arguments and a token in their
    environment; one has a name of its own."""
    assert "hunter2" in (ROOT / "proc/700/cmdline").read_text()
    roles = ProcessWatch(ROOT, OWN_PID).look(0)
    sample = NodeSample(OWN_UUID, "n", "guest", "boot", 1, 1, 1, 1, roles=roles)
    message = encode(sample)
    assert decode(message).roles == roles
    for secret in (b"hunter2", b"API_TOKEN", b"secret-project", b"postgres", b"R 1 (b c"):
        assert secret not in message
    assert {one.role for one in roles} <= {*TABLE, "kernel", "other", "unread"}


def test_only_stat_is_opened(machine: Path) -> None:
    for name in ("cmdline", "environ", "comm"):
        for path in machine.glob(f"proc/[0-9]*/{name}"):
            path.unlink()
            path.symlink_to(path)  # whoever opens it gets an error
    assert ProcessWatch(machine, OWN_PID).look(0) == ProcessWatch(ROOT, OWN_PID).look(0)


def test_a_name_may_hold_blanks_and_brackets() -> None:
    found, unread = read_processes(ROOT / "proc")
    assert [one.comm for one in found if one.pid == 800] == ["a) R 1 (b c"]
    assert unread == 0


def test_this_machines_own_processes() -> None:
    found, _ = read_processes(Path("/proc"))
    assert any(one.pid == 1 and one.started_ticks >= 0 for one in found)


def test_without_proc_there_are_no_roles(tmp_path: Path) -> None:
    assert ProcessWatch(tmp_path, 1).look(0) == ()


@given(st.binary())
def test_no_text_of_a_process_breaks_the_parser(data: bytes) -> None:
    found = parse_stat(1, b"1 (" + data)
    assert found is None or isinstance(found, Process)


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comm", "role"),
    [
        ("qemu-system-x86_64"[:COMM_LENGTH], "hypervisor"),
        ("qemu-ga", "agent"),  # a whole name comes before the beginning qemu-
        ("mariadbd", "database"),
        ("redis-server", "cache"),
        ("nginx", "web"),
        ("containerd-shim-runc-v2"[:COMM_LENGTH], "container"),
        ("java", "java"),
        ("python3.11", "python"),
        ("cc1plus", "build"),
        ("nats-server", "queue"),
        ("process_exporter"[:COMM_LENGTH], OTHER),  # its end was cut off
        ("blackbox_exporter"[-COMM_LENGTH:], "monitoring"),
        ("hrapaq-agent", "agent"),
        ("supervise-daemon", "system"),
        ("", OTHER),
        ("payroll-batch", OTHER),
    ],
)
def test_names_and_their_roles(comm: str, role: str) -> None:
    assert role_of(comm) == role


def test_the_table_says_nothing_twice() -> None:
    words = [word for words in TABLE.values() for word in words.split()]
    cut = [word if "*" in word else word[:COMM_LENGTH] for word in words]
    assert sorted(cut) == sorted(set(cut))
    assert all(len(word.strip("*")) <= COMM_LENGTH for word in words if "*" in word)
    assert len(TABLE) <= 60, "a message carries 64 roles"
