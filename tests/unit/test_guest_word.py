"""A guest's word: what goes in comes out, and whatever a hostile guest sends is refused by name."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import guest_word
from shared.errors import WireError
from shared.guest_word import GuestWord

amounts = st.integers(0, guest_word.AMOUNT_MAX)
words = st.builds(
    GuestWord,
    boot_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=64),
    sequence=amounts,
    ready_ns=st.none() | amounts,
    memory_wanted_bytes=amounts,
    cpu_wanted_millicores=amounts,
)


@given(words)
def test_a_word_comes_back_as_it_was(word: GuestWord) -> None:
    assert guest_word.decode(guest_word.encode(word)) == word


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_by_name(data: bytes) -> None:
    assert cause_of(data) in {"malformed", "schema"}


def cause_of(data: bytes) -> str:
    with pytest.raises(WireError) as refusal:
        guest_word.decode(data)
    return refusal.value.cause


def altered(**changes: object) -> bytes:
    plain = msgpack.unpackb(guest_word.encode(GuestWord("boot", 1)))
    packed: bytes = msgpack.packb(plain | changes)
    return packed


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\xc1", "malformed"),
        (altered(memory_wanted_bytes=-1), "schema"),
        (altered(memory_wanted_bytes=2**63), "schema"),
        (altered(version=2), "schema"),
        (altered(boot_id="x" * 65), "schema"),
        (altered(more=1), "schema"),
        (altered(boot_id="x" * 2000), "oversized"),
    ],
)
def test_what_no_agent_sends_is_refused(data: bytes, cause: str) -> None:
    assert cause_of(data) == cause
