"""What if: one plan estimated under every combination of some changed numbers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from moesim.deployments.deployed import of_role_all
from moesim.deployments.metrics import METRICS
from moesim.deployments.pools import estimator_of
from moesim.deployments.ranges import drawn_ranges, intervals
from moesim.deployments.summary import Summary, summarize
from moesim.deployments.tables import with_units
from moesim.deployments.verdicts import misses, targets_of
from moesim.ground.errors import Fault, PlanError
from moesim.ground.showing import Shown
from moesim.passes.table import table_of
from moesim.plans.plan import Plan, misfits
from moesim.search.paths import changed
from moesim.world.scenario import Scenario

PAYS_FROM = 24
"""Worlds to estimate plans in from which more processes pay: each takes about as long to start as ten of them."""

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sweep(Shown):
    """One plan under many circumstances.

    Attributes
    ----------
    axes : the paths that were changed, in the order given
    table : one row for each combination: a column for each axis, then for each metric its middle, and its range as
        ``<metric>_low`` and ``<metric>_high``, then `meets` (every target) and `why` (not, or not at all); units in
        ``.attrs["units"]``
    """

    axes: tuple[str, ...]
    table: pd.DataFrame


def sweep(
    scenario: Scenario,
    plan: Plan,
    axes: Mapping[str, Iterable[object]],
    *,
    seed: int = 0,
    jobs: int = 0,
) -> Sweep:
    """Estimate a plan under every combination of changes.

    Parameters
    ----------
    scenario : Scenario
        The world.
    plan : Plan
        A plan of one pool.
    axes : mapping from path to values
        What changes, such as ``{"routing.cv": [0, 0.5], "pools.all.parallel.ep": [8, 16]}``; see `paths.changed`.
    seed : int
        Seed of the routing draws, equal for all combinations.
    jobs : int
        Processes to use; 0: as many as pay.

    Returns
    -------
    Sweep
        A combination that cannot run keeps its row, and says why.

    Raises
    ------
    PlanError
        No such path, with the nearest that there is; a value it cannot have; no values.
    """
    listed = {path: list(values) for path, values in axes.items()}
    empty = [Fault(path=path, problem="has no values", remedy="list one") for path, some in listed.items() if not some]
    if empty or not listed:
        raise PlanError("sweep", empty or [Fault(path="", problem="nothing changes", remedy="name a path")])
    rows: list[Row] = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    worlds: dict[tuple[object, ...], tuple[Scenario, list[tuple[int, Plan]]]] = {}
    for number, row in enumerate(rows):
        world, wanted = scenario, plan
        for path, value in row.items():
            world, wanted = changed(world, wanted, path, value)
        key = tuple(str(value) for path, value in row.items() if not path.startswith(("pools", "spare_nodes")))
        worlds.setdefault(key, (world, []))[1].append((number, wanted))
    for number, found in _all(list(worlds.values()), seed, jobs):
        rows[number] |= found
    return Sweep(axes=tuple(listed), table=_table(rows))


def _all(worlds: Sequence[tuple[Scenario, list[tuple[int, Plan]]]], seed: int, jobs: int) -> Iterable[tuple[int, Row]]:
    """Estimate the plans of each world, all at once, and the worlds in several processes where that pays."""
    jobs = jobs or (os.cpu_count() or 1 if len(worlds) >= PAYS_FROM else 1)
    if jobs == 1:
        found = [_headlines(world, [plan for _, plan in plans], seed) for world, plans in worlds]
    else:
        from joblib import Parallel, delayed

        tasks = (delayed(_headlines)(world, [plan for _, plan in plans], seed) for world, plans in worlds)
        found = Parallel(n_jobs=jobs)(tasks)
    numbers = (number for _, plans in worlds for number, _ in plans)
    return zip(numbers, itertools.chain.from_iterable(found), strict=True)


def _headlines(scenario: Scenario, plans: Sequence[Plan], seed: int) -> list[Row]:
    """Estimate plans of one pool in one world, those of one structure together."""
    rows: list[Row] = [{"meets": False, "why": _senseless(plan)} for plan in plans]
    sound = [number for number, row in enumerate(rows) if not row["why"]]
    pools = [plans[number].pools[0] for number in sound]
    if not pools:
        return rows
    estimator = estimator_of(scenario, table_of(pools), seed=seed)
    estimates = estimator.estimate(np.flatnonzero(estimator.memory.fits))
    places = np.arange(len(pools))
    deployed = of_role_all(estimator.table, places, np.array([pool.replicas for pool in pools]))
    deployed = replace(deployed, spare_nodes=np.array([plans[number].spare_nodes for number in sound]))
    summary = summarize(scenario, deployed, estimates)
    timed = np.flatnonzero(np.isfinite(estimates.step))
    ranges = drawn_ranges(scenario, estimator, deployed.take(timed)) if len(timed) else None
    missed = {name: values > 0 for name, values in misses(summary, targets_of(scenario)).items()}
    for place, number in enumerate(sound):
        why = "does not fit" if not estimator.memory.fits[place] else estimates.refused.get(place, "")
        why = why or ", ".join(f"misses {name}" for name, values in missed.items() if values[place])
        at = np.flatnonzero(timed == place)
        known = ranges.only(int(at[0])) if ranges is not None and len(at) else None
        for name, value in intervals(_one(summary, place), known, 0, "assumed").items():
            rows[number] |= {name: value.mid, f"{name}_low": value.low, f"{name}_high": value.high}
        rows[number] |= {"meets": not why, "why": why}
    return rows


def _one(summary: Summary, plan: int) -> Summary:
    """Keep one plan's numbers."""
    return replace(summary, metrics={name: values[[plan]] for name, values in summary.metrics.items()})


def _senseless(plan: Plan) -> str:
    """Say why a plan cannot be estimated; "" where it can."""
    if len(plan.pools) != 1:
        return f"{len(plan.pools)} pools; a sweep estimates plans of one"
    return next((f"{field}: {problem}" for field, problem, _ in misfits(plan.pools[0].parallel)), "")


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    names = [str(name) for name in table.columns]
    last = ["meets", "why"]
    table = table[[*(name for name in names if name not in last), *last]]
    units = {name: METRICS[base].unit for name in names if (base := _base(name)) in METRICS}
    return with_units(table, units)


def _base(name: str) -> str:
    """Strip the end of a range from a column's name."""
    return name.removesuffix("_low").removesuffix("_high")
