"""Routing that changes while requests are served: the steps a pool was followed through, as step tables on a clock.

The walk says how much longer each step takes than the first, and what stood still before it; the first step's table is
stretched by that. So a simulation costs no more lowering than the walk, and agrees with the estimate made of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.following import Followed, horizon
from moesim.deployments.pools import estimator_of
from moesim.deployments.serving.control import Swap
from moesim.deployments.serving.ticks import ticks
from moesim.deployments.steps import StepTable
from moesim.ground.units import Bytes
from moesim.passes.table import table_of
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.protocols import Change
from moesim.world.scenario import Scenario

DIGITS = 9
"""Digits to which steps are alike."""


def followed(scenario: Scenario, pool: Pool, drawn: Arrangements) -> Followed | None:
    """Follow a pool as its estimate does; None where its routing does not change, or nobody asks.

    Raises
    ------
    PolicyError
        A policy refuses the pool.
    """
    if not pool.adaptation or not horizon(scenario.routing.period):
        return None
    return estimator_of(scenario, table_of([pool]), drawn=drawn).follow(0)


def drifted(way: Followed, table: StepTable) -> tuple[Swap, ...]:
    """Put a walk on the clock: where steps begin to take longer or shorter, and where something is changed.

    A step counts as long as the estimate's. The last change is back to the first step, from where all comes again.

    Parameters
    ----------
    table : of the first step's routing and layout
    """
    first = way.prices.whole(way.start, 0)
    stretch = np.round(way.walk.seconds / first, DIGITS)
    made: defaultdict[int, list[tuple[str, Bytes]]] = defaultdict(list)
    before = way.start
    for step, change in way.walk.changes:
        made[step].append((told(change, before), change.moved))
        before = change.layout
    for step in np.flatnonzero(way.walk.stalls).tolist():
        made[step] = made[step] or [("tried knobs", 0.0)]
    begins = sorted({0, len(stretch), *made, *(np.flatnonzero(np.diff(stretch)) + 1).tolist()})
    tables = {factor: stretched(table, factor) for factor in np.unique(stretch).tolist()}
    return tuple(_swaps(begins, stretch.tolist(), way.walk.stalls.tolist(), made, tables, first))


def _swaps(
    begins: Sequence[int],
    stretch: Sequence[float],
    stalls: Sequence[float],
    made: defaultdict[int, list[tuple[str, Bytes]]],
    tables: dict[float, StepTable],
    first: float,
) -> Iterator[Swap]:
    for last, step in pairwise(begins):
        wait, again = ticks((step - last) * stretch[last] * first), step % len(stretch)
        changes = made[step]
        yield Swap(
            table=tables[stretch[again]],
            wait=wait,
            stall=ticks(stalls[step]) if changes else 0,
            what=", ".join(what for what, _ in changes),
            moved=sum(moved for _, moved in changes),
        )


def told(change: Change, before: Layout) -> str:
    """Say in a word what a change of a layout does."""
    if change.rebuilt:
        return "recompiled"
    return "switched" if change.layout.expert_of_slot is before.expert_of_slot else "rebalanced"


def stretched(table: StepTable, factor: float) -> StepTable:
    """Let every step take so many times as long."""
    if factor == 1.0:
        return table
    return replace(
        table,
        decode=tuple(tuple(each * factor for each in row) for row in table.decode),
        prompts=tuple(tuple((near * factor, far * factor) for near, far in row) for row in table.prompts),
        _rows={},
    )
