"""The three resources, their units, and how a person reads amounts of them."""

from enum import IntEnum

MIB = 1024 * 1024
GIB = 1024 * MIB


class Resource(IntEnum):
    """Also the index of the resource axis in every array of shape (machines, 3)."""

    CPU = 0  # millicores
    MEMORY = 1  # bytes
    IO = 2  # bytes per second of disk traffic

    @property
    def word(self) -> str:
        return self.name.lower()


def resource_of(word: str) -> Resource:
    """The resource named `word` ("cpu", "memory", "io"); ValueError for any other."""
    for resource in Resource:
        if resource.word == word:
            return resource
    raise ValueError(f"no resource is called {word!r}; there are cpu, memory and io")


def amount_text(resource: Resource, amount: int | None) -> str:
    """An amount as a person reads it: `1.25 cores`, `256 MiB`, `4.0 MiB/s`; `?` when unknown."""
    if amount is None:
        return "?"
    if resource is Resource.CPU:
        return f"{amount / 1000:.2f} cores"
    suffix = "/s" if resource is Resource.IO else ""
    if abs(amount) >= 10 * GIB:
        return f"{amount / GIB:.1f} GiB{suffix}"
    whole = amount % MIB == 0 or abs(amount) >= 100 * MIB
    return f"{amount / MIB:.{0 if whole else 1}f} MiB{suffix}"
