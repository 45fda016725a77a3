"""The JSON Schema of profile files, made from the types, so that an editor checks a file while it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from moesim.files.profiles import Fabric
from moesim.files.residuals import SHAPE
from moesim.files.trees import Tree
from moesim.ground.units import EXAMPLES, SPELLINGS, Source, Unit
from moesim.world.hardware import MEMORY_TIERS, Device, Fit, Node, Residual, Tier

_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_TEXT: Tree = {"type": "string"}
_KINDS = (Device, Node, Fabric)


def profile_schema() -> dict[str, Tree]:
    """Make the schema of a file that holds a device, a node or a fabric."""
    records = (Device, Node, Fabric, Tier, Fit, Source)
    defs: dict[str, Tree] = {kind.__name__: _record(kind) for kind in records}
    defs |= {_called(symbol): _quantity(symbol) for symbol in SPELLINGS}
    defs["Residual"] = SHAPE
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A hardware profile of moesim: a device, a node or a fabric",
        "anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in _KINDS],
        "$defs": defs,
    }


def _record(kind: type) -> Tree:
    """Describe a record: its fields, those that must be given, and no others."""
    hints = get_type_hints(kind, include_extras=True)
    sourced = kind not in (Fit, Source)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    schema: dict[str, Tree] = {
        "type": "object",
        "description": (kind.__doc__ or "").split("\n")[0],
        "additionalProperties": False,
        "properties": {field.name: _value(hints[field.name], sourced=sourced) for field in fields(kind)},
    }
    if kind in _KINDS:
        schema["properties"]["sources"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/Source"}}
    if kind in (Device, Node):
        schema["properties"]["like"] = {**_TEXT, "description": "a profile of the same kind that says the rest"}
        return schema | {"required": ["name"], "anyOf": [{"required": ["like"]}, {"required": needed}]}
    if kind is Tier:
        memory = {"properties": {"name": {"enum": list(MEMORY_TIERS)}}}
        return schema | {"required": [n for n in needed if n != "ranks"], "if": memory, "else": {"required": ["ranks"]}}
    return schema | {"required": needed}


def _value(hint: Any, *, sourced: bool) -> Tree:
    """Describe what a field of this type holds; numbers bring their source along where they must."""
    inner = get_args(hint)
    if hint is str:
        return _TEXT
    if hint is Source:
        return {**_TEXT, "description": "an entry of `sources`"}
    if hint is Device:
        return {
            "anyOf": [_TEXT, {"$ref": "#/$defs/Device"}],
            "description": "a built-in device, a path, or one in place",
        }
    if hint == Residual | None:
        return {"$ref": "#/$defs/Residual"}
    if is_dataclass(hint):
        return {"$ref": f"#/$defs/{getattr(hint, '__name__', '')}"}
    match get_origin(hint):
        case origin if origin is Literal:
            return {"enum": list(inner)}
        case origin if origin is Mapping:
            return {"type": "object", "additionalProperties": _value(inner[1], sourced=sourced)}
        case origin if origin is tuple and inner[1] is ...:
            return {"type": "array", "items": _value(inner[0], sourced=sourced)}
        case origin if origin is tuple:
            items = [_value(item, sourced=sourced) for item in inner]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    return _sourced(_number(hint)) if sourced else _number(hint)


def _number(hint: Any) -> Tree:
    if get_origin(hint) is Annotated:
        unit = next(mark for mark in get_args(hint)[1:] if isinstance(mark, Unit))
        return {"$ref": f"#/$defs/{_called(unit.symbol)}"}
    return {"type": "integer", "minimum": 0} if hint is int else {"type": "number"}


def _sourced(number: Tree) -> Tree:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["value", "from"],
        "properties": {"value": number, "from": {**_TEXT, "description": "an entry of `sources`"}},
    }


def _called(symbol: str) -> str:
    return f"in {symbol}".replace("/", " per ").replace("  ", " ")


def _quantity(symbol: str) -> Tree:
    """Describe a number with a unit, in every accepted spelling."""
    spellings = "|".join(map(re.escape, SPELLINGS[symbol]))
    return {
        "type": "string",
        "description": f"a number with its unit, such as {EXAMPLES[symbol]}",
        "pattern": rf"^\s*{_NUMBER}\s*({spellings})\s*$",
    }
