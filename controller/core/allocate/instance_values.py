"""Single values of a problem from outside: what they must be, and how an error shows them."""

import json
from collections.abc import Mapping
from difflib import get_close_matches

from controller.core.allocate.problem import ProblemError

SHOWN_MAX = 40  # characters of a wrong value in an error


def fields_of(value: object, known: tuple[str, ...], where: str) -> Mapping[str, object]:
    """An object without unknown keys."""
    if not isinstance(value, dict):
        raise ProblemError(f"{where} is {shown(value)}; an object with {', '.join(known)}")
    for key in value.keys() - set(known):
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ProblemError(f"{where}: {shown(key)} is unknown; {hint}")
    return value


def integer(value: object, least: int, most: int, what: str) -> int:
    """The value itself, from `least` to `most`."""
    if type(value) is not int:  # True is an int as well, and 8.0 would be one in disguise
        raise ProblemError(f"{what} is {shown(value)}; an integer is needed")
    if value < least and least == 0:
        raise ProblemError(f"{what} is negative: {shown(value)}")
    if not least <= value <= most:
        raise ProblemError(
            f"{what} is {shown(value)}; {least} to {most} can be computed with: count in larger "
            "units"
        )
    return value


def shown(value: object) -> str:
    """A wrong value for an error: as JSON where it is short."""
    if value is None:
        return "missing or null"
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}" if value else f"{kind} without content"
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN_MAX else value[: SHOWN_MAX - 1] + "…")
    if type(value) is int and abs(value) >= 1 << 128:
        return f"a number of {value.bit_length()} bits"  # Python would not write all its digits
    return json.dumps(value)
