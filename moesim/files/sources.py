"""Where numbers come from: splits a tree of ``{value: ..., from: key}`` into plain values and their sources."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from moesim.files.checked import check
from moesim.files.trees import Tree
from moesim.ground.errors import Fault, InputError, nearest
from moesim.ground.units import SPELLINGS, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A tree without its sources, the source of every number by dotted path, and what was wrong with them.

    List items that have a name (or name a node) are called by it: ``tiers.nvlink.bandwidth``.
    """

    plain: dict[str, Tree]
    sources: Mapping[str, Source]
    faults: tuple[Fault, ...]
    table: Mapping[str, Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    sources: Mapping[str, Source]


_SPELLED = frozenset(spelling for table in SPELLINGS.values() for spelling in table)
_QUANTITY = re.compile(r"\s*[-+]?[\d.]+(?:[eE][-+]?\d+)?\s*(\S*)\s*\Z")


def split(tree: Mapping[str, Tree], file: str, *, bare: Collection[str] = ()) -> Split:
    """Split a tree into plain values and the source of each number.

    Parameters
    ----------
    tree : mapping
        Has a section ``sources``; numbers are written ``{value: ..., from: key}`` with a key of that section.
    file : str
        How messages name the file.
    bare : collection of str
        Fields whose numbers are choices, not facts, and need no source, or that name it in their own way.
    """
    table, faults = _table(tree.get("sources", {}), file)
    names = tree["sources"] if isinstance(tree.get("sources"), Mapping) else table
    splitter = _Splitter(table, tuple(map(str, names)), frozenset(bare), faults)
    plain = {
        name: value if name in bare else splitter.walk(value, name, name)
        for name, value in tree.items()
        if name != "sources"
    }
    return Split(plain=plain, sources=splitter.found, faults=tuple(faults), table=table)


def _table(tree: Tree, file: str) -> tuple[Mapping[str, Source], list[Fault]]:
    try:
        return check(_Table, {"sources": tree}, file, rules={Source: _unsupported}).sources, []
    except InputError as flaw:
        return {}, list(flaw.faults)


def _unsupported(source: Source) -> Iterator[tuple[str, str, str]]:
    if source.kind in ("published", "measured") and not (source.read or source.raw):
        yield "read", f"a {source.kind} source needs a date or a raw file", "add `read: 2026-11-22` or `raw: ...`"


class _Splitter:
    """Walks a tree, keeping the source of each number it passes."""

    def __init__(
        self, table: Mapping[str, Source], names: tuple[str, ...], bare: frozenset[str], faults: list[Fault]
    ) -> None:
        self.table = table  # empty where a source is at fault
        self.names = names
        self.bare = bare
        self.faults = faults
        self.found: dict[str, Source] = {}

    def walk(self, value: Tree, path: str, called: str) -> Tree:
        if isinstance(value, Mapping):
            if "value" in value:
                return self.sourced(value, path, called)
            return {
                name: inner if name in self.bare else self.walk(inner, f"{path}.{name}", f"{called}.{name}")
                for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self.walk(item, f"{path}.{i}", f"{called}.{_name(item, i)}") for i, item in enumerate(value)]
        if is_number(value):
            remedy = f"write it as `{{value: {value}, from: KEY}}`, with KEY in `sources`"
            self.fault(path, f"{value} has no source", remedy)
        return value

    def sourced(self, pair: Mapping[str, Tree], path: str, called: str) -> Tree:
        for name in pair.keys() - {"value", "from"}:
            self.fault(f"{path}.{name}", "unknown field", nearest(str(name), ["value", "from"]))
        key = pair.get("from")
        if key is None:
            self.fault(path, f"{pair['value']} has no source", "add `from: KEY`, with KEY in `sources`")
        elif str(key) not in self.names:
            self.fault(f"{path}.from", f"no source is called `{key}`", self.remedy(str(key)))
        elif str(key) in self.table:
            self.found[called] = self.table[str(key)]
        return pair["value"]

    def remedy(self, key: str) -> str:
        return nearest(key, self.names) if self.names else f"add a section `sources` with `{key}`"

    def fault(self, path: str, problem: str, remedy: str) -> None:
        self.faults.append(Fault(path=path, problem=problem, remedy=remedy))


def _name(item: Tree, number: int) -> str:
    """Call an item of a list by its name or by that of its node, which may itself be a section; else by its number."""
    if not isinstance(item, Mapping):
        return str(number)
    return _name(item["node"], number) if isinstance(item.get("node"), Mapping) else str(_own_name(item) or number)


def _own_name(item: Mapping[str, Tree]) -> Tree:
    return item.get("name") or item.get("node")


def is_number(value: Tree) -> bool:
    """Tell whether a leaf is a number or a quantity, not a name that happens to begin with a digit."""
    if isinstance(value, str):
        match = _QUANTITY.match(value)
        return match is not None and (not match[1] or match[1] in _SPELLED)
    return isinstance(value, int | float) and not isinstance(value, bool)
