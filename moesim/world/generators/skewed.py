"""Tokens choose independently of one another, by fixed popularity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.errors import Fault, WorkloadError
from moesim.ground.roots import crossing
from moesim.world.generators.choosing import Limits
from moesim.world.generators.law import SetLaw
from moesim.world.generators.recipe import Recipe

_WIDEST = 12.0
"""Largest spread of log popularity tried; beyond it the tail's weights are lost in rounding."""

_MOST = 1 - 1e-9
"""Largest chance that one token has one expert: certainty would need a weight without bound."""

_GOOD_ENOUGH = 1e-3
"""Relative error of a share beyond which the weights sought are taken not to exist."""

_IN_COMMON = 0.6
"""Part of a group's common step that is taken: with 4 of 8 groups, few enough steps for a share right to 1e-4 are 4; at
0.4 they are 8, at 1.0 they overshoot."""


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for the cached shares
class Skewed:
    """Tokens choose independently of one another, each its set of experts by its layer's law.

    Attributes
    ----------
    law : a row for each layer
    alike : whether the layers differ only by the experts' names
    recipe : what all of it was made from; None where the shares came from elsewhere
    """

    law: SetLaw
    alike: bool
    recipe: Recipe | None = None

    @property
    def layers(self) -> int:
        """MoE layers described."""
        return int(self.law.weights.shape[0])

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        return int(self.law.weights.shape[1])

    @property
    def topk(self) -> int:
        """Experts per token."""
        return self.law.topk

    @property
    def independent(self) -> bool:
        """Every token chooses for itself."""
        return True

    @property
    def period(self) -> int:
        """The law never changes."""
        return 0

    def only(self, layers: Sequence[int]) -> Skewed:
        """Describe some of the layers."""
        return replace(self, law=replace(self.law, weights=self.law.weights[list(layers)]), recipe=None)

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Return exact inclusion chances over `topk`."""
        return self._shares

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Draw counts without drawing tokens."""
        return self.law.counts(tokens, rng)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Draw counts, then sets that add up to them."""
        drawn = self.law.counts(tokens, rng)
        return np.stack([self.law.choices(layer, counts, tokens, rng) for layer, counts in enumerate(drawn)])

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Sum over groups the chance that a token has an expert there."""
        return self.law.touched(group_of_expert)

    @cached_property
    def _shares(self) -> Float[np.ndarray, "layer expert"]:
        shares = self.law.inclusion() / self.topk
        shares.flags.writeable = False
        return shares


def skewed(
    layers: int, experts: int, topk: int, *, cv: float, seed: int, groups: int = 1, group_topk: int = 1
) -> Skewed:
    """Make lognormal popularity whose realized shares have the coefficient of variation asked for.

    The popularity of the experts is laid at the quantiles of a lognormal; each layer gives it to other experts, so
    layers are alike but for the experts' names. Choosing `topk` experts without replacement flattens the shares, hence
    the lognormal's own spread is solved for.

    Parameters
    ----------
    layers, experts, topk : int
        Sizes; `topk` below `experts`, unless cv is 0.
    cv : float
        Standard deviation over mean of one layer's `shares`.
    seed : int
        Decides which experts are popular where.
    groups, group_topk : int
        Equal runs of experts, and how many of them a token may choose from.

    Raises
    ------
    WorkloadError
        No popularity gives that `cv`: with `topk` different experts a token, none can have a share above 1 / topk.

    Examples
    --------
    >>> shares = skewed(2, 64, 8, cv=0.5, seed=1).shares(0)
    >>> (shares.std(axis=1) / shares.mean(axis=1)).round(9).tolist()
    [0.5, 0.5]
    """
    shares = _lognormal_shares(experts, topk, cv)
    made = dealt(shares, layers, topk, seed=seed, groups=groups, group_topk=group_topk)
    return replace(made, recipe=Recipe(cv=cv, seed=seed))


def dealt(
    shares: Float[np.ndarray, "expert"], layers: int, topk: int, *, seed: int, groups: int, group_topk: int
) -> Skewed:
    """Give one layer's shares to other experts in every layer."""
    rng = np.random.Generator(np.random.PCG64(seed))
    everywhere = rng.permuted(np.tile(shares, (layers, 1)), axis=1)
    return with_shares(everywhere, topk, groups=groups, group_topk=group_topk)


def with_shares(
    shares: Float[np.ndarray, "layer expert"],
    topk: int,
    *,
    alike: bool = True,
    groups: int = 1,
    group_topk: int = 1,
    tolerance: float = 1e-10,
) -> Skewed:
    """Find the weights whose law gives these shares, by raising what comes out too low.

    One step multiplies a weight by the geometric mean of the ratio wanted / found of its chance and of its odds: the
    first alone creeps, the second alone overshoots. Under limits on groups, whole groups rise together: what a group's
    experts have in common in a step is taken in part only. Where that is still too far, steps shrink.

    A share above 1 / topk counts as almost that: no token has an expert twice.

    Parameters
    ----------
    shares : not negative; only their ratios within a layer matter
    topk : experts per token
    alike : whether the layers differ only by the experts' names
    groups, group_topk : equal runs of experts, and how many of them a token may choose from
    tolerance : largest relative error of a share

    Raises
    ------
    WorkloadError
        Tokens confined to few groups can't have such shares.

    Examples
    --------
    >>> with_shares(np.array([[3.0, 2.0, 2.0, 1.0]]), 2).shares(0).round(6).tolist()
    [[0.375, 0.25, 0.25, 0.125]]
    """
    wanted = capped(shares * (topk / shares.sum(axis=1, keepdims=True)))
    law = SetLaw(weights=wanted / (1 - wanted), topk=topk, groups=groups, group_topk=group_topk)
    error, step = _off(law, wanted)
    power = 1.0
    for _ in range(400):
        if error < tolerance:
            return Skewed(law=law, alike=alike)
        weights = law.weights * step**power
        tried = replace(law, weights=weights / weights.sum(axis=1, keepdims=True))
        now, following = _off(tried, wanted)
        if now < error:
            law, error, step = tried, now, following
        else:
            power /= 2
    if error > _GOOD_ENOUGH:
        problem = f"no weights give these shares to tokens that touch {group_topk} of {groups} groups"
        raise WorkloadError("routing", [Fault(path="shares", problem=problem, remedy="give less uneven ones")])
    return Skewed(law=law, alike=alike)


def _off(law: SetLaw, wanted: Float[np.ndarray, "layer expert"]) -> tuple[float, Float[np.ndarray, "layer expert"]]:
    """Tell the largest relative error of a chance, and by what to multiply the weights."""
    found = np.minimum(law.inclusion(), _MOST)
    ratio = np.divide(wanted, found, out=np.ones_like(wanted), where=found > 0)
    return float(np.abs(ratio - 1).max()), _eased(ratio * np.sqrt((1 - found) / (1 - wanted)), law.limits)


def _eased(step: Float[np.ndarray, "layer expert"], limits: Limits) -> Float[np.ndarray, "layer expert"]:
    """Take less of what all experts of a group have in common, where a token sees few groups."""
    if limits.unlimited:
        return step
    by_group = np.log(step).reshape(len(step), limits.groups, -1)
    common = by_group.mean(axis=-1, keepdims=True)
    return np.asarray(np.exp(by_group - (1 - _IN_COMMON) * common).reshape(step.shape))


def capped(chance: Float[np.ndarray, "*of expert"]) -> Float[np.ndarray, "*of expert"]:
    """Let no chance exceed one; what is cut off goes to the others in proportion."""
    whole = chance.sum(axis=-1, keepdims=True)
    while (chance > _MOST * (1 + 1e-12)).any():
        full = chance >= _MOST
        rest = np.where(full, 0.0, chance)
        room = whole - _MOST * full.sum(axis=-1, keepdims=True)
        chance = np.where(full, _MOST, rest * room / np.maximum(rest.sum(axis=-1, keepdims=True), 1e-300))
    return chance


def normal_quantiles(number: int) -> Float[np.ndarray, "number"]:
    """Lay out a standard normal at equally likely points.

    Examples
    --------
    >>> normal_quantiles(2).round(6).tolist()
    [-0.67449, 0.67449]
    """
    quantile = NormalDist().inv_cdf
    return np.array([quantile((place + 0.5) / number) for place in range(number)])


def _lognormal_shares(experts: int, topk: int, cv: float) -> Float[np.ndarray, "expert"]:
    """Find shares of spread `cv` that lognormal popularity gives; the spread grows with the lognormal's width."""
    quantiles = normal_quantiles(experts)

    def shares(width: float) -> Float[np.ndarray, "expert"]:
        return np.asarray(SetLaw(weights=np.exp(width * quantiles)[None], topk=topk).inclusion()[0] / topk)

    def spread(width: float) -> float:
        return float(shares(width).std() * experts)

    most = spread(_WIDEST)
    if cv < 0 or cv > most:
        remedy = f"give 0 or more, at most {most:.2f} with {topk} of {experts} experts"
        raise WorkloadError("routing", [Fault(path="cv", problem=f"{cv} can't be reached", remedy=remedy)])
    width = crossing(lambda width: spread(width) - cv, 0.0, _WIDEST, tolerance=1e-14) if cv else 0.0
    return shares(width)
