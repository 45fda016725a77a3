import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from costs_strategies import ASSUMED, FABRIC, H200, IDEAL, fit, one, ops, time, with_fits
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.files.profiles import load_profile
from moesim.ground.errors import MoesimError
from moesim.schedules.costs import forms, pricing
from moesim.schedules.costs.fits import machine_of
from moesim.schedules.costs.forms import floor
from moesim.schedules.costs.pricing import grounds, price
from moesim.schedules.costs.priors import PARAMETERS
from moesim.schedules.ops import (
    AllToAll,
    Attend,
    Copy,
    Elementwise,
    Exchange,
    Gemm,
    Grouped,
    Host,
    Reduce,
    Send,
    fixed,
)
from moesim.schedules.schedule import Schedule, Task
from moesim.world.attention import Mla
from moesim.world.hardware import Tier

# beartype looks at a random item of a tuple, which Hypothesis takes for a strategy that cannot be repeated.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

MLA = Mla(heads=128, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128)


def schedule(*given_ops, count=(1.0,), stream="compute"):
    tasks = tuple(Task(name=f"task{i}", stream=stream, op=op) for i, op in enumerate(given_ops))
    return Schedule(tasks=tasks, out=(len(tasks) - 1,), count=np.array(count))


def priced(*given_ops, base=H200, count=(1.0,)):
    return price(schedule(*given_ops, count=count), base, FABRIC)


@settings(max_examples=150)
@given(st.lists(ops, min_size=1, max_size=12))
def test_ops_priced_together_cost_what_they_cost_alone(many):
    together = priced(*many)
    for i, op in enumerate(many):
        assert together.duration[i] == pytest.approx(time(op, H200), rel=1e-12)
        assert together.duration[i].shape == time(op, H200).shape


def one_of_each(rng, lead, rows, slots=3):
    """An op of every kind, with sizes that differ between plans, draws and ranks, and some that do not."""
    plans = (lead[0], 1, 1)

    def per_plan():
        return rng.integers(1, 500, plans).astype(float)

    def per_rank(high=1e8):
        return rng.uniform(0, high, (*lead, rows))

    return (
        Gemm(m=per_rank(5000), n=per_plan() * 64, k=np.full(1, 4096.0), dtype="fp8"),
        Gemm(m=per_plan(), n=np.full(1, 4096.0), k=per_plan(), dtype="bf16"),
        Grouped(
            rows=rng.integers(0, 90, (slots, *lead, rows)), n=per_plan() * 8, k=np.full((1, 1, 1), 7168.0), dtype="bf16"
        ),
        Attend(
            kind=MLA,
            heads=np.full(1, 16.0),
            phase="decode",
            tokens=per_plan(),
            prompts=per_plan(),
            pairs=per_rank(1e6),
            keys=per_rank(1e6),
            dtype="bf16",
        ),
        Elementwise(traffic=per_rank()),
        Copy(size=per_rank(), source="host", target="device"),
        AllToAll(
            tiers=("nvlink", "rail"),
            sent=rng.uniform(0, 1e7, (2, *lead, rows)),
            received=rng.uniform(0, 1e7, (2, *lead, rows)),
            messages=np.full((2, 1, 1, 1), 7.0),
        ),
        Reduce(size=per_plan() * 1e4, form="all_reduce", ranks=np.full((1, 1, 1), 8.0), tier="nvlink"),
        Send(size=per_rank(), tier="rail"),
        Host(calls=np.full(1, 2.0)),
        fixed(0.5),
    )


def test_pieces_and_stacks_give_what_a_whole_gives(monkeypatch):
    rng = np.random.default_rng(3)
    several = (*one_of_each(rng, (5, 3), 16), *one_of_each(rng, (5, 3), 16), *one_of_each(rng, (5, 1), 16, slots=9))
    whole = priced(*several, count=np.ones(16))
    monkeypatch.setattr(pricing, "STACK", 1)
    monkeypatch.setattr(pricing, "BLOCK", 48)
    pieces = priced(*several, count=np.ones(16))
    for i in range(len(several)):
        assert np.array_equal(whole.duration[i], pieces.duration[i])
        assert whole.duration[i].shape == pieces.duration[i].shape
        for tier in whole.demand:
            assert np.array_equal(*np.broadcast_arrays(whole.demand[tier][i], pieces.demand[tier][i]))


def test_times_looked_up_by_whole_rows_are_the_form_s_own(monkeypatch):
    rows = np.random.default_rng(4).poisson(9, (1, 1, 1, 2 * forms.TABLE))
    op = Grouped(rows=rows, n=np.full((1, 1, 1), 4096.0), k=np.full((1, 1, 1), 7168.0), dtype="fp8_block")
    looked_up = time(op, H200)
    monkeypatch.setattr(forms, "TABLE", rows.size + 1)
    assert np.array_equal(looked_up, time(op, H200))


def test_an_op_that_many_tasks_hold_is_priced_once(monkeypatch):
    calls = []
    gemm = forms.FORMS[Gemm]
    counted = replace(gemm, price=lambda op, machine: calls.append(op.m.shape) or gemm.price(op, machine))
    monkeypatch.setattr(forms, "FORMS", {**forms.FORMS, Gemm: counted})
    shared, other = (Gemm(m=one(m), n=one(64), k=one(64), dtype="bf16") for m in (1, 2))
    result = priced(*[shared] * 30, *[other] * 31)
    assert calls == [(2, 1)]
    assert all(np.shares_memory(result.duration[0], duration) for duration in result.duration[:30])


def test_durations_end_in_ranks_or_one():
    rng = np.random.default_rng(1)
    several = one_of_each(rng, (4, 2), 6)
    result = priced(*several, count=np.ones(6))
    for op, duration in zip(several, result.duration, strict=True):
        assert duration.shape[-1] in (1, 6), type(op).__name__
        assert duration.dtype == np.float64
        assert np.all(duration >= 0)
    assert result.duration[1].shape == (4, 1, 1)  # alike on all ranks, so one column
    assert result.duration[2].shape == (4, 2, 6)


def test_a_known_duration_is_kept_and_demands_nothing():
    result = priced(fixed(2.0), fixed(0.0))
    assert [duration.tolist() for duration in result.duration] == [[2.0], [0.0]]
    assert not result.demand
    assert not result.links


@settings(max_examples=200)
@given(ops, st.sampled_from([H200, IDEAL]))
def test_no_flow_alone_wants_more_than_its_link_carries(op, base):
    result = priced(op, base=base)
    for tier, demands in result.demand.items():
        moving = demands[0] > 0
        assert np.all(result.duration[0][moving] > 0)
        assert np.all(demands[0] <= result.links[tier].capacity * result.duration[0] * (1 + 1e-12))


def test_a_copy_over_an_ideal_link_takes_its_bytes_over_its_bandwidth():
    host = Tier(name="host", ranks=1, bandwidth=10e9, latency=0.0, sharers=2)
    base = with_fits(replace(H200, tiers=(host,)), {"copy": fit("copy", latency=0.0, efficiency=1.0)})
    result = priced(Copy(size=one(1e9, 0.0), source="host", target="device"), base=base, count=np.ones(2))
    assert result.duration[0].tolist() == [0.1, 0.0]
    assert result.demand["host"][0].tolist() == [1e9, 0.0]
    assert result.links["host"].capacity == 10e9
    assert result.links["host"].link_of_rank.tolist() == [0, 0]


def test_the_two_directions_of_a_link_are_apart():
    result = priced(*(Copy(size=one(1e9), source=a, target=b) for a, b in (("host", "device"), ("device", "host"))))
    assert sorted(result.demand) == ["host", "host out"]
    assert [float(sizes[0][0]) for sizes in (result.demand["host"], result.demand["host out"])] == [1e9, 0.0]


def test_a_copy_from_disk_crosses_the_host_s_link_too():
    result = priced(Copy(size=one(6e9), source="disk", target="device"))
    assert sorted(result.demand) == ["disk", "host"]
    assert result.duration[0][0] == pytest.approx(1 / 0.8, rel=1e-3)  # 6 GB/s at 80 %


def test_neighbors_share_a_link():
    result = priced(Copy(size=np.ones(8), source="host", target="device"), count=np.ones(8))
    assert result.links["host"].link_of_rank.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert result.links["host"].members.tolist() == [1.0] * 8


def test_a_folded_row_shares_with_ranks_like_itself():
    copy = Copy(size=np.ones(2), source="host", target="device")
    result = priced(copy, count=(1.0, 63.0))
    assert result.links["host"].link_of_rank.tolist() == [0, 1]
    assert result.links["host"].members.tolist() == [2.0, 2.0]


def test_a_dispatch_is_priced_by_kernels_of_its_own_where_there_are_some():
    """A launch of 3 s, two doublings of 1 and 8 experts of 0.25, then 450 GB at half of 450 GB/s; others as before."""
    nothing = dict.fromkeys(PARAMETERS["all_to_all"], 0.0)
    fits = {
        "all_to_all/nvlink": fit("all_to_all", **{**nothing, "launch": 1.0, "efficiency": 1.0}),
        "dispatch/nvlink": fit(
            "all_to_all", **{**nothing, "launch": 3.0, "efficiency": 0.5, "per_doubling": 1.0, "per_slot": 0.25}
        ),
    }
    base = with_fits(H200, fits)
    moved = np.array([[450e9]])
    for way, seconds, key in (
        ("all_to_all", 2.0, "all_to_all"),
        ("dispatch", 9.0, "dispatch"),
        ("combine", 2.0, "all_to_all"),
    ):
        op = AllToAll(tiers=("nvlink",), sent=moved, received=moved, messages=np.array([[3.0]]), way=way, slots=8)
        assert time(op, base) == pytest.approx(seconds)
        assert list(grounds(schedule(op), base, FABRIC).fits) == [f"{key}/nvlink"]
        assert floor(op, machine_of(base, FABRIC)) <= seconds


def test_an_all_to_all_demands_the_busier_direction():
    op = AllToAll(
        tiers=("nvlink", "rail"),
        sent=np.array([[1e6], [4e6]]),
        received=np.array([[3e6], [2e6]]),
        messages=np.array([[7.0], [8.0]]),
    )
    result = priced(op)
    assert {tier: float(sizes[0][0]) for tier, sizes in result.demand.items()} == {"nvlink": 3e6, "rail": 4e6}


def test_what_goes_beyond_a_tier_of_the_network_has_crossed_it():
    """By hand: 4 MB stay on the rail and 6 MB go on to the spine; all 10 MB leave by one card, beside NVLink's."""
    fabric = load_profile("fabric", "infiniband/rail-400g").profile.tiers
    rail, spine = (tier.name for tier in fabric)
    sent = np.array([[1e6], [4e6], [6e6]])
    op = AllToAll(
        tiers=("nvlink", rail, spine), sent=sent, received=sent / 2, messages=np.array([[7.0], [8.0], [16.0]])
    )
    machine = machine_of(H200, fabric)
    fits = {name: machine.transfer("all_to_all", name).params for name in op.tiers}
    found = price(schedule(op), H200, fabric)
    assert {tier: float(sizes[0][0]) for tier, sizes in found.demand.items()} == {"nvlink": 1e6, rail: 10e6, spine: 6e6}
    on_rail = fits[rail]["launch"] + fits[rail]["latency"] + 24 * fits[rail]["per_message"]
    on_rail += 10e6 / (fits[rail]["efficiency"] * machine.tier(rail).bandwidth)
    assert found.duration[0][0] == pytest.approx(on_rail)


def test_interference_comes_from_the_device():
    slowed = replace(H200, device=replace(H200.device, interference={"compute": {"collective": 0.2}}))
    assert priced(fixed(1.0), base=slowed).slowdown == {"compute": {"collective": 0.2}}


def test_an_exchange_is_not_priced():
    exchange = Exchange(
        rows=np.ones((1, 1)), ranks_of_slot=np.zeros((1, 1), dtype=int), ranks=1, row=1.0, reverse=False, tokens=one(1)
    )
    with pytest.raises(MoesimError, match="an alltoall policy must turn it into phases first"):
        priced(exchange)


def test_a_tier_that_the_node_lacks_is_refused_by_name():
    with pytest.raises(MoesimError, match=r"node has no tier `nvlnk`; did you mean `nvlink`\?"):
        priced(Send(size=one(1), tier="nvlnk"))


def test_prices_without_fits_are_derived():
    assert grounds(schedule(*one_of_each(np.random.default_rng(0), (1, 1), 2)), H200, FABRIC).weakest == "derived"


def test_the_weakest_source_counts():
    prior = grounds(schedule(Send(size=one(1), tier="rail")), H200, FABRIC).fits["send/rail"]
    measured = replace(prior, source=replace(ASSUMED, kind="measured"))
    base = with_fits(H200, {"send/rail": measured})
    assert grounds(schedule(Send(size=one(1), tier="rail")), base, FABRIC).weakest == "measured"
    mixed = schedule(Send(size=one(1), tier="rail"), Elementwise(traffic=one(1)))
    assert grounds(mixed, base, FABRIC).weakest == "derived"
    assert sorted(grounds(mixed, base, FABRIC).fits) == ["elementwise", "send/rail"]


def test_a_pass_over_memory_with_a_fit_of_its_own_is_priced_by_it_and_others_are_not():
    base = with_fits(
        H200,
        {
            "elementwise": fit("elementwise", launch=1.0, bandwidth=1.0),
            "elementwise/bf16/pack": fit("elementwise", launch=5.0, bandwidth=0.5),
        },
    )
    given = schedule(*(Elementwise(traffic=one(2), kernel=kernel) for kernel in ("pack", "unpack", "default")))
    assert [float(each[0]) for each in price(given, base, FABRIC).duration] == [9.0, 3.0, 3.0]
    assert sorted(grounds(given, base, FABRIC).fits) == ["elementwise", "elementwise/bf16/pack"]


def test_inputs_outside_their_calibrated_box_are_named_once():
    boxed = replace(fit("gemm", tail=0.1), box={"m": (16, 4096), "n": (64, 8192)})
    base = with_fits(H200, {"gemm/bf16": boxed})
    inside, outside = (Gemm(m=one(0, m), n=one(128), k=one(64), dtype="bf16") for m in (64, 8192))
    assert grounds(schedule(inside, count=(1.0, 1.0)), base, FABRIC).outside == ()
    report = grounds(schedule(inside, outside, outside, count=(1.0, 1.0)), base, FABRIC)
    assert report.outside == ("gemm/bf16: m 8192 to 8192, calibrated on 16 to 4096",)


def test_nothing_but_price_and_bounds_constructs_priced():
    root = Path(pricing.__file__).parents[2]
    makers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", getattr(call.func, "attr", "")) == "Priced"
    }
    assert makers == {"schedules/costs/pricing.py", "schedules/costs/bounds.py"}
