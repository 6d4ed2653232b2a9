"""Amounts and durations as people type them on the command line."""

import re

import click

from shared.resources import GIB, MIB, Resource

_BYTES = {"": 1, "b": 1, "kib": 1024, "k": 1024, "mib": MIB, "m": MIB, "gib": GIB, "g": GIB}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)(/s)?")


def parse_amount(resource: Resource, text: str) -> int:
    """`256MiB`, `4MiB/s`, `1.5` or `1500m` (cores) in the resource's unit; ValueError otherwise."""
    match = _NUMBER.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(_amount_help(resource, text))
    number, unit = float(match[1]), match[2]
    if resource is Resource.CPU:
        if unit not in {"", "m", "cores", "core"} or match[3]:
            raise ValueError(_amount_help(resource, text))
        return round(number if unit == "m" else number * 1000)
    if unit not in _BYTES or (match[3] and resource is Resource.MEMORY):
        raise ValueError(_amount_help(resource, text))
    return round(number * _BYTES[unit])


def parse_rate(text: str) -> int:
    """`10MiB/s` in bytes/s; ValueError otherwise."""
    match = _NUMBER.fullmatch(text.strip().lower())
    if match is None or match[2] not in _BYTES:
        raise ValueError(f"{text!r} is no rate; write it like 10MiB/s")
    return round(float(match[1]) * _BYTES[match[2]])


def _amount_help(resource: Resource, text: str) -> str:
    like = {
        Resource.CPU: "1.5 (cores) or 1500m",
        Resource.MEMORY: "256MiB or 2GiB",
        Resource.IO: "4MiB/s",
    }
    return f"{text!r} is no amount of {resource.word}; write it like {like[resource]}"


class Duration(click.ParamType[int]):
    """Seconds from `90`, `90s`, `10m`, `2h` or `1d`."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = _NUMBER.fullmatch(str(value).strip().lower())
        if match is None or match[2] not in _SECONDS or match[3]:
            self.fail(f"{value!r} is no duration; write it like 90s, 10m or 2h", param, ctx)
        return round(float(match[1]) * _SECONDS[match[2]])
