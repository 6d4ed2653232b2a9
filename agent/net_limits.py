"""Keeps the network of VMs at what operators limited it to, and lifts what nobody wants any more.

Networks are not planned: no capacity is shared out, so there is nothing to forecast or to put in
order. A limit is an operator's word about one VM, told by the controller with all others of this
host; it is set here, looked at again every minute, since interfaces come and go, and lifted when
the word or the lease ends. Limits that others have set are not touched, and come back after ours.
"""

import logging
from collections.abc import Mapping

from agent.hypervisor import Hypervisor, VmReading
from shared.clock import SECOND_NS, Clock
from shared.errors import HypervisorError, VmGone
from shared.log import RateLimited
from shared.telemetry import VmState

logger = logging.getLogger(__name__)

LOOK_AGAIN_NS = 60 * SECOND_NS
GRAIN_BYTES_PER_S = 1024  # a hypervisor counts in these

_MOVABLE = frozenset({VmState.RUNNING, VmState.STARTING, VmState.PAUSED})


class NetLimiter:
    def __init__(self, hypervisor: Hypervisor, clock: Clock) -> None:
        self._hypervisor = hypervisor
        self._clock = clock
        self._kept: Mapping[str, int] | None = None
        self._kept_tick_ns = 0
        self._is_done = False  # nothing is wanted, and nothing of ours was in force
        self._said = RateLimited(logger, clock)
        self._failing: dict[str, str] = {}  # by VM, why its limit could not be set
        self._set_ones = 0

    @property
    def why_none(self) -> str:
        """Why no limit could be set when one was wanted; "" while any of them works."""
        return next(iter(self._failing.values()), "") if not self._set_ones else ""

    async def keep(self, wanted: Mapping[str, int] | None) -> None:
        """To be called every second or so. `wanted`: bytes/s by VM; None: not known yet, and then
        what is in force stays."""
        now = self._clock.tick_ns()
        is_recent = self._is_done or now - self._kept_tick_ns < LOOK_AGAIN_NS
        if wanted is None or (wanted == self._kept and is_recent):
            return
        self._kept, self._kept_tick_ns, self._is_done = wanted, now, False
        try:
            readings = await self._hypervisor.read_all()
        except HypervisorError as error:
            self._said.warning("net", "network limits cannot be looked at", cause=str(error))
            return
        self._is_done = not wanted and all(vm.net_found_bytes_per_s is None for vm in readings)
        self._failing.clear()
        for vm in readings:
            if vm.state in _MOVABLE and _is_other(vm, wanted.get(vm.vm_id)):
                await self._set(vm, wanted.get(vm.vm_id))
        self._set_ones = len(wanted.keys() & {vm.vm_id for vm in readings} - self._failing.keys())

    async def _set(self, vm: VmReading, bytes_per_s: int | None) -> None:
        try:
            await self._hypervisor.set_net_limit(vm.vm_id, bytes_per_s)
        except VmGone:
            return
        except HypervisorError as error:
            self._failing[vm.vm_id] = str(error).strip()
            extra = {"vm": vm.name, "cause": str(error)}
            self._said.warning(("net", vm.vm_id), "a network limit cannot be set", **extra)
            return
        logger.info("network limit", extra={"vm": vm.name, "bytes_per_s": bytes_per_s or "lifted"})


def _is_other(vm: VmReading, wanted: int | None) -> bool:
    """Whether something else is in force than wanted; without a wish, whether it is ours."""
    if wanted is None:
        return vm.net_found_bytes_per_s is not None
    in_force = vm.net_limit_bytes_per_s
    return in_force is None or abs(in_force - wanted) >= GRAIN_BYTES_PER_S
