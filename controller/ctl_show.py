"""Replies of the admin service as tables for people and as plain values for --json."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from rich.markup import escape

from controller.ctl_inside import print_inside, print_insides, print_waits
from controller.ctl_tables import console, print_table, table_of
from shared.pb import admin_pb2 as pb
from shared.resources import Resource, amount_text, resource_of

_MEANING = (
    'skill: 1 perfect, 0 no better than "as now" or at rest, below 0 worse\n'
    "under p95: share of outcomes at or below p95, which should be 95 %; ?: too early"
)
NET = "net"  # bytes/s like I/O, and no resource that is planned
NOVEL = 1.0  # novelty above it: unlike what the network was taught
WIDE_COLUMNS = 122  # what the table of VMs needs
AMOUNTS = (">use", ">p50", ">p95", ">grant")
STATE_STYLE = {
    "steady": "green",
    "growing": "cyan",
    "shrinking": "yellow",
    "stale": "red",
    "clone": "red bold",
}


def show_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=False))


def plain(message: Message) -> dict[str, object]:
    """All fields under their own names, integers as integers; an absent optional is null."""
    return {
        field.name: _plain_field(message, cast("FieldDescriptor", field))
        for field in message.DESCRIPTOR.fields
    }


def _plain_field(message: Message, field: FieldDescriptor) -> object:
    value = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [plain(item) if field.message_type else item for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return plain(value) if field.message_type else value


def show_status(status: pb.Status) -> None:
    out = console()
    out.print(
        f"[bold]HRA-PAQ {escape(status.version)}[/]  epoch {status.epoch}, cycle {status.cycles}"
        f" every {status.cycle_interval_ms / 1000:g} s, the last took {status.last_cycle_ms} ms"
    )
    for part in status.parts:
        mark = "[green]well[/]" if part.healthy else "[red bold]ILL[/]"
        out.print(f"  {mark}  {escape(part.name)}: {escape(part.detail)}")
    out.print(
        f"telemetry {status.telemetry_messages} messages, dropped: {counts(status.dropped)}\n"
        f"plans     {status.plans_verified} verified, rejected: {counts(status.rejections)}\n"
        f"commands  {status.commands_sent} sent, {status.commands_acknowledged} acknowledged, "
        f"{status.steps_applied} steps with their effect measured, "
        f"{status.agents_connected} agents connected\n"
        f"latency   {status.latency_sample_to_command_ms} ms from sample to the last command"
    )


def show_nodes(nodes: Sequence[pb.NodeRow]) -> None:
    """What nodes have and give, and below it what their agents see inside."""
    table = table_of(
        "node",
        "role",
        "agent",
        "age",
        ">cpu use / for VMs",
        ">memory use / for VMs",
        ">VMs",
        "levers",
    )
    for node in nodes:
        by_word = {amounts.resource: amounts for amounts in node.resources}
        table.add_row(
            escape(node.name),
            node.role,
            _agent_text(node),
            age_text(node.age_ms),
            use_of_capacity(by_word.get("cpu")),
            use_of_capacity(by_word.get("memory")),
            str(node.vms),
            escape(levers_text(node.levers)) if node.role != "guest" else "",
        )
    print_table(table, "no node has reported yet")
    print_insides(nodes)


def _agent_text(node: pb.NodeRow) -> str:
    if node.clone:
        return "[red bold]clone[/]"
    if node.role == "guest":  # it takes no commands, so it has no stream to be gone
        return "[green]reports[/]"
    return "[green]connected[/]" if node.connected else "[red]gone[/]"


def show_vms(vms: Sequence[pb.VmRow]) -> None:
    wide = console().width >= WIDE_COLUMNS
    headers = ("VM", "mode", "state", "resource", *AMOUNTS, ">bounds")
    table = table_of(*headers) if wide else table_of("VM", *AMOUNTS)
    for vm in vms:
        name = escape(vm.name) + (" [magenta](simulated)[/]" if vm.simulated else "")
        about = (name, vm.mode, state_text(vm.state))
        amounts = list(vm.resources) or [pb.Amounts(resource="?")]
        if vm.HasField("net"):
            amounts.append(vm.net)
        for row in _wide_rows(about, amounts) if wide else _narrow_rows(about, amounts):
            table.add_row(*row)
        table.add_section()
    print_table(table, "no VM is known")
    print_waits(vms)
    if not wide and table.row_count:
        console().print(f"[dim]mode and bounds: at {WIDE_COLUMNS} columns, or with --json[/]")


def show_forecasts(vms: Sequence[pb.VmRow]) -> None:
    """What is expected of each series, how old that is, and how good it was so far."""
    wide = console().width >= WIDE_COLUMNS
    judged = (">skill", ">under p95", "method")
    wide_headers = ("VM", "resource", *AMOUNTS[:3], ">age", *judged)
    table = table_of(*(wide_headers if wide else ("VM", *AMOUNTS[1:3], *judged)))
    for vm in vms:
        name, age = escape(vm.name), age_text(vm.forecast_age_ms)
        if not wide:
            table.add_row(name, "", "", "", "", f"[dim]{age} old[/]")
        for place, amounts in enumerate(vm.resources or [pb.Amounts(resource="?")]):
            use, *said = _amount_cells(amounts)[:3]
            first = [name if place == 0 else "", amounts.resource, use, *said, age]
            cells = first if wide else [f"  {amounts.resource}", *said]
            table.add_row(*cells, *_judged_cells(amounts))
        table.add_section()
    print_table(table, "no VM is known")
    _print_reasons(vms)


def _judged_cells(amounts: pb.Amounts) -> list[str]:
    if not amounts.forecast_method:
        return ["", "", "[dim]none yet[/]"]
    skill = f"{amounts.forecast_skill:+.2f}" if amounts.HasField("forecast_skill") else "?"
    skill += "*" if amounts.forecast_novelty > NOVEL else " "  # figures stay below each other
    known = amounts.HasField("forecast_coverage")
    share = f"{amounts.forecast_coverage:.1%}" if known else "?"
    method = escape(amounts.forecast_method.partition(" (")[0])
    return [skill, f"{share} of {amounts.forecast_outcomes}", method]


def _print_reasons(vms: Sequence[pb.VmRow]) -> None:
    """What the columns mean, and why a method is not what it could be."""
    methods = {amounts.forecast_method for vm in vms for amounts in vm.resources}
    for method in sorted(each for each in methods if " (" in each):
        console().print(f"[dim]{escape(method)}[/]")
    if methods - {""}:
        console().print(f"[dim]{_MEANING}[/]")
    if any(amounts.forecast_novelty > NOVEL for vm in vms for amounts in vm.resources):
        console().print("[dim]*: unlike what the network was taught, see `hrapaq explain`[/]")


def _wide_rows(about: tuple[str, ...], resources: Sequence[pb.Amounts]) -> Iterator[list[str]]:
    for place, amounts in enumerate(resources):
        bounds = f"{amount(amounts, 'floor')} .. {amount(amounts, 'ceiling')}"
        bounds = "" if amounts.resource == NET else bounds
        first = about if place == 0 else ("",) * len(about)
        yield [*first, amounts.resource, *_amount_cells(amounts), bounds]


def _narrow_rows(about: tuple[str, ...], resources: Sequence[pb.Amounts]) -> Iterator[list[str]]:
    """Without mode and bounds, the resources below the name."""
    name, _mode, state = about
    yield [f"{name}  {state}"]
    for amounts in resources:
        yield [f"  {amounts.resource}", *_amount_cells(amounts)]


def _amount_cells(amounts: pb.Amounts) -> list[str]:
    fields = ("used", "forecast_p50", "forecast_p95", "limit")
    if amounts.resource == NET:  # nothing of it is forecast, and most have no limit
        limit = amount(amounts, "limit") if amounts.HasField("limit") else "no limit"
        return [amount(amounts, "used"), "", "", limit]
    return [amount(amounts, field) for field in fields]


def show_plan(plan: pb.PlanReply) -> None:
    out = console()
    out.print(f"[bold]plan {escape(plan.plan_id)}[/] of cycle {plan.cycle}: {escape(plan.verdict)}")
    for broken in plan.rejections:
        out.print(
            f"  [red]{broken.invariant}[/] at {escape(broken.node_id)}: {escape(broken.detail)}"
        )
    if not plan.steps:
        return
    table = table_of(">#", ">phase", "VM", "resource", ">from", ">to", "why", "outcome")
    for step in plan.steps:
        table.add_row(
            str(step.index),
            str(step.phase),
            escape(step.vm_name or step.vm_id),
            step.resource,
            amount_of(step.resource, step.from_amount),
            amount_of(step.resource, step.to_amount),
            escape(step.why),
            escape(step.outcome) or "[dim]not yet[/]",
        )
    out.print(table)


def show_explanation(explanation: pb.Explanation) -> None:
    show_vms([explanation.vm])
    show_forecasts([explanation.vm])
    if explanation.HasField("inside"):
        print_inside(explanation.vm.name, explanation.inside)
    for resource in explanation.resources:
        word = resource.resource
        out = console()
        out.print(f"\n[bold]{word}[/]: {escape(resource.why)}")
        if resource.HasField("price_micro"):
            out.print(f"shadow price of a quantum at its host: {resource.price_micro / 1e6:.3f}")
        if resource.forecast_mattered:
            out.print(escape(resource.forecast_mattered))
        if resource.forecast_unlike:
            out.print(escape(resource.forecast_unlike))
        table = table_of(">level", ">worth", ">less its price", ">enough with", "")
        for option in resource.options:
            chosen = "[bold green]chosen[/]" if option.level == resource.chosen else ""
            table.add_row(
                amount_of(word, option.level),
                str(option.value),
                str(option.net_value) if option.HasField("net_value") else "-",
                f"{option.probability_enough:.1%}",
                chosen or ("" if option.allowed else "[dim]not allowed[/]"),
            )
        if resource.options:
            out.print(table)


def counts(by_name: Mapping[str, int]) -> str:
    """`none`, or each with its number."""
    return ", ".join(f"{name} {n}" for name, n in sorted(by_name.items()) if n) or "none"


def amount(amounts: pb.Amounts, field: str) -> str:
    """One optional amount as a person reads it; `?` where it is unknown."""
    if not amounts.HasField(field):
        return "?"
    return amount_of(amounts.resource, getattr(amounts, field))


def amount_of(word: str, value: int) -> str:
    try:
        resource = Resource.IO if word == NET else resource_of(word)
    except ValueError:
        return str(value)  # a newer controller knows more resources than we do
    if resource is not Resource.CPU and value < 0:
        return "?"
    return amount_text(resource, value)


def use_of_capacity(amounts: pb.Amounts | None) -> str:
    if amounts is None:
        return "?"
    return f"{amount(amounts, 'used')} / {amount(amounts, 'capacity')}"


def levers_text(why_not: Mapping[str, str]) -> str:
    """`memory; not cpu, io (why)`: words with one reason are named together, none is `all`."""
    missing = [word for word, why in sorted(why_not.items()) if why]
    if not missing:
        return "all"
    there = [word for word, why in sorted(why_not.items()) if not why] or ["none"]
    reasons = dict.fromkeys(why_not[word] for word in missing)
    groups = (
        f"not {', '.join(word for word in missing if why_not[word] == why)} ({why})"
        for why in reasons
    )
    return "; ".join((", ".join(there), *groups))


def age_text(age_ms: int) -> str:
    return f"{age_ms / 1000:.0f} s"


def state_text(state: str) -> str:
    style = STATE_STYLE.get(state.split(":", maxsplit=1)[0], "magenta")
    return f"[{style}]{escape(state)}[/]"
