"""Draws a View: 120 columns by 40 lines show all, 80 by 24 the main things. Pure."""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from controller.up.view import Ground, PartHealth, View
from shared.pb import admin_pb2 as pb
from shared.resources import MIB, Resource, amount_text, resource_of

WIDE = 110  # columns from which forecasts of CPU and I/O, and health at the side, have room
STATE_STYLE = {"steady": "green", "growing": "cyan", "shrinking": "yellow", "stale": "red"}
HYPERVISOR = {
    "kvm": "real guests on KVM",
    "tcg": "real guests, emulated (TCG)",
    "simulated": "SIMULATED guests",
    "none": "no demo guests",
}
Justify = Literal["left", "right"]


def render(view: View, now_tick_s: float, width: int, height: int) -> Layout:
    """The whole screen; `now_tick_s` on the clock of `view.started_tick_s`."""
    layout = Layout()
    machines = 1 + len(view.nodes) + len(view.vms)
    tree_lines = min(machines, max(6, height // 3)) + 2
    rest = height - 4 - tree_lines
    plan_lines = max(5, min(rest // 2, _plan_lines(view)))
    layout.split_column(
        Layout(_header(view, now_tick_s, width), size=4),
        Layout(_tree(view, width, tree_lines - 2), size=tree_lines),
        Layout(_plan(view, width, plan_lines - 2), size=plan_lines),
        Layout(_bottom(view, width, rest - plan_lines - 2)),
    )
    return layout


# --- header --------------------------------------------------------------------------------------


def _header(view: View, now_tick_s: float, width: int) -> RenderableType:
    ground = view.ground
    left = Text.from_markup(f"[bold]HRA-PAQ {ground.version if ground else ''}[/]  ")
    if ground is None:
        left.append(view.stage)
        return Group(left, Text("Ctrl-C stops everything", style="dim"))
    real = ground.hypervisor in {"kvm", "tcg"}
    left.append(
        f" {HYPERVISOR[ground.hypervisor]} ", "black on green" if real else "black on magenta"
    )
    left.append(f"  {clock(now_tick_s - view.started_tick_s)}")
    if view.ends_tick_s is not None:
        left.append(f", ends in {clock(view.ends_tick_s - now_tick_s)}", "dim")
    left.append(f"  {_progress(view)}")
    lines = [left, _labelled("why", ground.hypervisor_why), _labelled("real", _reality(ground))]
    lines.append(_labelled("files", f"{ground.state_directory} · Ctrl-C stops everything"))
    return Group(*(_cut(line, width) for line in lines))


def _progress(view: View) -> str:
    status = view.status
    if view.controller_silent:
        return f"controller: {view.controller_silent}"
    if status is None:
        return view.stage
    return (
        f"cycle {status.cycles} · {status.plans_verified} plans · "
        f"{status.steps_applied} steps · {view.moved_bytes / MIB:.0f} MiB moved"
    )


def _reality(ground: Ground) -> str:
    return f"{ground.real}; simulated: {ground.simulated or 'nothing'}"


def _labelled(label: str, text: str) -> Text:
    return Text.assemble((f"{label:>5} ", "dim"), text)


def _cut(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def clock(seconds: float) -> str:
    """`4:05`, or `1:04:05`; never negative."""
    whole = max(0, int(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- machines ------------------------------------------------------------------------------------


def _tree(view: View, width: int, lines: int) -> RenderableType:
    wide = width >= WIDE
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    _column(table, "host / VM", ratio=1, min_width=18 if wide else 12)
    _column(table, "state", ratio=1, min_width=16 if wide else 10)
    _column(table, "cpu p50/p95" if wide else "cpu", "right")
    _column(table, "grant", "right")
    _column(table, "memory", min_width=14 if wide else 10)
    _column(table, "use p50/p95" if wide else "use", "right")
    _column(table, "grant", "right")
    _column(table, "disk p95" if wide else "disk", "right")
    rows = [row for node in view.nodes for row in _node_rows(view, node, wide=wide)]
    shown = rows if len(rows) < lines else rows[: lines - 2]
    for row in shown:
        table.add_row(*row)
    if len(shown) < len(rows):
        table.add_row(f"[dim]… {len(rows) - len(shown)} more[/]")
    if not rows:
        table.add_row(f"[dim]{escape(view.stage)}[/]")
    return _panel(table, "machines · memory: █ in use  ░ granted  ▏p95 of the forecast")


def _column(
    table: Table,
    title: str,
    justify: Justify = "left",
    *,
    ratio: int | None = None,
    min_width: int | None = None,
) -> None:
    table.add_column(
        title, justify=justify, ratio=ratio, min_width=min_width, no_wrap=True, overflow="ellipsis"
    )


def _node_rows(view: View, node: pb.NodeRow, *, wide: bool) -> list[list[RenderableType]]:
    vms = sorted((vm for vm in view.vms if vm.node_id == node.node_id), key=_rank)
    by_word = {amounts.resource: amounts for amounts in node.resources}
    state = f"connected, {node.age_ms / 1000:.0f} s" if node.connected else "[red]not connected[/]"
    if missing := [word for word, why in sorted(node.levers.items()) if why]:
        state += f" [yellow]no {', '.join(missing)} lever[/]"
    host = [f"[bold]{escape(node.name)}[/] [dim]{node.role}[/]", state]
    by_word["memory"] = _together(by_word.get("memory"), vms)
    rows = [[*host, *_cells(by_word, wide=wide, host=True)]]
    for place, vm in enumerate(vms):
        branch = "└ " if place == len(vms) - 1 else "├ "
        mark = "[magenta]~[/]" if vm.simulated else ""
        by_word = {amounts.resource: amounts for amounts in vm.resources}
        name = f"[dim]{branch}[/]{escape(_short_name(vm.name))}{mark}"
        rows.append([name, _state(vm), *_cells(by_word, wide=wide, host=False)])
    return rows


def _together(of_node: pb.Amounts | None, vms: Sequence[pb.VmRow]) -> pb.Amounts:
    """A host's memory as its VMs share it: the sums of their use and grants, of what it gives."""
    memory = [one for vm in vms for one in vm.resources if one.resource == "memory"]
    together = pb.Amounts(
        resource="memory",
        used=sum(one.used for one in memory if one.HasField("used")),
        limit=sum(one.limit for one in memory if one.HasField("limit")),
    )
    if of_node is not None and of_node.HasField("capacity"):
        together.ceiling = of_node.capacity
    return together


def _short_name(name: str) -> str:
    return name.removeprefix("hrapaq-")


def _rank(vm: pb.VmRow) -> tuple[bool, str]:
    """What may move first, then by name."""
    return vm.mode != "enforce", vm.name


def _state(vm: pb.VmRow) -> str:
    style = STATE_STYLE.get(vm.state.partition(":")[0], "magenta")
    mode = "" if vm.mode in {"enforce", vm.state} else f"[dim]{vm.mode}[/] "
    return f"{mode}[{style}]{escape(vm.state)}[/]"


def _cells(by_word: dict[str, pb.Amounts], *, wide: bool, host: bool) -> list[RenderableType]:
    none = pb.Amounts()
    cpu, memory, io = (by_word.get(word, none) for word in ("cpu", "memory", "io"))
    return [
        _use(cpu, Resource.CPU, wide=wide and not host),
        _grant(cpu, Resource.CPU, "capacity" if host else "limit"),
        _bar(memory, 14 if wide else 10),
        _host_use(memory) if host and wide else _use(memory, Resource.MEMORY, wide=wide),
        _grant(memory, Resource.MEMORY, "limit"),
        _io_use(io, wide=wide and not host),
    ]


def _use(amounts: pb.Amounts, resource: Resource, *, wide: bool) -> str:
    use = _short(amounts, "used", resource)
    if not wide:
        return use
    p50, p95 = (_short(amounts, f"forecast_p{p}", resource) for p in (50, 95))
    return f"{use} [dim]{p50}/{p95}[/]"


def _host_use(memory: pb.Amounts) -> str:
    use, whole = (_short(memory, field, Resource.MEMORY) for field in ("used", "ceiling"))
    return f"{use} [dim]of {whole}[/]"


def _io_use(amounts: pb.Amounts, *, wide: bool) -> str:
    use = _short(amounts, "used", Resource.IO)
    return f"{use} [dim]{_short(amounts, 'forecast_p95', Resource.IO)}[/]" if wide else use


def _grant(amounts: pb.Amounts, resource: Resource, field: str) -> str:
    if not amounts.HasField(field):
        return "[dim]-[/]"  # no limit in force
    text = _short(amounts, field, resource)
    planned = amounts.HasField("planned") and amounts.planned != getattr(amounts, field)
    return f"[bold]{text}[/]" + (
        f"[cyan]→{_short(amounts, 'planned', resource)}[/]" if planned else ""
    )


def _short(amounts: pb.Amounts, field: str, resource: Resource) -> str:
    """Without the unit's long name: columns are narrow and their titles say it."""
    if not amounts.HasField(field):
        return "?"
    text = amount_text(resource, int(getattr(amounts, field)))
    return (
        text.replace(" cores", "")
        .replace(" MiB/s", "M/s")
        .replace(" MiB", "M")
        .replace(" GiB", "G")
    )


def _bar(amounts: pb.Amounts, width: int) -> Text:
    """Use, 95th percentile of the forecast and grant, against what the machine can have at most."""
    grant = int(amounts.limit) if amounts.HasField("limit") else 0
    whole = max(grant, int(amounts.ceiling) if amounts.HasField("ceiling") else 0)
    if whole <= 0:
        return Text("?" * 3, "dim")
    used = round(width * min(1.0, amounts.used / whole)) if amounts.HasField("used") else 0
    granted = max(used, round(width * grant / whole))
    bar = Text.assemble(
        ("█" * used, "green"), ("░" * (granted - used), "cyan"), ("·" * (width - granted), "dim")
    )
    if amounts.HasField("forecast_p95"):
        place = min(width - 1, round(width * amounts.forecast_p95 / whole))
        cells = bar.plain
        bar.plain = cells[:place] + "▏" + cells[place + 1 :]
    return bar


# --- plan ----------------------------------------------------------------------------------------


def _plan_lines(view: View) -> int:
    plan = view.plan
    return 5 if plan is None else 4 + len(plan.steps) + len(plan.rejections)


def _plan(view: View, width: int, lines: int) -> RenderableType:
    plan = view.plan
    if plan is None:
        return _panel(Text("no plan with steps yet", "dim"), "last plan")
    table = Table(box=None, expand=True, pad_edge=False, show_header=False)
    for ratio in (None, None, 3, None):
        _column(table, "", ratio=ratio)
    room = lines - len(plan.rejections)
    for step in plan.steps[: room if len(plan.steps) <= room else room - 1]:
        table.add_row(*_step(step))
    if len(plan.steps) > room:
        table.add_row(f"[dim]… {len(plan.steps) - room + 1} more[/]")
    broken = [
        Text(f"{broken.invariant}: {broken.detail}", "red", no_wrap=True, overflow="ellipsis")
        for broken in plan.rejections
    ]
    title = f"last plan: cycle {plan.cycle}, {escape(plan.verdict)}"
    return _panel(Group(*broken, table), title)


def _step(step: pb.PlanStep) -> Sequence[str]:
    arrow = "[cyan]▲[/]" if step.to_amount > step.from_amount else "[yellow]▼[/]"
    resource = resource_of(step.resource)
    amounts = f"{amount_text(resource, step.from_amount)} → {amount_text(resource, step.to_amount)}"
    outcome, _, detail = (step.outcome or "…").partition(": ")
    style = "green" if outcome in {"applied", "unchanged"} else "dim" if outcome == "…" else "red"
    vm = _short_name(step.vm_name or step.vm_id)
    name = f"{step.phase} {arrow} {escape(vm)} {step.resource}"
    # Why it did not come about says more than why it was wanted.
    why = detail if style == "red" and detail else step.why
    return (name, amounts, f"[dim]{escape(why)}[/]", f"[{style}]{escape(outcome)}[/]")


# --- audit and health ----------------------------------------------------------------------------


def _bottom(view: View, width: int, lines: int) -> RenderableType:
    notes = list(view.notes)[-max(1, lines) :]
    audit = Group(*(Text(note, no_wrap=True, overflow="ellipsis") for note in notes))
    if width < WIDE:
        ill = [part.name for part in view.parts if not part.healthy]
        return _panel(audit, "record" + (f" · ILL: {', '.join(ill)}" if ill else ""))
    both = Layout()
    both.split_row(
        Layout(_panel(audit, "record"), ratio=3),
        Layout(_panel(_health(view.parts), "parts"), ratio=2),
    )
    return both


def _health(parts: Sequence[PartHealth]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    _column(table, "")
    _column(table, "", ratio=1)
    for part in parts:
        mark = "[green]●[/]" if part.healthy else "[red bold]●[/]"
        table.add_row(f"{mark} {escape(part.name)}", f"[dim]{escape(part.detail)}[/]")
    return table


def _panel(content: RenderableType, title: str) -> Panel:
    return Panel(
        content,
        title=f"[dim]{title}[/]",
        title_align="left",
        box=box.ROUNDED,
        border_style="dim",
        padding=(0, 1),
    )
