"""Runs of steps against the same steps one by one, to the bit; and bugs planted in them, each of which is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_serving import Naive, serve_naively

from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.book import Book, open_book
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.links import Links
from moesim.deployments.serving.loop import Stage, serve
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import NEVER, PER_SECOND
from moesim.deployments.steps import StepTable


def step_table(groups: int = 1) -> StepTable:
    """A step costs 10 ms, tokens and context some more, with bends in both."""
    tokens = [2.0**power for power in range(13)]
    level = [PER_SECOND * (0.01 + 1e-4 * knot**0.8) for knot in tokens]
    return StepTable(
        tokens=tuple(tokens),
        contexts=(50.0, 400.0, 3200.0),
        decode=tuple((a, a * 1.1 + 1e5 * knot, a * 1.6 + 4e6 * knot) for a, knot in zip(level, tokens, strict=True)),
        prompts=tuple(
            ((a * 1.2, 2e6 + 3e4 * knot), (a * 1.5, 2.1e6 + 3e4 * knot), (a * 1.9, 2.2e6 + 4e4 * knot))
            for a, knot in zip(level, tokens, strict=True)
        ),
        spreads=(0.0, 0.3, 1.0),
        near=100.0,
        groups=groups,
    )


LIMITS = Limits(sequences=24, budget=512, blocks=400, block=16, largest=6400)


def asked(
    number: int, seed: int, *, rate: float = 0.0, concurrency: int = 0, hits: float = 0.0, sessions: int = 0
) -> Asked:
    rng = np.random.default_rng(seed)
    prompt = np.maximum(rng.lognormal(5.0, 1.2, number).astype(int), 1).clip(max=3000)
    arrival = np.full(number, NEVER)
    if rate:
        arrival = np.rint(np.cumsum(rng.exponential(1 / rate, number)) * PER_SECOND).astype(int)
    return Asked(
        arrival=arrival,
        prompt=prompt,
        output=np.maximum(rng.lognormal(4.0, 1.0, number).astype(int), 1).clip(max=1500),
        shared=np.minimum((prompt * hits).astype(int), prompt - 1),
        session=rng.integers(sessions, size=number) if sessions else np.full(number, -1),
        concurrency=concurrency,
    )


Kind = Callable[[StepTable, Limits, Book], Replica]


def run(
    load: Asked, limits: Limits, number: int = 1, groups: int = 1, kind: Kind = Replica, second: Limits | None = None
) -> tuple[Book, list[Replica]]:
    """Serve by runs of steps, on so many replicas; where there is a second kind of them, on twice as many."""
    book = open_book(load, (load.output - 1).tolist())
    table = step_table(groups)
    stages = [
        Stage(replicas=[kind(table, each, book) for _ in range(number)], route=lambda _, hand: hand.index(min(hand)))
        for each in (limits, second)
        if each
    ]
    links = Links(replicas=number, groups=groups, ticks=PER_TOKEN, latency=0) if second else None
    serve(book, stages, links, concurrency=load.concurrency)
    return book, [replica for stage in stages for replica in stage.replicas]


PER_TOKEN = PER_SECOND // 10**5
"""Ticks that a token's cache takes from prefill to decode."""


def differences(
    book: Book, load: Asked, limits: Limits, number: int = 1, groups: int = 1, second: Limits | None = None
) -> int:
    """Facts of requests that differ between a book and the oracle's."""
    stages = [[Naive(step_table(groups), each) for _ in range(number)] for each in (limits, second) if each]
    other = stages[1] if second else None
    found = serve_naively(stages[0], load, second=other, per_token=PER_TOKEN, lanes=groups)
    assert all(each.most_blocks <= each.limits.blocks for stage in stages for each in stage)
    return sum(
        (one.arrived, one.admitted, one.emitted[0], one.emitted[-1], one.preempted, one.found)
        != (book.arrived[i], book.admitted[i], book.first[i], book.done[i], book.preempted[i], book.cached[i])
        for i, one in enumerate(found)
    )


CACHES = {
    "whole": replace(LIMITS, whole=True),
    "as needed": LIMITS,
    "tight": replace(LIMITS, blocks=290, largest=4640),
    "single tokens": replace(LIMITS, block=1, blocks=4600, largest=4600),
    "small budget": replace(LIMITS, budget=64),
    "no budget": replace(LIMITS, budget=2**62),
    "swap": replace(LIMITS, blocks=290, largest=4640, swap=PER_SECOND // 10**6),
    "prompts first": replace(LIMITS, prompts_first=True),
    "prompts first, tight, polled": replace(LIMITS, prompts_first=True, blocks=290, largest=4640, poll=10),
    "polled": replace(LIMITS, poll=7, budget=256),
    "prefixes": replace(LIMITS, prefixes=3000),
}
LOADS = {
    "light": {"rate": 0.4},
    "busy": {"rate": 12.0},
    "overloaded": {"rate": 40.0},
    "one at a time": {"concurrency": 1},
    "closed": {"concurrency": 40},
    "prefixes": {"rate": 3.0, "hits": 0.6},
    "sessions": {"rate": 6.0, "hits": 0.6, "sessions": 20},
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("replicas", "groups"), [(1, 1), (3, 2)])
def test_runs_equal_their_steps_to_the_bit(cache: str, load: str, replicas: int, groups: int) -> None:
    requests = asked(120, seed=7, **LOADS[load])
    book, machines = run(requests, CACHES[cache], replicas, groups)
    assert differences(book, requests, CACHES[cache], replicas, groups) == 0
    steps = sum(sum(machine.log[1::6]) for machine in machines)
    runs = sum(len(machine.log) // 6 for machine in machines)
    assert steps > runs or cache == "small budget"


@pytest.mark.parametrize("cache", ["tight", "whole", "swap", "small budget"])
@pytest.mark.parametrize("load", LOADS)
def test_handed_over_requests_equal_their_steps(cache: str, load: str) -> None:
    """Prefill and decode apart: one replica of each, then two."""
    for number, groups in [(1, 1), (2, 2)]:
        requests = asked(80, seed=3, **LOADS[load])
        first = replace(LIMITS, hands_over=True)
        book, machines = run(requests, first, number, groups, second=CACHES[cache])
        assert differences(book, requests, first, number, groups, second=CACHES[cache]) == 0
        assert all((each.cache.free, each.decoding, each.context) == (each.limits.blocks, 0, 0) for each in machines)


@pytest.mark.parametrize("cache", ["tight", "swap", "prompts first, tight, polled", "polled"])
def test_every_gap_between_tokens_is_noted(cache: str) -> None:
    """As many gaps, and as much time in them, as between the oracle's tokens; none longer than its longest."""
    requests = asked(120, seed=7, **LOADS["busy"])
    _, (machine,) = run(requests, CACHES[cache])
    naive = Naive(step_table(), CACHES[cache])
    serve_naively([naive], requests)
    log, longer = logged(machine), np.array(machine.gaps).reshape(-1, 2)
    assert log[:, 5].sum() + longer[:, 1].sum() == len(naive.gaps) == (requests.output - 1).sum()
    plain = (log[:, 5] * (log[:, 2] / np.maximum(log[:, 1], 1))).sum()
    assert plain + (longer[:, 0] * longer[:, 1]).sum() == pytest.approx(sum(naive.gaps), rel=1e-3)
    assert longer[:, 0].max() == max(naive.gaps)


def test_the_cases_are_hard() -> None:
    """Caches run out and runs are long: the comparisons above see it."""
    book, _ = run(asked(120, seed=7, **LOADS["busy"]), CACHES["tight"])
    assert sum(book.preempted) > 10
    requests = asked(120, seed=7, rate=0.4)
    _, (machine,) = run(requests, LIMITS)
    assert np.mean(logged(machine)[:, 1]) > 5


def logged(machine: Replica) -> np.ndarray:
    return np.array(machine.log).reshape(-1, 6)


class LateCut(Replica):
    """A run is cut one step late."""

    def interrupt(self, now):
        steps = self._run[0]
        end = super().interrupt(now)
        if end == NEVER or self._run[0] + 1 >= steps:
            return end
        self._run = (self._run[0] + 1, *self._run[1:])
        return self._started + self._ticks(self._run[0])


class NoCut(Replica):
    """Nobody cuts a run."""

    def interrupt(self, now):
        return NEVER


class WrongSeries(Replica):
    """The sum of 0 .. n-1 is taken to be n n / 2."""

    def _ticks(self, steps):
        grown = self.decoding * self.limits.growth * (steps * steps // 2)
        return steps * self._run[1] + self._run[2] * (steps * self.context + grown)


class NoKnots(Replica):
    """The first piece's law holds for ever."""

    def _decode_run(self):
        _, intercept, slope = self.table.piece(self.decoding, self.context)
        return min(self._next_end() - self.step, self.cache.enough_for(self.step, 2**20)), intercept, slope


class WrongResidue(Replica):
    """A sequence is counted one token on."""

    def _join(self, request):
        super()._join(request)
        held = self.book.held[request]
        self.cache.leave(held, self.step)
        self.cache.join(held + 1, self.step)

    def _leave(self, request, steps):
        super()._leave(request, steps)
        cached = self.book.held[request] + steps
        self.cache.join(cached, self.step)
        self.cache.leave(cached + 1, self.step)


class OldestFirst(Replica):
    """The oldest loses its cache instead of the youngest."""

    def _make_room(self, now):
        short = False
        while self.cache.taken(self.step) > self.cache.free:
            request = next(iter(self._running))
            self._preempt(request, self._running.pop(request), now)
            short = True
        return short


class NoPrefix(Replica):
    """A chunk attends to nothing before it."""

    def _prompt_step(self, chunks):
        total, largest = sum(size for _, size in chunks), max(size for _, size in chunks)
        pairs = sum(size * size / 2 for _, size in chunks)
        return self.table.mixed(self.decoding, self.context, total, pairs, max(largest, total / self.table.groups))


class LastInFirstOut(Replica):
    """The queue is a stack."""

    def add(self, request):
        super().add(request)
        self.waiting.rotate(1)


BUGS = (LateCut, NoCut, WrongSeries, NoKnots, WrongResidue, OldestFirst, NoPrefix, LastInFirstOut)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(bug: type[Replica]) -> None:
    seen = 0
    for load, cache in [("light", "as needed"), ("busy", "tight"), ("closed", "small budget")]:
        requests = asked(120, seed=7, **LOADS[load])
        book, _ = run(requests, CACHES[cache], kind=bug)
        seen += differences(book, requests, CACHES[cache])
    assert seen > 0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=st.sampled_from([1, 5, 16]),
    blocks=st.integers(60, 120),
    budget=st.integers(30, 600),
    sequences=st.integers(1, 20),
    whole=st.booleans(),
    swap=st.sampled_from([0, PER_SECOND // 10**6]),
    prompts_first=st.booleans(),
    poll=st.sampled_from([1, 4]),
    rate=st.sampled_from([0.5, 3.0, 50.0]),
    replicas=st.integers(1, 3),
    groups=st.sampled_from([1, 4]),
)
def test_any_limits(
    seed, block, blocks, budget, sequences, whole, swap, prompts_first, poll, rate, replicas, groups
) -> None:
    """Bit for bit; and every block comes back."""
    tokens = blocks * 16
    limits = Limits(
        sequences=sequences,
        budget=budget,
        blocks=tokens // block,
        block=block,
        largest=tokens,
        whole=whole,
        swap=swap,
        prompts_first=prompts_first,
        poll=poll,
    )
    load = asked(40, seed, rate=rate, hits=0.2)
    load = replace(load, prompt=load.prompt.clip(max=tokens // 2), output=load.output.clip(max=tokens // 2))
    load = replace(load, shared=np.minimum(load.shared, load.prompt - 1))
    book, machines = run(load, limits, replicas, groups)
    assert differences(book, load, limits, replicas, groups) == 0
    assert all((each.cache.free, each.decoding, each.context) == (limits.blocks, 0, 0) for each in machines)
