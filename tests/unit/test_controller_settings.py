"""Settings stop the start where they cannot hold together; overrides and the epoch survive it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.state import Mode, Policy
from controller.overrides import (
    FLEET,
    VM,
    Freeze,
    ModeChange,
    Overrides,
    Pin,
    from_bytes,
    to_bytes,
)
from controller.settings import ControllerSettings, VmSettings
from controller.store import claim_epoch, read_if_there, write_durably
from shared.clock import SECOND_NS
from shared.config import describe, load
from shared.errors import ConfigError
from shared.resources import MIB, Resource

VM_ID = "00000000-0000-0000-0000-000000000001"


def from_text(tmp_path, text, environ=None):
    path = tmp_path / "controller.toml"
    path.write_text(text)
    return load(path, ControllerSettings, environ or {})


def test_defaults_hold_together_and_are_the_cores():
    settings = load(None, ControllerSettings, {})
    assert settings == ControllerSettings()
    assert settings.problems() == []
    assert settings.fleet_mode is Mode.OBSERVE
    assert settings.to_policy() == Policy(lease_ns=150 * SECOND_NS)


def test_every_setting_says_what_it_is():
    docs = describe(ControllerSettings)
    assert all(doc.doc for doc in docs)
    assert {"mode", "policy.memory_quantum_mib", "reserve_share.memory"} <= {d.name for d in docs}


def test_a_file_with_vms_and_a_variable(tmp_path):
    settings = from_text(
        tmp_path,
        f"""
        cycle_interval_s = 10
        lease_s = 60
        [policy]
        memory_quantum_mib = 8
        [policy.short]
        memory = 9.0
        [vms."{VM_ID}"]
        mode = "enforce"
        memory_floor_mib = 64
        """,
        {"HRAPAQ_MODE": "recommend"},
    )
    assert settings.fleet_mode is Mode.RECOMMEND
    assert settings.vms[VM_ID] == VmSettings(mode="enforce", memory_floor_mib=64)
    policy = settings.to_policy()
    assert policy.quantum == (50, 8 * MIB, MIB)
    assert policy.short[Resource.MEMORY] == 9.0
    assert policy.lease_ns == 60 * SECOND_NS


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("lease_s = 100", "lease_s = 100 is too short"),
        ("command_ttl_s = 150", "command_ttl_s = 150 must be below lease_s"),
        ("horizon_s = 90", "no multiple of grid_step_s"),
        ("window_steps = 5", "longer than the history"),
        ("node_expiry_s = 100", "must be above lease_s"),
        ("[reserve_share]\nmemory = 1.0", "leaves nothing to give"),
        (f'[vms."{VM_ID}"]\ncpu_floor_millicores = 2\ncpu_ceiling_millicores = 1', "lies above"),
        ("[vms.web]\nmode = 'observe'", "no lower-case UUID"),
        ("[nodes.web]\nmode = 'observe'", "no lower-case UUID"),
        ("mode = 'force'", "mode"),
        ("cycle_intervall_s = 5", "cycle_interval_s"),
        ("grid_step_s = 0", "grid_step_s"),
    ],
)
def test_what_cannot_be_stops_the_start(tmp_path, text, word):
    with pytest.raises(ConfigError, match=word.replace("(", "\\(")) as caught:
        from_text(tmp_path, text)
    assert "controller.toml" in str(caught.value)


# ---- overrides ----

overrides = st.one_of(
    st.builds(
        Pin,
        st.sampled_from(["a", "b"]),
        st.sampled_from(Resource),
        st.integers(0, 2**40),
        by=st.text(max_size=5),
        expires_tick_ns=st.none() | st.integers(0, 1000),
    ),
    st.builds(
        Freeze, st.sampled_from(["a", "b"]), expires_tick_ns=st.none() | st.integers(0, 1000)
    ),
    st.builds(
        ModeChange,
        st.sampled_from([FLEET, VM]),
        st.sampled_from(["", "a"]),
        st.sampled_from(Mode),
        expires_tick_ns=st.none() | st.integers(0, 1000),
    ),
)


@given(st.lists(overrides, max_size=8), st.integers(0, 1000), st.integers(0, 1000))
def test_overrides_survive_a_restart_with_what_was_left_of_them(items, saved, passed):
    said = Overrides()
    for item in items:
        said = said.with_(item)
    assert len({item.key for item in said.items}) == len(said.items)
    data = to_bytes(said, tick_ns=saved, unix_ns=5_000)
    # The machine was started anew meanwhile: its tick says something else entirely.
    back = from_bytes(data, tick_ns=77, unix_ns=5_000 + passed)
    still = said.at(saved + passed)
    assert [item.key for item in back.items] == [item.key for item in still.items]
    for one, other in zip(back.items, still.items, strict=True):
        assert (one.expires_tick_ns is None) == (other.expires_tick_ns is None)
        if one.expires_tick_ns is not None:
            assert one.expires_tick_ns - 77 == other.expires_tick_ns - saved - passed


def test_later_words_replace_earlier_ones_and_end():
    said = Overrides().with_(Freeze("a", expires_tick_ns=10)).with_(Pin("a", Resource.CPU, 1))
    said = said.with_(Freeze("a", expires_tick_ns=20))
    assert said.at(15).freezes() == (Freeze("a", expires_tick_ns=20),)
    assert said.at(20).freezes() == ()
    assert said.expired(20) == (Freeze("a", expires_tick_ns=20),)
    assert said.without(Pin("a", Resource.CPU, 9).key).pins() == ()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff\xfe", b'{"tick_ns":1,"unix_ns":1,"items":[1]}']
)
def test_a_damaged_file_of_overrides_is_not_taken_for_none(data):
    with pytest.raises(ConfigError, match="cannot be read"):
        from_bytes(data, 0, 0)


# ---- files ----


def test_files_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "state.json"
    assert read_if_there(path) is None
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert read_if_there(path) == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["state.json"]


def test_an_epoch_is_never_given_twice(tmp_path):
    assert [claim_epoch(tmp_path), claim_epoch(tmp_path)] == [1, 2]
    assert claim_epoch(tmp_path, seen_highest=40) == 41
    assert claim_epoch(tmp_path, seen_highest=3) == 42
    for damaged in (b"", b"[]", b'{"epoch": "7"}', b'{"epoch": -1}'):
        write_durably(tmp_path / "epoch.json", damaged)
        with pytest.raises(ConfigError, match="holds no epoch"):
            claim_epoch(tmp_path)
