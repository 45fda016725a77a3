"""How much longer each task takes for what it met on its links and its rank, once it is known when all of them ran.

Shapes: `task` counts the tasks that may meet another, `...` are leading axes. Moments come first, as sums along a last
axis that is short are slow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.passes.program import Program, across, beside, compiled, tasks_in
from moesim.schedules.schedule import KIND_OF_OP, Priced

Times = Float[np.ndarray, "..."]

ROUNDING = 1e-12
"""A link is not too full when it is by less than this share of its capacity."""

User = tuple[str, tuple[int, ...], int]
"""A tier, the link of each rank there, and the tasks that use it as a bitset."""

CHUNK = 1 << 18
"""Numbers worked on at a time, so that they stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crossing:
    """Sets of tasks that may meet on links, all of one pattern: which task of the set uses which tiers.

    Attributes
    ----------
    tasks : the tasks of each set
    tiers : for each task of a set, the tiers it uses
    view : how ranks and links lie to each other
    """

    tasks: Int[np.ndarray, "set member"]
    tiers: tuple[tuple[str, ...], ...]
    view: View


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """What a rank sees: all ranks on any of its links. Ranks with the same links see the same.

    Attributes
    ----------
    ranks : who is seen, filled up with rank 0
    on : for each tier, whether the one seen is on the seer's own link
    seer, place : for each rank, its view and its own place there
    """

    ranks: Int[np.ndarray, "view place"]
    on: Mapping[str, Bool[np.ndarray, "view place"]]
    seer: Int[np.ndarray, "rank"]
    place: Int[np.ndarray, "rank"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contention:
    """Which tasks may meet which.

    Attributes
    ----------
    tasks : tasks that may be slowed, or slow another
    slowed, slowing, by : pairs on one rank as places in `tasks`, sorted by the slowed, and by how much
    crossings : what may meet on links, by place in `tasks`
    """

    tasks: tuple[int, ...]
    slowed: Int[np.ndarray, "pair"]
    slowing: Int[np.ndarray, "pair"]
    by: Float[np.ndarray, "pair"]
    crossings: tuple[Crossing, ...]


def contention(priced: Priced) -> Contention:
    """Find which tasks of a priced schedule may meet which; found once per structure and set of users of each link."""
    users: list[User] = []
    for tier, link in priced.links.items():
        demands = priced.demand.get(tier, ())
        # Equal layers hold the same array, so that few need looking at.
        some = {key: demand.any() for key, demand in {id(demand): demand for demand in demands}.items()}
        bits = sum(1 << task for task, demand in enumerate(demands) if some[id(demand)])
        if bits:
            users.append((tier, tuple(link.link_of_rank.tolist()), bits))
    slowdown = tuple(
        (kind, other, by) for kind, others in priced.slowdown.items() for other, by in others.items() if by
    )
    kinds = tuple(KIND_OF_OP.get(type(task.op).__name__, "") for task in priced.schedule.tasks) if slowdown else ()
    return _contention(compiled(priced.schedule), kinds, slowdown, tuple(users))


@lru_cache(maxsize=256)
def _contention(
    program: Program,
    kinds: tuple[str, ...],
    slowdown: tuple[tuple[str, str, float], ...],
    users: tuple[User, ...],
) -> Contention:
    pairs = _pairs(program, kinds, slowdown)
    sets = _sets(program, users)
    tasks = sorted({task for slowed, slowing, _ in pairs for task in (slowed, slowing)} | {t for s in sets for t in s})
    place = {task: at for at, task in enumerate(tasks)}
    return Contention(
        tasks=tuple(tasks),
        slowed=np.array([place[slowed] for slowed, _, _ in pairs], np.intp),
        slowing=np.array([place[slowing] for _, slowing, _ in pairs], np.intp),
        by=np.array([by for _, _, by in pairs], float),
        crossings=tuple(_crossings(sets, users, place)),
    )


def _pairs(
    program: Program, kinds: tuple[str, ...], slowdown: tuple[tuple[str, str, float], ...]
) -> list[tuple[int, int, float]]:
    """Pairs of tasks that may run beside each other on a rank: the slowed, the slowing, and by how much."""
    by = {(kind, other): much for kind, other, much in slowdown}
    of_kind = {kind: sum(1 << task for task, its in enumerate(kinds) if its == kind) for kind in set(kinds)}
    partners = {
        kind: sum(of_kind.get(other, 0) for other in of_kind if (kind, other) in by or (other, kind) in by)
        for kind in of_kind
    }
    pairs = []
    for task, bits in enumerate(beside(program) if by else ()):
        for earlier in tasks_in(bits & partners[kinds[task]]):
            for slowed, slowing in ((task, earlier), (earlier, task)):
                if (kinds[slowed], kinds[slowing]) in by:
                    pairs.append((slowed, slowing, by[kinds[slowed], kinds[slowing]]))
    return sorted(pairs)


def _sets(program: Program, users: tuple[User, ...]) -> list[tuple[int, ...]]:
    """Join tasks that may use a link at the same moment, directly or through others."""
    root: dict[int, int] = {}
    for _, link_of_rank, bits in users:
        rivals = beside(program)
        if len(set(link_of_rank)) < len(link_of_rank):
            rivals = tuple(b | a for b, a in zip(rivals, across(program, link_of_rank), strict=True))
        for task in tasks_in(bits):
            root.setdefault(task, task)
            for earlier in tasks_in(rivals[task] & bits):
                root[_root(root, earlier)] = _root(root, task)
    joined: dict[int, list[int]] = {}
    for task in sorted(root):
        joined.setdefault(_root(root, task), []).append(task)
    return [tuple(tasks) for tasks in joined.values()]


def _root(root: dict[int, int], task: int) -> int:
    while root[task] != task:
        root[task] = root[root[task]]
        task = root[task]
    return task


def _crossings(
    sets: Sequence[tuple[int, ...]], users: tuple[User, ...], place: Mapping[int, int]
) -> Iterator[Crossing]:
    """Put sets of one pattern together."""
    patterns: dict[tuple[tuple[str, ...], ...], list[list[int]]] = {}
    for tasks in sets:
        pattern = tuple(tuple(tier for tier, _, bits in users if bits >> task & 1) for task in tasks)
        patterns.setdefault(pattern, []).append([place[task] for task in tasks])
    links = {tier: np.array(link_of_rank) for tier, link_of_rank, _ in users}
    for pattern, members in patterns.items():
        tiers = sorted({tier for its in pattern for tier in its})
        yield Crossing(tasks=np.array(members), tiers=pattern, view=_view({tier: links[tier] for tier in tiers}))


def _view(links: Mapping[str, Int[np.ndarray, "rank"]]) -> View:
    tiers = np.stack(list(links.values()))
    seers, seer = np.unique(tiers, axis=1, return_inverse=True)
    sees = (tiers[:, np.newaxis, :] == seers[:, :, np.newaxis]).any(axis=0)
    ranks = np.zeros((len(sees), sees.sum(axis=1).max()), np.intp)
    filled = np.arange(ranks.shape[1]) < sees.sum(axis=1)[:, np.newaxis]
    ranks[filled] = np.nonzero(sees)[1]
    seer = seer.reshape(-1)
    return View(
        ranks=ranks,
        on={t: (links[t][ranks] == seers[at][:, np.newaxis]) & filled for at, t in enumerate(links)},
        seer=seer,
        place=np.array([np.flatnonzero((ranks[view] == rank) & filled[view])[0] for rank, view in enumerate(seer)]),
    )


def stretch(priced: Priced, met: Contention, start: Times, finish: Times) -> Float[np.ndarray, "task ..."]:
    """How many times as long each task takes as it did alone, from when all of them ran the first time.

    Parameters
    ----------
    start, finish : seconds, [task, ..., rank], of the tasks of `met`; the rank axis may have size 1
    """
    length = finish - start
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0.0)
    factor: Times = 1.0 + _slowed(met, start, finish) * inverse
    for crossing in met.crossings:
        lost = _held_up(priced, met, crossing, start, finish)
        factor[crossing.tasks] *= 1.0 + lost * inverse[crossing.tasks]
    return factor


def _slowed(met: Contention, start: Times, finish: Times) -> Times:
    """Seconds with others beside on the same rank, weighted by how much they slow."""
    lost = np.zeros_like(start)
    chunk = max(1, CHUNK // max(1, start[:1].size))
    for at in range(0, len(met.by), chunk):
        slowed, slowing = met.slowed[at : at + chunk], met.slowing[at : at + chunk]
        both = np.minimum(finish[slowed], finish[slowing])
        both -= np.maximum(start[slowed], start[slowing])
        np.maximum(both, 0.0, out=both)
        both *= met.by[at : at + chunk].reshape(-1, *[1] * (start.ndim - 1))
        first = np.flatnonzero(np.diff(slowed, prepend=-1))
        lost[slowed[first]] += np.add.reduceat(both, first, axis=0)
    return lost


def _held_up(priced: Priced, met: Contention, crossing: Crossing, start: Times, finish: Times) -> Times:
    """Seconds lost on links, by [set, member, ..., rank]: at each moment what its fullest link costs a task."""
    start, finish = start[crossing.tasks], finish[crossing.tasks]
    loads = _loads(priced, met, crossing, start.shape)
    if crossing.tasks.shape[1] == crossing.view.ranks.shape[1] == 1:
        lost: Times = _excess(np.maximum.reduce(list(loads.values())) - 1.0) * (finish - start)
        return lost
    view = crossing.view
    moments = np.concatenate((_laid_out(start[..., view.ranks]), _laid_out(finish[..., view.ranks])))
    order = moments.argsort(axis=0)
    moments = np.take_along_axis(moments, order, axis=0)
    over = {tier: _excess(_running(load[..., view.ranks] * view.on[tier], order) - 1.0) for tier, load in loads.items()}
    lost = np.empty(start.shape)
    for tiers in set(crossing.tiers):
        area = _area(moments, np.maximum.reduce([over[tier] for tier in tiers]), order)
        mine = [member for member, its in enumerate(crossing.tiers) if its == tiers]
        lost[:, mine] = _own(area, view, start.shape)[:, mine]
    return lost


def _loads(priced: Priced, met: Contention, crossing: Crossing, shape: tuple[int, ...]) -> dict[str, Times]:
    """What each task wants of each tier's links, as a share of their capacity, by [set, member, ..., rank]."""
    loads: dict[str, Times] = {tier: np.zeros(shape) for its in crossing.tiers for tier in its}
    for member, tiers in enumerate(crossing.tiers):
        for at, task in enumerate(met.tasks[place] for place in crossing.tasks[:, member]):
            duration = priced.duration[task]
            for tier in tiers:
                share = priced.demand[tier][task] * (priced.links[tier].members / priced.links[tier].capacity)
                np.divide(share, duration, out=loads[tier][at, member], where=duration > 0.0)
    return loads


def _laid_out(seen: Times) -> Times:
    """Turn [set, member, ..., view, place] into [member and place, set, ..., view]: moments come first."""
    first = np.moveaxis(seen, (1, -1), (0, 1))
    return first.reshape(-1, *first.shape[2:])


def _running(seen: Times, order: Int[np.ndarray, "..."]) -> Times:
    """Load after each moment."""
    changes = _laid_out(seen)
    return np.cumsum(np.take_along_axis(np.concatenate((changes, -changes)), order, axis=0), axis=0)


def _excess(over: Times) -> Times:
    """What is above zero by more than rounding."""
    over[over < ROUNDING] = 0.0
    return over


def _area(moments: Times, over: Times, order: Int[np.ndarray, "..."]) -> Times:
    """Area below `over` between each flow's start and finish, by [member and place, set, ..., view]."""
    area, until = np.zeros_like(moments), np.empty_like(moments)
    np.cumsum(over[:-1] * np.diff(moments, axis=0), axis=0, out=area[1:])
    np.put_along_axis(until, order, area, axis=0)
    half = len(until) // 2
    lost: Times = until[half:] - until[:half]
    return lost


def _own(lost: Times, view: View, shape: tuple[int, ...]) -> Times:
    """Pick out, by [set, member, ..., rank], what each rank sees of itself."""
    lost = lost.reshape(shape[1], view.ranks.shape[1], *lost.shape[1:])
    return np.moveaxis(lost[:, view.place, ..., view.seer], (2, 1, 0), (0, 1, -1))
