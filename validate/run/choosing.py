"""Which plans are run: the one that the search puts first and, by rule, its rivals; no list is written by hand.

Rivals differ from the pick in one axis of the space. Where there are more of them than are to be run, a seeded draw
leaves some out, axis by axis in turn so that every axis keeps its share; where there are fewer, plans that differ in
two axes follow. Two trials are compared where they differ in one axis alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, zip_longest
from types import MappingProxyType
from typing import Any

import numpy as np

from moesim.ground.streams import stream
from moesim.plans.plan import DEFAULT_POLICIES, Policy, Pool, Space
from moesim.search.optimization import optimize
from moesim.search.study import Study
from moesim.world.scenario import Scenario

from .bundle import Pair

MOST = 8
"""Plans of a scenario that are run, unless it is asked for more."""


def picks(study: Study, scenario: Scenario, ranks: int, seed: int) -> Iterator[Pool]:
    """Search the space on the machine at hand and yield the pools of its plans, best first, each over all ranks."""
    ranking = optimize(scenario, _whole(study.space, ranks), goal=study.goal or "throughput", seed=seed)
    for plan in ranking.chosen:
        (pool,) = plan.pools
        if ranks == 1:
            pool = replace(pool, policies={**pool.policies, "alltoall": DEFAULT_POLICIES["alltoall"]})
        yield spread(pool, pool.parallel.ep, ranks)


def _whole(space: Space | None, ranks: int) -> Space:
    """Keep a space to plans that a layer of experts can be run as: data and expert parallelism over the ranks."""
    plain = {kind: (policy,) for kind, policy in DEFAULT_POLICIES.items() if kind != "batching"}
    axes = plain | ({} if space is None else dict(space.axes))
    fixed = {f"parallel.{degree}": (1,) for degree in ("pp", "tp", "cp", "etp")}
    listed: tuple[Any, ...] = axes.get("parallel.ep", ())
    degrees = tuple(each for each in listed if ranks % each == 0) or (ranks,)
    if ranks == 1:  # has nobody to exchange rows with, and a search asks for no exchange by this name
        axes = {**axes, "alltoall": (Policy(name="reduce"),)}
    return Space(
        axes=MappingProxyType(
            {
                **axes,
                **fixed,
                "pools": ("all",),
                "parallel.dp": tuple(sorted({*degrees, ranks})),
                "parallel.ep": degrees,
            }
        )
    )


def spread(pool: Pool, ep: int, ranks: int) -> Pool:
    """Return a pool over all ranks: replicas of fewer ranks are blocks of experts that do not talk to each other."""
    return replace(pool, replicas=1, parallel=replace(pool.parallel, dp=ranks, ep=ep))


def rivals(best: Pool, space: Space, ranks: int, seed: int) -> list[tuple[str, Pool]]:
    """List the pools that differ from the best in one axis, with that axis: the axes by turns, values shuffled."""
    rng = stream(seed, "rivals")
    by_axis = [_shuffled(_other(best, axis, values, ranks), rng) for axis, values in space.axes.items()]
    return [rival for turn in zip_longest(*by_axis) for rival in turn if rival is not None]


def crossings(best: Pool, some: Sequence[tuple[str, Pool]], space: Space, ranks: int) -> list[Pool]:
    """List the pools that differ from the best in two axes, so that each differs in one from two of its rivals."""
    found: list[Pool] = []
    for (first, one), (second, other) in combinations(some, 2):
        values = [value for value in space.axes[second] if first != second]
        met = [
            pool for _, pool in _other(one, second, values, ranks) if axes_of(pool)[second] == axes_of(other)[second]
        ]
        found += [pool for pool in met[:1] if axes_of(pool) not in map(axes_of, (best, *found))]
    return found


def _shuffled(some: Sequence[tuple[str, Pool]], rng: np.random.Generator) -> list[tuple[str, Pool]]:
    return [some[i] for i in rng.permutation(len(some))]


def _other(best: Pool, axis: str, values: Sequence[Any], ranks: int) -> list[tuple[str, Pool]]:
    """Put every other value of one axis into a pool; axes that a layer has nothing of are left alone."""
    found: list[Pool] = []
    for value in values:
        if axis == "parallel.ep" and ranks % value == 0:
            found.append(spread(best, value, ranks))
        elif axis == "adaptation":
            found.append(replace(best, adaptation=value))
        elif isinstance(value, Policy) and axis in DEFAULT_POLICIES:
            found += [replace(best, policies={**best.policies, axis: one}) for one in _ways(value)]
    return [(axis, pool) for pool in found if axes_of(pool) != axes_of(best)]


def _ways(policy: Policy) -> Iterator[Policy]:
    """Take the alternatives of a policy's settings apart: what a search may choose among, a layer runs one by one."""
    for name, setting in policy.settings.items():
        if isinstance(setting, tuple):
            for one in setting:
                yield from _ways(replace(policy, settings={**policy.settings, name: one}))
            return
    yield policy


def axes_of(pool: Pool) -> Mapping[str, str]:
    """Name what a pool chose, axis by axis.

    Examples
    --------
    >>> from moesim.plans.plan import Parallel
    >>> pool = Pool(role="all", node="n", replicas=1, parallel=Parallel(dp=2, ep=2))
    >>> axes_of(pool)["parallel.ep"], axes_of(pool)["gating"]
    ('2', 'dynamic')
    """
    policies = {kind: shown(pool.policy(kind)) for kind in DEFAULT_POLICIES if kind != "batching"}
    reacting = " and ".join(map(shown, pool.adaptation)) or "none"
    return {"parallel.ep": str(pool.parallel.ep), **policies, "adaptation": reacting}


def shown(policy: Policy) -> str:
    """Write a policy in a few words.

    Examples
    --------
    >>> shown(Policy(name="static", settings={"factor": 2.0, "sparse": True}))
    'static factor=2 sparse'
    """
    words = [name if value is True else f"{name}={_short(value)}" for name, value in policy.settings.items()]
    return " ".join([policy.name, *words])


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def named(pools: Sequence[Pool]) -> list[str]:
    """Name trials by what tells them apart.

    Examples
    --------
    >>> from moesim.plans.plan import Parallel
    >>> pool = Pool(role="all", node="n", replicas=1, parallel=Parallel(dp=2, ep=2))
    >>> other = replace(pool, policies={"gating": Policy(name="static")})
    >>> named([pool, other])
    ['dynamic', 'static']
    """
    chosen = [axes_of(pool) for pool in pools]
    apart = [axis for axis in chosen[0] if len({each[axis] for each in chosen}) > 1]
    return [", ".join(_worded(axis, each[axis]) for axis in apart) or "the pick" for each in chosen]


def _worded(axis: str, value: str) -> str:
    return f"ep={value}" if axis == "parallel.ep" else f"no {axis}" if value == "none" else value


def pairs_of(names: Sequence[str], pools: Sequence[Pool]) -> tuple[Pair, ...]:
    """Compare all trials that differ in one axis alone."""
    found = []
    for (first, one), (second, other) in combinations(zip(names, map(axes_of, pools), strict=True), 2):
        apart = [axis for axis in one if one[axis] != other[axis]]
        if len(apart) == 1:
            found.append(Pair(first=first, second=second, axis=apart[0]))
    return tuple(found)
