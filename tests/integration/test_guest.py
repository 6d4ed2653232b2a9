"""A guest's agent as a process, with a real bus: what its controller and its host hear of it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from shared import guest_word, wire
from shared.bus import NatsBus
from shared.guest_word import GuestWord
from shared.subjects import TELEMETRY_ALL, guest_of, guest_subject
from shared.telemetry import NodeSample
from shared.testing import NatsServer, dying_with_us, until

VM_ID = "00000000-0000-4000-8000-000000000001"
WITHIN_S = 30
SAMPLES_OF_A_WORD = 10  # two seconds


class Ears:
    """Everything that one guest's agent says."""

    def __init__(self) -> None:
        self.samples: list[NodeSample] = []
        self.words: list[GuestWord] = []

    def sample(self, _subject: str, data: bytes) -> None:
        self.samples.append(wire.decode(data).sample())

    def word(self, subject: str, data: bytes) -> None:
        assert guest_of(subject) == VM_ID
        self.words.append(guest_word.decode(data))


def hear(tmp_path: Path, enough: Callable[[Ears], object], **settings: object) -> Ears:
    """Runs a guest's agent until enough was heard of it."""
    ears, config = Ears(), tmp_path / "agent.toml"
    command = (sys.executable, "-m", "agent", "guest", "--config", str(config))
    with NatsServer() as server:
        values = {
            "bus_servers": [server.url],
            "node_id": VM_ID,
            "metrics_listen": "",
            "sample_interval_s": 0.2,
            **settings,
        }
        lines = (f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        config.write_text("".join(lines))
        agent = subprocess.Popen(dying_with_us(command), stderr=subprocess.DEVNULL)
        try:
            asyncio.run(listen(server.url, ears, enough))
        finally:
            agent.terminate()
            agent.wait(10)
    return ears


async def listen(url: str, ears: Ears, enough: Callable[[Ears], object]) -> None:
    bus = NatsBus([url], "ears", lambda error: None)
    try:
        await bus.connect()
        await bus.subscribe(TELEMETRY_ALL, ears.sample)
        await bus.subscribe(guest_subject(VM_ID), ears.word)
        await until(lambda: enough(ears), WITHIN_S)
    finally:
        await bus.close()


def test_a_guest_tells_of_itself_and_that_it_is_ready(tmp_path: Path) -> None:
    ears = hear(tmp_path, lambda ears: len(ears.samples) >= 3 and ears.words)
    newest = ears.samples[-1]
    assert newest.node.ready_ns is not None
    assert newest.node.uptime_ns is not None and newest.node.uptime_ns >= newest.node.ready_ns
    assert newest.node.load_milli is not None
    roles = {role.role: role for role in newest.roles}
    assert roles["agent"].processes >= 1
    assert roles["agent"].cpu_used_millicores is not None
    assert (ears.words[-1].boot_id, ears.words[-1].ready_ns) == (
        newest.boot_id,
        newest.node.ready_ns,
    )


def test_it_is_ready_when_its_file_is_made(tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def enough(ears: Ears) -> bool:
        if ears.words:
            ready.touch()  # only once it was heard to be up, and not ready
        return any(word.ready_ns is not None for word in ears.words)

    ears = hear(tmp_path, enough, ready_file=str(ready))
    assert ears.words[0].ready_ns is None


def test_without_roles_a_guest_still_tells_its_need(tmp_path: Path) -> None:
    ears = hear(tmp_path, lambda ears: ears.samples and ears.words, tell_roles=False)
    assert not any(sample.roles for sample in ears.samples)


def test_a_guest_that_may_not_tell_its_need_says_nothing_to_its_host(tmp_path: Path) -> None:
    """A word would come within a second and go with every sample."""
    ears = hear(tmp_path, lambda ears: len(ears.samples) >= SAMPLES_OF_A_WORD, tell_need=False)
    assert ears.samples[-1].roles
    assert not ears.words
