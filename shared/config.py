"""Settings: frozen structs, from a TOML file and HRAPAQ_* variables; nothing wrong gets past.

A settings type is a frozen, keyword-only msgspec.Struct with forbid_unknown_fields. Under each
field stands a text that says its unit, its default and why: `describe` reads it, so that what
`check-config --print` and the README say is what the code says. A type may have a method
`problems() -> list[str]` that names impossible relations between its values, with the keys
in the words of the file.

A variable overrides the file: `HRAPAQ_BUS__SERVERS` is `servers` in the table `[bus]`, a
variable without a double underscore a key at the top. For a program that reads one section of
a common file, that section is the first part: `HRAPAQ_AGENT__PERIOD_S` is `[agent] period_s`.
"""

import copy
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

from shared.errors import ConfigError
from shared.settings_text import FieldDoc, as_toml, describe, table_type, type_text, types_of

__all__ = ["ENVIRONMENT_PREFIX", "FieldDoc", "as_toml", "describe", "load", "load_program"]

ENVIRONMENT_PREFIX = "HRAPAQ_"
PROGRAMS = ("agent", "controller")  # each has a table in a common file
# Read by the command line, `hrapaq up` and the set-up script; no settings of a program.
OTHER_VARIABLES = (
    "HRAPAQ_CONTROLLER",
    "HRAPAQ_NATS",
    "HRAPAQ_SYSTEM",
    "HRAPAQ_TORCH",
    "HRAPAQ_UP_OWNER",
)

Settings = TypeVar("Settings", bound=Struct)
KeyPath = tuple[str, ...]  # from the top of the file


def load_program(
    program: str, path: Path | None, settings_type: type[Settings], environ: Mapping[str, str]
) -> Settings:
    """The settings of one of PROGRAMS, from a file of its own or its table of a common file."""
    common = path is not None and _has_table(path, program)
    return load(
        path,
        settings_type,
        environ,
        program if common else None,
        other_sections=[name for name in PROGRAMS if name != program] if common else (),
        ignored_variables=OTHER_VARIABLES,
    )


def load(
    path: Path | None,
    settings_type: type[Settings],
    environ: Mapping[str, str],
    section: str | None = None,
    *,
    other_sections: Collection[str] = (),
    ignored_variables: Collection[str] = (),
) -> Settings:
    """The settings in `path` (None: only defaults) under the variables of `environ`.

    With `section`, the table of that name is read; tables and variables of `other_sections`
    belong to other programs and pass. `ignored_variables` are whole names of HRAPAQ_*
    variables that something else reads. ConfigError names every wrong thing with its place.
    """
    source = _Source.of_file(path)
    top: KeyPath = (section,) if section else ()
    own = _own_table(source, section, other_sections)
    foreign = tuple(f"{ENVIRONMENT_PREFIX}{name.upper()}__" for name in other_sections)
    variables = {
        name: text
        for name, text in sorted(environ.items())
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in ignored_variables
        and not name.startswith(foreign)
    }
    problems = list(_apply_variables(source, own, settings_type, variables, top=top))
    problems += _unknown_keys(source, own, settings_type, top)
    _refuse(problems)
    settings = _convert(source, own, settings_type, top)
    _refuse(_relations(source, settings, top))
    return settings


def _has_table(path: Path, name: str) -> bool:
    """What is wrong with the file is said by `load`."""
    try:
        return name in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


# ---- the file, and where things stand in it ----

_KEY = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_KEY_LINE = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_TABLE_LINE = re.compile(rf"\s*\[\[?\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    tree: dict[str, Any]
    places: dict[KeyPath, str]  # "file:line" or the variable's name

    @classmethod
    def of_file(cls, path: Path | None) -> "_Source":
        if path is None:
            return cls("settings", {}, {})
        try:
            text = path.read_bytes().decode()
            tree = tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is no UTF-8 text at byte {error.start}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(_syntax_text(path, text, error)) from None
        lines = _lines(text)
        return cls(str(path), tree, {keys: f"{path}:{line}" for keys, line in lines.items()})

    def place(self, keys: KeyPath) -> str:
        """Where `keys` was said, or the nearest thing around it."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.places:
                return self.places[keys[:length]]
        return self.name


def _lines(text: str) -> dict[KeyPath, int]:
    """The line of each key and table, found by eye: the parser does not tell."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _TABLE_LINE.match(line):
            table = _split_key(header[1])
            found.setdefault(table, number)
        elif key := _KEY_LINE.match(line):
            found.setdefault(table + _split_key(key[1]), number)
    return found


def _split_key(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _syntax_text(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    """`file:line: what`; the parser says "at end of document" instead of the last line."""
    said = str(error)
    at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", said)
    line = int(at[1]) if at and at[1] else max(1, text.rstrip("\n").count("\n") + 1)
    return f"{path}:{line}: {said[: at.start()] if at else said}"


# ---- what may be said ----


def _own_table(source: _Source, section: str | None, others: Collection[str]) -> dict[str, Any]:
    """The part of the file that this program reads, as a copy."""
    if section is None:
        return copy.deepcopy(source.tree)
    known = {section, *others}
    _refuse(
        f"{source.place((name,))}: {name} is unknown here{_closest(name, known)}"
        for name in source.tree
        if name not in known
    )
    own = source.tree.get(section, {})
    if not isinstance(own, dict):
        raise ConfigError(f"{source.place((section,))}: {section} must be a table [{section}]")
    return copy.deepcopy(own)


def _unknown_keys(source: _Source, value: object, kind: object, keys: KeyPath) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    table = table_type(kind)
    if table is not None and isinstance(value, dict):
        hints = types_of(table)
        for name, item in value.items():
            if name in hints:
                yield from _unknown_keys(source, item, hints[name], (*keys, name))
            else:
                place = source.place((*keys, name))
                yield f"{place}: {_dotted(keys, name)} is unknown{_closest(name, hints)}"
    elif origin is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from _unknown_keys(source, item, arguments[1], (*keys, name))
    elif origin in {list, tuple} and isinstance(value, list):
        for item in value:
            yield from _unknown_keys(source, item, arguments[0], keys)
    else:  # Annotated, and `Table | None`
        for argument in arguments if origin is not Literal else ():
            yield from _unknown_keys(source, value, argument, keys)


def _closest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""


def _apply_variables(
    source: _Source,
    own: dict[str, Any],
    settings_type: type[Struct],
    variables: Mapping[str, str],
    *,
    top: KeyPath,
) -> Iterator[str]:
    """Puts the variables into `own` and their names into the places; yields what is wrong."""
    known = {_variable_name((*top, *keys)): (keys, kind) for keys, kind in _leaves(settings_type)}
    for name, text in variables.items():
        if name not in known:
            yield f"{name}: no such setting{_closest(name, known)}"
            continue
        keys, kind = known[name]
        table = own
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                break  # the file is wrong here, and will be told so
        else:
            table[keys[-1]] = _variable_value(text, kind)
            source.places[(*top, *keys)] = name


def _variable_name(keys: KeyPath) -> str:
    return ENVIRONMENT_PREFIX + "__".join(keys).upper()


def _variable_value(text: str, kind: object) -> object:
    """`text` as TOML where that gives what the setting needs, else as it stands."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    if parsed.keys() != {"value"}:
        return text  # a line end smuggled a second key in
    try:
        msgspec.convert(text, kind, dec_hook=_decode_hook)
        fits_as_text = True
    except msgspec.ValidationError:
        fits_as_text = False
    quoted = isinstance(parsed["value"], str)
    return text if fits_as_text and not quoted else parsed["value"]


def _leaves(settings_type: type[Struct]) -> Iterator[tuple[KeyPath, object]]:
    for name, kind in types_of(settings_type).items():
        inner = table_type(kind)
        if inner is None:
            yield (name,), kind
        else:
            yield from (((name, *keys), kind) for keys, kind in _leaves(inner))


# ---- values ----


def _convert(source: _Source, own: object, settings_type: type[Settings], top: KeyPath) -> Settings:
    try:
        return msgspec.convert(own, settings_type, dec_hook=_decode_hook)
    except msgspec.ValidationError as error:
        raise ConfigError(_refusal_text(source, own, settings_type, top, str(error))) from None


def _decode_hook(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"must be {type_text(kind)}")


def _refusal_text(
    source: _Source, own: object, settings_type: type[Struct], top: KeyPath, said: str
) -> str:
    """msgspec's `Expected ... - at `$.a.b`` with the place, the value and what is allowed."""
    message, _, at = said.partition(" - at `$")
    inner = tuple(re.findall(r"[^.\[\]`]+|\.\.\.", at))
    keys = (*top, *inner)
    if missing := re.search(r"missing required field `(.*)`", message):
        return f"{source.place(keys)}: {_dotted(keys, missing[1])} is missing, it has no default"
    value, kind = own, settings_type  # type: object, object
    for key in inner:
        value = value.get(key) if isinstance(value, dict) else None
        table = table_type(kind)
        kind = types_of(table).get(key) if table else None
    if value is None or kind is None:  # inside a list or a map, where only msgspec knows the way
        return f"{source.place(keys)}: {'.'.join(keys)}: {message}"
    return f"{source.place(keys)}: {'.'.join(keys)} = {value!r}: must be {type_text(kind)}"


def _relations(source: _Source, settings: Struct, keys: KeyPath) -> Iterator[str]:
    """What the settings themselves find impossible, table by table."""
    names = [info.encode_name for info in msgspec.structs.fields(type(settings))]
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, Struct):
            yield from _relations(source, value, (*keys, name))
    for problem in getattr(settings, "problems", list)():
        named = [(*keys, word) for word in re.findall(r"\w+", problem) if word in names]
        said = [each for each in named if each in source.places]
        yield f"{source.place((said or [keys])[0])}: {problem}"


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ConfigError("\n".join(found))


def _dotted(keys: KeyPath, name: str) -> str:
    return ".".join((*keys, name))
