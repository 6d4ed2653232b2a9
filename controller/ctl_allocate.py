# ruff: noqa: PLC0415 - a command imports what it needs, so that --help and completion stay quick
"""`hrapaq allocate`: solves a problem from a file, with the solver that plans for real machines."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from controller.core.allocate.coupled_forest import CoupledForest, CoupledForestSolution
    from controller.core.allocate.instance import CoupledInstance, Instance
    from controller.core.allocate.problem import Forest, ForestSolution
    from controller.core.allocate.whatif import Explanation, OneMore

EXIT_INFEASIBLE = 3
INDENT_MAX = 12  # levels of nesting that a table still shows


@click.command()
@click.option("--instance", "source", required=True, metavar="FILE", help="JSON; - reads stdin.")
@click.option("--json", "target", metavar="OUT", help="Writes the answer there; - to stdout.")
@click.option("--explain", "asked", metavar="NODE", help="Why it takes what it takes.")
@click.option(
    "--budget",
    type=click.IntRange(1, 1 << 60),
    metavar="N",
    help="Cap on the solver's work per host, in cells times options (where capacities are lists: "
    "in partial choices): the best found, and a bound on what is better.",
)
def allocate(source: str, *, target: str | None, asked: str | None, budget: int | None) -> None:
    """Finds the best levels for a tree of machines in FILE; asks no controller.

    Exit code 3 when no choice of levels fits: the answer then names the fewest machines that must
    take less than they can. The form of FILE: README, "What if".
    """
    from controller.core.allocate.problem import ProblemError

    instance = _read(source)
    node = None if asked is None else _node(instance, asked)
    try:
        solution, told, explanation = _solved(instance, node, budget)
    except ProblemError as error:  # numbers that are too large only together
        raise click.BadParameter(f"{source}: {error}", param_hint="--instance") from error
    if target is None:
        _show(instance, solution, told)
        if explanation is not None:
            _show_explanation(explanation)
    else:
        _write(told, explanation, target)
    if told["status"] == "infeasible":
        sys.exit(EXIT_INFEASIBLE)


def _solved(
    instance: "Instance | CoupledInstance", node: int | None, budget: int | None
) -> "tuple[ForestSolution | CoupledForestSolution, dict[str, object], Explanation | None]":
    """Solution, answer, and why `node` takes what it takes."""
    from controller.core.allocate import coupled, solve
    from controller.core.allocate.answer import answer
    from controller.core.allocate.coupled_answer import answer_coupled
    from controller.core.allocate.coupled_forest import solve_coupled_forest
    from controller.core.allocate.coupled_whatif import explain_coupled
    from controller.core.allocate.instance import CoupledInstance
    from controller.core.allocate.tree import solve_tree
    from controller.core.allocate.whatif import explain

    def joint(forest: "CoupledForest") -> "CoupledForestSolution":
        return solve_coupled_forest(forest, budget=budget or coupled.BUDGET)

    def single(forest: "Forest") -> "ForestSolution":
        return solve_tree(forest, budget=budget or solve.BUDGET)

    if isinstance(instance, CoupledInstance):
        chosen = joint(instance.forest)
        explained = None if node is None else explain_coupled(instance, node, joint)
        return chosen, answer_coupled(instance, chosen), explained
    solution = single(instance.forest)
    explanation = None if node is None else explain(instance, node, single)
    return solution, answer(instance, solution), explanation


def _read(source: str) -> "Instance | CoupledInstance":
    """The instance; a usage error with what is wrong where."""
    from controller.core.allocate.instance import FILE_BYTES_MAX, parse
    from controller.core.allocate.problem import ProblemError

    try:
        if source == "-":
            data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        return parse(data)
    except OSError as error:
        wrong = f"{source}: cannot be read: {error.strerror}"
        raise click.BadParameter(wrong, param_hint="--instance") from error
    except ProblemError as error:
        raise click.BadParameter(f"{source}: {error}", param_hint="--instance") from error


def _node(instance: "Instance | CoupledInstance", asked: str) -> int:
    """Its place; a usage error with the closest name, or for a root."""
    from difflib import get_close_matches

    if asked not in instance.ids:
        near = get_close_matches(asked, instance.ids[:5000], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise click.BadParameter(f"no node is called {asked!r}{hint}", param_hint="--explain")
    place = instance.ids.index(asked)
    if instance.forest.parent[place] < 0:
        wrong = f"{asked!r} is a root and takes no option; name one below it"
        raise click.BadParameter(wrong, param_hint="--explain")
    return place


def _write(told: dict[str, object], explanation: "Explanation | None", target: str) -> None:
    import json
    from dataclasses import asdict

    from controller.ctl_client import Complaint

    if explanation is not None:
        told = {**told, "explain": asdict(explanation)}
    text = json.dumps(told, indent=2) + "\n"
    if target == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Complaint(f"{target}: cannot be written: {error.strerror}", exit_code=2) from error


def _show(
    instance: "Instance | CoupledInstance",
    solution: "ForestSolution | CoupledForestSolution",
    told: "Mapping[str, object]",
) -> None:
    """The answer as a table of nodes, children below their parents."""
    from rich.markup import escape

    from controller.ctl_tables import console

    out = console()
    status = str(told["status"])
    style = {"optimal": "green", "budget": "yellow"}.get(status, "red bold")
    worth = f", worth {told['value']}" if told["value"] is not None else ""
    bound = f", at most {told['bound']} is possible" if status == "budget" else ""
    out.print(f"[{style}]{status}[/]{worth}{bound}")
    for name, tree in _objects(told["trees"]).items():
        if "why" in _objects(tree):
            out.print(f"  [red]{escape(name)}[/]: {escape(str(_objects(tree)['why']))}")
    shown = _table("node", ">level", ">worth", ">shadow price")
    levels, prices = _objects(told["levels"]), _objects(told["prices"])
    own = _own_values(instance, solution)
    for place, depth in _from_top(instance):
        name = instance.ids[place]
        shown.add_row(
            "  " * min(depth, INDENT_MAX) + escape(name),
            _amounts(levels.get(name)),
            own.get(name, ""),
            _amounts(prices.get(name)),
        )
    out.print(shown)


def _table(*headers: str) -> "Table":
    """Columns named with a leading `>` stand at the right; nothing is cut off."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        right = header.startswith(">")
        table.add_column(header.lstrip(">"), justify="right" if right else "left", no_wrap=right)
    return table


def _objects(value: object) -> "dict[str, object]":
    assert isinstance(value, dict)
    return value


def _amounts(value: object) -> str:
    """A level or a price, or those of each resource."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_amounts, value))
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _own_values(
    instance: "Instance | CoupledInstance", solution: "ForestSolution | CoupledForestSolution"
) -> dict[str, str]:
    forest, option = instance.forest, solution.option.tolist()
    return {
        name: str(int(forest.value[forest.first[place] + option[place]]))
        for place, name in enumerate(instance.ids)
        if option[place] >= 0
    }


def _from_top(instance: "Instance | CoupledInstance") -> list[tuple[int, int]]:
    """Places in the order of reading with their depth."""
    below: dict[int, list[int]] = {}
    for place, parent in enumerate(instance.forest.parent.tolist()):
        below.setdefault(parent, []).append(place)
    ahead = [(place, 0) for place in reversed(below[-1])]
    order = []
    while ahead:
        place, depth = ahead.pop()
        order.append((place, depth))
        ahead += [(child, depth + 1) for child in reversed(below.get(place, []))]
    return order


def _show_explanation(explanation: "Explanation") -> None:
    from rich.markup import escape

    from controller.ctl_tables import console

    out = console()
    out.print(f"\n[bold]{escape(explanation.id)}[/]: {escape(explanation.why)}")
    for more in explanation.one_more_quantum:
        resource = getattr(more, "resource", None)
        what = "quantum" if resource is None else f"quantum of resource {resource}"
        out.print(f"one more {what} at {escape(more.id)} {_effect(more)}")
    shown = _table(">level", ">worth", ">whole tree", ">loss", "")
    for option in explanation.options:
        word = "[bold green]chosen[/]" if option.chosen else ""
        if option.total is None:
            unknown = option.status == "budget"
            word = "none found" if unknown else "[dim]does not fit[/]"
        elif option.level == explanation.runner_up:
            word = "runner-up"
        if option.status == "budget" and option.total is not None:
            word += " [yellow](best found)[/]"
        numbers = (option.level, option.value, option.total, option.loss)
        shown.add_row(*map(_amounts, numbers), word)
    out.print(shown)


def _effect(more: "OneMore") -> str:
    if more.fits is None:
        return "may be enough or not: nothing was found within the budget"
    if more.worth is None:
        return "would make all fit" if more.fits else "would not be enough"
    price = "" if more.price is None else f" (shadow price {more.price:.3f})"
    return f"is worth {more.worth}{price}"
