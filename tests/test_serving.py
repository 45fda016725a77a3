"""Serving against queueing theory and against itself: what is conserved, what never happens, what a tie decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_run_length import LIMITS, LOADS, asked, logged, run, step_table

from moesim.deployments.serving.asked import Asked, draw_gaps, draw_lengths, generate
from moesim.deployments.serving.book import open_book
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.loop import Stage, serve
from moesim.deployments.serving.measures import Served, gaps, latencies, rates
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import PER_SECOND
from moesim.deployments.steps import StepTable
from moesim.world.workload import Arrivals, Lengths, Requests, Serving

ONE = Limits(sequences=1, budget=2**40, blocks=2**40, block=16, largest=2**40)


def poisson(rate: float, output: np.ndarray, seed: int) -> Asked:
    """Prompts of one token, so that output tokens are all there is to do."""
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(output)))
    one = np.ones(len(output), int)
    return Asked(
        arrival=np.rint(times * PER_SECOND).astype(int), prompt=one, output=output, shared=0 * one, session=0 * one - 1
    )


def steps_of(per_token: float, fixed: float = 0.0) -> StepTable:
    """Steps that take so many seconds, and so many for every token in them."""
    ticks = [PER_SECOND * (fixed + per_token * tokens) for tokens in (1, 2**20)]
    return StepTable(
        tokens=(1.0, 2.0**20),
        contexts=(1.0, 2.0),
        decode=tuple((tick, tick) for tick in ticks),
        prompts=tuple(((tick, 0.0),) for tick in ticks),
        spreads=(0.0,),
        near=0.0,
        groups=1,
    )


def served(load: Asked, table: StepTable, limits: Limits, replicas: int = 1, warm_up: int = 0) -> Served:
    book = open_book(load, (load.output - 1).tolist())
    machines = [Replica(table, limits, book) for _ in range(replicas)]
    stage = Stage(replicas=machines, route=lambda _, hand: hand.index(min(hand)))
    serve(book, [stage], concurrency=load.concurrency)
    return Served(asked=load, book=book, replicas=machines, warm_up=warm_up)


def standard_error(values: np.ndarray, batches: int = 25) -> float:
    """Standard error of the mean of correlated values, from the means of batches."""
    means = [batch.mean() for batch in np.array_split(values, batches)]
    return float(np.std(means, ddof=1) / np.sqrt(batches))


SIZES = {
    "M/D/1": lambda rng, number: np.full(number, 50),
    "M/M/1": lambda rng, number: rng.geometric(1 / 50, number),
    "M/G/1": lambda rng, number: np.where(rng.random(number) < 0.2, 200, 12),
}


@pytest.mark.parametrize("law", SIZES)
def test_one_at_a_time_waits_as_pollaczek_and_khinchine_say(law: str) -> None:
    """W = rate E[S^2] / 2 (1 - load), at a load of 0.7."""
    output = SIZES[law](np.random.default_rng(3), 30_000)
    service = output * 0.01
    rate = 0.7 / service.mean()
    run = served(poisson(rate, output, seed=4), steps_of(0.0, fixed=0.01), ONE)
    expected = rate * (service**2).mean() / 2 / (1 - rate * service.mean())
    assert abs(run.wait.mean() - expected) < 4 * standard_error(run.wait)
    assert standard_error(run.wait) < 0.1 * expected


@pytest.mark.parametrize("law", SIZES)
def test_a_batch_that_shares_a_processor(law: str) -> None:
    """Where a step takes as long as its tokens, requests share a processor: T = S / (1 - load), whatever the law."""
    output = SIZES[law](np.random.default_rng(5), 8_000)
    rate = 0.6 / (output.mean() * 1e-3)
    everyone = replace(ONE, sequences=10**6)
    run = served(poisson(rate, output, seed=6), steps_of(1e-3), everyone)
    expected = output.mean() * 1e-3 / (1 - 0.6)
    assert abs(run.e2e.mean() - expected) < 4 * standard_error(run.e2e) + 2e-3  # joins wait for a step to end
    assert standard_error(run.e2e) < 0.1 * expected


@pytest.mark.parametrize("load", LOADS)
def test_littles_law_and_conservation(load: str) -> None:
    """Time spent decoding, over runs and over requests, is the same to the tick; so are tokens."""
    requests = asked(300, seed=1, **LOADS[load])
    book, machines = run(requests, replace(LIMITS, whole=True), 2)
    log = np.concatenate([logged(machine) for machine in machines])
    assert (log[:, 3] * log[:, 2]).sum() == sum(book.done) - sum(book.first)
    assert (log[:, 3] * log[:, 1]).sum() == (requests.output - 1).sum()
    assert log[:, 4].sum() == (requests.prompt - np.array(book.cached)).sum()


def test_preemption_does_work_twice_and_loses_nothing() -> None:
    requests = asked(200, seed=2, concurrency=60)
    limits = replace(LIMITS, blocks=290, largest=4640)
    book, (machine,) = run(requests, limits)
    log = logged(machine)
    assert sum(book.preempted) > 0
    again = (requests.output - 1).sum() - (log[:, 3] * log[:, 1]).sum()  # tokens that came out of a repeated prompt
    assert 0 < again <= sum(book.preempted)
    assert log[:, 4].sum() > requests.prompt.sum()
    assert len(machine.gaps) > 0
    assert min(machine.gaps[::2]) > 0


def test_preemptions_and_hits_are_counted_over_measured_requests() -> None:
    requests = asked(200, seed=2, concurrency=60)
    run = served(requests, steps_of(1e-3), replace(LIMITS, blocks=290, largest=4640))
    found = rates(run, {})
    chosen = np.flatnonzero(run.measured)
    assert found["preemptions"] == sum(run.book.preempted[request] for request in chosen) / len(chosen) > 0
    assert found["prefix_hits"] == sum(run.book.cached[request] for request in chosen) / run.asked.prompt[chosen].sum()


class Watched(Replica):
    """Looks at its cache at every event."""

    def end(self, now):
        done = super().end(now)
        assert 0 <= self.cache.free <= self.limits.blocks
        assert len(self._running) <= self.limits.sequences
        assert sum(self.cache._residues) == (0 if self.limits.whole else self.decoding)
        return done


@pytest.mark.parametrize("whole", [True, False])
def test_cache_is_never_above_capacity(whole: bool) -> None:
    limits = replace(LIMITS, blocks=290, largest=4640, whole=whole)
    book, _ = run(asked(300, seed=5, rate=8.0), limits, kind=Watched)
    assert all(done < 2**62 for done in book.done)


def test_a_request_that_outgrows_the_cache_is_refused_and_holds_nobody_up() -> None:
    load = asked(50, seed=1, concurrency=4)
    load = replace(load, prompt=np.where(np.arange(50) % 10 == 3, 7000, load.prompt))
    book, _ = run(load, LIMITS)
    assert [i for i, refused in enumerate(book.refused) if refused] == list(range(3, 50, 10))
    assert sum(done < 2**62 for done in book.done) == 45


def test_equal_replicas_stay_equal() -> None:
    """Sixteen replicas in lockstep: a tie is never decided by the order of insertion."""
    number = 16
    output = np.full(10 * number, 20)
    load = Asked(
        arrival=np.full(len(output), 2**63 - 1),
        prompt=np.full(len(output), 30),
        output=output,
        shared=0 * output,
        session=0 * output - 1,
        concurrency=number,
    )
    book, machines = run(load, LIMITS, number)
    logs = [machine.log.tolist() for machine in machines]
    assert all(log == logs[0] for log in logs)
    assert len({tuple(book.done[i : i + number]) for i in range(0, len(output), number)}) == 10
    assert all(len(set(book.done[i : i + number])) == 1 for i in range(0, len(output), number))


def test_metrics_by_hand() -> None:
    """Two requests of 10 prompt and 3 output tokens, 0.5 s apart, alone: steps of 0.1 s, two more after the first."""
    arrival = np.array([0, PER_SECOND // 2])
    tokens = np.array([10, 10])
    load = Asked(arrival=arrival, prompt=tokens, output=np.array([3, 3]), shared=0 * tokens, session=0 * tokens - 1)
    run = served(load, steps_of(0.0, fixed=0.1), replace(ONE, sequences=8))
    assert np.allclose([run.ttft, run.tpot, run.e2e], [[0.1] * 2, [0.1] * 2, [0.3] * 2])
    found = latencies(run) | rates(run, {"ttft": 0.05})
    assert found["itl.p99"] == pytest.approx(0.1)
    assert found["goodput"] == 0
    assert (found["throughput"], found["offered"]) == pytest.approx((6.0, 12.0))  # a window of 0.5 s: one of two done
    assert found["utilization"] == pytest.approx(0.6)
    _, weights = gaps(run)
    assert weights.sum() == 2  # those of the first request; the second's begin when the window has closed
    assert rates(run, {"ttft": 0.15, "tpot": 0.2, "e2e": 0.4})["goodput"] == pytest.approx(2.0)  # one is done by then


def test_a_run_repeats_and_its_streams_are_its_own() -> None:
    serving = Serving(
        requests=Requests(
            arrivals=Arrivals(generator="gamma", rate=5.0, burstiness=3.0),
            input=Lengths(generator="lognormal", mean=500.0, cv=0.8),
            output=Lengths(generator="gamma", mean=100.0, cv=1.2),
            prefix_hits=0.25,
        ),
        horizon=5000,
        warm_up=100,
    )
    one, again = generate(serving, seed=3), generate(serving, seed=3)
    assert np.array_equal(one.arrival, again.arrival)
    assert np.array_equal(one.output, again.output)
    faster = replace(serving, requests=replace(serving.requests, arrivals=Arrivals(generator="poisson", rate=9.0)))
    assert np.array_equal(one.prompt, generate(faster, seed=3).prompt)
    assert not np.array_equal(one.prompt, generate(serving, seed=3, replication=1).prompt)
    assert np.all(one.shared < one.prompt)
    books = [run(asked(100, seed=1, rate=3.0), LIMITS, 2)[0].done for _ in range(2)]
    assert books[0] == books[1]


@pytest.mark.parametrize(
    ("law", "mean", "cv"),
    [("lognormal", 300.0, 0.8), ("gamma", 300.0, 1.3), ("uniform", 300.0, 0.2), ("constant", 7.0, 0.0)],
)
def test_lengths_have_their_mean_and_spread(law: str, mean: float, cv: float) -> None:
    drawn = draw_lengths(Lengths(generator=law, mean=mean, cv=cv), 40_000, np.random.default_rng(1))
    assert abs(drawn.mean() - mean) <= 4 * drawn.std() / 200 + 1e-9
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.05)
    assert drawn.min() >= 1


@pytest.mark.parametrize(("law", "burstiness"), [("poisson", 1.0), ("gamma", 4.0), ("constant", 0.0), ("gamma", 0.0)])
def test_gaps_have_their_rate_and_burstiness(law: str, burstiness: float) -> None:
    arrivals = Arrivals(generator=law, rate=8.0, burstiness=burstiness)
    drawn = draw_gaps(arrivals, 40_000, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(1 / 8, rel=0.05)
    assert drawn.var() / drawn.mean() ** 2 == pytest.approx(burstiness, rel=0.1)


def test_rows_of_a_table_are_its_steps() -> None:
    """A row's whole numbers stay within a tick per sequence and token of the knots they come from."""
    table = step_table()
    for sequences in (1, 3, 64, 700):
        for context in (10, 399, 401, 3000, 10_000):
            exact = table.mixed(sequences, sequences * 8 * context, 1, 100.0, 1)
            near = table.decoding(sequences, sequences * 8 * context)
            assert near == pytest.approx(exact, rel=1.2 / (sequences + 1) + 1e-3)
