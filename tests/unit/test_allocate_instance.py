"""Problems from files: every wrong one is refused with the node's name and what to do."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.allocate import instance
from controller.core.allocate.instance import parse, to_instance
from controller.core.allocate.problem import LEVEL_MAX, VALUE_MAX, ProblemError

GOOD = [
    {"id": "guest", "parent": "vm", "options": [{"level": 0, "value": 0}]},
    {"id": "other", "parent": None, "capacity": 0, "overhead": 1, "options": []},
    {
        "id": "vm",
        "parent": "host",
        "capacity": None,
        "overhead": 2,
        "options": [{"level": 8, "value": -1200}, {"level": 9, "value": VALUE_MAX}],
    },
    {"id": "host", "capacity": 512},
]


def file(*nodes, **top):
    return json.dumps({"version": 1, "nodes": nodes, **top}).encode()


def test_nodes_come_in_any_order_and_leave_parents_first():
    found = parse(file(*GOOD))
    assert found.ids == ("other", "host", "vm", "guest")
    forest = found.forest
    assert forest.parent.tolist() == [-1, -1, 1, 2]
    assert forest.capacity.tolist() == [0, 512, 0, 0]
    assert forest.overhead.tolist() == [1, 0, 2, 0]
    assert forest.first.tolist() == [0, 0, 0, 2, 3]
    assert forest.level.tolist() == [8, 9, 0]
    assert forest.value.tolist() == [-1200, VALUE_MAX, 0]
    assert {forest.level.dtype, forest.parent.dtype} == {np.dtype(np.int64)}


def vm(**changes):
    node = {"id": "v1", "parent": "h0", "options": [{"level": 1, "value": 1}], **changes}
    return {key: value for key, value in node.items() if value != "gone"}


def options(*pairs):
    return {"options": [{"level": level, "value": value} for level, value in pairs]}


HOST = {"id": "h0", "capacity": 10}
WRONG = [
    (vm(**options((5, 1), (5, 2))), "'v1', option 2: level 5 after 5; levels ascend strictly"),
    (vm(**options((5, 1), (4, 2))), "'v1', option 2: level 4 after 5"),
    (vm(**options((5, math.nan))), "'v1', option 1: value is NaN; an integer is needed"),
    (vm(**options((5, math.inf))), "value is Infinity"),
    (vm(**options((5, 8.0))), "value is 8.0; an integer"),
    (vm(**options((True, 1))), "level is true; an integer"),
    (vm(**options(("5", 1))), "level is '5'; an integer"),
    (vm(**options((None, 1))), "level is missing or null"),
    (vm(**options((-1, 1))), "level is negative: -1"),
    (vm(**options((LEVEL_MAX + 1, 1))), "2147483648; 0 to 2147483647 can be computed with"),
    (vm(**options((1, VALUE_MAX + 1))), "1099511627777; -1099511627776 to 1099511627776"),
    (vm(**options((1, 10**300))), "value is a number of 997 bits"),
    (vm(options=[{"level": 1}]), "option 1: value is missing"),
    (vm(options=[{"level": 1, "valeu": 2}]), "'valeu' is unknown; did you mean 'value'?"),
    (vm(options=[[1, 2]]), "option 1 is a list of 2; an object with level, value"),
    (vm(options={}), "'v1': options is an object without content; a list"),
    (vm(options=[]), "'v1': no options; it must take one"),
    (vm(options="gone"), "'v1': no options"),
    (vm(**options(*((level, 0) for level in range(257)))), "'v1': 257 options; at most 256"),
    (vm(capacity=4), "'v1': a capacity below 'h0'; only roots have one"),
    (vm(parent=None), "'v1': neither a parent nor a capacity"),
    (vm(parent="gone"), "'v1': neither a parent nor a capacity"),
    (vm(parent=None, capacity=4), "'v1': options at a root"),
    (vm(parent=7), "'v1': parent is 7; another node's id, or null"),
    (vm(parent="h1"), "'v1': its parent 'h1' is not in the file; did you mean 'h0'?"),
    (vm(parent="zzz"), "'v1': its parent 'zzz' is not in the file; add it"),
    (vm(parent="v1"), r"lead back to it \('v1' -> 'v1'\)"),
    (vm(overhead=-1), "'v1': overhead is negative: -1"),
    (vm(overhead=1.5), "overhead is 1.5"),
    (vm(id="h0", parent="h0"), "'h0': the id stands twice"),
    (vm(id="gone"), "node number 2: id is missing"),
    (vm(id=""), "id is ''; printable text"),
    (vm(id=3), "node number 2: id is 3"),
    (vm(id="a\x1b[31m"), "printable text"),
    (vm(id="\ud800"), "printable text"),
    (vm(id="x" * 257), "printable text of 1 to 256 characters"),
    (vm(optoins=[]), "'v1': 'optoins' is unknown; did you mean 'options'?"),
    (vm(cpu=[]), "'cpu' is unknown; there are id, parent, capacity"),
    ([], "node number 2 is a list without content; an object"),
    ({"id": "h1", "capacity": -1}, "'h1': capacity is negative: -1"),
    ({"id": "h1", "capacity": True}, "'h1': capacity is true"),
    ({"id": "h1"}, "'h1': neither a parent nor a capacity"),
]


@pytest.mark.parametrize(("node", "expected"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_a_wrong_node_is_named(node, expected):
    with pytest.raises(ProblemError, match=expected.replace("?", r"\?")):
        parse(file(HOST, node))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not JSON at line 1, column 1"),
        (b'{"version":1,\n"nodes":[}', "not JSON at line 2, column 10"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0; save the file as UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"nodes":' * 100_000, "nested too deep"),
        (b'{"version":' + b"1" * 5000 + b"}", "a number that is far too long"),
        (b"[]", "the file is a list without content; an object with version, nodes"),
        (b"null", "the file is missing or null"),
        (b'{"version":2,"nodes":[]}', 'version is 2; this program reads "version": 1'),
        (b'{"version":true,"nodes":[]}', "version is true"),
        (b'{"nodes":[]}', "version is missing"),
        (b'{"version":1}', "nodes is missing"),
        (b'{"version":1,"nodes":[]}', "nodes is a list without content; a list of at least one"),
        (b'{"version":1,"nodes":{"id":1}}', "nodes is an object of 1"),
        (b'{"version":1,"node":[]}', "'node' is unknown; did you mean 'nodes'?"),
        (b'{"version":1,"version":1}', "'version' stands twice in one object"),
        (b'{"version":1,"nodes":[{"id":"a","id":"b"}]}', "node 'b': 'id' stands twice"),
    ],
)
def test_a_file_that_holds_none_says_why(data, expected):
    with pytest.raises(ProblemError, match=expected.replace("?", r"\?")):
        parse(data)


def test_a_file_that_is_too_large_is_not_even_decoded():
    with pytest.raises(ProblemError, match="more than 64 MiB; trees are independent"):
        parse(b" " * (instance.FILE_BYTES_MAX + 1))


def test_a_cycle_is_shown():
    ring = [vm(id=f"v{i}", parent=f"v{(i + 1) % 3}") for i in range(3)]
    with pytest.raises(ProblemError, match=r"'v0': its parents lead back .*'v0' -> 'v1' -> "):
        parse(file(HOST, *ring))
    tail = vm(id="tail", parent="v1")
    with pytest.raises(ProblemError, match=r"'v1': its parents lead back .*'v1' -> 'v2' -> "):
        parse(file(tail, HOST, *ring))


def test_a_chain_of_thousands_is_no_matter():
    chain = [vm(id=f"v{i}", parent=f"v{i - 1}" if i else "h0") for i in range(20_000)]
    assert parse(file(*reversed(chain), HOST)).ids[-1] == "v19999"


def test_values_that_do_not_add_up_within_64_bits_are_refused():
    crowd = [vm(id=f"v{i}", **options((0, -VALUE_MAX), (1, VALUE_MAX))) for i in range(1 << 18)]
    more = vm(id="more", **options((0, -1)))
    with pytest.raises(ProblemError, match="'h0': the values below it may add up to"):
        to_instance({"version": 1, "nodes": [HOST, *crowd, more]})


def test_a_byte_order_mark_is_skipped():
    assert parse(b"\xef\xbb\xbf" + file(HOST)).ids == ("h0",)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["version", "nodes", "id", "parent", "capacity", "options", "level"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_whatever_stands_there_is_an_instance_or_a_problem(value):
    for document in (value, {"version": 1, "nodes": value}, {"version": 1, "nodes": [value]}):
        try:
            to_instance(document)
        except ProblemError as error:
            str(error).encode()


@given(st.binary(max_size=60))
def test_whatever_bytes_come_are_an_instance_or_a_problem(data):
    try:
        parse(data)
    except ProblemError as error:
        str(error).encode()
