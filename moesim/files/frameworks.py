"""Frameworks by name or file: fixed habits of vLLM, SGLang and others, each number with its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path

from moesim.files.checked import check, not_positive
from moesim.files.sources import split
from moesim.files.trees import Tree, names_under, packaged, read
from moesim.ground.errors import Fault, ProfileError
from moesim.ground.units import SOURCE_KINDS, Source
from moesim.world.framework import Framework

FRAMEWORKS = "moesim/data/frameworks"


def framework_names() -> tuple[str, ...]:
    """List the built-in frameworks, the plain one first."""
    return tuple(sorted(names_under(packaged(FRAMEWORKS)), key=lambda name: (name != "plain", name)))


def built_in_frameworks() -> Mapping[str, tuple[Framework, Mapping[str, Source]]]:
    """Load all built-in frameworks by name, with the sources of their numbers."""
    return {name: _built_in(name) for name in framework_names()}


@lru_cache(maxsize=64)
def _built_in(name: str) -> tuple[Framework, Mapping[str, Source]]:
    return _load(packaged(FRAMEWORKS).joinpath(f"{name}.yaml"), f"{FRAMEWORKS}/{name}.yaml")


def load_framework(path: Path) -> tuple[Framework, Mapping[str, Source]]:
    """Load a framework of one's own from a file, with the sources of its numbers.

    Raises
    ------
    ProfileError
        With every fault of the file.
    """
    return _load(path, str(path))


def _load(file: Traversable, label: str) -> tuple[Framework, Mapping[str, Source]]:
    return read_framework(read(file, label, ProfileError), label)


def read_framework(tree: Mapping[str, Tree], label: str) -> tuple[Framework, Mapping[str, Source]]:
    """Read a framework, with the sources of its numbers.

    Raises
    ------
    ProfileError
        With every fault.
    """
    parts = split(tree, label, bare=("version",))
    faults = list(parts.faults)
    if not parts.sources and not faults:
        faults.append(Fault(path="sources", problem="is missing", remedy="say where each number comes from"))
    kinds = {source.kind: source for _, source in sorted(parts.sources.items())}
    weakest = next((kinds[kind] for kind in reversed(SOURCE_KINDS) if kind in kinds), None)
    readers = {Source: lambda source: source}
    tree = {**parts.plain, "source": weakest}
    framework = check(
        Framework, tree, label, error=ProfileError, readers=readers, rules={Framework: _faults}, also=faults
    )
    return framework, parts.sources


def _faults(framework: Framework) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(framework, "block", "poll")
    if not 0 < framework.utilization <= 1:
        yield "utilization", f"{framework.utilization} is not a share", "give more than 0 and at most 1"
