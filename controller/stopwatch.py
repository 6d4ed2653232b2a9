"""How long the named steps of a cycle take."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.clock import Clock


@dataclass(slots=True)
class Stopwatch:
    """How long each named step took, in nanoseconds."""

    clock: Clock
    took_ns: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = self.clock.tick_ns()
        try:
            yield
        finally:
            self.took_ns[step] = self.clock.tick_ns() - began
