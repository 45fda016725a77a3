"""Changing one number of a scenario or a plan by its dotted path, such as ``hardware.fabric.bandwidth``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

from moesim.ground.errors import Fault, PlanError, UnitError, nearest
from moesim.ground.units import Unit, parse
from moesim.plans.plan import DEFAULT_POLICIES, Plan, Policy, Pool
from moesim.policies.finding import make
from moesim.world.generators.choosing import Limits
from moesim.world.generators.making import made
from moesim.world.generators.recipe import Recipe
from moesim.world.routing import Routing
from moesim.world.scenario import Scenario

SECTIONS = ("hardware", "workload", "failures", "frameworks", "routing")
"""Sections of a scenario that may be changed; a model is another scenario."""


def changed(scenario: Scenario, plan: Plan, path: str, value: object) -> tuple[Scenario, Plan]:
    """Return the scenario and the plan with one thing changed.

    Parameters
    ----------
    path : str
        Fields of the records joined by dots, as files have them. A list stands for all its items
        (``hardware.fabric.bandwidth``, ``pools.parallel.ep``), a name in its place for one of them
        (``hardware.fabric.rail.bandwidth``, ``pools.decode.parallel.ep``). Of a routing its recipe is changed;
        with its `cv` goes its `tilt`.
    value : object
        A number in SI or a quantity with its unit ("100 GB/s"), a word, or the name of a policy.

    Raises
    ------
    PlanError
        No such path, with the nearest that there is; or a value it cannot have.
    """
    steps = path.split(".")
    try:
        if steps[0] in SECTIONS:
            return _in_scenario(scenario, steps, value), plan
        return scenario, _put(plan, steps, value, Plan)
    except LookupError:
        remedy = nearest(path, paths(scenario, plan))
        raise _refusal(path, "there is nothing of that name", remedy) from None
    except UnitError as flaw:
        problem, _, remedy = str(flaw).partition("; ")
        raise _refusal(path, problem, remedy) from None
    except TypeError as flaw:
        raise _refusal(path, str(flaw), "give a value like the one that is there") from None


def _refusal(path: str, problem: str, remedy: str) -> PlanError:
    return PlanError("sweep", [Fault(path=path, problem=problem, remedy=remedy)])


def _in_scenario(scenario: Scenario, steps: Sequence[str], value: object) -> Scenario:
    if steps[0] != "routing":
        changed_scenario: Scenario = _put(scenario, steps, value, Scenario)
        return changed_scenario
    before = recipe_of(scenario.routing)
    recipe: Recipe = _put(before, steps[1:], value, Recipe)
    if steps[1:] == ["cv"] and before.cv:  # the skew within a topic goes with that over all topics
        recipe = replace(recipe, tilt=before.tilt * recipe.cv / before.cv)
    return replace(scenario, routing=_remade(scenario, recipe))


def recipe_of(routing: Routing) -> Recipe:
    """Return what a routing was made from; a balanced one is that of no skew.

    Raises
    ------
    LookupError
        It was not made from a recipe.
    """
    recipe = getattr(routing, "recipe", None)
    if recipe is None and routing.shares(0).std() > 0:
        raise LookupError("routing")
    return recipe or Recipe()


def _remade(scenario: Scenario, recipe: Recipe) -> Routing:
    moe = scenario.model.moe(scenario.model.moe_layers[0])
    limits = Limits(experts=moe.experts, topk=moe.topk, groups=moe.groups, group_topk=moe.group_topk)
    return _made(recipe, scenario.routing.layers, limits)


@lru_cache(maxsize=64)
def _made(recipe: Recipe, layers: int, limits: Limits) -> Routing:
    """Make each routing once: solving for its popularity takes longer than many estimates."""
    return made(recipe, layers, limits)


def _put(record: Any, steps: Sequence[str], value: object, hint: Any) -> Any:
    """Return a record with what the steps lead to replaced."""
    if not steps:
        return _read(value, record, hint)
    first, rest = steps[0], steps[1:]
    match record:
        case tuple():
            return _put_in_items(record, steps, value)
        case Policy():
            return replace(record, settings={**record.settings, first: _last(rest, value)})
        case Mapping():
            return MappingProxyType({**record, first: _put(record[first], rest, value, get_args(hint)[-1])})
        case _ if (
            is_dataclass(record) and not isinstance(record, type) and first in {field.name for field in fields(record)}
        ):
            inner = _inner(record, first)
            hints = get_type_hints(type(record), include_extras=True)
            return _checked(replace(record, **{first: _put(inner, rest, value, hints[first])}))
    raise LookupError(first)


def _last(rest: Sequence[str], value: object) -> Any:
    if rest:
        raise LookupError(rest[0])
    return tuple(value) if isinstance(value, list) else value


def _field_name(field: Field[Any]) -> str:
    return field.name


def _inner(record: Any, name: str) -> Any:
    """Return a field's value; of a pool's policies those too that it leaves to the defaults."""
    if isinstance(record, Pool) and name == "policies":
        return MappingProxyType({**DEFAULT_POLICIES, **record.policies})
    return getattr(record, name)


def _checked(record: Any) -> Any:
    """Refuse a pool with a policy or a setting that does not exist."""
    if isinstance(record, Pool):
        for kind, policy in record.policies.items():
            make(kind, policy)
    return record


def _put_in_items(items: tuple[Any, ...], steps: Sequence[str], value: object) -> tuple[Any, ...]:
    """Change the item of a name, or all of them where the first step names none."""
    if steps[0] in map(item_name, items):
        return tuple(
            _put(item, steps[1:], value, type(item)) if item_name(item) == steps[0] else item for item in items
        )
    if not items:
        raise LookupError(steps[0])
    return tuple(_put(item, steps, value, type(item)) for item in items)


def item_name(item: Any) -> str:
    """Name an item of a list: a pool by its role, an offer by its node, anything else by its name."""
    node = getattr(item, "node", None)
    return str(getattr(item, "role", "") or getattr(node, "name", "") or getattr(item, "name", ""))


def _read(value: object, before: Any, hint: Any) -> Any:
    """Turn a value into what its place holds: quantities by their unit, policies by name."""
    unit = next((mark for mark in get_args(hint)[1:] if isinstance(mark, Unit)), None)
    if unit and isinstance(value, str):
        return parse(value, unit.symbol)
    if isinstance(before, Policy) and isinstance(value, str):
        return Policy(name=value)
    if isinstance(before, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(before):
        raise TypeError(f"{value!r} cannot stand for {before!r}")
    return value


def paths(scenario: Scenario, plan: Plan) -> list[str]:
    """List the paths of everything that can be changed."""
    found = [path for section in SECTIONS[:-1] for path in _leaves(getattr(scenario, section), section)]
    with suppress(LookupError):  # a recorded routing has nothing to change
        found += _leaves(recipe_of(scenario.routing), "routing")
    return list(dict.fromkeys([*found, *(path.removeprefix(".") for path in _leaves(plan, ""))]))


def _leaves(record: Any, path: str) -> Iterator[str]:
    match record:
        case tuple():
            for item in record:
                if item_name(item):
                    yield from _leaves(item, path)
                    yield from _leaves(item, f"{path}.{item_name(item)}")
        case Policy():
            yield path
            yield from (f"{path}.{name}" for name in record.settings)
        case Mapping():
            for name, item in record.items():
                yield from _leaves(item, f"{path}.{name}")
        case int() | float():
            yield path
        case _ if is_dataclass(record):
            for field in fields(record):
                inner = _inner(record, field.name)
                yield from _leaves(inner, f"{path}.{field.name}")
