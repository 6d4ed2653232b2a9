"""What operators change while the controller runs: pins, freezes and modes on the disk, and
plans that wait for their word. The admin service's Desk."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import IntEnum
from pathlib import Path

from msgspec import structs

from controller.core.state import Plan
from controller.events import Broadcast, Happening
from controller.gate import Approvals
from controller.overrides import FLEET, Override, Overrides, from_bytes, to_bytes
from controller.recorder import Recorder
from controller.store import OVERRIDES_FILE, read_if_there, write_durably
from controller.view import View
from shared.clock import SECOND_NS, Clock
from shared.errors import ConfigError, DispatchError

log = logging.getLogger(__name__)

PATIENCE_NS = 600 * SECOND_NS  # how long a plan waits for a word
ANSWER_WITHIN_S = 3.0  # an operator's call; the plan goes on without the caller

CarryOut = Callable[[Plan, str, "asyncio.Future[str]"], Awaitable[None]]


class OperatorDesk:
    """`carry_out(plan, by, begun)` verifies again, audits and dispatches; it says through `begun`
    what it began or why it did not."""

    def __init__(
        self,
        state_directory: Path,
        clock: Clock,
        recorder: Recorder,
        broadcast: Broadcast,
        read_view: Callable[[], View],
        carry_out: CarryOut,
    ) -> None:
        self._path = state_directory / OVERRIDES_FILE
        self._clock = clock
        self._recorder = recorder
        self._broadcast = broadcast
        self._read_view = read_view
        self._carry_out = carry_out
        self._writing = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()
        self.approvals = Approvals()
        self.overrides = Overrides()

    def load(self) -> None:
        """What was in force when the last controller stopped; ConfigError when it is damaged."""
        try:
            data = read_if_there(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from error
        if data is not None:
            tick_ns, unix_ns = self._clock.tick_ns(), self._clock.unix_ns()
            self.overrides = from_bytes(data, tick_ns, unix_ns, str(self._path))

    async def close(self) -> None:
        """Waits for what is being carried out; the dispatcher must be closed already."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def view(self) -> View:
        return self._read_view()

    async def approve(self, plan_id: str, by: str) -> str:
        plan = self.approvals.find(plan_id)
        if plan is None:
            raise DispatchError(f"plan {plan_id!r} does not wait any more")
        self.approvals = self.approvals.without(plan_id)
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._follow(plan, by, begun), name=f"approved {plan_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait({begun}, timeout=ANSWER_WITHIN_S)
        if begun.done():
            return begun.result()
        return "approved; it is verified again and carried out after the cycle under way"

    async def decline(self, plan_id: str, by: str, why: str) -> str:
        self.approvals = self.approvals.declining(plan_id)
        await self._say(f"plan {plan_id} is turned down by {by}", "reject", by, plan_id, why=why)
        return f"plan {plan_id} is turned down; the same steps are not asked for again for a while"

    async def override(self, override: Override) -> None:
        async with self._writing:
            await self._save(self.overrides.with_(override))
        body = {
            name: value.name.lower() if isinstance(value, IntEnum) else value
            for name, value in structs.asdict(override).items()
            if name != "by"
        }
        await self._say(_text(override), override.key[0], override.by, **body)

    async def release(self, key: tuple[str, ...], by: str) -> bool:
        async with self._writing:
            released = self.overrides.without(key)
            if len(released.items) == len(self.overrides.items):
                return False
            await self._save(released)
        await self._say(f"{' '.join(key)} is released by {by}", "release", by, key=list(key))
        return True

    async def tidy(self) -> None:
        """Takes out what has ended, and says so."""
        now = self._clock.tick_ns()
        self.approvals = self.approvals.at(now)
        ended = self.overrides.expired(now)
        if not ended:
            return
        async with self._writing:
            await self._save(self.overrides.at(now))
        for one in ended:
            await self._say(f"{' '.join(one.key)} has ended", "expire", one.by, key=list(one.key))

    def ask(self, plan: Plan) -> None:
        """Remembers that the plan waits for an operator."""
        self.approvals = self.approvals.ask(plan, self._clock.tick_ns(), PATIENCE_NS)

    async def _follow(self, plan: Plan, by: str, begun: "asyncio.Future[str]") -> None:
        try:
            await self._carry_out(plan, by, begun)
        finally:
            if not begun.done():
                begun.set_exception(DispatchError("the plan was not carried out, see the log"))
                begun.exception()  # the caller may have gone: nobody has to hear it

    async def _save(self, overrides: Overrides) -> None:
        """On the disk first, then in force."""
        data = to_bytes(overrides, self._clock.tick_ns(), self._clock.unix_ns())
        try:
            await asyncio.to_thread(write_durably, self._path, data)
        except OSError as error:
            raise DispatchError(
                f"{self._path} cannot be written, so nothing was changed: {error.strerror}"
            ) from error
        self.overrides = overrides

    async def _say(self, text: str, what: str, by: str, plan_id: str = "", **body: object) -> None:
        self._broadcast.tell(Happening("override", text, plan_id=plan_id))
        snapshot = self._read_view().snapshot
        cycle = 0 if snapshot is None else snapshot.cycle
        record = {"what": what, "by": by, "plan_id": plan_id, **body}
        if not await self._recorder.change(record, cycle):
            log.warning("change waits for the audit stream", extra={"change": text})


def _text(override: Override) -> str:
    what = " ".join(word for word in override.key if word) or FLEET
    by = f" by {override.by}" if override.by else ""
    amount = getattr(override, "amount", None)
    mode = getattr(override, "mode", None)
    setting = f" at {amount}" if amount is not None else ""
    setting = f" to {mode.name.lower()}" if mode is not None else setting
    return f"{what}{setting}{by}"
