"""The ``routing`` section: a preset or a skew, made into a distribution for a model's experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from moesim.files.checked import Rules, check, refuse, shown
from moesim.files.sources import split
from moesim.files.trees import Tree, names_under, packaged, read
from moesim.files.written import Sourcing, written
from moesim.ground.errors import WorkloadError, nearest
from moesim.ground.units import Source
from moesim.world.generators import Balanced, Recipe, Skewed, skewed
from moesim.world.model import Model
from moesim.world.routing import Routing

PRESETS = "moesim/data/routing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A routing found in the wild: the coefficient of variation of the experts' shares (0: balanced)."""

    name: str
    cv: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """What a routing section asks for; `source` is empty where the user gave the number and no source."""

    cv: float
    seed: int
    source: Source | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    preset: str = ""
    cv: float = -1.0
    seed: int = 0


def preset_names() -> tuple[str, ...]:
    """List the built-in routing presets."""
    return names_under(packaged(PRESETS))


@lru_cache(maxsize=64)
def load_preset(name: str) -> tuple[Preset, Mapping[str, Source]]:
    """Load a built-in preset with the source of its numbers."""
    label = f"{PRESETS}/{name}.yaml"
    parts = split(read(packaged(PRESETS).joinpath(f"{name}.yaml"), label, WorkloadError), label)
    return check(Preset, parts.plain, label, error=WorkloadError, also=parts.faults), parts.sources


NOT_YET = ("sticky", "drift")
"""Fields of a routing that no generator models yet; refused rather than passed over."""


def read_skew(tree: Tree, file: str) -> Skew:
    """Read a routing section.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section.
    """
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "write it as `{preset: deepseek}`")
    for name in (name for name in NOT_YET if name in tree):
        raise refuse(file, "is not modeled yet", "leave it out", path=name)
    parts = split(tree, file, bare=("seed",)) if "sources" in tree else None
    fields = parts.plain if parts else tree
    if isinstance(fields.get("cv"), Mapping):
        raise refuse(file, "a skew that changes with time is not modeled yet", "give one number", path="cv")
    rules: Rules = {_Section: lambda found: _section_faults(found, "cv" in fields)}
    section = check(_Section, fields, file, rules=rules, also=parts.faults if parts else ())
    if section.cv >= 0:
        return Skew(cv=section.cv, seed=section.seed, source=parts.sources.get("cv") if parts else None)
    preset, sources = load_preset(section.preset)
    return Skew(cv=preset.cv, seed=section.seed, source=sources["cv"])


def _section_faults(section: _Section, given: bool) -> Iterator[tuple[str, str, str]]:
    if section.preset and section.preset not in preset_names():
        yield "preset", f"`{section.preset}` is unknown", nearest(section.preset, preset_names())
    if given and section.cv < 0:
        yield "cv", f"{section.cv} is negative", "give deviation over mean of the experts' shares, such as 0.25"
    if not given and not section.preset:
        yield "preset", "is missing", f"name one ({', '.join(preset_names())}) or give `cv`"


def make_routing(skew: Skew, model: Model, file: str) -> Routing:
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
    layers = len(model.moe_layers)
    if skew.cv == 0 or layers == 0:
        return Balanced(layers=layers, experts=experts, topk=topk, groups=groups, group_topk=group_topk)
    try:
        return _skewed(layers, experts, topk, groups, group_topk, skew.cv, skew.seed)
    except WorkloadError as flaw:
        raise refuse(file, flaw.faults[0].problem, flaw.faults[0].remedy, path=flaw.faults[0].path) from None


@lru_cache(maxsize=16)
def _skewed(layers: int, experts: int, topk: int, groups: int, group_topk: int, cv: float, seed: int) -> Skewed:
    """Solve for the popularity once; the distribution never changes."""
    return skewed(layers, experts, topk, cv=cv, seed=seed, groups=groups, group_topk=group_topk)


def routing_tree(routing: Routing, source: Source | None) -> dict[str, Tree]:
    """Write a routing as a section that makes it again.

    Raises
    ------
    InputError
        Its numbers were given in Python as a table, which a section has no place for.
    """
    match routing:
        case Balanced():
            recipe = Recipe(cv=0.0, seed=0)
        case Skewed(recipe=Recipe() as recipe):
            pass
        case _:
            problem = f"{type(routing).__name__} routing was made in Python, and no file can say how"
            raise refuse("scenario", problem, "use `skewed` or `Balanced`", path="routing")
    if source is None:
        return written(recipe)
    sourcing = Sourcing({"cv": source}, bare=("seed",))
    return written(recipe, sourcing) | {"sources": sourcing.section()}
