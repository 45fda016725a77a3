"""Pruning: bounds stay below estimates, and a search that skips plans finds what one that tries all finds."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.deployments.floors import floor_estimates
from moesim.deployments.pools import estimator_of
from moesim.deployments.summary import pool_metrics, summarize
from moesim.deployments.verdicts import targets_of
from moesim.plans.plan import Policy, Space
from moesim.search.deploying import every_number_of_replicas, paired, replicas_needed
from moesim.search.frontier import front
from moesim.search.objectives import Objectives, objectives
from moesim.search.optimization import optimize
from moesim.search.pruning import best_first
from moesim.search.space import enumerate_pools
from moesim.world.scenario import Scenario
from moesim.world.workload import Target

DEEPSEEK, MIXTRAL, GPT_OSS, QWEN, SWIN, NLLB, DENSE = worlds.MODELS
AXES = {
    "pools": ("all",),
    "parallel.pp": (1, 2),
    "parallel.tp": (1, 2),
    "parallel.etp": (1, 2),
    "max_batch": (16, 128),
    "overlap": (Policy(name="none"), Policy(name="two_batch"), Policy(name="pipeline", settings={"degree": 2})),
    "placement": (Policy(name="contiguous"), Policy(name="eplb", settings={"redundant": 8})),
}


def world(name: str = MIXTRAL, *, cv: float = 0.3, tpot: float = np.inf, max_nodes: int = 2) -> Scenario:
    workload = replace(worlds.SERVING, targets=(Target(metric="tpot", limit=tpot),))
    offers = [worlds.offer(max_nodes=max_nodes)]
    return worlds.scenario(name, cv=cv, workload=workload, offers=offers, short=True)


@settings(max_examples=4, deadline=None)
@given(
    st.sampled_from((DEEPSEEK, MIXTRAL, GPT_OSS, QWEN)),
    st.sampled_from((0.0, 0.3, 1.0)),
    st.integers(0, 2**16),
    st.sampled_from(("all", "prefill+decode")),
)
def test_no_estimate_is_below_its_bound(name: str, cv: float, seed: int, pools: str) -> None:
    scenario = world(name, cv=cv)
    table = enumerate_pools(scenario, Space(axes={**AXES, "pools": (pools,)})).table
    estimator = estimator_of(scenario, table, seed=seed)
    rng = np.random.default_rng(seed)
    fits = np.flatnonzero(estimator.memory.fits)
    rows = np.sort(rng.choice(fits, min(len(fits), 16), replace=False))
    lower = floor_estimates(estimator, rows)
    found = estimator.estimate(rows)
    good = rows[np.isfinite(found.step[rows])]
    assert len(good) > 0
    assert np.all(lower.step[good] <= found.step[good] * (1 + 1e-9))
    assert np.all(lower.carrying[good] <= found.carrying[good] * (1 + 1e-9))


@pytest.mark.parametrize("pace", [0.5, 1.3])
def test_bounds_and_estimates_go_at_the_pace_of_a_framework(pace: float) -> None:
    scenario = world(DEEPSEEK)
    table = enumerate_pools(scenario, Space(axes={**AXES, "overlap": (Policy(name="none"),)})).table
    paced = {name: replace(each, pace=pace) for name, each in scenario.frameworks.items()}
    usual, other = (
        estimator_of(each, table) for each in (scenario, replace(scenario, frameworks=MappingProxyType(paced)))
    )
    rows = np.flatnonzero(usual.memory.fits)[:16]
    lower = floor_estimates(other, rows)
    np.testing.assert_allclose(lower.step[rows], floor_estimates(usual, rows).step[rows] * pace, rtol=1e-12)
    before, after = usual.estimate(rows), other.estimate(rows)
    np.testing.assert_allclose(after.step[rows], before.step[rows] * pace, rtol=1e-12)
    np.testing.assert_allclose(after.carrying[rows], before.carrying[rows] * pace, rtol=1e-12)


def test_bounds_are_near_where_nothing_overlaps() -> None:
    """Within a fifth at the median: a bound that is never near would prune nothing."""
    scenario = world(DEEPSEEK)
    table = enumerate_pools(scenario, Space(axes={**AXES, "overlap": (Policy(name="none"),)})).table
    estimator = estimator_of(scenario, table)
    rows = np.flatnonzero(estimator.memory.fits)
    lower, found = floor_estimates(estimator, rows), estimator.estimate(rows)
    assert np.nanmedian(lower.step[rows] / found.step[rows]) > 0.8


def test_training_is_bounded_too() -> None:
    scenario = replace(world(MIXTRAL), workload=worlds.TRAINING)
    table = enumerate_pools(scenario, Space(axes={"parallel.pp": (1, 2), "parallel.tp": (1, 2)})).table
    estimator = estimator_of(scenario, table)
    rows = np.flatnonzero(estimator.memory.fits)
    lower, found = floor_estimates(estimator, rows), estimator.estimate(rows)
    good = rows[np.isfinite(found.step[rows])]
    assert len(good) > 0
    assert np.all(lower.step[good] <= found.step[good] * (1 + 1e-9))


def brute_force(scenario: Scenario, space: Space, goal: str, traded: tuple[str, ...]) -> Objectives:
    """Objectives of every plan, each estimated."""
    table = enumerate_pools(scenario, space).table
    estimator = estimator_of(scenario, table)
    fits = np.flatnonzero(estimator.memory.fits)
    estimates = estimator.estimate(fits)
    roles = np.array([like.role for like in table.variants])[table.variant[fits]]
    every = every_number_of_replicas(scenario, table, fits[roles == "all"])
    found = objectives(summarize(scenario, every, estimates), targets_of(scenario), goal, traded)
    if not (roles == "decode").any():
        return found
    offered = scenario.workload.requests.arrivals.rate * scenario.workload.requests.output.mean
    sides = []
    for role in ("prefill", "decode"):
        rows = fits[roles == role]
        rate = pool_metrics(scenario, table.take(rows), estimates.take(rows))["rate"]
        sides.append((rows, replicas_needed(rate, offered)))
    pairs = paired(scenario, table, *sides)
    others = objectives(summarize(scenario, pairs, estimates), targets_of(scenario), goal, traded)
    return Objectives(rank=np.concatenate([found.rank, others.rank]), front=np.concatenate([found.front, others.front]))


def points(front_values: np.ndarray) -> list[tuple[float, ...]]:
    return sorted({tuple(np.round(row, 15)) for row in front_values})


@settings(max_examples=4, deadline=None)
@given(
    st.sampled_from((MIXTRAL, GPT_OSS)),
    st.sampled_from((0.1, 1.0)),
    st.sampled_from((0.004, 0.02, np.inf)),
    st.lists(st.sampled_from(("contiguous", "greedy", "eplb")), min_size=1, max_size=2, unique=True),
    st.lists(st.sampled_from(("none", "two_batch", "pipeline")), min_size=1, max_size=2, unique=True),
    st.sampled_from((("price_per_token", "tpot"), ("price_per_token", "tpot", "ttft"), ("price", "ttft"))),
    st.sampled_from((("all",), ("all", "prefill+decode"))),
)
def test_pruning_loses_no_member_of_the_frontier(
    name: str,
    cv: float,
    limit: float,
    placements: list[str],
    overlaps: list[str],
    traded: tuple[str, ...],
    pools: tuple[str, ...],
) -> None:
    """The search's frontier and first plan are those of a search that estimates everything."""
    scenario = world(name, cv=cv, tpot=limit)
    space = Space(
        axes={
            "pools": pools,
            "parallel.pp": (1,),
            "parallel.tp": (1, 4),
            "parallel.etp": (1,),
            "max_batch": (16, 64),
            "placement": tuple(Policy(name=each) for each in placements),
            "overlap": tuple(Policy(name=each) for each in overlaps),
        }
    )
    every = brute_force(scenario, space, traded[0], traded)
    known = np.flatnonzero(~np.isnan(every.rank).any(axis=1))
    good = known[every.meets[known]]
    found = optimize(scenario, space, goal=traded[0], frontier=traded)
    best = every.rank[every.order(known)[0]]
    assert found.plans[traded[0]].iloc[0] == pytest.approx(best[1], rel=1e-12)
    edge = every.front[good[front(every.front[good])]] if len(good) else np.empty((0, len(traded)))
    np.testing.assert_allclose(
        np.array(sorted(map(tuple, found.frontier[list(traded)].to_numpy()))) if len(found.frontier) else edge,
        np.array(sorted(map(tuple, edge))) if len(edge) else edge,
        rtol=1e-9,
    )
    assert len(found.frontier) == len(edge)


numbers = st.floats(0.0, 8.0).map(lambda value: round(value, 1))


@settings(max_examples=200)
@given(st.lists(st.tuples(numbers, numbers, numbers, st.floats(0.3, 1.0)), min_size=1, max_size=120))
def test_best_first_finds_the_front_and_the_first_plans_whatever_the_bounds(
    rows: list[tuple[float, float, float, float]],
) -> None:
    """Random values with random bounds below them: front and the ten best are as if all had been estimated."""
    values = np.array(rows)
    rank = np.stack([np.maximum(values[:, 0] - 4.0, 0.0), values[:, 1], -values[:, 2]], axis=1)
    truth = Objectives(rank=rank, front=values[:, 1:3])
    share = values[:, 3:]
    lower = Objectives(rank=np.where(rank >= 0, rank * share, rank / share), front=truth.front * share)
    known = np.zeros(len(rows), bool)

    def estimate(chosen: np.ndarray) -> Objectives:
        known[chosen] = True
        hidden = ~known[:, np.newaxis]
        return Objectives(rank=np.where(hidden, np.nan, rank), front=np.where(hidden, np.nan, truth.front))

    proof = best_first(np.arange(len(rows)), lower, estimate)
    everything = np.arange(len(rows))
    ten = truth.rank[truth.order(everything)[:10]]
    mine = np.flatnonzero(proof.done)
    np.testing.assert_array_equal(truth.rank[truth.order(mine)[:10]], ten)
    good, mine_good = (rows_[truth.meets[rows_]] for rows_ in (everything, mine))
    assert points(truth.front[good[front(truth.front[good])]]) == points(
        truth.front[mine_good[front(truth.front[mine_good])]]
    )
