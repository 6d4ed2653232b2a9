# ruff: noqa: N802 - gRPC's generated classes name methods like this
"""The `hrapaq` command against a real gRPC server that answers from fixed values."""

import contextlib
import json
import os
import subprocess
import sys
from concurrent import futures

import grpc
import pytest
from click.testing import CliRunner

from controller.ctl import cli
from controller.ctl_show import show_nodes
from controller.ctl_types import parse_amount
from controller.up.runfile import RunFile, read_run_file, run_file_path, write_run_file
from shared.errors import ConfigError
from shared.pb import admin_pb2 as pb
from shared.pb.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server
from shared.resources import MIB, Resource

WEB, MAIL = "11111111-0000-4000-8000-000000000001", "22222222-0000-4000-8000-000000000002"
L1 = "33333333-0000-4000-8000-000000000003"

INSIDE = pb.Inside(
    load_milli=1500, uptime_ms=9 * 86_400_000, ready_ms=17_040,
    cpu_pressure_us_per_s=123_000, memory_pressure_us_per_s=0, io_pressure_us_per_s=30_000,
    roles=[
        pb.RoleUse(role="database", processes=3, cpu_used_millicores=1200,
                   memory_resident_bytes=800 * MIB),
        pb.RoleUse(role="web", processes=2, cpu_used_millicores=100, memory_resident_bytes=MIB),
        pb.RoleUse(role="unread", processes=7),
    ],
)  # fmt: skip
WAITS = [
    pb.Wait(machine_id=WEB, machine="web", host_id=L1, host="l1-a", millicores=120,
            share_millicores=120),
    pb.Wait(machine_id=L1, machine="l1-a", host_id="node-1", host="host-0", millicores=400,
            share_millicores=200),
]  # fmt: skip


class FixedAdmin(AdminServicer):
    """Two VMs on one node; remembers what it was asked to change."""

    def __init__(self) -> None:
        self.changes: list = []

    def GetStatus(self, request, context):
        return pb.Status(
            version="0.1.0",
            cycles=7,
            cycle_interval_ms=10_000,
            parts=[pb.Part(name="bus", healthy=False, detail="[not a tag]")],
            dropped={"size": 2},
        )

    def ListNodes(self, request, context):
        levers = {"memory": "", "io": "cgroup v1 without blkio"}
        row = pb.NodeRow(node_id="node-1", name="host-1", role="host", connected=True)
        row.inside.CopyFrom(INSIDE)
        row.levers.update(levers)
        guest = pb.NodeRow(node_id=WEB, name="web", role="guest")
        return pb.Nodes(nodes=[row, guest])

    def ListVms(self, request, context):
        memory = pb.Amounts(
            resource="memory",
            used=100 * MIB,
            limit=256 * MIB,
            forecast_p50=120 * MIB,
            forecast_p95=180 * MIB,
            forecast_skill=0.4213,
            forecast_coverage=0.9412,
            forecast_outcomes=85,
            forecast_novelty=1.4,
            forecast_method="empirical+neighbours",
        )
        io = pb.Amounts(
            resource="io", forecast_method="mixture (no network: [because])", forecast_outcomes=3
        )
        memory = [memory, io]
        rows = [
            pb.VmRow(vm_id=WEB, name="web", node_id="node-1", mode="enforce", state="steady",
                     resources=memory, forecast_age_ms=61_000, waits=WAITS,
                     short_node_id="node-1"),
            pb.VmRow(vm_id=MAIL, name="mail", node_id="node-1", simulated=True),
        ]  # fmt: skip
        return pb.Vms(vms=rows)

    def GetPlan(self, request, context):
        if request.plan_id == "none":
            return pb.PlanReply(found=False)
        step = pb.PlanStep(vm_name="web", resource="memory", from_amount=256 * MIB,
                           to_amount=192 * MIB, why="p95 is 150 MiB")  # fmt: skip
        return pb.PlanReply(found=True, plan_id="7.0", cycle=7, verdict="verified", steps=[step])

    def Explain(self, request, context):
        if request.vm != WEB:
            return pb.Explanation(found=False)
        option = pb.Option(level=192 * MIB, value=5, probability_enough=0.97, allowed=True)
        resource = pb.ResourceExplanation(
            resource="memory", options=[option], chosen=192 * MIB, why="the best that fits",
            without_forecast=128 * MIB, forecast_mattered="the forecast mattered: [it did]",
            forecast_unlike="unlike what the network was taught: [novel]",
        )  # fmt: skip
        vm = pb.VmRow(vm_id=WEB, name="web")
        return pb.Explanation(found=True, vm=vm, resources=[resource], inside=INSIDE)

    def Approve(self, request, context):
        return pb.Changed(done=False, detail="plan 3 does not wait for approval")

    def Pin(self, request, context):
        self.changes.append(request)
        return pb.Changed(done=True, detail="pinned")

    def Freeze(self, request, context):
        self.changes.append(request)
        return pb.Changed(done=True)

    def SetMode(self, request, context):
        self.changes.append(request)
        return pb.Changed(done=True, detail=f"mode of {request.target}")

    def Reject(self, request, context):
        context.abort(grpc.StatusCode.INTERNAL, "it broke")


@contextlib.contextmanager
def serving(admin: AdminServicer):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    add_AdminServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def admin():
    fixed = FixedAdmin()
    with serving(fixed) as address:
        yield fixed, address


@pytest.fixture
def hrapaq(admin):
    def run(*words: str):
        return CliRunner().invoke(cli, ["--controller", admin[1], *words])

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("status", ["cycle 7", "ILL", "[not a tag]", "size 2"]),
        ("nodes", ["host-1", "memory; not io (cgroup v1 without blkio)"]),
        ("nodes", ["17.0 s", "9 d", "1.50", "12/0/3", "database 1.20 cores 800 MiB, web 0.10"]),
        ("vms", ["web", "256 MiB", "(simulated)"]),
        ("vms", ["web waits 0.12 cores for l1-a, which waits 0.40 for host-0 (0.20 of it web's)"]),
        ("plan", ["plan 7.0", "256 MiB", "192 MiB", "p95 is 150 MiB"]),
        ("explain web", ["inside: up 9 d, ready after 17.0 s", "database", "800 MiB", "unread"]),
        ("explain web", ["the best that fits", "97.0%", "chosen", "mattered: [it did]"]),
    ],
)
def test_tables_say_it(hrapaq, words, expected):
    result = hrapaq(*words.split())
    assert result.exit_code == 0, result.output
    for text in expected:
        assert text in result.output


def test_a_guest_that_takes_no_commands_is_not_called_gone(hrapaq):
    line = next(line for line in hrapaq("nodes").output.splitlines() if line.startswith("web"))
    assert line.split()[:3] == ["web", "guest", "reports"]
    assert not line.rstrip().endswith("all"), "it has no levers to speak of"


def test_names_stay_whole_in_a_narrow_terminal(admin):
    words = ["--controller", admin[1], "vms"]
    lines = CliRunner(env={"COLUMNS": "60"}).invoke(cli, words).output.splitlines()
    assert lines[1].strip() == "web  steady"
    memory = ["memory", "100", "MiB", "120", "MiB", "180", "MiB", "256", "MiB"]
    assert lines[2].split() == memory
    assert "mode and bounds" in lines[-1]


@pytest.mark.parametrize("columns", [80, 140])
def test_how_good_forecasts_were_fits_the_terminal(admin, columns):
    words = ["--controller", admin[1], "vms", "--forecast"]
    output = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, words).output
    lines = output.splitlines()
    assert all(len(line.rstrip()) <= columns for line in lines)
    row = next(line for line in lines if "memory" in line)
    for text in ("120 MiB", "180 MiB", "+0.42*", "94.1% of 85", "empirical+neighbours"):
        assert text in row
    assert ("100 MiB" in row) == (columns == 140)
    assert "61 s" in (row if columns == 140 else lines[1])
    assert "? of 3" in next(line for line in lines if " io " in line)
    assert ("web" in row) == (columns == 140)
    assert any("mail" in line for line in lines)
    assert "mixture (no network: [because])" in output
    assert "*: unlike what the network was taught" in output
    assert output.count("*") == 2, "nothing is marked whose novelty is not known"


@pytest.mark.parametrize("words", ["status", "nodes", "vms", "plan", "explain web"])
def test_json_is_json_with_integers_and_nulls(hrapaq, words):
    result = hrapaq(*words.split(), "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.output)
    if words == "vms":
        memory = values["vms"][0]["resources"][0]
        assert memory["used"] == 100 * MIB
        assert memory["ceiling"] is None, "unknown is null, never zero"
    if words == "nodes":
        assert values["nodes"][0]["levers"] == {"io": "cgroup v1 without blkio", "memory": ""}


def test_an_unknown_vm_is_answered_with_the_closest_name(hrapaq):
    result = hrapaq("explain", "wbe")
    assert result.exit_code == 1
    assert "did you mean 'web'?" in result.output


def test_a_vm_may_be_named_by_the_beginning_of_its_id(hrapaq, admin):
    assert hrapaq("freeze", "22222222", "--ttl", "30m", "--by", "me").exit_code == 0
    assert admin[0].changes[-1] == pb.FreezeRequest(vm=MAIL, ttl_seconds=1800, by="me")


def test_pin_takes_amounts_as_people_write_them(hrapaq, admin):
    assert hrapaq("pin", "web", "memory", "256MiB", "--by", "me").exit_code == 0
    assert admin[0].changes[-1].amount == 256 * MIB
    assert hrapaq("pin", "web", "cpu", "--by", "me").exit_code == 0
    assert not admin[0].changes[-1].HasField("amount")
    refused = hrapaq("pin", "web", "memory", "much")
    assert refused.exit_code == 2 and "256MiB" in refused.output


def test_mode_of_the_fleet_a_node_and_a_vm(hrapaq, admin):
    for target, sent in (("fleet", "fleet"), ("host-1", "node-1"), ("web", WEB)):
        assert hrapaq("mode", target, "observe").exit_code == 0
        assert admin[0].changes[-1].target == sent


def test_what_the_controller_refuses_is_exit_code_1_with_its_reason(hrapaq):
    refused = hrapaq("approve", "3")
    assert refused.exit_code == 1 and "does not wait" in refused.output
    broken = hrapaq("reject", "3")
    assert broken.exit_code == 1 and "it broke" in broken.output
    assert hrapaq("plan", "none").exit_code == 1


def test_no_controller_is_one_line_and_exit_code_2():
    with serving(FixedAdmin()) as address:
        pass  # nobody listens there any more
    result = CliRunner().invoke(cli, ["--controller", address, "status"])
    assert result.exit_code == 2
    assert address in result.output and "hrapaq up" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_wrong_command_names_the_closest():
    result = CliRunner().invoke(cli, ["stats"])
    assert result.exit_code == 2 and "'status'" in result.output


def test_the_run_file_leads_to_the_controller(admin, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("HRAPAQ_CONTROLLER", raising=False)
    path = run_file_path()
    assert path == tmp_path / "hrapaq" / "up.json"
    here = RunFile(os.getpid(), 1, admin[1], "nats://x", "m", "c", "a", "/state")
    write_run_file(path, here)
    assert read_run_file(path) == here
    assert CliRunner().invoke(cli, ["status"]).exit_code == 0
    write_run_file(path, RunFile(2**22 + 1, 1, "h:1", "n", "m", "c", "a", "/state"))
    assert read_run_file(path) is None, "its process is gone"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="delete it"):
        read_run_file(path)


def test_where_the_run_file_lies(tmp_path):
    assert str(run_file_path({}, user_id=0)) == "/run/hrapaq/up.json"
    home = {"HOME": str(tmp_path)}
    assert run_file_path(home, user_id=1000) == tmp_path / ".local/state/hrapaq/up.json"


@pytest.mark.parametrize(
    ("resource", "text", "amount"),
    [
        (Resource.CPU, "1.5", 1500),
        (Resource.CPU, "250m", 250),
        (Resource.MEMORY, "256MiB", 256 * MIB),
        (Resource.MEMORY, "2 GiB", 2048 * MIB),
        (Resource.IO, "4MiB/s", 4 * MIB),
    ],
)
def test_amounts(resource, text, amount):
    assert parse_amount(resource, text) == amount


@pytest.mark.parametrize(
    ("resource", "text"),
    [
        (Resource.CPU, "1MiB"),
        (Resource.MEMORY, "-1"),
        (Resource.MEMORY, "1MiB/s"),
        (Resource.IO, ""),
    ],
)
def test_amounts_that_are_none(resource, text):
    with pytest.raises(ValueError, match="write it like"):
        parse_amount(resource, text)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("controller.toml", 'mode = "observe"', "good for the controller"),
        ("agent.toml", 'role = "host"', "good for the agent"),
        ("any.toml", 'role = "host"', "good for the agent"),
        ("any.toml", "lease_s = 300", "good for the controller"),
        ("both.toml", '[agent]\nrole = "host"\n[controller]\nlease_s = 300', "for the agent"),
    ],
)
def test_check_config_of_a_good_file(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    result = CliRunner().invoke(cli, ["check-config", str(tmp_path / name)])
    assert result.exit_code == 0, result.output
    assert expected in result.output


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("controller.toml", 'mode = "observe"\nlease = 300', ":2: lease is unknown"),
        ("agent.toml", 'rolle = "host"', "did you mean 'role'?"),
        ("controller.toml", "lease_s = 20", "lease_s = 20 is too short"),
        ("controller.toml", "lease_s =", "controller.toml:1:"),
    ],
)
def test_check_config_says_what_is_wrong_and_where(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    result = CliRunner().invoke(cli, ["check-config", str(tmp_path / name)])
    assert result.exit_code == 1
    assert expected in result.output and "Traceback" not in result.output


def test_check_config_prints_settings_with_their_meaning(tmp_path):
    (tmp_path / "controller.toml").write_text("lease_s = 300")
    command = ["check-config", str(tmp_path / "controller.toml"), "--print"]
    result = CliRunner().invoke(cli, command)
    assert "# Seconds that grants hold" in result.output and "lease_s = 300" in result.output


def test_the_record_cannot_be_read_where_there_is_none(tmp_path):
    missing = CliRunner().invoke(cli, ["replay", "--from", str(tmp_path / "no-file")])
    assert missing.exit_code == 1 and "no-file" in missing.output
    (tmp_path / "other").write_text("text")
    other = CliRunner().invoke(cli, ["replay", "--from", str(tmp_path / "other")])
    assert other.exit_code == 1 and "no exported audit log" in other.output
    wrong = CliRunner().invoke(cli, ["audit", "--kind", "plans"])
    assert wrong.exit_code == 2 and "intent" in wrong.output
    silent = CliRunner().invoke(cli, ["audit", "--nats", "nats://127.0.0.1:1"])
    assert silent.exit_code == 2 and "nats://127.0.0.1:1 does not answer" in silent.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0 and "_HRAPAQ_COMPLETE" in result.output


def test_starting_loads_nothing_heavy():
    code = (
        "import sys, controller.ctl;"
        "print([m for m in ('numpy', 'rich', 'grpc', 'google', 'nats', 'asyncio') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_missing_library_is_one_line_that_says_what_to_install():
    code = "import sys; sys.modules['rich'] = None; from controller.ctl import main; main()"
    command = [sys.executable, "-c", code, "--controller", "127.0.0.1:1", "vms"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        "Error: `vms` needs rich: in HRA-PAQ's directory, "
        f"{sys.executable} -m pip install '.[controller]'\n"
    )


def test_a_node_that_there_are_two_of_is_shown_as_that(capsys):
    rows = [pb.NodeRow(name=name, connected=True, clone=name == "twice") for name in ("a", "twice")]
    show_nodes(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [("clone" in line, "connected" in line) for line in lines[1:3]] == [
        (False, True),
        (True, False),
    ]
