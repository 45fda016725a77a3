"""Records to plain trees, the way back of `checked`: a field's annotation says in which unit its number is written."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from moesim.files.residuals import residual_tree
from moesim.files.trees import Tree
from moesim.ground.units import Source, Unit, spell
from moesim.world.hardware import Residual

UNSOURCED = Source(kind="assumed", title="given in Python, without a source")
"""What a number is said to come from when nobody said."""


class Sourcing:
    """Writes numbers with the keys of their sources, and collects the section ``sources`` that the keys are of.

    Parameters
    ----------
    known : mapping from dotted path to Source
        Where each number came from.
    bare : tuple of str
        Fields whose numbers, and all numbers below them, are written without a source.
    implied : tuple of str
        Ends of the paths of numbers that a file need not give; left out where they have no source.
    """

    def __init__(
        self, known: Mapping[str, Source], *, bare: tuple[str, ...] = (), implied: tuple[str, ...] = ()
    ) -> None:
        self.known = known
        self.bare = frozenset(bare)
        self.implied = implied
        self.keys: dict[Source, str] = {}

    def number(self, path: str, value: Tree) -> Tree:
        """Write a number as ``{value: ..., from: KEY}``."""
        if self.bare.intersection(path.split(".")):
            return value
        return {"value": value, "from": self.key(self.known.get(path, UNSOURCED))}

    def key(self, source: Source) -> str:
        """Name a source by its kind and a running number."""
        return self.keys.setdefault(source, f"{source.kind}_{len(self.keys) + 1}")

    def says(self, path: str, *, usual: bool) -> bool:
        """Tell whether a number is written: one with a source always is, a usual or an implied one else is not."""
        return path in self.known or not (usual or path.endswith(self.implied or ("\0",)))

    def section(self) -> dict[str, Tree]:
        """Write the section ``sources``."""
        return {key: written(source) for source, key in self.keys.items()}


NOWHERE = Sourcing({})
"""For records whose numbers are bare."""


def written(
    record: Any, sourcing: Sourcing = NOWHERE, path: str = "", *, leave_out: tuple[str, ...] = ()
) -> dict[str, Tree]:
    """Write a record as a file does: fields at their defaults are left out, quantities get their units.

    Parameters
    ----------
    record : dataclass instance
        Tuples become lists, mappings and records become sections, nothing becomes ``none``.
    sourcing : Sourcing
        Writes numbers together with their sources; by default they are bare.
    path : str
        What the record is called in the paths of `sourcing`.
    leave_out : tuple of str
        Fields of the record that are not written.
    """
    tree = {}
    for field, hint in _hints(cast(Hashable, type(record))):
        if field.name in leave_out:
            continue
        value, place = getattr(record, field.name), _below(path, field.name)
        if sourcing.says(place, usual=_usual(field, value)):
            tree[field.name] = _value(value, hint, sourcing, place)
    return tree


@cache
def _hints(kind: Any) -> tuple[tuple[Field[Any], Any], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple((field, hints[field.name]) for field in fields(kind))


def _usual(field: Field[Any], value: object) -> bool:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return default is not MISSING and bool(value == default)


def _value(value: Any, hint: Any, sourcing: Sourcing, path: str) -> Tree:
    inner = get_args(hint)
    match value:
        case None:
            return "none"
        case bool() | str():
            return sourcing.number(path, value) if path in sourcing.known else value
        case Source():
            return sourcing.key(value)
        case Residual():
            return residual_tree(value)
        case tuple() | list():
            named = ((item, _below(path, called(item, number))) for number, item in enumerate(value))
            return [_value(item, inner[0] if inner else Any, sourcing, place) for item, place in named]
        case Mapping():
            return {key: _value(item, inner[-1], sourcing, _below(path, key)) for key, item in value.items()}
        case _ if is_dataclass(value):
            return written(value, sourcing, path)
        case _:
            return _number(value, hint, sourcing, path)


def _number(value: float, hint: Any, sourcing: Sourcing, path: str) -> Tree:
    unit = next((mark for mark in get_args(hint)[1:] if isinstance(mark, Unit)), None)
    spelled = spell(value, unit.symbol) if get_origin(hint) is Annotated and unit else value
    return spelled if sourcing is NOWHERE else sourcing.number(path, spelled)


def called(item: object, number: int) -> str:
    """Name an item of a list as `sources.split` does: by its name, its node's name, or its number."""
    node = getattr(item, "node", None)
    return str(getattr(item, "name", None) or getattr(node, "name", None) or number)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
