"""Speed of simulated serving, with the number of events it takes. Targets stand in the names; CPU time is measured."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import worlds

from moesim.deployments.arrangements import arrangements
from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.book import open_book
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.loop import Stage, serve
from moesim.deployments.serving.measures import Served, latencies, rates
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import PER_SECOND
from moesim.deployments.simulation import simulate_many
from moesim.deployments.tabulation import tabulate
from moesim.files.requests import load_requests
from moesim.files.yaml import load_plan, load_scenario
from moesim.plans.plan import Parallel

ROOT = Path(__file__).parents[2]
LENGTHS = ROOT / "tests/data/traces/conversation.csv"
LIMITS = Limits(sequences=128, budget=2048, blocks=2**40, block=16, largest=2**40)
CAPACITY = 44.0
"""Requests per second that one replica serves in a closed loop of 128."""


@cache
def table():
    """Mixtral on a node of eight H200, tensor parallel."""
    world = worlds.scenario("mistralai/Mixtral-8x7B-v0.1")
    pool = worlds.pool(Parallel(tp=8, ep=8), alltoall="reduce")
    return tabulate(world, pool, arrangements(world, seed=0, draws=8), most=2048)


def asked(number: int, rate: float) -> Asked:
    """Poisson arrivals of requests as long as those of the Azure conversation trace."""
    recorded, rng = load_requests(LENGTHS), np.random.default_rng(1)
    chosen = rng.integers(len(recorded.input), size=number)
    return Asked(
        arrival=np.rint(np.cumsum(rng.exponential(1 / rate, number)) * PER_SECOND).astype(np.int64),
        prompt=recorded.input[chosen],
        output=recorded.output[chosen],
        shared=np.zeros(number, int),
        session=np.full(number, -1),
    )


def served(load: Asked, replicas: int) -> Served:
    book = open_book(load, (load.output - 1).tolist())
    machines = [Replica(table(), LIMITS, book) for _ in range(replicas)]
    serve(book, [Stage(replicas=machines, route=lambda _, hand: hand.index(min(hand)))])
    run = Served(asked=load, book=book, replicas=machines, warm_up=len(load.prompt) // 10)
    latencies(run)
    rates(run, {})
    return run


@pytest.mark.parametrize(
    ("share", "replicas", "events", "target"),
    [
        (0.15, 1, (2.0, 3.5), "30,000 / 150,000 requests per CPU second"),
        (0.88, 1, (1.2, 2.2), "50,000 / 250,000 requests per CPU second"),
        (0.88, 100, (1.2, 2.5), "50,000 requests per CPU second: a million in 20 s"),
    ],
)
def test_requests_per_second(benchmark, share, replicas, events, target):
    number = 20_000
    load = asked(number, share * CAPACITY * replicas)
    benchmark.extra_info["target"] = target
    run = benchmark.pedantic(served, (load, replicas), rounds=3, warmup_rounds=1)
    assert np.isfinite(run.done).all()
    assert events[0] < len(run.log) / number < events[1]
    assert run.log[:, 4].sum() == load.prompt.sum()
    assert (run.log[:, 1] * run.log[:, 3]).sum() == (load.output - 1).sum()


def test_five_finalists_of_a_search(benchmark):
    """Their step tables, 2,000 requests each, metrics and tables."""
    world = load_scenario(ROOT / "examples/deepseek_v3_serving.yaml")
    plan = load_plan(ROOT / "examples/deepseek_v3_plan.yaml", world)
    benchmark.extra_info["target"] = "0.5 s"
    results = benchmark.pedantic(simulate_many, (world, [plan] * 5), {"requests": 2000}, rounds=3, warmup_rounds=1)
    assert [len(result.tables["requests"]) for result in results] == [2000] * 5
    assert len({result.summary["ttft.p99"] for result in results}) == 1
