# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""The commands that ask a controller or change an override there."""

import getpass
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from controller.ctl_types import Duration, parse_amount, parse_rate
from shared.resources import resource_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from controller.ctl_client import Client
    from shared.pb import admin_pb2 as pb

MODES = ("observe", "recommend", "enforce")
DURATION = Duration()


def _complete_vm(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Names of VMs for the shell's Tab key; silent when nobody answers."""
    from controller.ctl_client import Complaint, connected
    from shared.pb import admin_pb2 as pb

    try:
        with connected(ctx.find_root().params.get("controller")) as client:
            rows = client.call(client.stub.ListVms, pb.VmsRequest()).vms
    except Complaint:
        return []
    return sorted(row.name for row in rows if row.name.startswith(begun))


as_json = click.option("--json", "as_json", is_flag=True, help="Plain values instead of tables.")
by_whom = click.option("--by", default=getpass.getuser, help="Who asks; goes on the record.")
lasting = click.option("--ttl", type=DURATION, default=0, help="Ends by itself, e.g. 30m.")
releasing = click.option("--release", is_flag=True, help="Takes an earlier one back.")
one_vm = click.argument("vm", shell_complete=_complete_vm)


@click.command()
@as_json
@click.pass_obj
def status(controller: str | None, as_json: bool) -> None:
    """How the controller and its parts are."""
    from shared.pb import admin_pb2 as pb

    _ask(controller, "GetStatus", pb.StatusRequest(), as_json=as_json, show="show_status")


@click.command()
@as_json
@click.pass_obj
def nodes(controller: str | None, as_json: bool) -> None:
    """Machines with an agent: what they have and give, and what it sees inside."""
    from shared.pb import admin_pb2 as pb

    _ask(
        controller,
        "ListNodes",
        pb.NodesRequest(),
        as_json=as_json,
        show="show_nodes",
        field="nodes",
    )


@click.command()
@click.option("--node", default="", help="Only the VMs of this node (its id).")
@click.option("--forecast", is_flag=True, help="How forecasts are made, and how good they were.")
@as_json
@click.pass_obj
def vms(controller: str | None, node: str, forecast: bool, as_json: bool) -> None:
    """VMs with their use, forecast, grant and bounds."""
    from shared.pb import admin_pb2 as pb

    _ask(
        controller,
        "ListVms",
        pb.VmsRequest(node_id=node),
        as_json=as_json,
        show="show_forecasts" if forecast else "show_vms",
        field="vms",
    )


@click.command()
@click.argument("plan_id", default="")
@as_json
@click.pass_obj
def plan(controller: str | None, plan_id: str, as_json: bool) -> None:
    """The last plan (or PLAN_ID) with its steps, why, and what came of them."""
    from controller.ctl_client import Complaint, connected
    from controller.ctl_show import plain, show_json, show_plan
    from shared.pb import admin_pb2 as pb

    with connected(controller) as client:
        reply = client.call(client.stub.GetPlan, pb.PlanRequest(plan_id=plan_id))
    if not reply.found and plan_id:
        raise Complaint(
            f"no plan {plan_id!r} is kept; `hrapaq audit --kind intent` shows older ones"
        )
    if as_json:
        show_json(plain(reply))
    elif reply.found:
        show_plan(reply)
    else:
        click.echo("no plan has been made yet")


@click.command()
@one_vm
@as_json
@click.pass_obj
def explain(controller: str | None, vm: str, as_json: bool) -> None:
    """Why VM has what it has: every option with its worth and what forbids it."""
    from controller.ctl_client import Complaint, connected
    from controller.ctl_show import plain, show_explanation, show_json
    from shared.pb import admin_pb2 as pb

    with connected(controller) as client:
        vm_id = client.vm_id(vm)
        reply = client.call(client.stub.Explain, pb.ExplainRequest(vm=vm_id))
    if not reply.found:
        raise Complaint(f"VM {vm!r} has not been in a decision yet; wait for the next cycle")
    if as_json:
        show_json(plain(reply))
    else:
        show_explanation(reply)


@click.command()
@click.argument("plan_id")
@by_whom
@as_json
@click.pass_obj
def approve(controller: str | None, plan_id: str, by: str, as_json: bool) -> None:
    """Lets a plan that waits for approval go ahead."""
    from shared.pb import admin_pb2 as pb

    _change(controller, "Approve", as_json, lambda _: pb.ApproveRequest(plan_id=plan_id, by=by))


@click.command()
@click.argument("plan_id")
@click.option("--why", default="", help="Goes on the record.")
@by_whom
@as_json
@click.pass_obj
def reject(controller: str | None, plan_id: str, why: str, by: str, as_json: bool) -> None:
    """Turns down a plan that waits for approval."""
    from shared.pb import admin_pb2 as pb

    request = pb.RejectRequest(plan_id=plan_id, by=by, why=why)
    _change(controller, "Reject", as_json, lambda _: request)


@click.command()
@one_vm
@click.argument("resource", type=click.Choice(["cpu", "memory", "io", "net"]))
@click.argument("amount", required=False)
@lasting
@releasing
@by_whom
@as_json
@click.pass_obj
def pin(
    controller: str | None,
    *,
    vm: str,
    resource: str,
    amount: str | None,
    ttl: int,
    release: bool,
    by: str,
    as_json: bool,
) -> None:
    """Keeps RESOURCE of VM at AMOUNT (1.5 cores, 256MiB, 4MiB/s) or at what it has now.

    For net, AMOUNT is the most that passes each way; it holds while a controller is there.
    """
    from shared.pb import admin_pb2 as pb

    try:
        wanted = None if amount is None else _parsed(resource, amount)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    def request(client: "Client") -> "pb.PinRequest":
        return pb.PinRequest(
            vm=client.vm_id(vm),
            resource=resource,
            amount=wanted,
            ttl_seconds=ttl,
            release=release,
            by=by,
        )

    _change(controller, "Pin", as_json, request)


def _parsed(resource: str, amount: str) -> int:
    if resource == "net":
        return parse_rate(amount)
    return parse_amount(resource_of(resource), amount)


@click.command()
@one_vm
@lasting
@releasing
@by_whom
@as_json
@click.pass_obj
def freeze(
    controller: str | None, *, vm: str, ttl: int, release: bool, by: str, as_json: bool
) -> None:
    """Nothing of VM moves until it is released."""
    from shared.pb import admin_pb2 as pb

    def request(client: "Client") -> "pb.FreezeRequest":
        return pb.FreezeRequest(vm=client.vm_id(vm), ttl_seconds=ttl, release=release, by=by)

    _change(controller, "Freeze", as_json, request)


@click.command()
@click.argument("target", shell_complete=_complete_vm)
@click.argument("mode", type=click.Choice(MODES))
@by_whom
@as_json
@click.pass_obj
def mode(controller: str | None, target: str, mode: str, by: str, as_json: bool) -> None:
    """What may happen to TARGET: `fleet`, a node or a VM."""
    from shared.pb import admin_pb2 as pb

    def request(client: "Client") -> "pb.ModeRequest":
        return pb.ModeRequest(target=client.target(target), mode=mode, by=by)

    _change(controller, "SetMode", as_json, request)


def _ask(
    controller: str | None,
    method: str,
    request: "Message",
    *,
    as_json: bool,
    show: str,
    field: str = "",
) -> None:
    """One call; its reply (or the rows in `field`) to ctl_show's function `show`."""
    from controller import ctl_show
    from controller.ctl_client import connected

    with connected(controller) as client:
        reply = client.call(getattr(client.stub, method), request)
    if as_json:
        ctl_show.show_json(ctl_show.plain(reply))
    else:
        getattr(ctl_show, show)(getattr(reply, field) if field else reply)


def _change(
    controller: str | None, method: str, as_json: bool, request: Callable[["Client"], "Message"]
) -> None:
    """One change; refused is exit code 1 with the controller's reason."""
    from controller.ctl_client import Complaint, connected
    from controller.ctl_show import plain, show_json

    with connected(controller) as client:
        changed = client.call(getattr(client.stub, method), request(client))
    if as_json:
        show_json(plain(changed))
    elif changed.done:
        click.echo(changed.detail or "done")
    if not changed.done:
        raise Complaint(changed.detail or "the controller refused, without a reason")


COMMANDS = (status, nodes, vms, plan, explain, approve, reject, pin, freeze, mode)
