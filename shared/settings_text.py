"""What settings say of themselves: their docs, types and values as a person reads them."""

import ast
import inspect
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """One setting as a person meets it."""

    name: str  # dotted from the top of the settings type
    type: str
    default: str | None  # as it would stand in the file; None where the setting must be given
    doc: str


def describe(settings_type: type[Struct]) -> list[FieldDoc]:
    """Every setting of the type in the order of its source, tables flattened to dotted names."""
    docs = _docs(settings_type)
    hints = get_type_hints(settings_type, include_extras=True)
    described: list[FieldDoc] = []
    for info in msgspec.structs.fields(settings_type):
        inner = table_type(hints[info.name])
        if inner is not None:
            nested = describe(inner)
            described += [
                FieldDoc(f"{info.encode_name}.{d.name}", d.type, d.default, d.doc) for d in nested
            ]
            continue
        assert info.name in docs, f"{settings_type.__name__}.{info.name} says nothing of itself"
        default = _default_text(info)
        described.append(
            FieldDoc(info.encode_name, type_text(hints[info.name]), default, docs[info.name])
        )
    return described


def as_toml(settings: Struct, section: str | None = None) -> str:
    """The settings as a commented file: what `load` would read to arrive at the same values."""
    lines = [f"[{section}]"] if section else []
    tables: list[str] = []
    docs = _docs(type(settings))
    for info in msgspec.structs.fields(type(settings)):
        value = getattr(settings, info.name)
        if isinstance(value, Struct):
            inner = f"{section}.{info.encode_name}" if section else info.encode_name
            tables.append(as_toml(value, inner))
            continue
        lines += [f"# {line}" for line in docs.get(info.name, "").splitlines()]
        text = _literal(value)
        lines.append(f"# {info.encode_name} =" if value is None else f"{info.encode_name} = {text}")
    return "\n".join([*lines, ""]) + "".join(f"\n{table}" for table in tables)


def types_of(settings_type: type[Struct]) -> dict[str, object]:
    """Types by the name in the file."""
    hints = get_type_hints(settings_type, include_extras=True)
    return {f.encode_name: hints[f.name] for f in msgspec.structs.fields(settings_type)}


def table_type(kind: object) -> type[Struct] | None:
    """The settings type that a nested table is read into, else None."""
    return kind if inspect.isclass(kind) and issubclass(kind, Struct) else None


def type_text(kind: object) -> str:
    """A type as a person reads it: `int >= 1 and <= 60`, `"on" or "off"`, `list of str`."""
    if not get_args(kind):
        return _simple_type_text(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [_bounds_text(meta) for meta in arguments[1:] if isinstance(meta, msgspec.Meta)]
        return " ".join([type_text(arguments[0]), *filter(None, bounds)])
    if origin is Literal:
        return " or ".join(_literal(argument) for argument in arguments)
    if origin in {list, tuple, set, frozenset}:
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"table of {type_text(arguments[1])}"
    return " or ".join(type_text(each) for each in arguments if each is not type(None))


def _simple_type_text(kind: object) -> str:
    if table_type(kind) is not None:
        return "table"
    if kind is Path:
        return "path"
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _bounds_text(meta: msgspec.Meta) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(meta, name)}"
        for name, sign in signs.items()
        if getattr(meta, name) is not None
    ]
    if meta.min_length is not None:
        bounds.append(f"of length >= {meta.min_length}")
    if meta.max_length is not None:
        bounds.append(f"of length <= {meta.max_length}")
    if meta.pattern is not None:
        bounds.append(f"like {meta.pattern}")
    return " and ".join(bounds)


def _docs(settings_type: type[Struct]) -> dict[str, str]:
    """The texts under the fields, from the source of the type and of those it extends."""
    docs: dict[str, str] = {}
    for kind in reversed(settings_type.__mro__):
        if kind is Struct or not issubclass(kind, Struct):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, follower in zip(body.body, body.body[1:], strict=False):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            text = follower.value if isinstance(follower, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                docs[node.target.id] = inspect.cleandoc(text.value)
    return docs


def _default_text(info: FieldInfo) -> str | None:
    if info.default is not msgspec.NODEFAULT:
        return _literal(info.default)
    if info.default_factory is not msgspec.NODEFAULT:
        return _literal(info.default_factory())
    return None


def _literal(value: object) -> str:
    """A value as it stands in a file. TOML has no word for none: tables leave it out."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        said = ((key, item) for key, item in value.items() if item is not None)
        return f"{{{', '.join(f'{json.dumps(str(k))} = {_literal(v)}' for k, v in said)}}}"
    return str(value)
