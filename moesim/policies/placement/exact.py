"""Exact placement: the smallest possible load of the heaviest rank, by mixed-integer programming."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import Bounds, LinearConstraint, milp

from moesim.policies.placement.greedy import balanced_slots, copies, rounded_slots

LARGEST = 40
"""Slots of a layer up to which the optimum is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """Minimise the mean load of the heaviest rank, equally many slots each: a yardstick for small cases.

    Which experts are copied is decided as by `greedy`; where the copies live is exact, to `gap`. Where greedy is
    already within the gap of what no placement can beat, it is kept. HiGHS gives up after `branches` and the better of
    its answer and greedy's is taken; then nothing is proved. Layers of more than `LARGEST` slots keep greedy's: they
    would take minutes.

    Attributes
    ----------
    gap : how far above the optimum an answer may be, relatively
    branches : branches HiGHS may explore per layer
    redundant : copies beyond one per expert
    """

    balances: ClassVar[bool] = False

    gap: float = 5e-3
    branches: int = 1000
    redundant: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.gap < 1:
            raise ValueError(f"gap = {self.gap}; give a share from 0 to below 1")
        if self.branches < 1:
            raise ValueError(f"branches = {self.branches}; give at least 1")
        if self.redundant < 0:
            raise ValueError(f"redundant = {self.redundant}; give 0 or more")

    def slots(self, experts: int, ranks: int) -> int:
        """Round experts and redundant copies up to a multiple of `ranks`."""
        return rounded_slots(experts + self.redundant, ranks)

    def __call__(
        self,
        load: Float[np.ndarray, "step layer expert"],
        slots: int,
        ranks: int,
        nodes: int,
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "layer slot"]:
        """Place each layer by its load averaged over the steps."""
        mean = load.mean(axis=0)
        listed, started = copies(mean, slots), balanced_slots(mean, slots, ranks)
        return np.stack([self._layer(mean[i], listed[i], started[i], ranks) for i in range(len(mean))])

    def _layer(
        self,
        load: Float[np.ndarray, "expert"],
        listed: Int[np.ndarray, "slot"],
        started: Int[np.ndarray, "slot"],
        ranks: int,
    ) -> Int[np.ndarray, "slot"]:
        """Improve on greedy's placement of one layer, unless there is nothing to gain."""
        share = load / np.bincount(listed, minlength=len(load))
        before = float(share[started].reshape(ranks, -1).sum(axis=1).max())
        listed = listed[np.argsort(-share[listed], kind="stable")]
        if len(listed) > LARGEST or before <= _least(share[listed], ranks) * (1 + self.gap):
            return started
        rank_of_copy = _solved(share[listed], ranks, before, self.gap, self.branches)
        if rank_of_copy is None:
            return started
        found = listed[np.argsort(rank_of_copy, kind="stable")]
        after = float(share[found].reshape(ranks, -1).sum(axis=1).max())
        return found if after < before else started


policy = Exact


def _least(weight: Float[np.ndarray, "item"], ranks: int) -> float:
    """What no placement can beat: the mean rank, and the heaviest item beside the lightest that fill its rank up."""
    beside = len(weight) // ranks - 1
    heaviest = float(weight[0] + weight[len(weight) - beside :].sum())
    return max(float(weight.sum()) / ranks, heaviest)


def _solved(
    weight: Float[np.ndarray, "item"], ranks: int, before: float, gap: float, branches: int
) -> Int[np.ndarray, "item"] | None:
    """Assign items, heaviest first, to ranks, equally many each, so that the heaviest rank is lighter than `before`.

    One 0-1 variable per item and rank, and the heaviest rank's weight, which is minimised. Ranks are interchangeable,
    so item i may be held to ranks 0 to i. None where nothing was found.
    """
    items = len(weight)
    row, column = np.ones((1, ranks)), np.ones((1, items))
    rows = [np.kron(np.eye(items), row), np.kron(column, np.eye(ranks)), np.kron(weight, np.eye(ranks))]
    heaviest = np.append(np.zeros(items + ranks), -np.ones(ranks))
    matrix = np.column_stack([np.concatenate(rows), heaviest])
    each, room = np.ones(items), np.full(ranks, items // ranks)
    allowed = np.tri(items, ranks).ravel()
    answer = milp(
        np.append(np.zeros(items * ranks), 1.0),
        integrality=np.append(np.ones(items * ranks), 0),
        bounds=Bounds(0, np.append(allowed, before)),
        constraints=LinearConstraint(
            matrix,
            np.concatenate([each, room, np.full(ranks, -np.inf)]),
            np.concatenate([each, room, np.zeros(ranks)]),
        ),
        options={"mip_rel_gap": gap, "node_limit": branches},
    )
    if answer.x is None:
        return None
    return np.asarray(answer.x[:-1].reshape(items, ranks).argmax(axis=1))
