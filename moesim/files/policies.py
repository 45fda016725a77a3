"""Policies as files write them: a name, or a section with a name and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from moesim.files.checked import refuse, shown
from moesim.files.sources import is_number
from moesim.files.trees import Tree
from moesim.ground.errors import PolicyError
from moesim.ground.units import SPELLINGS, parse
from moesim.plans.plan import Policy, Scalar, Setting
from moesim.policies.finding import kinds, make


def read_policy(kind: str, tree: Tree, file: str) -> Policy:
    """Read one policy; a list among its settings is one tuple-valued setting.

    Raises
    ------
    InputError
        No such policy or setting, or a setting of the wrong type.
    """
    name, settings = _parts(kind, tree, file)
    return _made(kind, name, {key: _setting(value, file, key) for key, value in settings.items()}, file)


def read_alternatives(kind: str, tree: Tree, file: str) -> Iterator[Policy]:
    """Read the alternatives one item of a space stands for: a list among its settings is several.

    A tuple-valued setting is a list inside a list.
    """
    name, settings = _parts(kind, tree, file)
    choices = [
        [_setting(item, file, key) for item in value] if isinstance(value, list) else [_setting(value, file, key)]
        for key, value in settings.items()
    ]
    for chosen in product(*choices):
        yield _made(kind, name, dict(zip(settings, chosen, strict=True)), file)


def _parts(kind: str, tree: Tree, file: str) -> tuple[str, Mapping[str, Tree]]:
    if kind not in kinds():
        raise refuse(file, f"there are no {kind} policies in this version", "leave it out")
    if isinstance(tree, str):
        return tree, {}
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a policy", "write its name, or `{name: ..., setting: ...}`")
    if not isinstance(tree.get("name"), str):
        raise refuse(file, "is missing", f"name a {kind} policy", path="name")
    return tree["name"], {str(key): value for key, value in tree.items() if key != "name"}


def _made(kind: str, name: str, settings: Mapping[str, Setting], file: str) -> Policy:
    policy = Policy(name=name, settings=settings)
    try:
        make(kind, policy)
    except PolicyError as flaw:
        problem, _, remedy = str(flaw).partition("; ")
        raise refuse(file, problem, remedy) from None
    return policy


def _setting(value: Tree, file: str, name: str) -> Setting:
    if isinstance(value, list):
        return tuple(_scalar(item, file, name) for item in value)
    return _scalar(value, file, name)


def _scalar(value: Tree, file: str, name: str) -> Scalar:
    """Return a setting's value; a quantity is brought to SI, whatever it measures."""
    if not isinstance(value, bool | int | float | str):
        raise refuse(file, f"{shown(value)} is not a setting", "give a number, a word, or a list of them", path=name)
    if isinstance(value, str) and is_number(value):
        symbol = next((unit for unit, table in SPELLINGS.items() if value.split()[-1] in table), None)
        return parse(value, symbol) if symbol else value
    return value


def policy_tree(policy: Policy) -> Tree:
    """Write a policy as a file does."""
    if not policy.settings:
        return policy.name
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in policy.settings.items()}
    return {"name": policy.name, **listed}
