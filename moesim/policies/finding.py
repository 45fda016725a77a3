"""Policies found by their file's name: `find` one, list their `names`, `make` one with its settings."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from moesim.ground.errors import PolicyError, nearest
from moesim.plans.plan import Policy

_HOME = "moesim.policies"


@cache
def kinds() -> tuple[str, ...]:
    """List the kinds of policy: the folders beside this file.

    Examples
    --------
    >>> "placement" in kinds()
    True
    """
    return tuple(sorted(info.name for info in pkgutil.iter_modules(import_module(_HOME).__path__) if info.ispkg))


def names(kind: str, folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """List the policies of a kind, by name; a file whose name begins with an underscore is none.

    Parameters
    ----------
    kind : str
        A folder of ``moesim/policies``.
    folders : sequence of Path
        More folders to search, each holding ``<kind>/<name>.py``.

    Raises
    ------
    PolicyError
        There is no such kind.

    Examples
    --------
    >>> names("gating")
    ('dynamic', 'static')
    """
    own, foreign = _own(kind), [str(folder / kind) for folder in folders]
    return tuple(sorted({*own, *_listed(foreign)}))


def find(kind: str, name: str, folders: Sequence[Path] = ()) -> Any:
    """Import the one module of a policy and return its ``policy``: a function, or a dataclass of settings.

    Parameters
    ----------
    kind, name : str
        The policy's folder and file.
    folders : sequence of Path
        Searched after moesim's own, in order; a policy of moesim is never replaced.

    Raises
    ------
    PolicyError
        There is no such kind or policy; the nearest one is named.

    Examples
    --------
    >>> find("gating", "dynamc")
    Traceback (most recent call last):
    moesim.ground.errors.PolicyError: no gating policy `dynamc`; did you mean `dynamic`?
    """
    if name in _own(kind):
        return import_module(f"{_HOME}.{kind}.{name}").policy
    for folder in folders:
        if name in _listed([str(folder / kind)]):
            return _imported(kind, name, folder / kind / f"{name}.py").policy
    raise PolicyError(f"no {kind} policy `{name}`; {nearest(name, names(kind, folders))}")


def make(kind: str, policy: Policy, folders: Sequence[Path] = ()) -> Any:
    """Build the policy that a plan names, with its settings.

    Raises
    ------
    PolicyError
        There is no such policy, or a setting is unknown, of the wrong type or out of range.

    Examples
    --------
    >>> make("placement", Policy(name="eplb", settings={"redundant": 32})).redundant
    32
    >>> make("placement", Policy(name="eplb", settings={"redundent": 32}))
    Traceback (most recent call last):
    moesim.ground.errors.PolicyError: placement policy `eplb` has no setting `redundent`; did you mean `redundant`?
    """
    return _made(kind, policy, tuple(map(type, policy.settings.values())), tuple(folders))


@lru_cache(maxsize=4096)
def _made(kind: str, policy: Policy, types: tuple[type, ...], folders: tuple[Path, ...]) -> Any:
    """Build a policy once: policies are values, and a search asks for the same few a million times.

    `types` tells settings apart that are equal but not alike (1 and True).
    """
    found = find(kind, policy.name, folders)
    label = f"{kind} policy `{policy.name}`"
    known = settings(found)
    for name, value in policy.settings.items():
        if not known:
            raise PolicyError(f"{label} has no settings; remove `{name}`")
        if name not in known:
            raise PolicyError(f"{label} has no setting `{name}`; {nearest(name, known)}")
        if not _suits(value, known[name]):
            raise PolicyError(
                f"{label}: {name} = {value!r} is not {_spelled(known[name])}; its settings are {_listing(known)}"
            )
    if not isinstance(found, type):
        return found
    try:
        return found(**policy.settings)
    except ValueError as fault:
        raise PolicyError(f"{label}: {fault}") from fault


def settings(found: Any) -> Mapping[str, Any]:
    """List a policy's settings with their types; a plain function has none."""
    return _hints(found) if isinstance(found, type) else {}


@cache
def _hints(found: type) -> Mapping[str, Any]:
    hints = get_type_hints(found)
    return {field.name: hints[field.name] for field in fields(found)}


def _listed(folders: Sequence[str]) -> list[str]:
    found = pkgutil.iter_modules(folders)
    return [info.name for info in found if not info.ispkg and not info.name.startswith("_")]


@cache  # a search makes policies by the thousand, and moesim's own do not change
def _own(kind: str) -> list[str]:
    if kind not in kinds():
        raise PolicyError(f"no kind of policy `{kind}`; {nearest(kind, kinds())}")
    return _listed(list(import_module(f"{_HOME}.{kind}").__path__))


def _imported(kind: str, name: str, file: Path) -> ModuleType:
    """Import a file as if it stood beside the kind's own; kept, so that its values can be pickled."""
    full = f"{_HOME}.{kind}.{name}"
    loaded = sys.modules.get(full)
    if loaded is not None and loaded.__file__ == str(file):
        return loaded
    spec = spec_from_file_location(full, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[full] = module  # a dataclass looks its module up while it is made
    spec.loader.exec_module(module)
    return module


def _suits(value: object, hint: Any) -> bool:
    """Whether a setting has its type: a whole number is a float too, a truth value no number; none is left out."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_suits(value, option) for option in arguments if option is not NoneType)
    if origin is tuple:
        return isinstance(value, tuple) and all(_suits(item, arguments[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _spelled(hint: Any) -> str:
    """Say in words what a setting may be."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_spelled(option) for option in arguments if option is not NoneType)
    if origin is tuple:
        return f"a list, each item {_spelled(arguments[0])}"
    return _WORDS[hint]


def _listing(known: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_spelled(hint)})" for name, hint in known.items())
