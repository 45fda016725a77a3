"""Experts computed on the host: the policy, its ops, their price and sharing, and where it wins and loses."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import offer, pool, scenario, unfolded

import moesim
from moesim.ground.errors import PolicyError
from moesim.passes.engine import engine
from moesim.passes.timeline import makespan, timeline
from moesim.plans.plan import Parallel, Plan, Policy, Space
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import Hosted, fixed
from moesim.schedules.schedule import Schedule, Task
from moesim.world.model import expert_parameters
from moesim.world.workload import Batch

NLLB = "facebook/nllb-moe-54b"
BOX = "nvidia/hgx-a100"


def on_host(resident=4, rows=0):
    return Policy(name="on_host", settings={"resident": resident, "rows": rows})


def fetched(resident=4):
    return Policy(name="pinned", settings={"resident": resident})


def lowered(buffering, tokens, prefill=False, cv=1.2):
    """NLLB on 8 gpus, 16 experts each."""
    world = scenario(NLLB, cv=cv, short=True, offers=(offer(BOX, 1),))
    chosen = pool(Parallel(dp=8, ep=8), node=BOX, buffering=buffering)
    none, full = np.zeros((1, 1, 8)), np.full((1, 1, 8), float(tokens))
    batch = Batch(prefill=none, prompts=none, pairs=none, keys=none, decode=full, context=none + 128, backward=False)
    schedule, _ = unfolded(world, chosen, batch)
    return world, schedule


def span(world, schedule):
    return float(makespan(price(schedule, world.hardware.offers[0].node, world.hardware.fabric)).max())


def rows(schedule, kind):
    return sum(int(task.op.rows.sum()) for task in schedule.tasks if type(task.op).__name__ == kind)


def test_rows_are_computed_once_on_the_gpu_or_on_the_host():
    _, all_resident = lowered("resident", 64)
    for policy in (on_host(4), on_host(0), on_host(4, rows=3), on_host(15, rows=1)):
        _, schedule = lowered(policy, 64)
        on_gpu = rows(schedule, "Grouped") / 2  # two products each
        assert on_gpu + rows(schedule, "Hosted") == rows(all_resident, "Grouped") / 2
        assert rows(schedule, "Hosted") > 0
    assert rows(lowered(on_host(0), 64)[1], "Grouped") == 0


def test_rows_travel_there_and_back_and_weights_stay():
    world, schedule = lowered(on_host(4), 64)
    dim = world.model.moe(world.model.moe_layers[0]).input_dim
    sent, back = (sum(t.op.size.sum() for t in schedule.tasks if t.name == name) for name in ("rows_out", "rows_in"))
    assert sent == back == rows(schedule, "Hosted") * dim * 2
    assert not [task for task in schedule.tasks if task.name == "fetch"]


def test_the_popular_experts_are_on_the_gpu():
    """Routing as skewed as NLLB's: 4 of 16 experts of a rank take far more than a quarter of its rows."""
    _, schedule = lowered(on_host(4), 512)
    assert rows(schedule, "Hosted") < 0.5 * rows(lowered("resident", 512)[1], "Grouped") / 2


def test_experts_with_many_rows_are_fetched_instead():
    world, schedule = lowered(on_host(4, rows=2), 64)
    hosted = [task.op.rows for task in schedule.tasks if isinstance(task.op, Hosted)]
    assert max(op.max() for op in hosted) == 2
    size = expert_parameters(world.model.moe(world.model.moe_layers[0])) * 4  # shipped in fp32
    copies = np.concatenate([task.op.size.ravel() for task in schedule.tasks if task.name == "fetch"]) / size
    assert copies.sum() > 0
    assert np.allclose(copies, np.rint(copies))


def test_few_tokens_are_computed_where_experts_lie_and_many_are_not():
    """A copy takes the same for one row as for a thousand; the host takes a thousand times its time."""
    gain = [span(*lowered(fetched(), tokens)) / span(*lowered(on_host(), tokens)) for tokens in (1, 8, 64, 512, 4096)]
    assert gain[0] > 2
    assert gain[-1] < 0.5
    assert gain[1:] == sorted(gain[1:], reverse=True)  # one crossing


def test_a_limit_in_rows_takes_the_better_of_both():
    """Fiddler's choice expert by expert: at a middling batch some experts have few rows and others many."""
    limits = [span(*lowered(on_host(rows=limit), 256)) for limit in (1, 16, 64, 0)]
    assert min(limits[1:3]) < min(limits[0], limits[3])


def box(**sizes):
    """A node of two gpus on one memory domain that reads 72 and multiplies 29 a second, as achieved."""
    found = offer(BOX).node
    calm = replace(found.device, fits={}, interference={})
    return replace(found, device=calm, gpus=2, numa=1, **({"host_bandwidth": 100.0, "host_flop_rate": 100.0} | sizes))


def hosted(weights, *counts):
    return Hosted(rows=np.array(counts).T.reshape(-1, len(counts)), weights=np.array([weights]), dtype="bf16")


@pytest.mark.parametrize("executor", [timeline, engine])
def test_worked_by_hand(executor):
    """Dispatch 3; the gpu's experts 2, the host's 4 between half a second of rows out and in; combine 3."""
    tasks = [
        Task(name="dispatch", stream="comm", op=fixed(3.0)),
        Task(name="rows_out", stream="d2h", op=fixed(0.5), after=(0,)),
        Task(name="host_experts", stream="host", op=fixed(4.0), after=(1,)),
        Task(name="rows_in", stream="h2d", op=fixed(0.5), after=(2,)),
        Task(name="experts", stream="compute", op=fixed(2.0), after=(0,)),
        Task(name="combine", stream="comm", op=fixed(3.0), after=(3, 4)),
    ]
    records = executor(price(Schedule(tasks=tuple(tasks), out=(5,)), box(), ()))
    assert float(records.finish[5].max()) == pytest.approx(11.0, rel=1e-12)
    assert float(records.finish[4].max()) == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("executor", [timeline, engine])
def test_two_gpus_share_the_cpu(executor):
    """Two experts of 72 parameters in 2 bytes and one row each: 4 s of memory alone, 8 s where both gpus want it."""
    both = Schedule(
        tasks=(Task(name="host_experts", stream="host", op=hosted(72.0, (1, 1), (1, 1))),), out=(0,), count=np.ones(2)
    )
    one = replace(both, tasks=(replace(both.tasks[0], op=hosted(72.0, (1, 1), (0, 0))),))
    records = [executor(price(each, box(host_flop_rate=1e9), ())) for each in (one, both)]
    ends = [float(each.finish.max()) for each in records]
    assert ends == pytest.approx([4.0, 8.0], abs=1e-4)  # and a call


def test_many_rows_are_bound_by_the_products():
    """29 rows of one expert of 10 parameters: 2 x 29 x 10 / 29 = 20 s, against 10 x 2 / 72 s to read it."""
    priced = price(Schedule(tasks=(Task(name="x", stream="host", op=hosted(10.0, (29,))),), out=(0,)), box(), ())
    assert float(priced.duration[0].max()) == pytest.approx(20.0, abs=1e-4)


def world_of(node):
    return scenario(NLLB, cv=1.2, offers=(replace(offer(BOX, 1), node=node),))


def chosen_pool(buffering, batch=8):
    batching = Policy(name="continuous", settings={"max_batch": batch})
    return pool(Parallel(dp=8, ep=8), node=BOX, buffering=buffering, batching=batching)


def test_a_node_that_says_nothing_of_its_cpu_is_refused():
    world = world_of(replace(offer(BOX).node, host_flop_rate=0.0))
    verdict = moesim.estimate(world, Plan(pools=(chosen_pool(on_host()),))).verdict
    assert not verdict.fits
    assert "does not say what its CPUs can do; give `host_bandwidth` and `host_flop_rate`" in verdict.why


@pytest.mark.parametrize("settings", [{"resident": -1}, {"rows": -1}, {"resident": 16}])
def test_bad_settings_are_told(settings):
    with pytest.raises((PolicyError, ValueError), match="give"):
        moesim.estimate(
            world_of(offer(BOX).node), Plan(pools=(chosen_pool(Policy(name="on_host", settings=settings)),))
        )


def test_estimate_and_simulate_follow_it():
    world = world_of(offer(BOX).node)
    plans = {name: Plan(pools=(chosen_pool(each),)) for name, each in (("host", on_host(1)), ("fetch", fetched(1)))}
    steps = {name: moesim.estimate(world, plan) for name, plan in plans.items()}
    assert "host_experts" in set(steps["host"].tables["breakdown"]["part"])
    assert steps["host"].summary["tpot"].mid < steps["fetch"].summary["tpot"].mid
    weights = [each.tables["memory"].set_index("item").loc["expert weights"].iloc[0] for each in steps.values()]
    assert weights[0] == weights[1]
    served = {name: moesim.simulate(world, plan, seed=1) for name, plan in plans.items()}
    assert served["host"].summary["tpot.p50"].mid < served["fetch"].summary["tpot.p50"].mid


def test_a_search_offers_it_and_bounds_it():
    """Its bound claims nothing of the experts' work, so that it is below the estimate."""
    axes = {
        **{f"parallel.{name}": (value,) for name, value in (("pp", 1), ("dp", 8), ("tp", 1), ("cp", 1), ("ep", 8))},
        "buffering": (fetched(2), on_host(2), on_host(2, rows=8), on_host(16)),
        "overlap": (Policy(name="none"), Policy(name="two_batch")),
        "placement": (Policy(name="contiguous"),),
        "max_batch": (8,),
    }
    ranked = moesim.optimize(scenario(NLLB, cv=1.2, short=True, offers=(offer(BOX, 1),)), Space(axes=axes), goal="tpot")
    layouts = list(ranked.plans["layout"])
    assert "on_host" in layouts[0]
    assert not any("on_host:16" in layout for layout in layouts)
    assert ranked.certificate.estimated + ranked.certificate.bounded >= 6
