"""The error tree. Operating errors only: a broken promise of our own code is an assertion.

HrapaqError
 ├─ ConfigError             a setting is wrong: stop at start, name file, line and closest key
 ├─ WireError               bytes that are not a valid message: dropped, counted by `cause`
 ├─ BusError                NATS is not there, or refused
 ├─ ReadingError            something could not be read
 │   ├─ VmGone              the VM is no longer there: expected at any time
 │   └─ HypervisorError     the hypervisor refused
 │       ├─ HypervisorUnavailable   no connection; everything of it is unknown
 │       └─ HypervisorTimeout       no answer within the budget: the VM counts as frozen
 ├─ RefusedError            an agent will not do it; `invariant` says which rule forbids it
 ├─ DispatchError           a command could not be brought to its agent
 │   ├─ AgentUnreachable
 │   └─ AckTimeout
 ├─ AuditError              the intent is not on the record: nothing may be sent (I10)
 └─ GuestsUnavailable       demo guests cannot run here; the text says what to install
"""

import sys


class HrapaqError(Exception):
    """Anything that an operator may meet; its text says what, where, and what to do."""


class ConfigError(HrapaqError):
    pass


class WireError(HrapaqError):
    """`cause` is a short fixed word, used as a counter's label."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


class BusError(HrapaqError):
    pass


class ReadingError(HrapaqError):
    pass


class VmGone(ReadingError):  # noqa: N818 - an expected state, read as one
    def __init__(self, vm_id: str) -> None:
        super().__init__(f"VM {vm_id} is no longer there")
        self.vm_id = vm_id


class HypervisorError(ReadingError):
    pass


class HypervisorUnavailable(HypervisorError):  # noqa: N818 - likewise
    pass


class HypervisorTimeout(HypervisorError):  # noqa: N818 - likewise
    pass


class RefusedError(HrapaqError):
    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


class DispatchError(HrapaqError):
    pass


class AgentUnreachable(DispatchError):  # noqa: N818 - likewise
    pass


class AckTimeout(DispatchError):  # noqa: N818 - likewise
    pass


class AuditError(HrapaqError):
    pass


class GuestsUnavailable(HrapaqError):  # noqa: N818 - likewise
    pass


def how_to_install(extra: str) -> str:
    """What brings a missing library; no package index has HRA-PAQ itself."""
    return f"in HRA-PAQ's directory, {sys.executable} -m pip install '.[{extra}]'"
