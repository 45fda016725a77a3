"""Text to plain trees and back: YAML and JSON files, with a clear fault where a file is missing, empty or malformed."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from moesim.ground.errors import Fault, InputError

Tree = Any
"""What a YAML or JSON file holds: mappings, lists, text, numbers, flags."""


def packaged(package: str) -> Traversable:
    """Return the folder of a data package, wherever it is installed."""
    top, _, rest = package.partition("/")
    folder = files(top)
    return folder.joinpath(rest) if rest else folder


def names_under(folder: Traversable, *, leave_out: tuple[str, ...] = ()) -> tuple[str, ...]:
    """List the YAML files below a folder as names: ``nvidia/h200-sxm`` for ``nvidia/h200-sxm.yaml``."""
    found: list[str] = []
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in leave_out:
            found += [f"{entry.name}/{name}" for name in names_under(entry)]
        elif entry.name.endswith(".yaml"):
            found.append(entry.name.removesuffix(".yaml"))
    return tuple(sorted(found))


def read(file: Traversable, label: str = "", error: type[InputError] = InputError) -> dict[str, Tree]:
    """Read a YAML or JSON file whose top level is a mapping.

    Parameters
    ----------
    file : Traversable
        A path, or a resource of a package.
    label : str
        How messages name the file; its path where empty.
    error : type of InputError
        What to raise.

    Raises
    ------
    InputError
        No such file, a folder, not text, malformed, or empty.
    """
    label = label or str(file)
    text = _text(file, label, error)
    if _depth(text) > DEEPEST:
        raise error(label, [Fault(path="", problem=f"is nested more than {DEEPEST} deep", remedy="close its brackets")])
    tree = _json(text, label, error) if file.name.endswith(".json") else _yaml(text, label, error)
    if tree is None:
        raise error(label, [Fault(path="", problem="is empty", remedy="write its fields as `name: value` lines")])
    if not isinstance(tree, Mapping):
        remedy = "start the file with a field, as in `name: ...`"
        raise error(label, [Fault(path="", problem="holds no fields, only a bare value or a list", remedy=remedy)])
    return dict(tree)


DEEPEST = 100
"""Levels of brackets, or of dashes on one line, beyond which a file is refused: parsers crash on very deep ones."""

_BRACKETS = re.compile(r"[\[{\]}]")
_DASHES = re.compile(rf"(?:[-?] +){{{DEEPEST + 1},}}")


def _depth(text: str) -> int:
    """Count how deep brackets open, without looking at what is quoted; dashes in a row open as many levels."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return DEEPEST + 1 if _DASHES.search(text) else deepest


def _text(file: Traversable, label: str, error: type[InputError]) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(label, [Fault(path="", problem="there is no such file", remedy=_neighbor(file))]) from None
    except IsADirectoryError:
        raise error(label, [Fault(path="", problem="is a folder", remedy="name a file in it")]) from None
    except UnicodeDecodeError:
        raise error(label, [Fault(path="", problem="is not text", remedy="save it as UTF-8")]) from None
    except OSError as refusal:
        raise error(label, [Fault(path="", problem=f"cannot be read: {refusal.strerror}")]) from None


def _neighbor(file: Traversable) -> str:
    """Suggest a file of the same folder whose name is close."""
    if not isinstance(file, Path) or not file.parent.is_dir():
        return "check the path"
    beside = {entry.stem: entry.name for entry in file.parent.iterdir() if entry.suffix in (".yaml", ".json")}
    close = get_close_matches(file.stem, beside, n=1)
    return f"did you mean `{beside[close[0]]}`?" if close else "check the path"


def _json(text: str, label: str, error: type[InputError]) -> Tree:
    try:
        return json.loads(text)
    except json.JSONDecodeError as flaw:
        problem = f"is not valid JSON at line {flaw.lineno}, column {flaw.colno}: {flaw.msg.lower()}"
        raise error(label, [Fault(path="", problem=problem)]) from None
    except ValueError as flaw:
        raise error(label, [_unreadable(flaw)]) from None


def _unreadable(flaw: ValueError) -> Fault:
    """Say what Python would not read, such as a number of thousands of digits."""
    return Fault(path="", problem=f"holds a value that cannot be read: {str(flaw).partition(';')[0]}")


class _Loader(yaml.CSafeLoader):
    """YAML without dates (a date is text here), and without silently repeated fields."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"field `{key.value}` is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(  # YAML 1.1 takes 9e13 for text, and wants 9.0e+13
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+\Z"), list("-+.0123456789")
)


def _yaml(text: str, label: str, error: type[InputError]) -> Tree:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as flaw:
        mark = flaw.problem_mark or flaw.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = f"is not valid YAML{where}: {flaw.problem or flaw.context}"
        raise error(label, [Fault(path="", problem=problem, remedy=_usual_cause(flaw))]) from None
    except yaml.YAMLError as flaw:
        raise error(label, [Fault(path="", problem=f"is not valid YAML: {str(flaw).splitlines()[0]}")]) from None
    except ValueError as flaw:
        raise error(label, [_unreadable(flaw)]) from None


def _usual_cause(flaw: yaml.MarkedYAMLError) -> str:
    if "given twice" in (flaw.problem or ""):
        return "keep one of the two"
    return "check the indentation, brackets and colons there"


def write(tree: Tree) -> str:
    """Write a plain tree as YAML, fields in the order given."""
    return str(yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False, default_flow_style=None, width=120))
