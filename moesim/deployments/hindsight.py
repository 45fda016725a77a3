"""What somebody who knew the routing beforehand would have done: the least time, regret, and when changes pay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Bool, Int

from moesim.deployments.adaptation import break_even, clairvoyant, regret
from moesim.deployments.following import Followed, key_of
from moesim.ground.streams import stream
from moesim.ground.units import Seconds
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.policies.finding import make
from moesim.policies.knobs import Turning
from moesim.policies.placement.eplb import Eplb
from moesim.policies.protocols import Change, Placement

FRESH = 32
"""Layouts made in hindsight that the rival may choose among, besides those that were in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """A policy beside somebody who knows.

    Attributes
    ----------
    best : least seconds of all steps and changes
    regret : how much more the policy took, relatively
    break_even : steps that a mean change has to last to pay; infinite where changes save nothing, 0 without any
    """

    best: Seconds
    regret: float
    break_even: float


def in_hindsight(followed: Followed) -> Hindsight:
    """Find the cheapest way through all phases: the shortest path over layouts, with what a change stalls as its price.

    The rival may hold any layout that was in force, and for each phase one made of its own counts. It starts where the
    policy started; it knows without trying what knobs do, and turning them costs it no more than the policy; it drops
    no more, and trusts cached assignments no further, than the policy did. Within a phase all steps are alike, so it
    has no reason to change but at its ends.
    """
    layouts = list(_layouts(followed))
    phases = range(len(followed.watched.phases))
    followed.prices.fill(list(product(layouts, phases)))
    seconds = np.array([[followed.prices.whole(layout, phase) for layout in layouts] for phase in phases])
    seconds = seconds * followed.lengths[:, None]
    seconds[~_admitted(followed, layouts)] = np.inf
    start = np.full((1, len(layouts)), np.inf)
    start[0, 0] = 0.0
    switch = np.array([[_stall(followed, before, after) for after in layouts] for before in layouts])
    best = clairvoyant(np.concatenate([start, seconds]), switch)[0] + _turned(followed)
    stalled, gained = float(followed.walk.stalls.sum()), sum(gain for _, _, gain in paid(followed))
    return Hindsight(
        best=best,
        regret=regret(followed.walk.total, best),
        break_even=break_even(stalled, gained) if stalled else 0.0,
    )


def _layouts(followed: Followed) -> Iterator[Layout]:
    """List the layouts the rival may hold, the first of them first."""
    start, visited = followed.start, [change.layout for _, change in followed.walk.changes]
    known = {key_of(layout): layout for layout in (start, *visited)}
    yield from known.values()
    moved = any(layout.expert_of_slot is not start.expert_of_slot for layout in visited)
    resized = any(layout.capacity is not start.capacity for layout in visited)
    if not moved and not resized:
        return
    phases = np.linspace(0, len(followed.watched.phases) - 1, FRESH).round().astype(int)
    for phase in dict.fromkeys(phases.tolist()):
        fresh = replace(start, expert_of_slot=_placed(followed, phase)) if moved else start
        if resized:
            most = np.repeat(followed.trace.most[phase][:, None], start.capacity.shape[1], axis=1)
            fresh = replace(fresh, capacity=most)
        yield fresh


def _placed(followed: Followed, phase: int) -> Int[np.ndarray, "layer slot"]:
    """Place experts by the counts of a phase."""
    start, load = followed.start, followed.trace.counts[phase].astype(float)
    ranks, nodes = int(start.rank_of_slot.max()) + 1, followed.sizes.nodes
    given: Placement = make("placement", followed.watched.pool.policy("placement"))
    placement = given if isinstance(given, Eplb) else Eplb()
    return placement(load[None], start.expert_of_slot.shape[1], ranks, nodes, stream(0, "hindsight"))


def _turned(followed: Followed) -> Seconds:
    """Seconds that the best way of every layer through its knobs adds to all steps, below 0; 0 where none are turned.

    Layers turn theirs each by itself. Where another r moves weights, the bytes are paid for, and the host's part of it
    is not: the rival plans all its moves at once.
    """
    states = [state for state in followed.walk.state if isinstance(state, Turning)]
    if not states:
        return 0.0
    own = followed.prices.own
    choices = [own, *dict.fromkeys(each for state in states for each in state.choices if each != own)]
    price = min(state.moved for state in states) / followed.charges.rate
    switch = price * np.array([[one[0] != other[0] for other in choices] for one in choices])
    begin = np.full((1, len(choices)), np.inf)
    begin[0, 0] = 0.0
    total = 0.0
    for layer in range(len(followed.watched.layers)):
        added = np.array(
            [[followed.prices.added(followed.start, layer, each, p) for each in choices] for p in _phases(followed)]
        )
        total += clairvoyant(np.concatenate([begin, added * followed.lengths[:, None]]), switch)[0]
    return total


def _admitted(followed: Followed, layouts: list[Layout]) -> Bool[np.ndarray, "phase layout"]:
    """Say where the rival may hold a layout: where it drops no more than was dropped, and agrees as well."""
    dropped = np.array([[_dropped(followed, layout, phase) for layout in layouts] for phase in _phases(followed)])
    used = _in_force(followed, layouts)
    allowed = np.where(used, dropped, -np.inf).max(axis=1, keepdims=True)
    cached = np.array([layout.cached for layout in layouts])
    agreed = followed.trace.agreement
    least = min((agreed[phase] for phase in _phases(followed) if (used[phase] & cached).any()), default=np.inf)
    return np.asarray((dropped <= allowed + 1e-12) & (~cached | (agreed >= least)[:, None]))


def _phases(followed: Followed) -> range:
    return range(len(followed.watched.phases))


def _in_force(followed: Followed, layouts: list[Layout]) -> Bool[np.ndarray, "phase layout"]:
    """Mark the layouts that were in force in each phase."""
    number = {key_of(layout): at for at, layout in enumerate(layouts)}
    used = np.zeros((len(followed.watched.phases), len(layouts)), bool)
    ends = [step for step, _ in followed.walk.changes] + [followed.trace.steps]
    held = [followed.start, *(change.layout for _, change in followed.walk.changes)]
    for layout, first, end in zip(held, [0, *ends[:-1]], ends, strict=True):
        used[followed.trace.rows[first:end], number[key_of(layout)]] = True
    return used


def _dropped(followed: Followed, layout: Layout, phase: int) -> float:
    """Share of a phase's assignments that find no room, sources alike."""
    if layout.capacity.flat[0] == NO_LIMIT:
        return 0.0
    each = followed.trace.counts[phase] / followed.sizes.gpus
    return float(np.maximum(each - layout.capacity, 0).sum() / each.sum())


def _stall(followed: Followed, before: Layout, after: Layout) -> Seconds:
    """How long a change between two layouts stops all ranks, as it stopped the policy."""
    background = any(change.background for _, change in followed.walk.changes)
    ranks = int(before.rank_of_slot.max()) + 1
    fresh = (before.expert_of_slot != after.expert_of_slot).reshape(len(before.expert_of_slot), ranks, -1)
    resized = not np.array_equal(before.capacity, after.capacity)
    change = Change(
        layout=after,
        rebuilt=int(resized or before.cached != after.cached),
        moved=float(fresh.sum(axis=(0, 2)).max()) * followed.sizes.moving,
        background=background,
    )
    return followed.charges.stall(change)


def paid(followed: Followed) -> Iterator[tuple[int, Seconds, Seconds]]:
    """List the changes that were made: the step, what it stalled, and what a step of its phase takes less after it."""
    before = followed.start
    for step, change in followed.walk.changes:
        was, now = (float(followed.prices(layout, step).sum()) for layout in (before, change.layout))
        yield step, followed.charges.stall(change), was - now
        before = change.layout
