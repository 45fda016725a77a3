from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import lowered, offer, pool, scenario, unfolded_draws

from moesim.passes.timeline import makespan
from moesim.plans.plan import Parallel, Policy
from moesim.policies.finding import make
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import fixed
from moesim.schedules.schedule import Schedule, Task
from moesim.testing import sizes_by_name
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
HAND = {"attention": 2.0, "mlp": 2.0, "shared": 1.0, "experts": 1.0, "dispatch": 3.0, "combine": 3.0}
SECONDS = st.floats(0.0, 10.0)


def pair(times):
    """A dense layer and a MoE layer in series, as they are lowered: the shared expert before the dispatch."""
    names = [(0, "attention"), (0, "mlp"), *((1, name) for name in ("attention", "shared", *ROUTE))]
    return Schedule(
        tasks=tuple(
            Task(
                name=name,
                layer=layer,
                stream="comm" if name in ("dispatch", "combine") else "compute",
                op=fixed(times[name]),
                after=(i - 1,) if i else (),
            )
            for i, (layer, name) in enumerate(names)
        ),
        out=(len(names) - 1,),
    )


ROUTE = ("dispatch", "experts", "combine")


def ends(policy, times):
    return [float(makespan(price(way, NODE, ())).max()) for way in policy(pair(times), plain_layout())]


def scmoe(position):
    return make("shortcut", Policy(name="scmoe", settings={"position": position}))


def test_position_2_by_hand():
    """The case of the hand-worked schedules: in series 14, experts after mlp 9, after attention 10, after shared 11."""
    assert ends(make("shortcut", Policy(name="shared")), HAND) == [14.0]
    assert ends(scmoe(2), HAND) == [9.0, 10.0, 11.0]


def test_the_window_grows_with_the_position():
    """Windows 3, 5 and 7 of compute between tap and use; the makespan is what the slot leaves exposed."""
    for position, before, window in ((1, 4.0, (2, 1)), (2, 2.0, (2, 2, 1)), (3, 0.0, (2, 2, 2, 1))):
        for slot, end in enumerate(ends(scmoe(position), HAND), start=1):
            pre, post = sum(window[:slot]), sum(window[slot:])
            assert end == before + max(pre, 3.0) + 1.0 + max(post, 3.0)


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, st.sampled_from([1, 2, 3]))
def test_the_best_slot_is_never_slower_than_series(attention, mlp, shared, experts, dispatch, combine, position):
    times = {
        "attention": attention,
        "mlp": mlp,
        "shared": shared,
        "experts": experts,
        "dispatch": dispatch,
        "combine": combine,
    }
    best = min(ends(scmoe(position), times))
    compute = 2 * attention + mlp + shared + experts
    assert best <= compute + dispatch + combine + 1e-9
    assert best >= max(compute, dispatch + experts + combine) - 1e-9


def test_a_layer_alone_taps_its_own_input():
    """A mixture in every layer: attention and the shared expert are the window, whatever the position."""
    alone = Schedule(
        tasks=tuple(replace(task, layer=0, after=(i - 1,) if i else ()) for i, task in enumerate(pair(HAND).tasks[2:])),
        out=(4,),
    )
    for position in (1, 2, 3):
        spans = [float(makespan(price(way, NODE, ())).max()) for way in scmoe(position)(alone, plain_layout())]
        assert spans == [3.0 + 1.0 + 3.0, 3.0 + 1.0 + 3.0]


@pytest.mark.parametrize("position", [4, 0])
def test_positions_are_three(position):
    with pytest.raises(Exception, match="give 1, 2 or 3"):
        scmoe(position)


SWIN = "microsoft/SwinV2-MoE-S"
A30 = "pcie/a30x8"


def swin(**policies):
    """All alternatives of a pass of SwinV2-MoE-S on eight A30, and their makespans."""
    world = scenario(SWIN, offers=(offer(A30, 1),))
    chosen = pool(Parallel(dp=8, ep=8), node=A30, **policies)
    full = np.full((1, 1, 8), 2304.0 * 16)
    none = np.zeros((1, 1, 8))
    images = Batch(
        prefill=full, prompts=none + 16, pairs=full * 72, keys=full, decode=none, context=none, backward=False
    )
    ways = lowered(world, chosen, images, [unfolded_draws(world, chosen, images)])
    node, fabric = world.hardware.offers[0].node, world.hardware.fabric
    return ways, [float(makespan(price(way, node, fabric)).max()) for way in ways]


def test_a_real_model_gains_in_the_order_of_the_paper():
    """ScMoE, table 1: top-2 < shared expert < top-1 < positions 1 < 2 < 3 in speed, where communication dominates."""
    order = ["none", "shared", "fewer"]
    best = [min(swin(shortcut=name)[1]) for name in order]
    best += [min(swin(shortcut=Policy(name="scmoe", settings={"position": at}))[1]) for at in (1, 2, 3)]
    assert best == sorted(best, reverse=True)
    assert len(set(best)) == 6


def test_half_the_rows_travel_and_the_norm_is_computed_once_more():
    (plain,), _ = swin()
    ways, _ = swin(shortcut="scmoe")
    sizes, changed = sizes_by_name(plain), sizes_by_name(ways[0])
    assert len(ways) == 3
    assert changed["dispatch AllToAll sent"] == pytest.approx(sizes["dispatch AllToAll sent"] / 2)
    assert changed["experts Grouped rows"] == pytest.approx(sizes["experts Grouped rows"] / 2)
    assert sum(task.name == "norm" for task in ways[0].tasks) == sum(task.name == "norm" for task in plain.tasks) + 10


def test_pipelining_cuts_a_shortcut_too():
    ways, spans = swin(shortcut="scmoe", overlap=Policy(name="pipeline", settings={"degree": (1, 2)}))
    assert len(ways) == 6
    assert min(spans) <= min(swin(shortcut="scmoe")[1]) + 1e-12


def test_a_shared_expert_hides_the_exchange():
    world = scenario(short=True)
    chosen = pool(Parallel(dp=8, ep=8))
    full, none = np.full((1, 1, 8), 2048.0), np.zeros((1, 1, 8))
    prompts = Batch(
        prefill=full, prompts=none + 1, pairs=full * 1024, keys=full, decode=none, context=none, backward=False
    )
    drawn = unfolded_draws(world, chosen, prompts)

    def spans(overlap):
        ways = lowered(
            world, replace(chosen, policies=pool(chosen.parallel, overlap=overlap).policies), prompts, [drawn]
        )
        return [float(makespan(price(way, world.hardware.offers[0].node, world.hardware.fabric)).max()) for way in ways]

    assert min(spans("shared_expert")) < spans("none")[0]
