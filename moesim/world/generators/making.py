"""From a recipe to a routing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from moesim.world.generators.balanced import Balanced
from moesim.world.generators.changing import Drifting, Phased
from moesim.world.generators.choosing import Limits
from moesim.world.generators.ordering import Links
from moesim.world.generators.recipe import Recipe
from moesim.world.generators.skewed import Skewed, dealt, skewed
from moesim.world.generators.topical import Topical, topical

PARETO_TO = 0.8 * 4096
"""Largest popularity of the bounded Pareto law, the smallest being 1: the bounds of NVIDIA's aiconfigurator, whose
exponents (1.01 for DeepSeek-V3, 1.2 for Qwen3-235B) mean this law."""

_HALVINGS = 6
"""Half-lives after which a fading skew stays at its end, 1.6 % short of it."""

Made = Balanced | Skewed | Topical | Phased | Drifting


def made(recipe: Recipe, layers: int, limits: Limits) -> Made:
    """Make a routing from a recipe.

    Raises
    ------
    WorkloadError
        No popularity of that many experts is so skewed.
    """
    routing: Made = _fading(recipe, layers, limits) if recipe.fade else _steady(recipe, layers, limits)
    if recipe.drift:
        drift = recipe.drift
        routing = Drifting(
            routing=routing,
            every=drift.every,
            share=drift.share,
            seed=recipe.seed,
            groups=limits.groups,
            numbers=tuple(range(layers)),
        )
    return routing if isinstance(routing, Balanced) else replace(routing, recipe=recipe)


def _fading(recipe: Recipe, layers: int, limits: Limits) -> Phased:
    """Make one phase for each half-life, of the skew in its middle."""
    assert recipe.fade
    end, half_life = recipe.fade.end, recipe.fade.half_life
    skews = [*(end + (recipe.cv - end) * 0.5 ** (age + 0.5) for age in range(_HALVINGS)), end]
    phases = tuple(_steady(replace(recipe, cv=cv), layers, limits) for cv in skews)
    return Phased(phases=phases, starts=tuple(age * half_life for age in range(len(phases))))


def _steady(recipe: Recipe, layers: int, limits: Limits) -> Balanced | Skewed | Topical:
    """Make a routing that does not change."""
    of = {"topk": limits.topk, "groups": limits.groups, "group_topk": limits.group_topk}
    if recipe.pareto or recipe.zipf:
        law = pareto(limits.experts, recipe.pareto) if recipe.pareto else zipf(limits.experts, recipe.zipf)
        return dealt(law, layers, seed=recipe.seed, **of)
    if recipe.tilt or recipe.linked:
        return topical(recipe, layers, limits, _links(recipe, layers, limits.experts))
    if recipe.cv == 0:
        return Balanced(layers=layers, experts=limits.experts, **of)
    return skewed(layers, limits.experts, cv=recipe.cv, seed=recipe.seed, **of)


def pareto(experts: int, exponent: float) -> Float[np.ndarray, "expert"]:
    """Lay popularity at the quantiles of a Pareto density x^-exponent between 1 and `PARETO_TO`; shares, ascending.

    Examples
    --------
    >>> shares = pareto(256, 1.01)
    >>> round(float(shares[-51:].sum()), 2)  # the top fifth
    0.8
    """
    quantile, power = (np.arange(experts) + 0.5) / experts, 1 - exponent
    if abs(power) < 1e-9:
        popularity = PARETO_TO**quantile
    else:
        popularity = ((PARETO_TO**power - 1) * quantile + 1) ** (1 / power)
    return np.asarray(popularity / popularity.sum())


def zipf(experts: int, exponent: float) -> Float[np.ndarray, "expert"]:
    """Give the r-th of the experts a share proportional to r^-exponent."""
    popularity = np.arange(1.0, experts + 1) ** -exponent
    return np.asarray(popularity / popularity.sum())


def _links(recipe: Recipe, layers: int, experts: int) -> Links:
    """Spread the recipe's chances over the depth, and lay each layer's experts along the thoughts anew."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(recipe.seed, spawn_key=(1,))))
    return Links(
        share=_spread(recipe.linked or (0.0,), layers),
        first=_spread(recipe.first or (1.0,), layers),
        place=np.array([rng.permutation(experts) for _ in range(layers)]).reshape(layers, experts),
        keep=recipe.keep,
    )


def _spread(values: tuple[float, ...], layers: int) -> Float[np.ndarray, "layer"]:
    """Interpolate values given at equal distances from the first layer to the last."""
    return np.asarray(np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, len(values)), values))
