"""Keeps the audit of a run as a file before its bus is stopped, for `hrapaq replay --from FILE`."""

from pathlib import Path

from controller.audit import export_audit
from shared.bus import NatsBus
from shared.errors import HrapaqError

CONNECT_WITHIN_S = 3.0


async def keep_audit(nats_url: str, path: Path) -> int | None:
    """How many records were written; None where there is no audit, or no bus any more."""
    bus = NatsBus([nats_url], "hrapaq-up", lambda _error: None)
    try:
        await bus.connect()
        if not await bus.wait_connected(CONNECT_WITHIN_S):
            return None
        return await export_audit(bus, path)
    except HrapaqError:
        return None
    finally:
        await bus.close()
