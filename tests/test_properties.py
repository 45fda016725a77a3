"""What must hold of the policies of the published systems, whatever the numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import lowered as lower_pass
from worlds import offer, pool, scenario, unfolded_draws

from moesim.ground.errors import PolicyError
from moesim.passes.timeline import makespan, timeline
from moesim.plans.layout import NO_LIMIT
from moesim.plans.plan import Parallel, Policy
from moesim.policies.finding import make
from moesim.policies.gating.dynamic import Dynamic
from moesim.policies.gating.static import Static
from moesim.policies.placement.greedy import Greedy
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import AllToAll, Exchange, fixed
from moesim.schedules.schedule import Schedule, Task
from moesim.testing import rank_loads
from moesim.testing.blocks import plain_layout
from moesim.world.hardware import Device, Node
from moesim.world.workload import Batch

NODE = Node(
    name="n",
    device=Device(name="d", memory=1, bandwidth=1, power=1, processors=1, cache=0, flop_rate={"bf16": 1.0}),
    gpus=1,
    tiers=(),
    host_memory=0.0,
    power=0.0,
)
SECONDS = st.floats(0.01, 10.0)


def chain(**times):
    return Schedule(
        tasks=tuple(
            Task(
                name=name,
                stream="comm" if name in ("dispatch", "combine") else "compute",
                op=fixed(seconds),
                after=(i - 1,) if i else (),
                layer=0,
            )
            for i, (name, seconds) in enumerate(times.items())
        ),
        out=(len(times) - 1,),
    )


@given(SECONDS, SECONDS, SECONDS, st.sampled_from([2, 4, 8]))
def test_pipelining_never_hides_the_first_dispatch_and_the_last_combine(dispatch, experts, combine, degree):
    block = chain(dispatch=dispatch, experts=experts, combine=combine)
    (cut,) = make("overlap", Policy(name="pipeline", settings={"degree": degree})).block(block, plain_layout())
    priced = price(cut, NODE, ())
    records, end = timeline(priced), float(makespan(priced).max())
    busy = [i for i, task in enumerate(cut.tasks) if task.name == "experts"]
    assert records.start[busy].min() >= dispatch / degree - 1e-9
    assert end - records.finish[busy].max() >= combine / degree - 1e-9
    assert end >= max(experts + (dispatch + combine) / degree, dispatch + combine) - 1e-9


def test_more_chunks_than_rows_are_refused():
    few = replace(plain_layout(), capacity=np.full((1, 12), 4))
    block = chain(dispatch=1.0, experts=1.0, combine=1.0)
    with pytest.raises(PolicyError, match="a capacity of 4 rows into 8 chunks; give a degree of at most 4"):
        make("overlap", Policy(name="pipeline", settings={"degree": 8})).block(block, few)
    assert len(make("overlap", Policy(name="pipeline", settings={"degree": "adaptive"})).block(block, few)) == 4


@given(st.integers(0, 10_000), st.sampled_from([16, 32, 64]))
def test_2dh_keeps_the_bytes_between_nodes(seed, ranks):
    rng = np.random.default_rng(seed)
    op = Exchange(
        rows=rng.integers(0, 50, (ranks, 1, ranks)),
        ranks_of_slot=np.arange(ranks)[:, None],
        ranks=ranks,
        row=1.0,
        reverse=False,
        tokens=np.full((1, ranks), 50),
    )
    between = []
    for name in ("linear", "two_dh"):
        phases = make("alltoall", Policy(name=name))(op, (("nvlink", 8), ("rail", ranks)))
        ops = [phase.op for phase in phases if isinstance(phase.op, AllToAll)]
        between.append(sum(each.sent[i].sum() for each in ops for i, tier in enumerate(each.tiers) if tier == "rail"))
    assert between[0] == between[1]


@given(st.integers(0, 10_000), st.sampled_from([0.0, -4.0, 1.0, 2.0]))
def test_dynamic_gating_never_moves_more_than_static_at_equal_tokens_kept(seed, factor):
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(96, rng.dirichlet(np.ones(8)), size=(2, 4))
    home = np.full((2, 4), 48)
    static = Static(factor=factor)
    padded = static(counts, np.full(8, static.capacity(48, 8, 2)), home)
    exact = Dynamic()(padded.kept, np.full(8, NO_LIMIT), home)
    assert np.all(exact.rows.sum(axis=-1) <= padded.rows.sum(axis=-1))


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_longest_first_is_within_graham_of_the_optimum(seed):
    """Where no rank runs out of slots, greedy is within 4/3 - 1/(3m) of the best of all splits.

    Experts that nobody chooses fill the slots that are left, so that seven others may lie on any rank.
    """
    rng = np.random.default_rng(seed)
    load, ranks = rng.lognormal(sigma=1.0, size=7), 3
    idle = np.concatenate([load, np.zeros(7 * (ranks - 1))])[None]
    heaviest = rank_loads(Greedy()(idle[None], 7 * ranks, ranks, 1, rng), idle, ranks)
    ways = np.stack(np.meshgrid(*[np.arange(ranks)] * 7, indexing="ij")).reshape(7, -1)
    totals = np.stack([(load[:, None] * (ways == rank)).sum(axis=0) for rank in range(ranks)])
    assert heaviest.max() <= totals.max(axis=0).min() * (4 / 3 - 1 / (3 * ranks)) + 1e-9


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_no_placement_is_lighter_than_the_exact_one(seed):
    load = np.random.default_rng(seed).lognormal(sigma=0.8, size=(1, 1, 12))
    rng = np.random.default_rng(0)
    heaviest = {
        name: rank_loads(make("placement", Policy(name=name))(load, 12, 4, 1, rng), load[0], 4).max()
        for name in ("exact", "greedy", "eplb", "contiguous", "anti_correlation")
    }
    assert heaviest["exact"] <= min(heaviest.values()) * (1 + 6e-3)
    assert isinstance(make("placement", Policy(name="greedy")), Greedy)


def test_cached_assignments_hide_the_shorter_of_gate_and_experts():
    """The hand-worked case: gate 0.7 and experts 1.0 take 1.7 one after the other, and 1.0 side by side."""
    block = chain(gate=0.7, pack=0.0, dispatch=0.0, experts=1.0, combine=0.0, unpack=0.0)
    (aside,) = make("shortcut", Policy(name="cached"))(block, plain_layout())
    assert float(makespan(price(block, NODE, ())).max()) == 1.7
    assert float(makespan(price(aside, NODE, ())).max()) == 1.0


def test_cached_assignments_shorten_a_real_pass():
    world = scenario(short=True, offers=(offer(),))
    full, none = np.full((1, 1, 8), 1024.0), np.zeros((1, 1, 8))
    prompts = Batch(
        prefill=full, prompts=none + 1, pairs=full * 512, keys=full, decode=none, context=none, backward=False
    )
    chosen = pool(Parallel(dp=8, ep=8))
    drawn = unfolded_draws(world, chosen, prompts)
    cached = replace(chosen, policies=pool(chosen.parallel, shortcut="cached").policies)
    node, fabric = world.hardware.offers[0].node, world.hardware.fabric
    spans = [
        float(makespan(price(lower_pass(world, each, prompts, [drawn])[0], node, fabric)).max())
        for each in (chosen, cached)
    ]
    assert spans[1] < spans[0]
