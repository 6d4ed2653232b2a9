"""Every NATS subject and stream name, and what may stand in them."""

import re

TELEMETRY_PREFIX = "paq.telemetry"
TELEMETRY_ALL = f"{TELEMETRY_PREFIX}.*"
TELEMETRY_STREAM = "PAQ_TELEMETRY"  # hours of replay for a controller that restarts

GUEST_PREFIX = "paq.guest"  # a guest's word to its own host (shared.guest_word)

AUDIT_PREFIX = "paq.audit"
AUDIT_ALL = f"{AUDIT_PREFIX}.>"
AUDIT_STREAM = "PAQ_AUDIT"

# Machine identities are UUIDs; anything else would open wildcards and other nodes' subjects.
_NODE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_machine_id(text: str) -> bool:
    return _NODE_ID.fullmatch(text) is not None


def telemetry_subject(node_id: str) -> str:
    """`paq.telemetry.<node>`; ValueError when the id is no lower-case UUID."""
    if not is_machine_id(node_id):
        raise ValueError(f"{node_id!r} is no lower-case UUID")
    return f"{TELEMETRY_PREFIX}.{node_id}"


def guest_subject(vm_id: str) -> str:
    """`paq.guest.<vm>`; ValueError when the id is no lower-case UUID."""
    if not is_machine_id(vm_id):
        raise ValueError(f"{vm_id!r} is no lower-case UUID")
    return f"{GUEST_PREFIX}.{vm_id}"


def guest_of(subject: str) -> str | None:
    """The VM that a guest's subject belongs to, or None when it is none."""
    prefix, _, vm_id = subject.rpartition(".")
    return vm_id if prefix == GUEST_PREFIX and is_machine_id(vm_id) else None


def node_of(subject: str) -> str | None:
    """The node that a telemetry subject belongs to, or None when it is none."""
    prefix, _, node_id = subject.rpartition(".")
    return node_id if prefix == TELEMETRY_PREFIX and is_machine_id(node_id) else None


def audit_subject(kind: str) -> str:
    """`paq.audit.<kind>`; kinds are fixed lower-case words."""
    assert re.fullmatch(r"[a-z]+", kind), kind
    return f"{AUDIT_PREFIX}.{kind}"
