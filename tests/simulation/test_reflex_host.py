"""The reflex on a simulated host, from a guest's word to the loan, its end, and who is told."""

import asyncio

import pytest
from loop_parts import WorldLoop
from reflex_rig import LEASE_S, LoopClock, Rig, play, steady, until

from agent.leash import Bounds, Leash
from agent.loop import Agent
from agent.settings import AgentSettings
from agent.simulated import BALLOON_BYTES_PER_S, SimulatedHypervisor, SimulatedVm
from agent.steps import Command, Header, Outcome
from shared.guest_word import GuestWord
from shared.guest_word import encode as encode_word
from shared.resources import MIB, Resource
from shared.subjects import guest_subject
from shared.testing import FakeBus
from shared.wire import decode

TWO = {"a": 256, "b": 256}


@pytest.fixture(autouse=True)
def _machine_without_readings(tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    monkeypatch.chdir(tmp_path)


def test_a_burst_is_met_from_the_reserve_within_a_second():
    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive("a", "b"):
            await rig.plan(bounds=rig.bounds(reserve_mib=256))
            rig.hold("a", 250)
            begun_s = await until(lambda: rig.hypervisor.asked)
            assert begun_s <= 1.0
            assert rig.hypervisor.asked[0][1:3] == ("a", Resource.MEMORY)
            wanted_s = (250 + 16 - 256) * MIB / BALLOON_BYTES_PER_S
            assert begun_s + await until(lambda: rig.mib("a") >= 266) <= 1.0 + wanted_s + 0.5
            await asyncio.sleep(10)
            assert 290 <= rig.mib("a") <= 320
            assert rig.mib("b") == 256
            faults = rig.machine("a").counters["swap_in"]
            await asyncio.sleep(10)
            assert rig.machine("a").counters["swap_in"] == faults
            (loan,) = rig.lender.loans()
            assert (loan.vm_id, loan.base_amount) == (rig.ids["a"], 256 * MIB)
            assert loan.amount == rig.mib("a") * MIB
            assert rig.said

    play(scenario)


def test_a_large_burst_is_met_in_strides_as_fast_as_the_balloon_moves():
    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive("a"):
            await rig.plan(bounds=rig.bounds(reserve_mib=512))
            rig.hold("a", 456)
            took_s = await until(lambda: rig.mib("a") >= 456 + 16)
            assert took_s <= 8  # 216 MiB at 64 MiB/s are 3.4

    play(scenario)


def test_a_burst_of_cpu_is_met_within_two_seconds_and_paid_back():
    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive():
            await rig.plan(bounds=rig.bounds(reserve_millicores=2000))
            rig.use("a", 1800)
            assert await until(lambda: rig.hypervisor.asked) <= 2.0
            await until(lambda: (rig.machine("a").cpu_quota_millicores or 4000) >= 1800, 5)
            assert rig.machine("b").cpu_quota_millicores == 1000
            rig.use("a", 100)
            await until(lambda: rig.machine("a").cpu_quota_millicores == 1000, 60)
            await until(lambda: not rig.lender.loans(), 10)

    play(scenario)


def test_it_lends_nothing_without_a_leash():
    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive("a", "b"):
            await rig.plan()
            rig.hold("a", 250)
            await asyncio.sleep(30)
            assert rig.hypervisor.asked == []

    play(scenario)


def test_a_hostile_guest_gets_one_stride_at_most_and_harms_nobody():
    async def scenario():
        rig = Rig({"liar": 256, "b": 256}, 1024)
        async with rig.alive("b"):
            await rig.plan(bounds=rig.bounds(reserve_mib=256), lease_ms=600_000)
            highest = 0
            for _ in range(600):
                await rig.claim("liar", 2**50)
                await asyncio.sleep(0.1)
                highest = max(highest, rig.mib("liar"))
            assert highest <= 256 + 64
            rig.hold("b", 250)
            await until(lambda: rig.mib("b") >= 282, 10)
            assert rig.hypervisor.fullest_bytes <= 1024 * MIB

    play(scenario)


def test_a_plan_made_before_a_loan_is_carried_out_after_it():
    """The transfer behind a loan is planned while strides go on: they must not void it."""

    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive("a", "b"):
            await rig.plan(bounds=rig.bounds(reserve_mib=128))
            planned = rig.steward.facts().generation
            steps = (rig.step("b", 192), rig.step("a", 400, index=1))
            rig.hold("a", 300)
            await until(lambda: rig.mib("a") > 256)
            ack = await rig.plan(*steps, based_on_generation=planned)
            assert ack.accepted, ack.refusal
            assert {one.outcome for one in ack.results} == {Outcome.APPLIED}
            assert (rig.mib("a"), rig.mib("b")) == (400, 192)

    play(scenario)


def test_a_false_word_keeps_no_memory_from_a_plan():
    async def scenario():
        rig = Rig({"liar": 512, "b": 256}, 1024)
        async with rig.alive():
            await rig.plan(bounds=rig.bounds(), lease_ms=600_000)
            await asyncio.sleep(60)  # its page cache has touched all that it has
            for _ in range(20):
                await rig.claim("liar", 2**40)
                await asyncio.sleep(0.25)
            shrinking = asyncio.create_task(rig.plan(rig.step("liar", 300), bounds=rig.bounds()))
            while not shrinking.done():
                await rig.claim("liar", 2**40)
                await asyncio.sleep(0.25)
            assert shrinking.result().results[0].outcome in {Outcome.APPLIED, Outcome.PARTIAL}
            assert rig.mib("liar") < 512 - 32

    play(scenario)


def test_loans_are_paid_back_when_the_burst_is_over():
    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive("a", "b"):
            await rig.plan(bounds=rig.bounds(reserve_mib=256), lease_ms=600_000)
            rig.hold("a", 250)
            await until(lambda: rig.mib("a") >= 290, 10)
            rig.hold("a", 96)
            took_s = await until(lambda: rig.mib("a") == 256, 90)
            assert took_s >= 30
            await until(lambda: not rig.lender.loans(), 10)
            await asyncio.sleep(60)
            assert rig.mib("a") == 256

    play(scenario)


def test_the_end_of_the_lease_ends_the_lending():
    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive("a", "b"):
            await rig.plan(bounds=rig.bounds(reserve_mib=512))
            rig.hold("a", 250)
            await until(lambda: rig.mib("a") >= 290, 10)
            await asyncio.sleep(LEASE_S)
            asked, had = len(rig.hypervisor.asked), rig.mib("a")
            rig.hold("b", 250)  # nobody is lent anything any more
            rig.hold("a", 96)  # and nothing is taken back
            await asyncio.sleep(120)
            assert len(rig.hypervisor.asked) == asked
            assert (rig.mib("a"), rig.mib("b")) == (had, 256)
            assert rig.lender.loans() == ()
            # A renewal alone brings no leash back.
            assert await rig.steward.renew(rig.header()) is None
            await asyncio.sleep(10)
            assert len(rig.hypervisor.asked) == asked

    play(scenario)


def test_a_newer_controller_ends_what_the_older_one_allowed():
    async def scenario():
        rig = Rig(TWO, 1024)
        async with rig.alive("a"):
            await rig.plan(bounds=rig.bounds(reserve_mib=512))
            assert await rig.steward.renew(rig.header(epoch=2)) is None
            rig.hold("a", 250)
            await asyncio.sleep(20)
            assert rig.hypervisor.asked == []
            again = rig.bounds(reserve_mib=512)
            assert await rig.steward.renew(rig.header(epoch=2), (), again) is None
            await until(lambda: rig.mib("a") >= 290, 10)

    play(scenario)


def test_a_loan_does_not_wait_for_a_command_that_is_being_carried_out():
    async def scenario():
        rig = Rig({"a": 256, "b": 900}, 2048)
        async with rig.alive("a"):
            bounds = rig.bounds(reserve_mib=256)
            shrinking = asyncio.create_task(rig.plan(rig.step("b", 500), bounds=bounds))
            await until(lambda: rig.hypervisor.asked)
            rig.hold("a", 250)
            assert await until(lambda: len(rig.hypervisor.asked) > 1) <= 1.0
            await until(lambda: rig.mib("a") >= 290, 4)
            assert not shrinking.done()
            assert (await shrinking).results[0].outcome is Outcome.APPLIED
            assert rig.mib("b") == 500

    play(scenario)


def test_a_shrink_of_a_vm_that_needs_memory_now_is_stopped():
    async def scenario():
        rig = Rig({"a": 900, "b": 256}, 2048)
        async with rig.alive("a"):
            bounds = rig.bounds(reserve_mib=256)
            shrinking = asyncio.create_task(rig.plan(rig.step("a", 300), bounds=bounds))
            await until(lambda: rig.mib("a") <= 700)
            rig.hold("a", rig.mib("a") + 40)
            (result,) = (await shrinking).results
            assert result.outcome is Outcome.PARTIAL
            assert "needs memory" in result.detail
            assert rig.mib("a") > 300
            wants = rig.machine("a").spec.memory.high // MIB + 16
            await until(lambda: rig.mib("a") >= wants, 10)
            assert (rig.ids["a"], Resource.MEMORY) not in rig.executor.quarantined()

    play(scenario)


def test_what_cannot_be_lent_is_told_and_asked_of_the_own_host():
    async def scenario():
        rig = Rig(TWO, 512)
        async with rig.alive("a"):
            await rig.plan(bounds=rig.bounds(reserve_mib=256))
            told = len(rig.said)
            rig.hold("a", 250)
            assert await until(lambda: len(rig.said) > told) <= 1.5
            (loan,) = rig.lender.loans()
            assert loan.amount == loan.base_amount == 256 * MIB
            assert loan.wanted_amount > loan.amount
            assert rig.climbs[-1][0] == loan.wanted_amount - loan.amount
            rig.hold("a", 96)
            await until(lambda: rig.climbs[-1] == (0, 0), 15)

    play(scenario)


def test_under_pressure_the_host_takes_free_pages_and_gives_them_back(tmp_path):
    async def scenario():
        meminfo = tmp_path / "proc/meminfo"
        meminfo.write_text("MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n")
        rig = Rig({"a": 512, "b": 512}, 1024, root=tmp_path)
        async with rig.alive():
            await rig.plan(bounds=rig.bounds(low_mib=300), lease_ms=3_600_000)
            await asyncio.sleep(5)
            assert rig.hypervisor.asked == []
            meminfo.write_text("MemTotal: 4194304 kB\nMemAvailable: 102400 kB\n")
            await until(lambda: rig.mib("a") == 300 and rig.mib("b") == 300, 120)
            await asyncio.sleep(30)
            assert (rig.mib("a"), rig.mib("b")) == (300, 300)
            assert rig.lender.state.word == "exhausted"
            meminfo.write_text("MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n")
            assert await until(lambda: rig.mib("a") == 512 and rig.mib("b") == 512, 120) >= 25
            await until(lambda: not rig.lender.loans(), 10)

    play(scenario)


def test_a_shrink_waits_for_what_the_guest_says_next():
    """An L1 can only give what its own guests have just given back."""

    async def scenario():
        rig = Rig({"a": 900, "b": 256}, 2048)
        rig.hold("a", 600)
        async with rig.alive():
            await asyncio.sleep(1.9 - asyncio.get_running_loop().time() % 2)
            rig.hold("a", 96)  # its figures, which come every two seconds, do not tell yet
            (result,) = (await rig.plan(rig.step("a", 400))).results
            assert result.outcome is Outcome.APPLIED
            assert rig.mib("a") == 400

    play(scenario)


def test_the_controller_hears_of_a_loan_before_the_next_sample_is_due(tmp_path):
    async def scenario():
        agent, hypervisor, bus = agent_of(tmp_path)
        heard = []
        await bus.subscribe("paq.telemetry.*", lambda _, data: heard.append(decode(data)))
        agent.open()
        tasks = [asyncio.create_task(duty) for duty in agent.duties()]
        try:
            await asyncio.sleep(11)  # the guests have been seen, and are heard
            await agent.host.steward.apply(command_of(agent, hypervisor))
            await asyncio.sleep(4)
            count, loop = len(heard), asyncio.get_running_loop()
            began = loop.time()
            await bus.try_publish(
                guest_subject(the_vm(hypervisor)), encode_word(GuestWord("boot", 1, 1, 64 * MIB))
            )
            took_s = await until(lambda: any(sample.loans for sample in heard[count:]), 5)
            assert began + took_s < 20 - 1  # the sample in turn
            loan = next(sample.loans[0] for sample in heard if sample.loans)
            assert loan.amount - loan.base_amount == 64 * MIB
            assert took_s <= 1.0 + 64 * MIB / BALLOON_BYTES_PER_S + 0.3
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await agent.close()

    play(scenario, WorldLoop)  # threads do their work at once


def agent_of(root):
    """A whole host agent on a bus in memory, with one VM that has touched all that it has."""
    for path, text in (
        ("proc/sys/kernel/random/boot_id", "11111111-2222-4333-8444-555555555555"),
        ("sys/class/dmi/id/product_uuid", "00000000-0000-4000-8000-000000000001"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    clock, bus = LoopClock(), FakeBus()
    vm = SimulatedVm("a", 1024 * MIB, memory=steady(150))
    hypervisor = SimulatedHypervisor(1, clock, (vm,))
    machine = hypervisor._machines[the_vm(hypervisor)]
    machine.limit_bytes = machine.target_bytes = 256 * MIB
    settings = AgentSettings(
        controller_address="",
        libvirt_uri="simulated:1",
        state_directory=root / "state",
        memory_allocatable_bytes=1024 * MIB,
        cpu_allocatable_millicores=4000,
        metrics_listen="",
    )
    agent = Agent(settings, root, clock, hypervisor)
    agent._bus = agent.publisher._bus = bus
    return agent, hypervisor, bus


def the_vm(hypervisor):
    return hypervisor.vm_ids()["a"]


def command_of(agent, hypervisor):
    lever = (the_vm(hypervisor), Resource.MEMORY)
    leash = {lever: Leash(64 * MIB, 512 * MIB, 256 * MIB)}
    header = Header("c1", "p1", 1, 1, 0, agent._clock.tick_ns(), 15_000, 60_000)
    return Command(header, bounds=Bounds(leash, {Resource.MEMORY: 256 * MIB}))
