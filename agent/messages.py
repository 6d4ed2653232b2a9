"""Protocol buffers of the command stream <-> the values of agent.steps.

Whatever does not fit the values is a ValueError that says what is wrong with the command.
"""

from collections.abc import Iterable

from agent.leash import Bounds, Leash, Lever
from agent.steps import Ack, Command, Fallback, Header, Step, StepResult
from shared.pb import commands_pb2 as pb
from shared.resources import Resource

AMOUNT_MAX = 2**62  # sums of two stay within 64 bits everywhere

_RESOURCES = {
    pb.RESOURCE_CPU: Resource.CPU,
    pb.RESOURCE_MEMORY: Resource.MEMORY,
    pb.RESOURCE_IO: Resource.IO,
}


def command_of(message: pb.Apply) -> Command:
    steps = tuple(_step_of(step) for step in message.steps)
    fallback, bounds = _fallback_of(message.fallback), _bounds_of(message)
    return Command(header_of(message.header), steps, fallback, bounds)


def renewal_of(message: pb.Renew) -> tuple[Header, Fallback, Bounds]:
    return header_of(message.header), _fallback_of(message.fallback), _bounds_of(message)


def net_limits_of(message: pb.NetLimits) -> tuple[Header, dict[str, int]]:
    limits = {each.vm_id: _amount_of(each.bytes_per_s) for each in message.limits}
    if 0 in limits.values():
        raise ValueError("a network limit of 0 would cut a VM off")
    return header_of(message.header), limits


def header_of(message: pb.Header) -> Header:
    if not message.command_id:
        raise ValueError("the command has no id")
    return Header(
        command_id=message.command_id,
        plan_id=message.plan_id,
        epoch=_amount_of(message.epoch),
        sequence=_amount_of(message.sequence),
        based_on_generation=message.based_on_generation,
        agent_tick_ns=message.agent_tick_ns,
        ttl_ms=message.ttl_ms,
        lease_ms=message.lease_ms,
        dry_run=message.dry_run,
    )


def ack_message(ack: Ack) -> pb.AgentMessage:
    return pb.AgentMessage(
        ack=pb.Ack(
            command_id=ack.command_id,
            plan_id=ack.plan_id,
            epoch=ack.epoch,
            generation=ack.generation,
            agent_tick_ns=ack.agent_tick_ns,
            accepted=ack.accepted,
            refusal=ack.refusal,
            results=[_result_message(result) for result in ack.results],
        )
    )


def apply_message(command: Command) -> pb.ControllerMessage:
    """A command as the controller sends it; the agent itself only needs it in tests."""
    steps = [
        pb.Step(
            index=step.index,
            vm_id=step.vm_id,
            resource=_word_of(step.resource),
            from_amount=step.from_amount,
            to_amount=step.to_amount,
            floor_amount=step.floor_amount,
            ceiling_amount=step.ceiling_amount,
            deadline_ms=step.deadline_ms,
        )
        for step in command.steps
    ]
    fallback = [
        pb.Fallback(vm_id=vm_id, resource=_word_of(resource), amount=amount)
        for vm_id, resource, amount in command.fallback
    ]
    leash, reserve = bounds_messages(command.bounds)
    apply = pb.Apply(
        header=header_message(command.header),
        steps=steps,
        fallback=fallback,
        leash=leash,
        reserve=reserve,
    )
    return pb.ControllerMessage(apply=apply)


def bounds_messages(bounds: Bounds) -> tuple[list[pb.Leash], list[pb.Reserve]]:
    """As the controller sends them; likewise."""
    leashes = [
        pb.Leash(
            vm_id=vm_id,
            resource=_word_of(resource),
            low_amount=one.low_amount,
            high_amount=one.high_amount,
            plan_amount=one.plan_amount,
        )
        for (vm_id, resource), one in bounds.leash.items()
    ]
    reserves = [
        pb.Reserve(resource=_word_of(resource), amount=amount)
        for resource, amount in bounds.reserve.items()
    ]
    return leashes, reserves


def header_message(header: Header) -> pb.Header:
    return pb.Header(**{name: getattr(header, name) for name in Header.__dataclass_fields__})


def _fallback_of(entries: Iterable[pb.Fallback]) -> Fallback:
    return tuple(
        (entry.vm_id, _resource_of(entry.resource), _amount_of(entry.amount)) for entry in entries
    )


def _bounds_of(message: pb.Apply | pb.Renew) -> Bounds:
    leash: dict[Lever, Leash] = {}
    for entry in message.leash:
        amounts = (entry.low_amount, entry.high_amount, entry.plan_amount)
        one = Leash(*map(_amount_of, amounts))
        if one.low_amount > one.high_amount:
            raise ValueError(
                f"a leash from {one.low_amount} to {one.high_amount} holds nothing: {entry.vm_id}"
            )
        leash[entry.vm_id, _resource_of(entry.resource)] = one
    reserve = {_resource_of(one.resource): _amount_of(one.amount) for one in message.reserve}
    return Bounds(leash, reserve)


def _step_of(message: pb.Step) -> Step:
    return Step(
        index=message.index,
        vm_id=message.vm_id,
        resource=_resource_of(message.resource),
        from_amount=_amount_of(message.from_amount),
        to_amount=_amount_of(message.to_amount),
        floor_amount=_amount_of(message.floor_amount),
        ceiling_amount=_amount_of(message.ceiling_amount),
        deadline_ms=message.deadline_ms,
    )


def _result_message(result: StepResult) -> pb.StepResult:
    """What was not measured travels as zero: the protocol has no other word for it."""
    return pb.StepResult(
        index=result.index,
        outcome=pb.Outcome.Name(result.outcome),
        detail=result.detail,
        before_amount=result.before_amount or 0,
        after_amount=result.after_amount or 0,
        host_freed_bytes=result.host_freed_bytes or 0,
        took_ms=result.took_ms,
    )


def _resource_of(number: int) -> Resource:
    for known, resource in _RESOURCES.items():
        if known == number:
            return resource
    raise ValueError(f"no resource has the number {number}")


def _word_of(resource: Resource) -> pb.Resource:
    return next(number for number, known in _RESOURCES.items() if known is resource)


def _amount_of(amount: int) -> int:
    if amount > AMOUNT_MAX:
        raise ValueError(f"{amount} is more than {AMOUNT_MAX}")
    return amount
