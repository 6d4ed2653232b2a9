"""`hrapaq allocate`: files in, answers and exit codes out; explanations against the oracle."""

import json
import re
from dataclasses import replace
from pathlib import Path

import allocate_oracle as oracle
import numpy as np
import pytest
from allocate_families import draw_forest
from click.testing import CliRunner

from controller.core.allocate.answer import answer
from controller.core.allocate.instance import Instance
from controller.core.allocate.problem import NOTHING, ProblemError
from controller.core.allocate.tree import solve_tree
from controller.core.allocate.whatif import explain
from controller.ctl import cli


def options(*pairs):
    return [{"level": level, "value": value} for level, value in pairs]


LAB = [
    {"id": "h0", "parent": None, "capacity": 20, "overhead": 1},
    {"id": "web", "parent": "h0", "options": options((2, 10), (4, 25), (8, 40))},
    {"id": "lab", "parent": "h0", "overhead": 2, "options": options((4, 0), (8, -1), (14, -3))},
    {"id": "lab/a", "parent": "lab", "options": options((1, 5), (3, 30), (6, 44))},
    {"id": "[b]", "parent": "lab", "options": options((1, 5), (2, 12), (6, 50))},
]
SECOND = [
    {"id": "h1", "capacity": 9},
    {"id": "db", "parent": "h1", "options": options((9, 3))},
]


@pytest.fixture
def allocate(tmp_path):
    def run(nodes, *words, capacity=20):
        nodes = [{**nodes[0], "capacity": capacity}, *nodes[1:]]
        path = tmp_path / "instance.json"
        path.write_text(json.dumps({"version": 1, "nodes": nodes}))
        return CliRunner().invoke(cli, ["allocate", "--instance", str(path), *words])

    return run


def test_the_best_levels_of_a_nested_tree(allocate):
    done = allocate(LAB, "--json", "-")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["version"], told["status"]) == (1, "optimal")
    assert told["value"] == told["bound"] == 116
    assert told["levels"] == {"web": 4, "lab": 14, "lab/a": 6, "[b]": 6}
    assert set(told["prices"]) == {"h0", "lab"}
    assert told["trees"] == {"h0": {"status": "optimal", "value": 116, "bound": 116}}
    assert "relax" not in told


def test_several_trees_add_up_and_the_worst_status_counts(allocate):
    told = json.loads(allocate(LAB + SECOND, "--json", "-").stdout)
    assert told["value"] == 119 and set(told["trees"]) == {"h0", "h1"}
    done = allocate(LAB + SECOND, "--json", "-", capacity=6)
    assert done.exit_code == 3
    told = json.loads(done.stdout)
    assert (told["status"], told["value"], told["bound"]) == ("infeasible", None, None)
    assert told["levels"] == {"db": 9}, "the other tree has its answer"
    assert told["trees"]["h1"] == {"status": "optimal", "value": 3, "bound": 3}


def test_an_infeasible_tree_names_what_to_relax(allocate):
    done = allocate(LAB, "--json", "-", capacity=6)
    told = json.loads(done.stdout)
    assert (done.exit_code, told["levels"], told["prices"]) == (3, {}, {})
    assert told["relax"] == [{"id": "web", "root": "h0", "now": 2, "level": 1, "lower_by": 1}]
    assert "exceed the capacity by 1 quantum" in told["trees"]["h0"]["why"]
    shown = allocate(LAB, capacity=6)
    assert shown.exit_code == 3
    assert "all would fit with 1 for web instead of 2" in shown.stdout


def test_what_no_relaxing_helps_says_so(allocate):
    done = allocate(LAB, "--json", "-", capacity=2)
    told = json.loads(done.stdout)
    assert done.exit_code == 3 and told["relax"] == []
    assert "h0 cannot hold the overheads" in told["trees"]["h0"]["why"]


def test_the_files_that_the_readme_shows_are_solved():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = re.findall(r"```json\n(\{\"version\".*?)```", readme, re.DOTALL)
    assert len(shown) == 2, "one tree, and one whose capacities are lists"
    for text in shown:
        done = CliRunner().invoke(cli, ["allocate", "--instance", "-"], input=text)
        assert done.exit_code == 0 and done.stdout.startswith("optimal"), done.output


def test_the_table(allocate):
    done = allocate(LAB)
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and lines[0] == "optimal, worth 116"
    assert [line.split()[:3] for line in lines[3:]] == [
        ["web", "4", "25"],
        ["lab", "14", "-3"],
        ["lab/a", "6", "44"],
        ["[b]", "6", "50"],
    ]
    assert lines[5].startswith("    lab/a"), "guests stand below their hypervisor"


def test_why_a_node_takes_its_level(allocate):
    done = allocate(LAB, "--explain", "web")
    assert "8 would be worth 15 more by itself, its host h0 is full" in done.stdout
    assert "with it the whole would be worth 35 less" in done.stdout
    assert "one more quantum at h0 is worth 0 (shadow price" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert rows == [
        ["2", "10", "101", "15", "runner-up"],
        ["4", "25", "116", "0", "chosen"],
        ["8", "40", "81", "35"],
    ]
    told = json.loads(allocate(LAB, "--explain", "lab/a", "--json", "-").stdout)["explain"]
    assert (told["level"], told["runner_up"], told["root"]) == (6, 3, "h0")
    assert told["why"] == "no option is worth more by itself"
    assert [more["id"] for more in told["one_more_quantum"]] == ["lab", "h0"]


def test_an_infeasible_tree_is_explained_too(allocate):
    done = allocate(LAB, "--explain", "lab", capacity=6)
    assert done.exit_code == 3
    assert "one more quantum at h0 would make all fit" in done.stdout
    assert done.stdout.count("does not fit") == 3
    assert "would not be enough" in allocate(LAB, "--explain", "lab", capacity=3).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--explain", "wep"), "no node is called 'wep'; did you mean 'web'?"),
        (("--explain", "h0"), "'h0' is a root and takes no option"),
        (("--budget", "0"), "--budget"),
        (("--json", "/nowhere/at/all"), "/nowhere/at/all: cannot be written"),
    ],
)
def test_a_wrong_call_is_exit_code_2(allocate, words, expected):
    done = allocate(LAB, *words)
    assert done.exit_code == 2 and done.stdout == ""
    assert expected in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_file_is_exit_code_2_with_the_node(allocate, tmp_path):
    done = allocate([*LAB, {"id": "v9", "parent": "h0", "options": options((3, 1), (3, 2))}])
    assert done.exit_code == 2 and done.stdout == ""
    assert "'v9', option 2: level 3 after 3" in done.stderr
    missing = CliRunner().invoke(cli, ["allocate", "--instance", str(tmp_path / "no")])
    assert missing.exit_code == 2 and "cannot be read: No such file" in missing.stderr
    folder = CliRunner().invoke(cli, ["allocate", "--instance", str(tmp_path)])
    assert folder.exit_code == 2 and "Is a directory" in folder.stderr
    piped = CliRunner().invoke(cli, ["allocate", "--instance", "-"], input=b"\xff")
    assert piped.exit_code == 2 and "-: not UTF-8 at byte 0" in piped.stderr


def test_from_standard_input_into_a_file(tmp_path):
    text = json.dumps({"version": 1, "nodes": SECOND})
    target = tmp_path / "answer.json"
    words = ["allocate", "--instance", "-", "--json", str(target)]
    done = CliRunner().invoke(cli, words, input=text)
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(target.read_text())["levels"] == {"db": 9}


def test_a_budget_leaves_the_best_found_with_its_bound(allocate):
    random = np.random.default_rng(3)
    values = random.permutation(1000)
    crowd = [
        {
            "id": f"v{i}",
            "parent": "h0",
            "options": options((7, int(values[i])), (11, 1100), (40, int(values[i + 50]) + 4000)),
        }
        for i in range(30)
    ]
    done = allocate([LAB[0], *crowd], "--budget", "1", "--json", "-", capacity=505)
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert told["status"] == "budget" and told["value"] < told["bound"]
    exact = json.loads(allocate([LAB[0], *crowd], "--json", "-", capacity=505).stdout)
    assert told["value"] <= exact["value"] <= told["bound"]
    assert exact["status"] == "optimal"


def test_answers_are_what_the_oracle_says():
    random = np.random.default_rng(21)
    for _ in range(5):
        forest = draw_forest(random, 10)
        named = Instance(tuple(f"n{place}" for place in range(len(forest.parent))), forest)
        told = answer(named, solve_tree(forest))
        best = {f"n{root}": oracle.best_of_tree(forest, root) for root in forest.roots}
        for name, value in best.items():
            assert told["trees"][name]["value"] == (None if value == NOTHING else value)
        json.dumps(told, allow_nan=False)


def test_each_loss_and_each_quantum_is_what_the_oracle_says():
    random = np.random.default_rng(22)
    seen = 0
    while seen < 25:
        forest = draw_forest(random, 3)
        named = Instance(tuple(f"n{place}" for place in range(len(forest.parent))), forest)
        node = int(random.integers(len(forest.parent)))
        if forest.parent[node] < 0:
            with pytest.raises(ProblemError, match="is a root"):
                explain(named, node, solve_tree)
            continue
        seen += 1
        check_explanation(named, node)


def check_explanation(named, node):
    forest, found = named.forest, explain(named, node, solve_tree)
    root = named.ids.index(found.root)
    total = oracle.best_of_tree(forest, root)
    first, end = int(forest.first[node]), int(forest.first[node + 1])
    assert len(found.options) == end - first
    for place, option in enumerate(found.options, first):
        value = forest.value.copy()
        others = [each for each in range(first, end) if each != place]
        value[others] = -(1 << 45)  # never worth it
        forced = oracle.best_of_tree(replace(forest, value=value), root)
        forced = None if forced < -(1 << 44) else forced
        assert option.total == forced
        assert option.chosen == (option.level == found.level)
        if forced is not None:
            assert option.loss == total - forced
    others = [each for each in found.options if each.total is not None and not each.chosen]
    best = max((each.total for each in others), default=None)
    assert best == next((each.total for each in others if each.level == found.runner_up), None)
    for more in found.one_more_quantum:
        place = named.ids.index(more.id)
        change = np.arange(len(forest.parent)) == place
        roomier = replace(forest, capacity=forest.capacity + change)
        if place != root:
            roomier = replace(forest, overhead=forest.overhead - change)
        with_it = oracle.best_of_tree(roomier, root)
        assert more.fits == (with_it != NOTHING)
        assert more.worth == (None if total == NOTHING else with_it - total)
