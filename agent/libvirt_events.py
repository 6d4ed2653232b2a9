"""What libvirt tells by itself, in the worker process: passed on as it comes, in plain values.

[word, VM id, number, detail], of which `agent.libvirt_readings.event_of` makes ours. The
callbacks run on the thread of libvirt's event loop and do nothing but send.
"""

from collections.abc import Callable
from typing import Any

import libvirt

OPENED = "opened"  # a connection on which events are heard from now on
CLOSED = "closed"  # the connection ended: what happens until the next one is not told

Tell = Callable[[list[Any]], None]


def subscribe(connection: Any, tell: Tell) -> None:  # noqa: ANN401 - libvirt-python has no types
    """Everything about VMs that changes what is known of them; a driver may not know all kinds."""
    connection.registerCloseCallback(lambda *_: tell([CLOSED, "", 0, 0]), None)
    callbacks: dict[int, Callable[..., None]] = {
        libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: lambda _connection, domain, event, detail, _opaque: (
            tell(["lifecycle", domain.UUIDString(), event, detail])
        ),
        libvirt.VIR_DOMAIN_EVENT_ID_REBOOT: lambda _connection, domain, _opaque: tell(
            ["reboot", domain.UUIDString(), 0, 0]
        ),
        # Each pass over the memory; the first is the only sign that a migration away began.
        libvirt.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION: lambda _connection, domain, number, _: (
            tell(["migration", domain.UUIDString(), number, 0])
        ),
        libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED: lambda _connection, domain, _facts, _opaque: (
            tell(["job", domain.UUIDString(), 0, 0])
        ),
        libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE: lambda _connection, domain, _parameters, _opaque: tell(
            ["tunable", domain.UUIDString(), 0, 0]
        ),
    }
    for kind, callback in callbacks.items():
        try:
            connection.domainEventRegisterAny(None, kind, callback, None)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
    tell([OPENED, "", 0, 0])
