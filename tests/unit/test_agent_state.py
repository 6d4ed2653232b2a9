"""What the guard remembers survives being killed, and a lost memory is safe."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.guard import GuardState
from agent.leash import Bounds, Leash
from agent.state import FILE_NAME, StateStore, decode, encode
from agent.steps import Ack, Outcome, StepResult
from shared.errors import ConfigError
from shared.resources import MIB, Resource

RESULT = StepResult(3, Outcome.PARTIAL, "half of it", 512 * MIB, 448 * MIB, 60 * MIB, 1200)
ACK = Ack("c1", "p1", 5, 4, 1000, accepted=True, results=(RESULT,))
LEASH = Leash(256 * MIB, 768 * MIB, 512 * MIB)
STATE = GuardState(
    epoch_highest=5,
    sequence_highest=17,
    generation=4,
    lease_until_tick_ns=99,
    fallback={("a", Resource.MEMORY): 512 * MIB, ("a", Resource.CPU): 1000},
    bounds=Bounds({("a", Resource.MEMORY): LEASH}, {Resource.MEMORY: 128 * MIB}),
    bounds_number=3,
    lent=frozenset({("a", Resource.MEMORY)}),
    done=(ACK,),
)


@pytest.fixture
def store(tmp_path):
    store = StateStore(tmp_path / "state", "boot-1")
    yield store
    store.close()


def test_a_saved_state_comes_back_as_it_was(store):
    first = store.open()
    assert first.state == GuardState()
    assert "no state" in first.said
    store.write(STATE)
    store.close()
    assert store.open().state == STATE


def test_a_boot_ends_the_lease_and_keeps_the_epoch():
    loaded = decode(encode(STATE, "boot-1"), "boot-2")
    assert loaded.state == replace(STATE, lease_until_tick_ns=0)
    assert "booted" in loaded.said
    assert decode(encode(STATE, "boot-1"), "boot-1").said == ""


def test_a_command_that_was_under_way_counts_as_done_with_unknown_effect():
    lost = replace(ACK, command_id="c2", results=(replace(RESULT, outcome=Outcome.FAILED),))
    loaded = decode(encode(replace(STATE, intent=lost), "boot-1"), "boot-1")
    assert loaded.state.generation == STATE.generation + 1
    assert loaded.state.done_command_ids == ("c1", "c2")
    assert "c2" in loaded.said


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"version": 2', b'"version": 3'),
        lambda data: data.replace(b'"generation"', b'"generations"'),
        lambda data: data.replace(b"17", b'"seventeen"'),
        lambda data: data.replace(b"half of it", b"\xff\xfe"),
        lambda data: b"\0" * len(data),
    ],
)
def test_a_damaged_file_starts_safe_says_so_and_is_kept(store, damage):
    store.open()
    store.write(STATE)
    damaged = damage(store.path.read_bytes())
    assert damaged != encode(STATE, "boot-1")
    store.path.write_bytes(damaged)
    store.close()
    loaded = store.open()
    assert loaded.state == GuardState()
    assert "damaged" in loaded.said
    assert store.path.with_suffix(".damaged").read_bytes() == damaged
    assert not store.path.exists()


def test_two_agents_do_not_share_a_folder(store, tmp_path):
    store.open()
    other = StateStore(tmp_path / "state", "boot-1")
    with pytest.raises(ConfigError, match="another agent"):
        other.open()
    store.close()
    other.open()
    other.close()


def test_a_folder_that_cannot_be_had_is_a_setting_to_correct(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="state_directory"):
        StateStore(tmp_path / "file" / "state", "boot-1").open()


def test_a_half_written_file_never_takes_the_place_of_a_whole_one(store):
    """A killed agent leaves its temporary file behind; the state is the last whole one."""
    store.open()
    store.write(STATE)
    (store.path.with_suffix(".tmp")).write_bytes(b'{"version": 1, "boo')
    store.close()
    assert store.open().state == STATE
    newer = replace(STATE, generation=5)
    store.write(newer)
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["agent.lock", FILE_NAME]


results = st.builds(
    StepResult,
    st.integers(0, 2**32 - 1),
    st.sampled_from(Outcome),
    st.text(max_size=20),
    st.none() | st.integers(0, 2**63 - 1),
    st.none() | st.integers(0, 2**63 - 1),
    st.none() | st.integers(-(2**62), 2**62),
    st.integers(0, 2**31),
    st.sampled_from(["", "I1", "lever"]),
)
counts = st.integers(0, 2**63 - 1)
acks = st.builds(
    Ack,
    st.text(max_size=20),
    st.text(max_size=20),
    counts,
    counts,
    counts,
    st.booleans(),
    st.text(max_size=20),
    st.lists(results, max_size=3).map(tuple),
)
levers = st.tuples(st.text(max_size=9), st.sampled_from(Resource))
bounds = st.builds(
    Bounds,
    st.dictionaries(levers, st.builds(Leash, counts, counts, counts)),
    st.dictionaries(st.sampled_from(Resource), counts),
)


@st.composite
def states(draw):
    held = draw(bounds)
    return GuardState(
        draw(counts),
        draw(counts),
        draw(counts),
        draw(st.none() | counts),
        draw(st.dictionaries(levers, counts)),
        held,
        draw(counts),
        frozenset(draw(st.lists(st.sampled_from(sorted(held.leash)))))
        if held.leash
        else frozenset(),
        draw(st.lists(acks, max_size=3).map(tuple)),
    )


@given(states())
def test_every_state_survives_the_disk(state):
    assert decode(encode(state, "boot"), "boot").state == state


def test_what_the_version_before_wrote_is_still_understood():
    """An upgrade must not lose lease, fallback and epoch: it had no bounds of the reflex yet."""
    old = replace(STATE, bounds=Bounds(), bounds_number=0, lent=frozenset())
    file = msgspec.json.decode(encode(old, "boot-1"))
    for name in ("leash", "reserve", "bounds_number"):
        del file[name]
    loaded = decode(msgspec.json.encode({**file, "version": 1}), "boot-1")
    assert loaded.state == old
    assert loaded.said == ""


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data):
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode(data, "boot")
