"""The suites of serving: batches, routers, scaling."""

from __future__ import annotations

from moesim.policies.protocols import (
    Batching,
    Demand,
    Router,
    Scaling,
)
from moesim.testing.drawing import seeded


def check_batching(batching: Batching) -> None:
    """Check that a step has room for every decode, and that graphs ascend."""
    assert batching.max_batch >= 1, "no sequence may decode"
    assert batching.speculated >= 0, "a negative number of drafts"
    assert 1 <= batching.emitted <= 1 + batching.speculated, "more tokens out than are verified"
    assert batching.budget >= batching.max_batch * (1 + batching.speculated), "no room for every decode"
    assert list(batching.buckets) == sorted(set(batching.buckets)), "buckets must ascend"
    assert batching.graphs >= 0, "a negative number of graphs"
    assert not (batching.graphs and batching.buckets), "sizes of graphs are chosen, or still to be chosen"


def check_router(router: Router) -> None:
    """Check that a replica that exists is chosen, that none is forgotten for ever, and that no state is hidden."""
    rng = seeded(12)
    for replicas in (1, 2, 7):
        hand, chosen = [0] * replicas, set()
        for turn in range(40 * replicas):
            session = int(rng.integers(-1, 30))
            place = router(turn, session, tuple(hand))
            assert place in range(replicas), f"chooses replica {place} of {replicas}"
            assert place == router(turn, session, tuple(hand)), "two answers for one request"
            hand[place] += 1
            chosen.add(place)
        assert chosen == set(range(replicas)), f"never chooses some of {replicas} replicas"


def check_scaling(scaling: Scaling) -> None:
    """Check that a number that exists is chosen, that a crowd adds replicas, and that no state is hidden."""
    assert min(scaling.every, scaling.lag, scaling.hold) >= 0, "a negative time"
    for replicas in (1, 2, 9):
        for on in range(1, replicas + 1):
            for waiting, working in ((0, 0), (0, 3 * on), (100, 8 * on), (5000, 8 * on)):
                seen = Demand(replicas=replicas, on=on, waiting=waiting, working=working, places=8)
                wanted = scaling(seen)
                assert wanted in range(1, replicas + 1), f"wants {wanted} of {replicas} replicas"
                assert wanted == scaling(seen), "two answers to one question"
                assert wanted >= on or waiting == 0, "takes replicas away while requests wait"
                assert wanted == replicas or waiting < 5000, "leaves a crowd waiting"
