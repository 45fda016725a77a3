"""The ``space`` section: alternatives by dotted path, lists being alternatives at every depth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from itertools import product

from moesim.files.checked import count, gather, refuse, shown
from moesim.files.policies import read_alternatives
from moesim.files.trees import Tree
from moesim.ground.errors import nearest
from moesim.passes.columns import TENSORS
from moesim.plans.plan import Parallel, Space
from moesim.policies.finding import kinds
from moesim.world.formats import BITS

DEGREES = tuple(field.name for field in fields(Parallel))
ROLES = ("all", "prefill", "decode")
COUNTS = ("replicas", "microbatch", "max_batch", "graphs", "spare_nodes")
NONE_TOO = ("graphs", "spare_nodes")
"""Those that may be 0."""
Reader = Callable[[Tree], Iterator[object]]


def read_space(tree: Tree, file: str, *, frameworks: Collection[str], nodes: Collection[str]) -> Space:
    """Read a space.

    Parameters
    ----------
    tree : Tree
        Paths, dotted or nested, with one value or a list of alternatives each. ``parallel.ep`` means every pool,
        ``pools.decode.parallel.ep`` one of them.
    file : str
        How messages name the file.
    frameworks, nodes : collection of str
        What may be named; no nodes: anything.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section.
    """
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "write alternatives as `parallel.ep: [8, 16]` lines")

    def alternatives(path: str, value: Tree) -> tuple[object, ...]:
        return _alternatives(value, _reader(path, file, frameworks, nodes), file)

    return Space(axes=gather(file, _flat(tree), alternatives))


def _flat(tree: Mapping[str, Tree], above: str = "") -> Iterator[tuple[str, Tree]]:
    """List the leaves of nested sections by dotted path; a policy with settings is a leaf."""
    for name, value in tree.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping) and path.rpartition(".")[2] not in kinds():
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def _alternatives(value: Tree, read: Reader, file: str) -> tuple[object, ...]:
    if value is None or value == []:
        raise refuse(file, "has no alternatives", "list at least one, or leave it out")
    if not isinstance(value, list):
        return tuple(read(value))
    found = gather(file, enumerate(value), lambda _, item: tuple(read(item)))
    return tuple(alternative for several in found.values() for alternative in several)


def _reader(path: str, file: str, frameworks: Collection[str], nodes: Collection[str]) -> Reader:
    """Choose what an axis's alternatives are read as."""
    name = _inside_pool(path, file)
    section, _, field = name.partition(".")
    if name == "pools":
        return lambda value: _one(_roles(value, file))
    if name == "adaptation":
        return lambda value: _reactions(value, file)
    if section in kinds():
        return lambda value: read_alternatives(section, value, file)
    if name == "framework":
        return lambda value: _one(_named(value, "framework", frameworks, file))
    if name == "node":
        return lambda value: _one(_named(value, "node on offer", nodes, file))
    if section == "parallel":
        _known(field, DEGREES, file)
        return lambda value: _one(count(value, file))
    if section == "precision":
        _known(field, TENSORS, file)
        return lambda value: _one(_named(value, "storage format", BITS, file))
    _known(name, COUNTS, file, also=("pools", "node", "framework", "parallel.ep", "precision.experts", *kinds()))
    return lambda value: _one(count(value, file, least=0 if name in NONE_TOO else 1))


def _reactions(value: Tree, file: str) -> Iterator[object]:
    """Read the reacting policies of a pool: one, or a list of those that react together, asked in order."""
    listed = value if isinstance(value, list) else [value]
    each = gather(file, enumerate(listed), lambda _, item: tuple(read_alternatives("adaptation", item, file)))
    yield from product(*each.values())


def _one(value: object) -> Iterator[object]:
    yield value


def _inside_pool(path: str, file: str) -> str:
    """Strip ``pools.<role>.`` from a path."""
    if not path.startswith("pools."):
        return path
    role, _, rest = path.removeprefix("pools.").partition(".")
    _known(role, ROLES, file)
    return rest


def _known(name: str, names: Collection[str], file: str, *, also: Collection[str] = ()) -> None:
    if name not in names:
        raise refuse(file, "unknown axis", nearest(name, (*names, *also)))


def _named(value: Tree, what: str, names: Collection[str], file: str) -> str:
    if not isinstance(value, str) or (names and value not in names):
        raise refuse(file, f"no {what} is called `{value}`", nearest(str(value), names))
    return value


def _roles(value: Tree, file: str) -> str:
    for role in str(value).split("+"):
        if role not in ROLES:
            raise refuse(file, f"no role is called `{role}`", nearest(role, ROLES))
    return str(value)
