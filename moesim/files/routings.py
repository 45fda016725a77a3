"""The ``routing`` section: a preset or numbers of one's own, made into a distribution for a model's experts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from moesim.files.checked import Readers, Rules, check, refuse, shown
from moesim.files.sources import split
from moesim.files.trees import Tree, names_under, packaged, read
from moesim.files.written import Sourcing, written
from moesim.ground.errors import WorkloadError, nearest
from moesim.ground.units import Source
from moesim.world.generators import Balanced, Drift, Drifting, Fade, Limits, Phased, Recipe, Skewed, Topical, made
from moesim.world.model import Model
from moesim.world.routing import Routing

PRESETS = "moesim/data/routing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a routing section asks for, and where its numbers came from: those the user gave need no source."""

    recipe: Recipe
    sources: Mapping[str, Source]


def preset_names() -> tuple[str, ...]:
    """List the built-in routing presets."""
    return names_under(packaged(PRESETS))


@lru_cache(maxsize=64)
def load_preset(name: str) -> Asked:
    """Load a built-in preset with the sources of its numbers."""
    label = f"{PRESETS}/{name}.yaml"
    parts = split(read(packaged(PRESETS).joinpath(f"{name}.yaml"), label, WorkloadError), label)
    return Asked(
        recipe=check(Recipe, parts.plain, label, error=WorkloadError, also=parts.faults), sources=parts.sources
    )


def read_routing(tree: Tree, file: str) -> Asked:
    """Read a routing section: a preset, any of whose numbers may be given anew, or numbers alone.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section.
    """
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "write it as `{preset: deepseek}`")
    parts = split(tree, file, bare=("seed", "preset")) if "sources" in tree else None
    given = dict(parts.plain if parts else tree)
    base = _base(given.pop("preset", None), given, file)
    _plain_words(given, file)
    rules: Rules = {Recipe: _recipe_faults, Drift: _drift_faults, Fade: _fade_faults}
    readers: Readers = {place: lambda value: _steps(value, file) for place in _STEPS}
    alone = check(Recipe, given, file, readers=readers, rules=rules, also=parts.faults if parts else ())
    recipe = replace(_ready(base.recipe, given), **{name: getattr(alone, name) for name in given})
    if "cv" in given and "tilt" not in given and base.recipe.cv:
        recipe = replace(recipe, tilt=base.recipe.tilt * recipe.cv / base.recipe.cv)  # topics as unlike as they were
    sources = {path: source for path, source in base.sources.items() if path.partition(".")[0] not in given}
    return Asked(recipe=recipe, sources=sources | dict(parts.sources if parts else {}))


def _base(name: Tree, given: Mapping[str, Tree], file: str) -> Asked:
    """Load the preset a section names; without one, a skew must be given."""
    if name is None:
        if not given.keys() & {"cv", "pareto", "zipf"}:
            remedy = f"name one ({', '.join(preset_names())}) or give `cv`"
            raise refuse(file, "is missing", remedy, path="preset")
        return Asked(recipe=Recipe(), sources={})
    if name not in preset_names():
        raise refuse(file, f"`{name}` is unknown", nearest(str(name), preset_names()), path="preset")
    return load_preset(str(name))


def _plain_words(given: dict[str, Tree], file: str) -> None:
    """Turn two short ways of saying things into the recipe's own: ``cv: {start, end, half_life}`` and ``sticky``."""
    cv = given.get("cv")
    if isinstance(cv, Mapping) and "start" in cv:
        given["fade"] = {name: value for name, value in cv.items() if name != "start"}
        given["cv"] = cv["start"]
    if "sticky" in given:
        sticky = given.pop("sticky")
        if isinstance(sticky, bool) or not isinstance(sticky, int | float) or not 0 <= sticky <= 1:
            raise refuse(file, f"{shown(sticky)} is no chance", "give a number from 0 to 1, such as 0.1", path="sticky")
        keep = max(0.5, float(sticky))
        given |= {"linked": [(sticky / keep) ** 0.5], "first": [1.0], "keep": keep}


def _ready(base: Recipe, given: Mapping[str, Tree]) -> Recipe:
    """Clear the way for another law of popularity than the preset's."""
    if given.keys() & {"pareto", "zipf"}:
        return Recipe(seed=base.seed)
    return replace(base, pareto=0.0, zipf=0.0) if "cv" in given else base


_STEPS: tuple[tuple[Any, str], ...] = ((Drift, "every"), (Fade, "half_life"))
"""Fields that count steps."""


def _steps(value: Tree, file: str) -> int:
    """Read a number of steps: ``2000`` or ``2000 steps``."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:steps?)?\s*", str(value)) if not isinstance(value, bool) else None
    if not match or int(match[1]) < 1:
        remedy = "routing changes with steps, whose length follows from the plan; write `2000 steps`"
        raise refuse(file, f"{shown(value)} is not a number of steps", remedy)
    return int(match[1])


def _recipe_faults(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    for name in ("cv", "tilt", "pareto", "zipf"):
        if getattr(recipe, name) < 0:
            yield name, f"{getattr(recipe, name)} is negative", "give 0 or more"
    law = next((name for name in ("pareto", "zipf") if getattr(recipe, name)), "")
    for name in ("cv", "tilt", "linked", "fade"):
        if law and getattr(recipe, name):
            yield name, f"does not go with `{law}`", f"give `cv` in place of `{law}`, or leave it out"
    for name in ("topics", "hold"):
        if getattr(recipe, name) < 1:
            yield name, "is zero", "give at least 1"
    for name in ("together", "keep"):
        if not 0 <= getattr(recipe, name) <= 1:
            yield name, f"{getattr(recipe, name)} is no chance", "give a number from 0 to 1"
    for name in ("linked", "first"):
        if not all(0 <= chance <= 1 for chance in getattr(recipe, name)):
            yield name, "has a number that is no chance", "give numbers from 0 to 1"


def _drift_faults(drift: Drift) -> Iterator[tuple[str, str, str]]:
    if not 0 <= drift.share <= 1:
        yield "share", f"{drift.share} is no share", "give a number from 0 to 1"


def _fade_faults(fade: Fade) -> Iterator[tuple[str, str, str]]:
    if fade.end < 0:
        yield "end", f"{fade.end} is negative", "give 0 or more"


def make_routing(asked: Asked, model: Model, file: str) -> Routing:
    """Make the distribution for a model's MoE layers.

    Raises
    ------
    InputError
        No popularity of that many experts is as skewed, or the model's mixtures differ in size.
    """
    mixtures = [model.moe(layer) for layer in model.moe_layers]
    sizes = {(moe.experts, moe.topk, moe.groups, moe.group_topk) for moe in mixtures} or {(1, 1, 1, 1)}
    if len(sizes) > 1:
        raise refuse(file, f"the model's mixtures differ in size: {sorted(sizes)}", "give a recorded routing")
    ((experts, topk, groups, group_topk),) = sizes
    if not mixtures:
        return Balanced(layers=0, experts=experts, topk=topk)
    try:
        return _made(
            asked.recipe, len(mixtures), Limits(experts=experts, topk=topk, groups=groups, group_topk=group_topk)
        )
    except WorkloadError as flaw:
        raise refuse(file, flaw.faults[0].problem, flaw.faults[0].remedy, path=flaw.faults[0].path) from None


@lru_cache(maxsize=16)
def _made(recipe: Recipe, layers: int, limits: Limits) -> Routing:
    """Solve for the popularity once; a routing never changes."""
    return made(recipe, layers, limits)


def routing_tree(routing: Routing, sources: Mapping[str, Source]) -> dict[str, Tree]:
    """Write a routing as a section that makes it again.

    Parameters
    ----------
    sources : where its numbers came from, by their path in the section; empty where the user gave them

    Raises
    ------
    InputError
        Its numbers were given in Python as a table, which a section has no place for.
    """
    match routing:
        case Balanced():
            recipe = Recipe()
        case Skewed(recipe=Recipe() as recipe) | Topical(recipe=Recipe() as recipe):
            pass
        case Phased(recipe=Recipe() as recipe) | Drifting(recipe=Recipe() as recipe):
            pass
        case _:
            problem = f"{type(routing).__name__} routing was made in Python, and no file can say how"
            raise refuse("scenario", problem, "use `skewed`, `made` or `Balanced`", path="routing")
    if not sources:
        return {"cv": recipe.cv} | written(recipe)
    sourcing = Sourcing(sources, bare=("seed",))
    tree = written(recipe, sourcing)
    return {"cv": tree.get("cv") or sourcing.number("cv", recipe.cv)} | tree | {"sources": sourcing.section()}
