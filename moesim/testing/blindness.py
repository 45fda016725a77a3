"""What a policy may not name: bandwidths, latencies, durations."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_TIMING = {"bandwidth", "bandwidths", "latency", "latencies", "duration", "durations", "seconds", "time"}
_SEALED = ("moesim.schedules.costs", "moesim.world.hardware", "time", "datetime")


def check_blindness(file: Path) -> None:
    """Check that a policy's file names no bandwidth, latency or duration, so that it cannot time anything."""
    for node in ast.walk(ast.parse(file.read_text())):
        for name in _names(node):
            words = set(re.split(r"_|(?<=[a-z])(?=[A-Z])", name))
            timing = _TIMING & {word.lower() for word in words}
            assert not timing, f"{file.name} names `{name}`; a policy may not see {', '.join(sorted(timing))}"
        for module in _imports(node):
            sealed = any(module == door or module.startswith(f"{door}.") for door in _SEALED)
            assert not sealed, f"{file.name} imports `{module}`, from which a policy could time what it decides"


def _names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ImportFrom(names=names):
            yield from (alias.name for alias in names)
        case _:
            pass


def _imports(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield module
            yield from (f"{module}.{alias.name}" for alias in names)
        case _:
            pass
