"""Follows a run through the admin service, as any client would, and keeps the View up to date."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

import grpc

from controller.up.report import Report
from controller.up.view import View
from shared.pb import admin_pb2 as pb
from shared.pb.admin_pb2_grpc import AdminStub

if TYPE_CHECKING:
    from shared.pb.admin_pb2_grpc import AdminAsyncStub  # exists for the type checker only

POLL_S = 1.0
CALL_TIMEOUT_S = 3.0
RETRY_S = 1.0


class Watcher:
    """`run` never ends by itself; a controller that is away is said in the View."""

    def __init__(
        self, address: str, view: View, report: Report, say: Callable[[str], None]
    ) -> None:
        self._address = address
        self._view = view
        self._report = report
        self._say = say

    async def run(self) -> None:
        options = [("grpc.enable_http_proxy", 0)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub: AdminAsyncStub = AdminStub(channel)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._poll(stub), name="poll admin")
                tasks.create_task(self._follow(stub), name="follow events")

    async def _poll(self, stub: "AdminAsyncStub") -> None:
        while True:
            began = time.monotonic()
            try:
                await self._look(stub)
                self._view.controller_silent = ""
            except grpc.aio.AioRpcError as error:
                self._view.controller_silent = f"does not answer ({error.code().name.lower()})"
            await asyncio.sleep(max(0.1, POLL_S - (time.monotonic() - began)))

    async def _look(self, stub: "AdminAsyncStub") -> None:
        view = self._view
        view.status = await stub.GetStatus(pb.StatusRequest(), timeout=CALL_TIMEOUT_S)
        self._report.saw_status(view.status)
        view.nodes = list((await stub.ListNodes(pb.NodesRequest(), timeout=CALL_TIMEOUT_S)).nodes)
        view.vms = list((await stub.ListVms(pb.VmsRequest(), timeout=CALL_TIMEOUT_S)).vms)
        newest = await stub.GetPlan(pb.PlanRequest(), timeout=CALL_TIMEOUT_S)
        if newest.found and (newest.steps or newest.rejections):
            await self._complete_former(stub, newest)
            view.plan = newest
            self._report.saw_plan(newest)
        else:
            await self._complete_former(stub, None)

    async def _complete_former(self, stub: "AdminAsyncStub", newest: pb.PlanReply | None) -> None:
        """Outcomes of a plan may come in after the next one was made."""
        former = self._view.plan
        if former is None or (newest is not None and former.plan_id == newest.plan_id):
            return
        if all(step.outcome for step in former.steps):
            return
        again = await stub.GetPlan(pb.PlanRequest(plan_id=former.plan_id), timeout=CALL_TIMEOUT_S)
        if again.found:
            self._view.plan = again
            self._report.saw_plan(again)

    async def _follow(self, stub: "AdminAsyncStub") -> None:
        """Events as they come; after a break from the next one on."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for event in stub.Watch(pb.WatchRequest()):
                    self._say(event_line(event))
            await asyncio.sleep(RETRY_S)


def event_line(event: pb.Event) -> str:
    """`12:00:05 plan: 3 steps ...` in local time."""
    at = datetime.fromtimestamp(event.at_unix_ns / 1e9).astimezone()
    return f"{at:%H:%M:%S} {event.kind}: {event.text}"
