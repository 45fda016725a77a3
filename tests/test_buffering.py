from dataclasses import replace

import numpy as np
import pytest
from worlds import offer, pool, scenario, unfolded

import moesim
from moesim.ground.errors import PolicyError
from moesim.passes.timeline import makespan, timeline
from moesim.plans.plan import Parallel, Plan, Policy, Space
from moesim.schedules.costs.pricing import price
from moesim.world.model import expert_parameters
from moesim.world.workload import Batch

NLLB = "facebook/nllb-moe-54b"


def lowered(resident=8, tokens=64, tier="host", prefetch="none", name="lifo"):
    """NLLB on 8 gpus, 16 experts each, short decoder passes."""
    world = scenario(NLLB, cv=1.2, short=True, offers=(offer("nvidia/hgx-a100", 1),))
    buffering = Policy(name=name, settings={"resident": resident, "tier": tier}) if resident < 16 else "resident"
    chosen = pool(Parallel(dp=8, ep=8), node="nvidia/hgx-a100", buffering=buffering, prefetch=prefetch)
    none, full = np.zeros((1, 1, 8)), np.full((1, 1, 8), float(tokens))
    batch = Batch(prefill=none, prompts=none, pairs=none, keys=none, decode=full, context=none + 128, backward=False)
    schedule, _ = unfolded(world, chosen, batch)
    return world, schedule


def span(world, schedule):
    return float(makespan(price(schedule, world.hardware.offers[0].node, world.hardware.fabric)).max())


def copied(schedule, name):
    return sum(float(task.op.size.max()) for task in schedule.tasks if task.name == name)


def test_fewer_slots_mean_more_copies_and_longer_passes():
    runs = [lowered(resident) for resident in (16, 12, 4, 1)]
    sizes = [copied(schedule, "fetch") for _, schedule in runs]
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    spans = [span(*run) for run in runs]
    assert spans == sorted(spans)
    assert spans[0] < spans[-1]


def test_copies_wait_for_the_gate_and_run_beside_the_exchange():
    world, schedule = lowered(4)
    records = timeline(price(schedule, world.hardware.offers[0].node, world.hardware.fabric))
    names = [task.name for task in schedule.tasks]
    fetch, dispatch = names.index("fetch"), names.index("dispatch")
    experts, gate = names.index("experts"), names.index("sizes")
    assert schedule.tasks[fetch].stream == "h2d"
    assert np.all(records.start[fetch] >= records.finish[gate] - 1e-12)
    assert np.all(records.start[fetch] <= records.start[dispatch] + 1e-12)
    assert np.all(records.start[experts] >= records.finish[fetch] - 1e-12)


def test_a_copy_is_a_whole_expert_times_the_share_that_is_missing():
    world, schedule = lowered(4, tokens=4096)  # every expert of every rank is used
    moe = world.model.moe(world.model.moe_layers[0])
    per_expert = expert_parameters(moe) * 4  # shipped in fp32
    missed = max(float(task.op.size.max()) for task in schedule.tasks if task.name == "fetch") / per_expert
    assert 16 - 4 <= missed <= 16 - 4 + 1.01


def test_disk_is_slower_than_host():
    assert span(*lowered(4, tier="disk")) > span(*lowered(4, tier="host"))


def test_the_shared_link_slows_copies():
    world, schedule = lowered(1)
    node = world.hardware.offers[0].node
    alone = replace(node, tiers=tuple(replace(tier, sharers=1) for tier in node.tiers))
    shared = price(schedule, node, world.hardware.fabric)
    free = price(schedule, alone, world.hardware.fabric)
    assert float(makespan(shared).max()) > float(makespan(free).max())


def test_a_good_predictor_helps_and_a_bad_one_wastes():
    plain = span(*lowered(4))
    perfect = Policy(name="predicted", settings={"precision": 1.0, "recall": 1.0})
    assert span(*lowered(4, prefetch=perfect)) < plain
    bad = Policy(name="predicted", settings={"precision": 0.05, "recall": 0.5})
    assert span(*lowered(4, prefetch=bad)) > plain


def test_an_estimate_of_a_plan_with_buffers_saves_memory_and_takes_longer():
    world = scenario(NLLB, cv=1.2, offers=(offer("nvidia/hgx-a100", 1),))
    chosen = pool(
        Parallel(dp=8, ep=8), node="nvidia/hgx-a100", batching=Policy(name="continuous", settings={"max_batch": 8})
    )
    small = replace(chosen, policies={**chosen.policies, "buffering": Policy(name="lifo", settings={"resident": 2})})
    full, kept = (moesim.estimate(world, Plan(pools=(each,))) for each in (chosen, small))
    weights = [float(each.tables["memory"].set_index("item").loc["expert weights"].iloc[0]) for each in (full, kept)]
    assert weights[1] == pytest.approx(weights[0] / 8)
    assert "fetch" in set(kept.tables["breakdown"]["part"])


def test_more_resident_than_experts_is_refused():
    world = scenario(NLLB, offers=(offer("nvidia/hgx-a100", 1),))
    chosen = pool(Parallel(dp=8, ep=8), node="nvidia/hgx-a100", buffering=Policy(name="lru", settings={"resident": 17}))
    with pytest.raises(PolicyError, match="resident = 17 slots of the 16 experts"):
        moesim.estimate(world, Plan(pools=(chosen,)))


def test_a_search_leaves_out_what_makes_no_sense():
    world = scenario(NLLB, cv=1.2, short=True, offers=(offer("nvidia/hgx-a100", 1),))
    axes = {
        **{f"parallel.{name}": (value,) for name, value in (("pp", 1), ("dp", 8), ("tp", 1), ("cp", 1), ("ep", 8))},
        "buffering": (
            Policy(name="resident"),
            *(Policy(name="lifo", settings={"resident": slots}) for slots in (8, 16, 20)),
        ),
        "prefetch": (Policy(name="none"), Policy(name="gate_ahead")),
        "overlap": (Policy(name="none"),),
        "placement": (Policy(name="contiguous"),),
        "max_batch": (16,),
    }
    plans = moesim.optimize(world, Space(axes=axes), goal="tpot").plans
    assert len(plans) == 5  # all resident; 8 and 16 slots, fetched on demand or ahead
    assert sum("lifo:8" in layout for layout in plans["layout"]) == 2
    assert not any("lifo:20" in layout for layout in plans["layout"])
