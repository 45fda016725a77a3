"""Best bound first: estimate plans until no bound that is left can enter the frontier or the ranked table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.search.frontier import dominated, front
from moesim.search.objectives import Objectives

SHOWN = 10
"""Layouts of the ranked table: each is proven to be estimated no worse than any layout outside it."""

TURN, STEADY, LARGEST = 32, 4, 512
"""Layouts estimated at a time on behalf of the ranking, and as many for the frontier: so many in so many turns, then
twice as many every turn. Few are wasted while every turn may rule most of the rest out, and once bounds are close
together larger turns share more of the work."""

Rows = Int[np.ndarray, "row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Which layouts were estimated, and what every plan of theirs came to; NaN elsewhere."""

    done: Bool[np.ndarray, "layout"]
    found: Objectives


def best_first(
    layout: Int[np.ndarray, "plan"],
    lower: Objectives,
    estimate: Callable[[Rows], Objectives],
    progress: Callable[[float], None] = lambda share: None,
) -> Proof:
    """Estimate layouts in order of their bounds until the rest cannot matter.

    A plan matters if its bound ranks before the last layout of the table so far, or if it may meet every target and no
    estimated plan that does is at least as good as its bound in all metrics of the frontier.

    Parameters
    ----------
    layout : layout of each plan; a layout's plans differ in the number of replicas, and are estimated together
    lower : bounds of every plan's objectives
    estimate : estimates some layouts, and returns the objectives of all plans so far (NaN where not estimated)
    progress : told the share of what mattered at first that is settled
    """
    number = int(layout.max(initial=-1)) + 1
    done = np.zeros(number, bool)
    found = Objectives(rank=np.full_like(lower.rank, np.nan), front=np.full_like(lower.front, np.nan))
    at_first = 0
    for turn in count():
        ranks, fronts = _alive(layout, lower, found, done)
        alive = int((ranks | fronts).sum())
        at_first = max(at_first, alive)
        if not alive:
            return Proof(done=done, found=found)
        progress(1 - alive / at_first)
        size = min(TURN * 2 ** max(turn - STEADY + 1, 0), LARGEST)
        rows = _next(layout, lower, ranks, fronts, size)
        done[rows] = True
        found = estimate(rows)
    raise AssertionError("unreachable")


def _alive(
    layout: Int[np.ndarray, "plan"], lower: Objectives, found: Objectives, done: Bool[np.ndarray, "layout"]
) -> tuple[Bool[np.ndarray, "plan"], Bool[np.ndarray, "plan"]]:
    """Mark the plans not yet estimated that may enter the ranked table, and those that may enter the frontier."""
    open_ = ~done[layout]
    known = np.flatnonzero(~np.isnan(found.rank[:, 0]))
    ranks = open_ & lower.before(_last(layout, found, known))
    good = found.front[known[found.meets[known]]]
    fronts = open_ & lower.meets
    maybe = np.flatnonzero(fronts)
    fronts[maybe] = ~dominated(lower.front[maybe], good[front(good)])
    return ranks, fronts


def _last(layout: Int[np.ndarray, "plan"], found: Objectives, known: Rows) -> Float[np.ndarray, "3"]:
    """Rank of the last layout that the table has room for; infinitely bad while there is room."""
    order = found.order(known)
    _, first = np.unique(layout[order], return_index=True)
    if len(first) < SHOWN:
        return np.full(3, np.inf)
    return np.asarray(found.rank[order[np.sort(first)[SHOWN - 1]]])


def _next(
    layout: Int[np.ndarray, "plan"],
    lower: Objectives,
    ranks: Bool[np.ndarray, "plan"],
    fronts: Bool[np.ndarray, "plan"],
    size: int,
) -> Rows:
    """Choose layouts to estimate: those whose bounds rank first, and those at the edge of the bounds, as many each."""
    ahead = lower.order(np.flatnonzero(ranks))
    chosen = [distinct(layout[ahead])[:size], _edges(layout, lower, np.flatnonzero(fronts), size)]
    return np.unique(np.concatenate(chosen))


def _edges(layout: Int[np.ndarray, "plan"], lower: Objectives, rows: Rows, size: int) -> Rows:
    """Choose layouts from the outside in: the frontier of bounds, then the one behind it."""
    chosen = np.zeros(0, np.int64)
    while len(rows) and len(chosen) < size:
        edge = front(lower.front[rows])
        chosen = distinct(np.concatenate([chosen, layout[lower.order(rows[edge])]]))
        rows = rows[~np.isin(layout[rows], chosen)]
    return chosen[:size]


def distinct(layouts: Rows) -> Rows:
    """Keep the first of equal numbers, in order."""
    _, first = np.unique(layouts, return_index=True)
    return layouts[np.sort(first)]
