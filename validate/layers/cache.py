"""An expert cache that is run: the simulator's own decisions, and copies from the cold tier beside what is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from moesim.plans.plan import Policy
from moesim.policies.caches import Caches, next_steps
from moesim.policies.finding import make

from .clock import Clock, part
from .experts import Counts, Experts, Matrices, looped, on_host
from .spec import CacheSpec
from .tiers import Handle, Tier

CLAIRVOYANT = ("belady", "pinned")
"""Policies that decide by a whole record of accesses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One expert slot used in a step: where it is computed, and whose place it takes, if it has to come in.

    Attributes
    ----------
    left : the slot that leaves for it; -1: a free place
    """

    slot: int
    place: int
    missed: bool
    left: int


@dataclass(slots=True, kw_only=True, eq=False)
class Decisions:
    """Which slot lies where: the simulator's cache of one rank, and the places behind it.

    Attributes
    ----------
    history : [step, slot], what a whole run will use, for policies that know it; played again and again
    """

    spec: CacheSpec
    slots: int
    history: Bool[np.ndarray, "step slot"] | None
    _caches: Caches = field(init=False)
    _place: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing resident."""
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        policy = make("buffering", Policy(name=self.spec.eviction, settings={"resident": self.spec.resident}))
        self._caches = Caches.empty(policy, 1, self.slots, self.spec.resident)
        self._place = {}

    def step(self, accessed: Bool[np.ndarray, "slot"]) -> list[Use]:
        """Decide a step: its slots in order of their number."""
        known = self.history if self.history is not None else accessed[None]
        step = self._caches.steps % len(known)
        share, later = known.mean(axis=0)[None], next_steps(known[:, None])[step]
        # Numbers of uses grow with every step, and so must those of next uses when the history is played again.
        later = later + (self._caches.steps - step) * self.slots
        uses = []
        for slot, rows, left in self._caches.step(accessed[None], share, later):
            missed = bool(rows.size)
            gone = int(left[0]) if missed else -1
            if missed:
                self._place[slot] = len(self._place) if gone < 0 else self._place.pop(gone)
            uses.append(Use(slot=slot, place=self._place[slot], missed=missed, left=gone))
        return uses


@dataclass(slots=True, kw_only=True, eq=False)
class CachedExperts:
    """Experts of one rank of which only some are where they are computed.

    Attributes
    ----------
    places : weights of the resident ones
    hits, misses : since the last restart
    """

    decisions: Decisions
    tier: Tier
    places: Matrices
    hits: int = 0
    misses: int = 0

    def fetched(self, counts: Counts, clock: Clock) -> Experts:
        """Decide, and start copies whose places are free; what is returned computes slot by slot as each is there."""
        rows = on_host(counts)
        uses = self.decisions.step(np.array(rows) > 0)
        self.misses += sum(use.missed for use in uses)
        self.hits += sum(not use.missed for use in uses)
        step = _Step(uses=uses, counts=rows, waiting=[use for use in uses if use.missed])
        self._pump(step)
        return lambda rows, _, __: self._computed(step, rows, clock)

    def restart(self) -> None:
        """Forget what is resident."""
        self.decisions.restart()
        self.hits = self.misses = 0

    def _pump(self, step: _Step) -> None:
        """Start copies in order, up to one whose place is still to be computed with."""
        while step.waiting and not step.busy(step.waiting[0]):
            use = step.waiting.pop(0)
            step.copies[use.slot] = self.tier.fetch(use.slot, self.places, use.place)

    def _computed(self, step: _Step, rows: Tensor, clock: Clock) -> Tensor:
        """Compute the slots of a step in order."""
        parts = iter(rows.split([step.counts[use.slot] for use in step.uses]) if step.uses else ())
        made = []
        for use in step.uses:
            if use.missed:
                with part(clock, "fetch"):
                    self.tier.wait(step.copies[use.slot])
            made.append(self._one(next(parts), use.place))
            step.done.add(use.slot)
            self._pump(step)
        return torch.cat(made) if made else rows

    def _one(self, rows: Tensor, place: int) -> Tensor:
        here = slice(place, place + 1)
        own = Matrices(inner=self.places.inner[here], outer=self.places.outer[here], gated=self.places.gated)
        return looped(rows, [rows.shape[0]], own)


@dataclass(slots=True, kw_only=True, eq=False)
class _Step:
    """A step of the cache while it runs: copies that wait for their place, those under way, slots that are done."""

    uses: list[Use]
    counts: Sequence[int]
    waiting: list[Use]
    copies: dict[int, Handle] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def busy(self, use: Use) -> bool:
        """Whether the slot that leaves is used before, in this step, and not yet computed."""
        before = {each.slot for each in self.uses if each.slot < use.slot}
        return use.left in before - self.done
