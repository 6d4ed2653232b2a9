"""What VMs were like before: when a record follows, when it stays, and what survives on disk."""

import asyncio
import json

import msgspec
import pytest

from agent.found import (
    FILE_NAME,
    FIRST_LOOK_S,
    FORGET_S,
    VMS_MAX,
    Found,
    FoundStore,
    differences,
    load,
    noted,
)
from agent.hypervisor import Sight
from shared.clock import SECOND_NS, FakeClock

LIVE = {"memory_bytes": 512, "cpu_quota_us": 0, "statistics_period_s": 0}
DEFINED = {"memory_bytes": 512, "cpu_quota_us": 0}


def sight(run="r1", vm_id="a", defined=None, **settings) -> Sight:
    return Sight(vm_id, vm_id, run, {**LIVE, **settings}, {**DEFINED, **(defined or {})})


def found(*sights: Sight) -> Found:
    record = None
    for number, each in enumerate(sights):
        record = noted(record, each, unix_s=number, doubtful=False)
    assert record is not None
    return record


def touched(record: Found) -> Found:
    return msgspec.structs.replace(record, touched=("memory", "cpu", "io"))


def test_until_it_is_touched_a_record_follows_what_is_in_force():
    record = found(sight(), sight(memory_bytes=300, statistics_period_s=2))
    assert record.settings == {**LIVE, "memory_bytes": 300}, "the statistics are ours"


def test_once_touched_a_record_stays():
    record = touched(found(sight(memory_bytes=300)))
    record = noted(record, sight(memory_bytes=100, cpu_quota_us=5), 9, doubtful=False)
    assert record.settings == {**LIVE, "memory_bytes": 300}
    assert record.seen_unix_s == 9


def test_what_was_not_touched_follows_beside_what_was():
    """A CPU boost at boot says nothing of a balloon that still comes down to its size."""
    record = msgspec.structs.replace(found(sight(memory_bytes=480)), touched=("cpu",))
    record = noted(record, sight(memory_bytes=256, cpu_quota_us=5), 9, doubtful=False)
    assert record.settings == {**LIVE, "memory_bytes": 256}


def test_what_migrated_here_is_as_it_was_found_where_it_came_from():
    came = Sight("a", "a", "r", {**LIVE, "memory_bytes": 99}, {}, {"memory_bytes": 512, "x_y": 1})
    record = noted(None, came, 9, doubtful=True)
    assert record.settings == LIVE
    assert record.touched == ("memory",) and not record.doubtful


def test_what_the_operator_defines_anew_counts_and_nothing_else_of_it():
    record = touched(found(sight(memory_bytes=300)))
    after = noted(record, sight(memory_bytes=100, defined={"cpu_quota_us": 7}), 9, doubtful=False)
    assert after.settings == {**LIVE, "memory_bytes": 300, "cpu_quota_us": 7}
    again = noted(after, sight(defined={"cpu_quota_us": 7, "memory_bytes": 400}), 9, doubtful=False)
    assert again.settings == {**LIVE, "memory_bytes": 400, "cpu_quota_us": 7}


def test_a_run_that_began_anew_has_a_record_of_its_own():
    record = touched(found(sight(memory_bytes=300)))
    after = noted(record, sight(run="r2"), 9, doubtful=False)
    assert (after.settings, after.touched, after.run) == (LIVE, (), "r2")


def test_differences_tell_limits_that_were_not_there_and_leave_out_lost_levers():
    record = found(
        Sight(
            "a", "a", "r", {"memory_bytes": 5, "cpu_shares": 7, "io_read_bytes_per_s /dev/a": 9}, {}
        )
    )
    now = {"memory_bytes": 5, "cpu_quota_us": 3, "io_write_bytes_per_s /dev/a": 4}
    assert differences(now, record) == {
        "io_read_bytes_per_s /dev/a": (0, 9),
        "io_write_bytes_per_s /dev/a": (4, 0),
    }
    assert differences({"memory_bytes": 6}, record)["memory_bytes"] == (6, 5)


class Scene:
    def __init__(self, folder):
        self.folder = folder
        self.clock = FakeClock()
        self.store = self.opened()

    def opened(self, *, has_moved_before=False) -> FoundStore:
        store = FoundStore(self.folder, self.clock)
        self.said = store.open(has_moved_before=has_moved_before)
        return store

    def note(self, *sights):
        async def all_at_once():
            await asyncio.gather(*map(self.store.note, sights))

        asyncio.run(all_at_once())

    def on_disk(self):
        return load(self.folder / FILE_NAME).vms


def test_records_survive_and_a_touch_is_on_disk_before_it_returns(tmp_path):
    scene = Scene(tmp_path)
    scene.note(sight(), sight(vm_id="b"))
    assert scene.on_disk().keys() == {"a", "b"}
    assert not scene.store.is_touched("a", "r1", "cpu")
    asyncio.run(scene.store.touch("a", "cpu"))
    assert scene.on_disk()["a"].touched == ("cpu",)
    assert scene.on_disk()["b"].touched == ()
    again = scene.opened()
    assert again.is_touched("a", "r1", "cpu")
    assert not again.is_touched("a", "r1", "memory") and not again.is_touched("a", "r2", "cpu")
    assert asyncio.run(again.touch("a", "memory")) == LIVE
    assert not (tmp_path / FILE_NAME).with_suffix(".tmp").exists()


def test_what_is_known_already_is_not_written_again(tmp_path):
    scene = Scene(tmp_path)
    scene.note(sight())
    (tmp_path / FILE_NAME).unlink()
    scene.clock.advance(SECOND_NS)
    scene.note(sight())
    assert not (tmp_path / FILE_NAME).exists()
    scene.note(sight(memory_bytes=1))
    assert scene.on_disk()["a"].settings["memory_bytes"] == 1


def test_a_record_that_cannot_be_written_is_an_error_every_time(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    scene = Scene(folder)
    folder.rmdir()
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            scene.note(sight())
    folder.mkdir()
    scene.note(sight())
    assert scene.on_disk().keys() == {"a"}


@pytest.mark.parametrize("data", [b"{", b"", b"\xff", b'{"version": 2, "vms": []}', b"[]"])
def test_a_damaged_file_is_kept_aside_and_new_records_are_doubtful(tmp_path, data):
    path = tmp_path / FILE_NAME
    path.write_bytes(data)
    scene = Scene(tmp_path)
    assert "damaged" in scene.said
    assert path.with_suffix(".damaged").read_bytes() == data
    scene.note(sight())
    assert scene.on_disk()["a"].doubtful
    scene.clock.advance(FIRST_LOOK_S * SECOND_NS)
    scene.note(sight(vm_id="b"), sight(run="r2"))
    assert not scene.on_disk()["a"].doubtful, "what begins later is known from its beginning"
    assert not scene.on_disk()["b"].doubtful


def test_records_that_are_missing_though_something_was_moved_are_doubtful(tmp_path):
    scene = Scene(tmp_path)
    scene.store = scene.opened(has_moved_before=True)
    scene.note(sight())
    assert scene.on_disk()["a"].doubtful


def test_what_is_gone_for_long_is_forgotten_but_not_right_after_a_start(tmp_path):
    scene = Scene(tmp_path)
    scene.note(sight(), sight(vm_id="b"))
    scene.clock.advance(3 * FORGET_S * SECOND_NS)
    scene.store = scene.opened()
    scene.note(sight(memory_bytes=1))
    assert scene.on_disk().keys() == {"a", "b"}, "b may run and just was not looked at yet"
    scene.clock.advance(FORGET_S * SECOND_NS)
    scene.note(sight(memory_bytes=2))
    assert scene.on_disk().keys() == {"a"}


def test_there_is_an_end_to_their_number(tmp_path):
    scene = Scene(tmp_path)
    scene.store._vms = {str(n): found(sight(vm_id=str(n))) for n in range(VMS_MAX + 5)}
    scene.clock.advance(FORGET_S * SECOND_NS)
    scene.store._vms = {
        key: noted(None, sight(vm_id=key), scene.clock.unix_ns() // SECOND_NS, doubtful=False)
        for key in scene.store._vms
    }
    scene.note(sight(vm_id="new"))
    names = json.loads((tmp_path / FILE_NAME).read_bytes())["vms"]
    assert len(names) == VMS_MAX
    assert names[-1]["vm_id"] == "new"
