"""Routing that changes with the step: experts that trade places, and phases one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from moesim.world.generators.recipe import Recipe
from moesim.world.routing import Routing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drifting:
    """Every so many steps, a share of each layer's experts trade their places in the distribution.

    Attributes
    ----------
    routing : the distribution at step 0
    every : steps between trades
    share : of the experts, that take part in one trade
    seed : decides who trades
    groups : equal runs of experts; trades stay inside one, so that limits on groups still hold
    numbers : of the layers, so that some of them drift as they do among all
    recipe : what all of it was made from
    """

    routing: Routing
    every: int
    share: float
    seed: int
    groups: int
    numbers: tuple[int, ...]
    recipe: Recipe | None = None

    @property
    def layers(self) -> int:
        """MoE layers described."""
        return self.routing.layers

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        return self.routing.experts

    @property
    def topk(self) -> int:
        """Experts per token."""
        return self.routing.topk

    @property
    def alike(self) -> bool:
        """Names drift, laws don't."""
        return self.routing.alike

    @property
    def independent(self) -> bool:
        """As the distribution that drifts."""
        return self.routing.independent

    @property
    def period(self) -> int:
        """Steps between trades, or between what changes besides, whichever is less."""
        return _least(self.every if self.share > 0 else 0, self.routing.period)

    def only(self, layers: Sequence[int]) -> Drifting:
        """Describe some of the layers."""
        numbers = tuple(self.numbers[layer] for layer in layers)
        return replace(self, routing=self.routing.only(layers), numbers=numbers, recipe=None)

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Return the shares after the trades so far."""
        return np.take_along_axis(self.routing.shares(step), self._place(step), axis=1)

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Draw, and rename the experts."""
        return np.take_along_axis(self.routing.draw(tokens, step, rng), self._place(step)[:, None], axis=2)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Choose, and rename the experts."""
        expert_at = np.argsort(self._place(step), axis=1)
        chosen = self.routing.assign(tokens, step, rng)
        return np.take_along_axis(expert_at[:, None], chosen, axis=2)

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Count groups as at step 0."""
        return self.routing.distinct(group_of_expert)

    def _place(self, step: int) -> Int[np.ndarray, "layer expert"]:
        """Place of each expert in the distribution."""
        epoch = step // self.every
        places = [_traded(epoch, self.experts, self.groups, self.share, self.seed, number) for number in self.numbers]
        return np.stack(places)


def _least(*periods: int) -> int:
    """Take the shortest of some periods; 0 where nothing changes.

    Examples
    --------
    >>> _least(0, 50, 2000), _least(0, 0)
    (50, 0)
    """
    return min((period for period in periods if period), default=0)


@lru_cache(maxsize=4096)
def _traded(epoch: int, experts: int, groups: int, share: float, seed: int, layer: int) -> Int[np.ndarray, "expert"]:
    """Place of each expert of a layer after so many trades: each builds on the one before."""
    place = np.arange(experts)
    for trade in range(1, epoch + 1):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(layer, trade))))
        for group in np.split(np.arange(experts), groups):
            moving = rng.choice(group, round(share * len(group)), replace=False)
            place[moving] = place[rng.permutation(moving)]
    return place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phased:
    """One distribution after another.

    Attributes
    ----------
    phases : all of the same layers, experts and topk
    starts : first step of each phase, ascending from 0
    recipe : what all of it was made from
    """

    phases: tuple[Routing, ...]
    starts: tuple[int, ...]
    recipe: Recipe | None = None

    @property
    def layers(self) -> int:
        """MoE layers described."""
        return self.phases[0].layers

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        return self.phases[0].experts

    @property
    def topk(self) -> int:
        """Experts per token."""
        return self.phases[0].topk

    @property
    def alike(self) -> bool:
        """Whether the layers are alike in every phase."""
        return all(phase.alike for phase in self.phases)

    @property
    def independent(self) -> bool:
        """Whether tokens choose independently in every phase."""
        return all(phase.independent for phase in self.phases)

    @property
    def period(self) -> int:
        """Steps of the shortest phase, or between what changes in any phase."""
        lengths = np.diff(self.starts).tolist()
        return _least(*lengths, *(phase.period for phase in self.phases))

    def only(self, layers: Sequence[int]) -> Phased:
        """Describe some of the layers."""
        return replace(self, phases=tuple(phase.only(layers) for phase in self.phases), recipe=None)

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Return the phase's shares."""
        return self._at(step).shares(step)

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Draw from the phase."""
        return self._at(step).draw(tokens, step, rng)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Choose by the phase."""
        return self._at(step).assign(tokens, step, rng)

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Count groups in the first phase."""
        return self.phases[0].distinct(group_of_expert)

    def _at(self, step: int) -> Routing:
        return self.phases[bisect_right(self.starts, step) - 1]
