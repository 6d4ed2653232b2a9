"""The service that operators talk to: answers out of the newest View, changes through the Desk.

Loopback only unless the settings say otherwise: whoever reaches it may move memory.
"""

import asyncio
import difflib
from collections.abc import AsyncIterator
from typing import NoReturn, Protocol

import grpc
from grpc import aio

from controller.core.state import MISSING, Mode, Snapshot
from controller.events import Broadcast, TooManyWatchers
from controller.explain import explanation
from controller.net_rows import why_not_limited
from controller.overrides import FLEET, NET, NODE, VM, Freeze, ModeChange, NetPin, Override, Pin
from controller.rows import node_rows, plan_message, status_message, vm_rows
from controller.view import View
from shared.clock import SECOND_NS, Clock
from shared.errors import DispatchError, HrapaqError
from shared.pb import admin_pb2 as pb
from shared.pb import admin_pb2_grpc as rpc
from shared.resources import Resource, amount_text, resource_of

ID_LETTERS_MIN = 4  # fewer letters of an id are a guess, not a name
CLOSE_GRACE_S = 1.0
AMOUNT_MAX = 2**62
NET_AMOUNT_MIN = 16 * 1024  # bytes/s: below it a VM can hardly be reached any more
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.so_reuseport", 0),
)

Context = aio.ServicerContext[object, object]


class Desk(Protocol):
    """What operators may change. Texts say what was done; HrapaqError says why it was not."""

    def view(self) -> View: ...

    async def approve(self, plan_id: str, by: str) -> str: ...

    async def decline(self, plan_id: str, by: str, why: str) -> str: ...

    async def override(self, override: Override) -> None:
        """In force, on the disk and on the record when this returns."""
        ...

    async def release(self, key: tuple[str, ...], by: str) -> bool:
        """False when nothing stood under `key`."""
        ...


class AdminServer:
    def __init__(self, desk: Desk, broadcast: Broadcast, clock: Clock, version: str) -> None:
        self._servicer = AdminServicer(desk, broadcast, clock, version)
        self._server: aio.Server | None = None

    async def start(self, address: str) -> int:
        """Listens at `host:port` and returns the port; DispatchError when it cannot."""
        self._server = aio.server(options=OPTIONS)
        rpc.add_AdminServicer_to_server(self._servicer, self._server)
        try:
            port = self._server.add_insecure_port(address)
            await self._server.start()
        except RuntimeError as error:
            raise DispatchError(f"cannot listen for operators at {address}: {error}") from error
        return port

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(CLOSE_GRACE_S)


class AdminServicer(rpc.AdminServicer):
    def __init__(self, desk: Desk, broadcast: Broadcast, clock: Clock, version: str) -> None:
        self._desk = desk
        self._broadcast = broadcast
        self._clock = clock
        self._version = version

    async def GetStatus(  # noqa: N802 - as the protocol says
        self, request: pb.StatusRequest, context: Context
    ) -> pb.Status:
        return status_message(self._desk.view(), self._version)

    async def ListNodes(  # noqa: N802 - likewise
        self, request: pb.NodesRequest, context: Context
    ) -> pb.Nodes:
        return node_rows(self._desk.view(), self._clock.tick_ns())

    async def ListVms(  # noqa: N802 - likewise
        self, request: pb.VmsRequest, context: Context
    ) -> pb.Vms:
        return vm_rows(self._desk.view(), request.node_id)

    async def GetPlan(  # noqa: N802 - likewise
        self, request: pb.PlanRequest, context: Context
    ) -> pb.PlanReply:
        view = self._desk.view()
        return plan_message(view, view.plan(request.plan_id))

    async def Explain(  # noqa: N802 - likewise
        self, request: pb.ExplainRequest, context: Context
    ) -> pb.Explanation:
        _, machine = await self._vm(request.vm, context)
        # It decides a tree again: not on the loop that leases are renewed on.
        return await asyncio.to_thread(explanation, self._desk.view(), machine)

    async def Watch(  # noqa: N802 - likewise
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.Event]:
        try:
            async for one in self._broadcast.watch():
                yield pb.Event(
                    at_unix_ns=one.at_unix_ns,
                    kind=one.kind,
                    text=one.text,
                    node_id=one.node_id,
                    plan_id=one.plan_id,
                )
        except TooManyWatchers as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

    async def Approve(  # noqa: N802 - likewise
        self, request: pb.ApproveRequest, context: Context
    ) -> pb.Changed:
        await self._waiting(request.plan_id, context)
        try:
            return pb.Changed(done=True, detail=await self._desk.approve(*_who(request)))
        except HrapaqError as error:
            return pb.Changed(done=False, detail=str(error))

    async def Reject(  # noqa: N802 - likewise
        self, request: pb.RejectRequest, context: Context
    ) -> pb.Changed:
        await self._waiting(request.plan_id, context)
        plan_id, by = _who(request)
        try:
            return pb.Changed(done=True, detail=await self._desk.decline(plan_id, by, request.why))
        except HrapaqError as error:
            return pb.Changed(done=False, detail=str(error))

    async def Pin(  # noqa: N802 - likewise
        self, request: pb.PinRequest, context: Context
    ) -> pb.Changed:
        snapshot, machine = await self._vm(request.vm, context)
        if request.resource == NET:
            return await self._pin_net(request, snapshot, machine, context)
        try:
            resource = resource_of(request.resource)
        except ValueError as error:
            await _refuse(context, str(error))
        name, word = snapshot.names[machine], resource.word
        if request.release:
            key = ("pin", snapshot.ids[machine], word)
            return await self._release(key, request.by, f"no pin on the {word} of {name}")
        asked = request.amount if request.HasField("amount") else None
        amount = await _pin_amount(snapshot, machine, resource, asked, context)
        pin = Pin(
            vm_id=snapshot.ids[machine],
            resource=resource,
            amount=amount,
            by=request.by,
            expires_tick_ns=self._end(request.ttl_seconds),
        )
        text = f"{word} of {name} is pinned at {amount_text(resource, amount)}"
        if not snapshot.lever[machine, resource]:
            text += f" (its host has no {word} lever: nothing will change)"
        return await self._override(pin, text + _for_how_long(request.ttl_seconds))

    async def _pin_net(
        self, request: pb.PinRequest, snapshot: Snapshot, machine: int, context: Context
    ) -> pb.Changed:
        vm_id, name = snapshot.ids[machine], snapshot.names[machine]
        if request.release:
            nothing = f"no pin on the network of {name}"
            return await self._release(("pin", vm_id, NET), request.by, nothing)
        if not NET_AMOUNT_MIN <= request.amount <= AMOUNT_MAX:
            least = amount_text(Resource.IO, NET_AMOUNT_MIN)
            await _refuse(context, f"say how much may pass each way, {least} or more")
        pin = NetPin(
            vm_id=vm_id,
            amount=request.amount,
            by=request.by,
            expires_tick_ns=self._end(request.ttl_seconds),
        )
        text = f"the network of {name} is limited to {amount_text(Resource.IO, request.amount)}"
        text += why_not_limited(self._desk.view(), snapshot, machine)
        return await self._override(pin, text + _for_how_long(request.ttl_seconds))

    async def Freeze(  # noqa: N802 - likewise
        self, request: pb.FreezeRequest, context: Context
    ) -> pb.Changed:
        snapshot, machine = await self._vm(request.vm, context)
        vm_id, name = snapshot.ids[machine], snapshot.names[machine]
        if request.release:
            return await self._release(("freeze", vm_id), request.by, f"{name} is not frozen")
        freeze = Freeze(vm_id=vm_id, by=request.by, expires_tick_ns=self._end(request.ttl_seconds))
        text = f"nothing of {name} moves" + _for_how_long(request.ttl_seconds)
        return await self._override(freeze, text)

    async def SetMode(  # noqa: N802 - likewise
        self, request: pb.ModeRequest, context: Context
    ) -> pb.Changed:
        words = [mode.name.lower() for mode in Mode]
        if request.mode not in words:
            close = _closest(request.mode, words)
            await _refuse(context, f"no mode is called {request.mode!r}{close}")
        mode = Mode[request.mode.upper()]
        if request.target == FLEET:
            change = ModeChange(scope=FLEET, target="", mode=mode, by=request.by)
            return await self._override(change, f"the fleet's mode is {request.mode}")
        snapshot, machine = await self._machine(request.target, context, vms_only=False)
        name, target = snapshot.names[machine], snapshot.ids[machine]
        changed = pb.Changed(done=True)
        # A hypervisor VM is both: a VM on its host, and the node of its guests.
        if snapshot.is_host[machine]:
            text = f"the mode of all VMs on {name} is {request.mode}"
            change = ModeChange(scope=NODE, target=target, mode=mode, by=request.by)
            changed = await self._override(change, text)
        if changed.done and snapshot.parent[machine] >= 0:
            text = f"{changed.detail}, " if changed.detail else ""
            change = ModeChange(scope=VM, target=target, mode=mode, by=request.by)
            changed = await self._override(change, f"{text}the mode of {name} is {request.mode}")
        return changed

    async def _override(self, override: Override, text: str) -> pb.Changed:
        try:
            await self._desk.override(override)
        except HrapaqError as error:
            return pb.Changed(done=False, detail=str(error))
        return pb.Changed(done=True, detail=text)

    async def _release(self, key: tuple[str, ...], by: str, nothing: str) -> pb.Changed:
        try:
            released = await self._desk.release(key, by)
        except HrapaqError as error:
            return pb.Changed(done=False, detail=str(error))
        return pb.Changed(done=released, detail="released" if released else nothing)

    def _end(self, ttl_seconds: int) -> int | None:
        return self._clock.tick_ns() + ttl_seconds * SECOND_NS if ttl_seconds else None

    async def _waiting(self, plan_id: str, context: Context) -> None:
        """Aborts with NOT_FOUND when no plan of that name waits."""
        approvals = self._desk.view().approvals
        if approvals.find(plan_id) is not None:
            return
        names = [plan.plan_id for plan in approvals.open()]
        there = _closest(plan_id, names) if names else "; none waits for approval"
        await context.abort(grpc.StatusCode.NOT_FOUND, f"plan {plan_id!r} does not wait{there}")

    async def _vm(self, word: str, context: Context) -> tuple[Snapshot, int]:
        return await self._machine(word, context, vms_only=True)

    async def _machine(
        self, word: str, context: Context, *, vms_only: bool
    ) -> tuple[Snapshot, int]:
        """The machine of that id, name, or beginning of an id; aborts when there is not one."""
        snapshot = self._desk.view().snapshot
        if not word:
            await _refuse(context, "no VM is named")
        if snapshot is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"{word!r} is not known: no cycle has been run yet"
            )
        chosen = [
            machine
            for machine in range(len(snapshot.ids))
            if not vms_only or snapshot.parent[machine] >= 0
        ]
        found = [m for m in chosen if word in {snapshot.ids[m], snapshot.names[m]}]
        if not found and len(word) >= ID_LETTERS_MIN:
            found = [m for m in chosen if snapshot.ids[m].startswith(word.lower())]
        if not found:
            close = _closest(word, [snapshot.names[m] for m in chosen])
            what = "VM" if vms_only else "node or VM"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no {what} is called {word!r}{close}")
        if len(found) > 1:
            ids = ", ".join(snapshot.ids[m] for m in found[:8])
            await _refuse(context, f"several machines answer to {word!r}, give the id: {ids}")
        return snapshot, found[0]


def _who(request: pb.ApproveRequest | pb.RejectRequest) -> tuple[str, str]:
    return request.plan_id, request.by


async def _pin_amount(
    snapshot: Snapshot, machine: int, resource: Resource, asked: int | None, context: Context
) -> int:
    """The amount to pin at: as asked, or the limit in force; aborts outside of the bounds."""
    name, at = snapshot.names[machine], (machine, resource)
    amount = int(snapshot.limit[at]) if asked is None else asked
    if asked is None and amount == MISSING:
        await _refuse(context, f"the {resource.word} limit of {name} is not known: give an amount")
    floor, ceiling = int(snapshot.floor[at]), int(snapshot.ceiling[at])
    known = ceiling != MISSING
    if not 0 < amount <= AMOUNT_MAX or amount < floor or (known and amount > ceiling):
        least, most = amount_text(resource, floor), amount_text(resource, ceiling) if known else "?"
        given = amount_text(resource, amount)
        await _refuse(context, f"{given} is outside of the bounds of {name}: {least} to {most}")
    return amount


async def _refuse(context: Context, text: str) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)


def _for_how_long(ttl_seconds: int) -> str:
    return f" for {ttl_seconds} s" if ttl_seconds else " until it is released"


def _closest(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(sorted(names)[:8])}" if names else "; there is none"
