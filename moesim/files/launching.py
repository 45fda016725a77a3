"""Dialects of frameworks: read from files that may build on one another."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from moesim.deployments.launching.dialect import Dialect
from moesim.files.checked import check
from moesim.files.sources import split
from moesim.files.trees import Tree, packaged, read
from moesim.ground.errors import Fault, PlanError, ProfileError, nearest
from moesim.ground.units import Source

DIALECTS = "moesim/data/launch"
JOINED = ("sources", "blanks", "pool", "plan", "across")
"""Sections in which a file adds to the one it builds on; elsewhere it replaces."""

ENGINES = "dynamo"
"""The framework that starts others: its dialects are called by both."""


def dialect_names() -> tuple[str, ...]:
    """List the dialects.

    Examples
    --------
    >>> [name for name in dialect_names() if not name.startswith("dynamo")]
    ['megatron', 'sglang', 'tensorrt_llm', 'vllm']
    """
    found = [entry.name for entry in packaged(DIALECTS).iterdir() if entry.name.endswith(".yaml")]
    return tuple(sorted(name.removesuffix(".yaml") for name in found))


def dialect_for(framework: str, engine: str, *, training: bool) -> Dialect:
    """Find the dialect to launch with.

    Parameters
    ----------
    framework : what was asked for; empty: the plan's own
    engine : the plan's own framework, ``plain`` where it names none

    Raises
    ------
    PlanError
        No such framework.
    """
    usual = "megatron" if training else "vllm" if engine == "plain" else engine
    name = framework or usual
    name = f"{ENGINES}_{usual}" if name == ENGINES and not training else name
    if name not in dialect_names():
        known = [*(known for known in dialect_names() if not known.startswith(ENGINES)), ENGINES]
        problem = f"moesim has no words for `{framework or engine}`"
        raise PlanError("--framework", [Fault(path="", problem=problem, remedy=nearest(name, known))])
    return load_dialect(name)


@lru_cache(maxsize=64)
def load_dialect(name: str) -> Dialect:
    """Load a dialect.

    Raises
    ------
    ProfileError
        Its file has faults.
    """
    label = f"{DIALECTS}/{name}.yaml"
    tree = _joined(name)
    parts = split(tree, label, bare=tuple(field for field in tree if field != "sources"))
    plain = {**parts.plain, "across": [*tree.get("across", {}).values()], "sources": parts.table}
    return check(Dialect, plain, label, error=ProfileError, readers={Source: lambda source: source}, also=parts.faults)


def _joined(name: str) -> dict[str, Tree]:
    """Read a file with all that it builds on; every rule names its source."""
    tree = read(packaged(DIALECTS).joinpath(f"{name}.yaml"), f"{DIALECTS}/{name}.yaml", ProfileError)
    first = next(iter(tree["sources"]))
    own = {section: _stamped(content, first) for section, content in tree.items() if section != "over"}
    base = _joined(tree["over"]) if "over" in tree else {}
    joined = {section: {**base.get(section, {}), **own.get(section, {})} for section in JOINED}
    return {**base, **own, **joined}


def _stamped(tree: Tree, source: str) -> Tree:
    """Write conditions and settings as texts, and give every rule of a tree a source."""
    if isinstance(tree, list):
        return [_stamped(each, source) for each in tree]
    if not isinstance(tree, Mapping):
        return tree
    if {"flags", "settings", "env", "usual", "cannot"} & tree.keys():
        texts = {key: _texts(tree[key]) for key in ("when", "settings") if key in tree}
        return {"source": source, **tree, **texts}
    return {key: _stamped(value, source) for key, value in tree.items()}


def _texts(tree: Mapping[str, Tree]) -> dict[str, str]:
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in tree.items()}
