"""Files whose capacities are lists: what is refused, and answers against trying every choice."""

import itertools
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from controller.core.allocate.coupled_answer import answer_coupled
from controller.core.allocate.coupled_forest import CoupledForest, solve_coupled_forest
from controller.core.allocate.coupled_whatif import explain_coupled
from controller.core.allocate.instance import CoupledInstance, Instance, to_instance
from controller.core.allocate.problem import LEVEL_MAX, VALUE_MAX, ProblemError, Status
from controller.ctl import cli


def options(*rows):
    return [{"level": level, "value": value} for *level, value in rows]


def document(*nodes):
    return {"version": 1, "nodes": list(nodes)}


HOST = {"id": "h0", "parent": None, "capacity": [12, 10], "overhead": 0}
WEB = {"id": "web", "parent": "h0", "options": options((2, 2, 10), (6, 2, 14), (4, 6, 40))}
DB = {"id": "db", "parent": "h0", "options": options((2, 4, 20), (2, 8, 44), (8, 4, 31))}
EMPTY = {"id": "h1", "capacity": [0, 0]}


def best_of(nodes, root, forced=None):
    """(value, choice) of the root's best choice of options, the first of equals; None: none fits.

    `forced`: (id, option) that is taken whatever it is worth.
    """
    capacity = next(node["capacity"] for node in nodes if node["id"] == root)
    below = [node for node in nodes if node.get("parent") == root]
    found = None
    for pick in itertools.product(*(range(len(node["options"])) for node in below)):
        chosen = [node["options"][place] for node, place in zip(below, pick, strict=True)]
        names = {node["id"]: place for node, place in zip(below, pick, strict=True)}
        if forced is not None and names.get(forced[0]) != forced[1]:
            continue
        sums = [sum(one["level"][r] for one in chosen) for r in range(len(capacity))]
        value = sum(one["value"] for one in chosen)
        fits = all(taken <= most for taken, most in zip(sums, capacity, strict=True))
        if fits and (found is None or value > found[0]):
            found = value, names
    return found


def drawn(seed):
    """A few hosts of two or three resources; some have nothing that fits, some repeat levels."""
    rng = np.random.default_rng(seed)
    resources, most = int(rng.integers(2, 4)), int(rng.integers(1, 9))
    nodes = []
    for host in range(int(rng.integers(1, 4))):
        vms = int(rng.integers(0, 5))
        capacity = rng.integers(0, most * vms + 1, resources).tolist()
        nodes.append({"id": f"h{host}", "capacity": capacity})
        for vm in range(vms):
            rows = rng.integers(0, most + 1, (int(rng.integers(1, 5)), resources)).tolist()
            rows = [(*row, int(rng.integers(-9, 60))) for row in rows]
            rows += rows[:1] * int(rng.integers(2))
            nodes.append({"id": f"v{host}.{vm}", "parent": f"h{host}", "options": options(*rows)})
    return [nodes[place] for place in rng.permutation(len(nodes))]


def test_lists_make_a_coupled_instance_and_integers_do_not():
    found = to_instance(document(DB, EMPTY, HOST, WEB))
    assert isinstance(found, CoupledInstance)
    assert found.ids == ("h1", "h0", "db", "web")
    assert found.forest.capacity[:, :2].tolist() == [[0, 12], [0, 10]]
    assert found.forest.level.tolist() == [[2, 2, 8, 2, 6, 4], [4, 8, 4, 2, 2, 6]]
    assert found.forest.first.tolist() == [0, 0, 0, 3, 6]
    assert isinstance(to_instance(document({"id": "h0", "capacity": 3})), Instance)


def vm(*rows, **changes):
    return {"id": "v1", "parent": "h0", "options": options(*rows), **changes}


FLAT = {"id": "v1", "parent": "h0", "options": [{"level": 8, "value": 1}]}
AS_H0 = "as the capacity of node 'h0' is one"
WRONG = [
    (FLAT, f"'v1', option 1: level is 8; a list of 2 integers is needed, {AS_H0}"),
    (vm((8, 1)), f"'v1', option 1: level is a list of 1; a list of 2 integers is needed, {AS_H0}"),
    (vm((1, 1, 5), (1, 2, 3, 4)), "'v1', option 2: level is a list of 3; a list of 2"),
    (vm((5,)), "'v1', option 1: level is a list without content; a list of 2"),
    (vm(options=[{"value": 3}]), "'v1', option 1: level is missing or null; a list of 2"),
    (vm((1, -2, 5)), "'v1', option 1: level of resource 2 is negative: -2"),
    (vm((1, 2.0, 5)), "'v1', option 1: level of resource 2 is 2.0; an integer is needed"),
    (vm((math.nan, 2, 5)), "'v1', option 1: level of resource 1 is NaN"),
    (vm((True, 2, 5)), "'v1', option 1: level of resource 1 is true"),
    (vm(("8", 2, 5)), "'v1', option 1: level of resource 1 is '8'"),
    (vm(([8], 2, 5)), "'v1', option 1: level of resource 1 is a list of 1"),
    (vm((LEVEL_MAX + 1, 2, 5)), "resource 1 is 2147483648; 0 to 2147483647"),
    (vm((1, 2, 1.5)), "'v1', option 1: value is 1.5"),
    (vm((1, 2, VALUE_MAX + 1)), "'v1', option 1: value is 1099511627777"),
    (vm((1, 2, [5])), "'v1', option 1: value is a list of 1; an integer"),
    (vm(*[(1, 2, 5)] * 257), "'v1': 257 options; at most 256"),
    (vm(), "'v1': no options; it must take one"),
    (vm((1, 2, 5), capacity=[1, 2]), "'v1': a capacity below 'h0'; only roots have one"),
    (vm((1, 2, 5), overhead=1), "'v1': overhead is 1; where capacities are lists there is none"),
    ({"id": "h1", "capacity": [1, 1], "overhead": 2}, "'h1': overhead is 2; .* off the capacity"),
    (vm((1, 2, 5), overhead=[0, 0]), "'v1': overhead is a list of 2; where capacities are lists"),
    (vm((1, 2, 5), parent="web"), "'v1': its parent 'web' is no root; where capacities are lists"),
    ({"id": "h1", "capacity": 7}, f"'h1': capacity is 7; a list of 2 integers is needed, {AS_H0}"),
    ({"id": "h1", "capacity": [7, 7, 7]}, f"'h1': capacity is a list of 3; .*, {AS_H0}"),
    ({"id": "h1", "capacity": [7, -1]}, "'h1': capacity of resource 2 is negative: -1"),
]


@pytest.mark.parametrize(("node", "expected"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_a_wrong_node_is_named(node, expected):
    with pytest.raises(ProblemError, match=expected):
        to_instance(document(HOST, WEB, node))


PLAIN = {"id": "h0", "capacity": 5}
MIXED = [
    ([{"id": "h0", "capacity": []}], "'h0': capacity is a list without content; 2 or 3"),
    ([{"id": "h0", "capacity": [5]}], "'h0': capacity is a list of 1; 2 or 3 resources"),
    ([{"capacity": [1] * 4}], "node number 1: capacity is a list of 4; 2 or 3"),
    ([PLAIN, WEB], "'web', option 1: level is a list of 2; an integer is needed: lists go with"),
    ([{**PLAIN, "id": "h9"}, HOST], "'h9': capacity is 5; a list of 2 .* 'h0' is one"),
    ([PLAIN, {**WEB, "capacity": [5, 5]}], "'web': capacity is a list of 2; an integer is needed"),
]


@pytest.mark.parametrize(("nodes", "expected"), MIXED, ids=[text[:40] for _, text in MIXED])
def test_a_wrong_mixture_is_named(nodes, expected):
    with pytest.raises(ProblemError, match=expected):
        to_instance(document(*nodes))


def test_more_machines_below_one_root_than_can_be_solved_are_refused():
    row = options((0, 0, 0))
    crowd = [{"id": f"v{i}", "parent": "h0", "options": row} for i in range((1 << 16) + 1)]
    with pytest.raises(ProblemError, match=r"node 'h0': 65537 nodes below it; .* at most 65536"):
        to_instance(document(HOST, *crowd))


@pytest.mark.parametrize("seed", range(60))
def test_answers_are_what_trying_everything_says(seed):
    nodes = drawn(seed)
    instance = to_instance(document(*nodes))
    told = answer_coupled(instance, solve_coupled_forest(instance.forest))
    json.dumps(told, allow_nan=False)
    by_name = {node["id"]: node for node in nodes}
    total = 0
    for name in [node["id"] for node in nodes if "capacity" in node]:
        best, tree = best_of(nodes, name), told["trees"][name]
        if best is None:
            assert (tree["status"], tree["value"], tree["bound"]) == ("infeasible", None, None)
            assert name not in told["prices"] and "resource" in tree["why"]
            total = None
            continue
        value, choice = best
        assert (tree["status"], tree["value"], tree["bound"]) == ("optimal", value, value)
        taken = {vm: told["levels"][vm] for vm in choice}
        sums = [sum(amounts) for amounts in zip(*taken.values(), strict=True)]
        assert all(map(int.__le__, sums, by_name[name]["capacity"]))
        worths = [
            max(one["value"] for one in by_name[vm]["options"] if one["level"] == level)
            for vm, level in taken.items()
        ]
        assert sum(worths) == value
        total = None if total is None else total + value
    assert (told["value"], told["bound"]) == (total, total)
    assert told["status"] == ("infeasible" if total is None else "optimal")
    assert told.get("relax", "absent") == (None if total is None else "absent")


def test_the_random_files_hold_all_that_matters():
    """Or the tests here would prove little."""
    seen = set()
    for seed in range(60):
        nodes = drawn(seed)
        roots = [node["id"] for node in nodes if "capacity" in node]
        seen |= {len(nodes[0].get("capacity", nodes[0].get("options", [{}])[0].get("level", ())))}
        seen |= {best_of(nodes, root) is None for root in roots}
        seen |= {f"{sum(n.get('parent') == root for n in nodes)} VMs" for root in roots}
    assert seen >= {2, 3, True, False, "0 VMs", "1 VMs", "4 VMs"}


@pytest.mark.parametrize("seed", range(25))
def test_each_loss_and_each_quantum_is_what_trying_everything_says(seed):
    nodes = drawn(seed)
    instance = to_instance(document(*nodes))
    for node in nodes:
        place = instance.ids.index(node["id"])
        if "capacity" in node:
            with pytest.raises(ProblemError, match="is a root"):
                explain_coupled(instance, place, solve_coupled_forest)
        else:
            check_explanation(nodes, node, explain_coupled(instance, place, solve_coupled_forest))


def check_explanation(nodes, node, found):
    best = best_of(nodes, node["parent"])
    assert found.root == node["parent"]
    assert len(found.options) == len(node["options"])
    assert sum(option.chosen for option in found.options) == (best is not None)
    for place, option in enumerate(found.options):
        forced = best_of(nodes, node["parent"], (node["id"], place))
        assert option.total == (None if forced is None else forced[0])
        assert option.loss == (None if forced is None else best[0] - forced[0])
        assert list(option.level) == node["options"][place]["level"]
        assert not option.chosen or (option.loss == 0 and found.level == option.level)
    others = [option for option in found.options if option.total is not None and not option.chosen]
    top = max((option.total for option in others), default=None)
    assert top in {o.total for o in others if o.level == found.runner_up} or not others
    host = next(each for each in nodes if each["id"] == node["parent"])
    for more in found.one_more_quantum:
        capacity = list(host["capacity"])
        capacity[more.resource - 1] += 1
        roomier = [{**each, "capacity": capacity} if each is host else each for each in nodes]
        with_it = best_of(roomier, node["parent"])
        assert more.fits == (with_it is not None)
        assert more.worth == (None if best is None else with_it[0] - best[0])


def test_a_host_is_answered_alike_whatever_stands_beside_it():
    nodes = [node for seed in range(40) for node in renamed(drawn(2 * seed), seed) if two(node)]
    together = to_instance(document(*nodes))
    whole = answer_coupled(together, solve_coupled_forest(together.forest))
    for root in [node for node in nodes if "capacity" in node]:
        kin = [node for node in nodes if root["id"] in {node["id"], node.get("parent")}]
        alone = to_instance(document(*kin))
        told = answer_coupled(alone, solve_coupled_forest(alone.forest))
        assert told["trees"][root["id"]] == whole["trees"][root["id"]]
        for part in ("levels", "prices"):
            assert told[part].items() <= whole[part].items()


def renamed(nodes, seed):
    """The same under names of their own."""
    return [
        {**node, "id": f"{seed}/{node['id']}"}
        | ({"parent": f"{seed}/{node['parent']}"} if "parent" in node else {})
        for node in nodes
    ]


def two(node):
    """Whether it has two resources."""
    level = node["capacity"] if "capacity" in node else node["options"][0]["level"]
    return len(level) == 2


@pytest.fixture
def allocate(tmp_path):
    def run(nodes, *words):
        path = tmp_path / "instance.json"
        path.write_text(json.dumps(document(*nodes)))
        return CliRunner().invoke(cli, ["allocate", "--instance", str(path), *words])

    return run


def test_the_command_writes_lists(allocate):
    done = allocate([HOST, WEB, DB, EMPTY], "--explain", "db", "--json", "-")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["version"], told["status"], told["value"], told["bound"]) == (1, "optimal", 71, 71)
    assert told["levels"] == {"web": [4, 6], "db": [8, 4]}
    assert set(told["prices"]) == {"h0"} and len(told["prices"]["h0"]) == 2
    assert told["trees"]["h1"] == {"status": "optimal", "value": 0, "bound": 0}
    assert told["explain"]["runner_up"] == [2, 4]
    assert [more["resource"] for more in told["explain"]["one_more_quantum"]] == [1, 2]


def test_the_command_shows_them(allocate):
    done = allocate([HOST, WEB, DB], "--explain", "db")
    assert done.exit_code == 0 and done.stdout.startswith("optimal, worth 71\n")
    assert "  web   4, 6     40" in done.stdout
    assert "(2, 8) would be worth 13 more by itself; its host h0 prices" in done.stdout
    assert "one more quantum of resource 2 at h0 is worth 0" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert rows == [
        ["2,", "4", "20", "60", "11", "runner-up"],
        ["2,", "8", "44", "58", "13"],
        ["8,", "4", "31", "71", "0", "chosen"],
    ]


def test_the_worth_shown_is_the_chosen_option_of_equal_levels(allocate):
    twice = {**DB, "options": options((2, 4, 20), (2, 4, 30), (2, 4, 25))}
    assert "db    2, 4     30" in allocate([HOST, WEB, twice]).stdout


def test_what_does_not_fit_names_the_resource(allocate):
    done = allocate([{**HOST, "capacity": [3, 5]}, WEB, DB], "--explain", "db")
    assert done.exit_code == 3
    lacks = "exceed the capacity of resource 1 by 1 quantum, of resource 2 by 1 quantum"
    assert done.stdout.count(lacks) == 2, "for the tree and for the machine"
    assert done.stdout.count("would not be enough") == 2
    apart = [options((3, 0, 1), (0, 3, 1))] * 3
    crowd = [{"id": f"v{i}", "parent": "h0", "options": rows} for i, rows in enumerate(apart)]
    done = allocate([{**HOST, "capacity": [5, 5]}, *crowd])
    assert done.exit_code == 3
    assert "each resource by itself would be enough, but no choice of options fits" in done.stdout


def test_a_budget_leaves_the_best_found_with_its_bound(allocate):
    rng = np.random.default_rng(1)
    size = rng.integers(20, 200, (40, 6, 2))
    crowd = [
        {"id": f"v{i}", "parent": "h0",
         "options": options(*((*row, sum(row) + int(rng.integers(3))) for row in rows))}
        for i, rows in enumerate(size.tolist())
    ]  # fmt: skip
    done = allocate([{**HOST, "capacity": [4001, 4001]}, *crowd], "--budget", "1", "--json", "-")
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert told["status"] == "budget" and told["value"] < told["bound"]


def test_what_is_neither_found_nor_refuted_is_not_called_infeasible():
    """A solver that gives up at once: no solver of ours finds nothing so easily."""

    def stuck(forest: CoupledForest):
        found = solve_coupled_forest(forest, budget=1)
        found.value[:], found.bound[:], found.status[:] = -(1 << 60), 99, Status.BUDGET
        found.option[:] = found.level[:] = -1
        return found

    instance = to_instance(document(HOST, WEB, DB))
    told = answer_coupled(instance, stuck(instance.forest))
    assert (told["status"], told["value"], told["bound"]) == ("budget", None, 99)
    assert told["levels"] == {} and "relax" not in told
    assert "nothing that fits was found within the budget" in told["trees"]["h0"]["why"]
    found = explain_coupled(instance, instance.ids.index("db"), stuck)
    assert found.why == told["trees"]["h0"]["why"]
    assert {option.status for option in found.options} == {"budget"}
    assert {more.fits for more in found.one_more_quantum} == {None}


def test_a_wrong_file_is_exit_code_2_with_the_node(allocate):
    done = allocate([HOST, WEB, FLAT])
    assert done.exit_code == 2 and done.stdout == ""
    assert "'v1', option 1: level is 8; a list of 2 integers" in done.stderr
