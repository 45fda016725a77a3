"""Failures, scaling and rebalancing while requests are served: to the bit as steps one by one, and as the rules say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_serving import STALL, Event, Naive, serve_naively
from test_run_length import CACHES, LIMITS, LOADS, PER_TOKEN, Kind, asked, logged, step_table

from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.book import Book, open_book
from moesim.deployments.serving.control import Controller, Swap, Upkeep
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.links import Links
from moesim.deployments.serving.loop import Fleet, Stage, serve
from moesim.deployments.serving.measures import Served, event_table, serving_share
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import NEVER, PER_SECOND
from moesim.deployments.steps import StepTable
from moesim.policies.protocols import Demand
from moesim.policies.scaling.queue import Queue
from moesim.policies.scaling.utilization import Utilization


def slower() -> StepTable:
    """Steps that take a third longer."""
    table = step_table()
    prompts = tuple(tuple((near * 4 / 3, far * 4 / 3) for near, far in row) for row in table.prompts)
    return replace(
        table, decode=tuple(tuple(tick * 4 / 3 for tick in row) for row in table.decode), prompts=prompts, _rows={}
    )


@dataclass
class Script:
    """Does what it is told when it is told."""

    events: list[Event]
    done: list[int] = field(default_factory=list)

    def next(self) -> int:
        return self.events[0][0] if self.events else NEVER

    def act(self, fleet: Fleet, now: int) -> None:
        while self.events and self.events[0][0] == now:
            _, what, stage, replicas, table = self.events.pop(0)
            first = stage * fleet.border
            if what == "accept":
                fleet.accept(stage, replicas)
            for replica in replicas:
                if what == "fail":
                    fleet.fail(first + replica, now)
                if what == "swap":
                    fleet.swap(first + replica, table, STALL, now)


def outages(rng: np.random.Generator, stages: list[int], until: float, number: int) -> list[Event]:
    """Replicas that fail and come back, and tables that change, at any ticks."""
    events: list[Event] = []
    out: list[set[int]] = [set() for _ in stages]
    for time in np.sort(rng.uniform(0, until, number)):
        tick, stage = round(time * PER_SECOND), int(rng.integers(len(stages)))
        place, everybody = int(rng.integers(stages[stage])), set(range(stages[stage]))
        if rng.random() < 0.3:
            events.append((tick, "swap", stage, (place,), slower() if rng.random() < 0.5 else step_table()))
        elif place in out[stage]:
            out[stage].discard(place)
            events.append((tick, "accept", stage, tuple(sorted(everybody - out[stage])), None))
        else:
            out[stage].add(place)
            events.append((tick, "accept", stage, tuple(sorted(everybody - out[stage])), None))
            if rng.random() < 0.8:  # others are switched off, and work off what they have
                events.append((tick, "fail", stage, (place,), None))
    end = round(until * PER_SECOND) + 1
    return events + [(end, "accept", stage, tuple(range(size)), None) for stage, size in enumerate(stages)]


def run(load: Asked, stages: list[tuple[Limits, int]], control: object, kind: Kind = Replica) -> tuple[Book, list]:
    book = open_book(load, (load.output - 1).tolist())
    made = [
        Stage(
            replicas=[kind(step_table(), limits, book) for _ in range(number)],
            route=lambda _, hand: hand.index(min(hand)),
        )
        for limits, number in stages
    ]
    links = Links(replicas=stages[0][1], groups=1, ticks=PER_TOKEN, latency=0) if len(stages) > 1 else None
    serve(book, made, links, concurrency=load.concurrency, control=control)
    return book, [replica for stage in made for replica in stage.replicas]


def naive(load: Asked, stages: list[tuple[Limits, int]], script: list[Event]) -> list:
    made = [[Naive(step_table(), limits) for _ in range(number)] for limits, number in stages]
    return serve_naively(made[0], load, second=made[1] if len(made) > 1 else None, per_token=PER_TOKEN, script=script)


def differences(book: Book, found: list) -> int:
    return sum(
        (one.arrived, one.admitted, one.emitted[0], one.emitted[-1], one.preempted, one.found)
        != (book.arrived[i], book.admitted[i], book.first[i], book.done[i], book.preempted[i], book.cached[i])
        for i, one in enumerate(found)
    )


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("load", LOADS)
def test_runs_equal_their_steps_with_failures_and_changes(cache: str, load: str) -> None:
    requests = asked(100, seed=7, **LOADS[load])
    script = outages(np.random.default_rng(3), [3], 30.0, 24)
    stages = [(CACHES[cache], 3)]
    book, machines = run(requests, stages, Script(list(script)))
    assert differences(book, naive(requests, stages, script)) == 0
    assert all((each.cache.free, each.decoding, each.context) == (each.limits.blocks, 0, 0) for each in machines)
    gaps = sum(logged(each)[:, 5].sum() + sum(each.gaps[1::2]) for each in machines)
    assert gaps == (requests.output - 1).sum()


@pytest.mark.parametrize("cache", ["tight", "whole", "swap"])
@pytest.mark.parametrize("load", ["busy", "overloaded", "closed"])
def test_handed_over_requests_survive_failures_of_either_side(cache: str, load: str) -> None:
    requests = asked(80, seed=3, **LOADS[load])
    stages = [(replace(LIMITS, hands_over=True), 2), (CACHES[cache], 2)]
    script = outages(np.random.default_rng(5), [2, 2], 20.0, 20)
    book, _ = run(requests, stages, Script(list(script)))
    assert differences(book, naive(requests, stages, script)) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), replicas=st.integers(1, 4), rate=st.sampled_from([1.0, 8.0, 30.0]))
def test_any_failures(seed: int, replicas: int, rate: float) -> None:
    requests = asked(40, seed, rate=rate, hits=0.2)
    script = outages(np.random.default_rng(seed), [replicas], 50 / rate, 12)
    stages = [(LIMITS, replicas)]
    book, _ = run(requests, stages, Script(list(script)))
    assert differences(book, naive(requests, stages, script)) == 0


class Forgets(Replica):
    """What a request has given is not part of its prompt when it comes again."""

    def _again(self, request, past, last):
        before = self.book.held[request]
        super()._again(request, past, last)
        self.book.held[request] = before


class KeepsStep(Replica):
    """The step that runs when the replica is lost is counted as over."""

    def _lose(self, now):
        if self._advancing:
            self._cut(max(self._steps_until(now), 1))
            self.end(now)
        super()._lose(now)


@pytest.mark.parametrize("bug", [Forgets, KeepsStep])
def test_bugs_planted_in_failures_are_seen(bug: type[Replica]) -> None:
    requests = asked(100, seed=7, **LOADS["busy"])
    script = outages(np.random.default_rng(3), [3], 30.0, 24)
    book, _ = run(requests, [(LIMITS, 3)], Script(list(script)), bug)
    assert differences(book, naive(requests, [(LIMITS, 3)], script)) > 0


MINUTE = 60 * PER_SECOND


def controlled(load: Asked, upkeep: Upkeep, *, spares: int = 0, seed: int = 0) -> Served:
    control = Controller([upkeep], spares=spares, rng=np.random.default_rng(seed))
    book, machines = run(load, [(LIMITS, upkeep.replicas)], control)
    return Served(asked=load, book=book, replicas=machines, warm_up=0, record=control.record)


FAILING = Upkeep(replicas=4, gpus=8, node=8, interval=200 * MINUTE, repair=20 * MINUTE, start=3 * MINUTE, spared=True)


def test_a_node_comes_back_after_repair_or_at_once_by_a_spare() -> None:
    load = asked(3000, seed=1, rate=1.0)
    for spares in (0, 9):
        table = event_table(controlled(load, FAILING, spares=spares)).query("event != 'rebalanced'")
        failed = table[table["event"] == "node failed"]
        assert len(failed) > 3
        for _, each in failed.iterrows():
            back = table[(table["replica"] == each["replica"]) & (table["time"] > each["time"])]
            if len(back) and spares:
                assert back.iloc[0]["time"] - each["time"] == pytest.approx(180.0)
            elif len(back):
                assert back.iloc[0]["time"] - each["time"] > 180.0


def test_failures_come_as_often_as_they_should_and_take_their_share_of_time() -> None:
    """8 gpus x 4 replicas, each failing every 200 minutes: one in 6.25 minutes while all are up."""
    load = asked(1000, seed=1, rate=0.2)
    upkeep = replace(FAILING, start=MINUTE, repair=2 * MINUTE)
    runs = [controlled(load, upkeep, seed=seed) for seed in range(6)]
    shares = np.array([serving_share(run) for run in runs])
    expected = 25.0 / (25.0 + 3.0)  # up 25 minutes on average, out for 2 and starting for 1
    assert abs(shares.mean() - expected) < 4 * shares.std(ddof=1) / np.sqrt(len(shares)) + 0.005


def test_a_crash_takes_its_replica_alone_and_a_node_all_on_it() -> None:
    load = asked(2000, seed=1, rate=1.0)
    crashing = replace(FAILING, gpus=4, interval=0, crash=300 * MINUTE)
    table = event_table(controlled(load, crashing))
    assert set(table["event"]) == {"rank failed", "serves"}
    assert table[table["event"] == "rank failed"]["time"].is_unique
    table = event_table(controlled(load, replace(FAILING, gpus=4)))
    times = table[table["event"] == "node failed"].groupby("time")["replica"].apply(sorted).tolist()
    assert [0, 1] in times or [2, 3] in times


def test_requests_wait_where_all_are_lost_and_are_served_in_the_end() -> None:
    load = asked(500, seed=1, rate=1.0)
    run = controlled(load, replace(FAILING, replicas=1, interval=30 * MINUTE))
    assert np.isfinite(run.done).all()
    assert run.ttft.max() > 180
    assert serving_share(run) < 1


DEMAND = Demand(replicas=8, on=3, waiting=0, working=24, places=24)


def test_scaling_rules_worked_by_hand() -> None:
    queue, utilization = Queue(waiting=4, fill=0.5, lowest=1), Utilization(target=0.5, slack=0.1)
    assert queue(DEMAND) == 2  # 24 requests at work fill half of the places of two replicas
    assert queue(replace(DEMAND, waiting=30)) == 8  # one for every 4 that wait
    assert queue(replace(DEMAND, waiting=13)) == 4
    assert utilization(DEMAND) == 2  # a third of the places where a half should be
    assert utilization(replace(DEMAND, working=36)) == 3
    assert utilization(replace(DEMAND, working=72)) == 6


def test_replicas_follow_the_load_after_their_cold_start() -> None:
    """A burst after a lull: some are switched off, and serve again a look, a lag and a cold start later."""
    lull, burst = asked(60, seed=1, rate=0.1), asked(900, seed=2, rate=20.0)
    later = int(lull.arrival[-1])
    both = {name: np.concatenate([getattr(lull, name), getattr(burst, name)]) for name in ("prompt", "output")}
    load = replace(
        lull,
        arrival=np.concatenate([lull.arrival, burst.arrival + later]),
        shared=np.zeros(960, int),
        session=np.full(960, -1),
        **both,
    )
    upkeep = Upkeep(
        replicas=4,
        gpus=8,
        node=8,
        start=MINUTE,
        scaling=Queue(waiting=2.0, fill=0.5),
        every=10 * PER_SECOND,
        lag=5 * PER_SECOND,
        hold=2 * MINUTE,
    )
    run = controlled(load, upkeep)
    table = event_table(run)
    off = table[table["event"] == "switched off"]
    assert off["time"].min() >= 125
    assert set(off["replica"]) == {1, 2, 3}
    burst_at = later / PER_SECOND
    on = table[(table["event"] == "switched on") & (table["time"] > burst_at)]
    assert len(on)
    assert on["time"].min() < burst_at + 60
    served = table[(table["event"] == "serves") & (table["time"] > burst_at)]
    assert served["time"].min() - on["time"].min() in (0.0, pytest.approx(60.0))
    assert np.isfinite(run.done).all()
    assert 0 < serving_share(run) < 1


def test_rebalancing_waits_and_changes_the_steps() -> None:
    load = asked(300, seed=1, rate=2.0)
    swaps = tuple(
        Swap(table=table, wait=20 * PER_SECOND - STALL * (turn > 0), stall=STALL, what="rebalanced", moved=1e9)
        for turn, table in enumerate((slower(), step_table()) * 3)
    )
    upkeep = Upkeep(replicas=1, gpus=8, node=8, swaps=swaps)
    run = controlled(load, upkeep)
    table = event_table(run)
    assert table["moved"].eq(1e9).all()
    assert table["time"].tolist() == pytest.approx((20.0 * np.arange(1, len(table) + 1)).tolist())
    assert len(table) == 6
    assert run.e2e.mean() > controlled(load, replace(upkeep, swaps=())).e2e.mean()
    for_ever = event_table(controlled(load, replace(upkeep, swaps=swaps[1:3], again=True)))
    assert len(for_ever) > 6
    assert np.allclose(np.diff(for_ever["time"]), 20.0)


def test_a_seed_decides_what_fails() -> None:
    load = asked(800, seed=1, rate=1.0)
    one, again, other = (controlled(load, FAILING, seed=seed) for seed in (3, 3, 4))
    assert one.record == again.record
    assert one.book.done == again.book.done
    assert one.record != other.record
