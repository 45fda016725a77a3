from dataclasses import replace

import numpy as np
import pytest
from costs_strategies import (
    FABRIC,
    H200,
    IDEAL,
    KINDS,
    NODES,
    PLAIN,
    STARVED,
    attentions,
    fit,
    gemms,
    groups,
    machine,
    node,
    one,
    ops,
    time,
    with_fits,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.ground.errors import MoesimError
from moesim.schedules.costs.attention import needs_of
from moesim.schedules.costs.fits import fit_of, fit_of_tier
from moesim.schedules.costs.forms import floor, form_of
from moesim.schedules.costs.kernels import norm, warm_traffic
from moesim.schedules.costs.priors import PARAMETERS, host_prior, nccl_prior
from moesim.schedules.ops import AllToAll, Attend, Copy, Elementwise, Gemm, Grouped, Hosted, Reduce, Send
from moesim.world.attention import Gqa, Mla, Unmodelled, Window
from moesim.world.hardware import network

# beartype looks at a random item of a tuple, which Hypothesis takes for a strategy that cannot be repeated.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

ROUNDING = 1e-12
H100 = node("nvidia/hgx-h100")
COOL = with_fits(H200, {"gemm": fit("gemm", throttle=0.0), "grouped_gemm": fit("grouped_gemm", throttle=0.0)})
COLD = with_fits(H200, {"gemm": fit("gemm", cache=0.0)})
NCCL = with_fits(
    H200, {f"all_to_all/{tier.name}": nccl_prior(tier) for tier in (*H200.tiers, *FABRIC) if tier.ranks > 1}
)
NCCL_ALONE = with_fits(PLAIN, {**PLAIN.device.fits, **NCCL.device.fits})
GROWING = {
    Gemm: ("m",),
    Grouped: ("rows",),
    Hosted: ("rows",),
    Attend: ("tokens", "pairs", "keys"),
    Elementwise: ("traffic",),
    Copy: ("size",),
    AllToAll: ("sent", "received"),
    Reduce: ("size",),
    Send: ("size",),
}


@settings(max_examples=400)
@given(ops, st.sampled_from([H200, NCCL, IDEAL, STARVED, *map(node, NODES[:4])]))  # those with a tier called nvlink
def test_a_floor_never_exceeds_its_time(op, base):
    assert np.all(floor(op, machine(base)) <= time(op, base) * (1 + ROUNDING))


@pytest.mark.parametrize(
    "op",
    [
        Gemm(m=one(2**20), n=one(8192), k=one(8192), dtype="bf16"),
        Grouped(rows=np.full((4, 1), 2**20), n=one(8192), k=one(8192), dtype="bf16"),
        Elementwise(traffic=one(1e9)),
        Reduce(size=one(1e9), form="all_reduce", ranks=one(8), tier="nvlink"),
        Send(size=one(1e9), tier="rail"),
    ],
    ids=lambda op: type(op).__name__,
)
def test_where_nothing_is_lost_the_floor_is_reached(op):
    assert floor(op, machine(IDEAL)) == pytest.approx(time(op, IDEAL), rel=0.01)


@settings(max_examples=300)
@given(ops, st.floats(1.0001, 50), st.integers(0, 2), st.booleans(), st.sampled_from([H200, NCCL, IDEAL, STARVED]))
def test_costs_never_fall_when_rows_or_bytes_grow(op, factor, which, alone, base):
    names = GROWING.get(type(op), ())
    chosen = names if not alone else names[which % len(names) : which % len(names) + 1] if names else ()
    larger = replace(op, **{name: getattr(op, name) * factor for name in chosen})
    assert np.all(time(larger, base) >= time(op, base) * (1 - ROUNDING))


@given(groups, st.integers(0, 8), st.integers(1, 5000))
def test_one_more_row_for_one_expert_is_never_cheaper(op, slot, more):
    rows = op.rows.copy()
    rows[slot % len(rows)] += more
    assert np.all(time(replace(op, rows=rows), H200) >= time(op, H200) * (1 - ROUNDING))


@settings(max_examples=500)
@given(ops, st.integers(1, 9), st.sampled_from([PLAIN, NCCL_ALONE, IDEAL, STARVED]))
def test_splitting_never_lowers_the_total_time(op, parts, base):
    total = sum(time(part, base) for part in op.split(parts))
    assert np.all(total >= time(op, base) * (1 - ROUNDING))


@pytest.mark.parametrize(("side", "read"), [(1024, 1), (16384, 8)])
def test_products_in_a_row_read_one_expert_s_weights_once_if_these_fit_the_cache(side, read):
    """Eight products of 4 rows: 2 MiB of weights are read once, 512 MiB eight times; one product is never dearer."""
    apart = Grouped(rows=np.full((8, 1), 4), n=one(side), k=one(side), dtype="bf16", repeats=8)
    whole = replace(apart, rows=np.full((1, 1), 32), repeats=1)
    loads = [form_of(op).loads(op, machine(IDEAL))[1].item() for op in (apart, whole)]
    alone = [time(op, IDEAL).item() for op in (apart, whole)]
    assert alone[0] >= alone[1]
    assert loads[0] / loads[1] == pytest.approx(read, rel=0.2)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("parts", [2, 5])
def test_splitting_a_lone_sequence_does_not_shorten_its_chain(phase, parts):
    """A part may be left with cached tokens and no sequence; it must still wait for them."""
    few = {
        name: np.array([size]) for name, size in {"tokens": 4, "prompts": 1, "pairs": 240_000, "keys": 60_000}.items()
    }
    lone = Attend(kind=KINDS[0], heads=one(1), phase=phase, dtype="bf16", **few)
    for base in (PLAIN, IDEAL, STARVED):
        assert sum(time(part, base) for part in lone.split(parts)) >= time(lone, base) * (1 - ROUNDING)


@given(st.one_of(gemms, groups), st.integers(2, 9))
def test_throttling_and_the_cache_lower_a_split_total_by_no_more_than_themselves(op, parts):
    pieces = op.split(parts)
    saved = time(op, H200) - sum(time(piece, H200) for piece in pieces)
    throttling = time(op, H200) - time(op, COOL)
    caching = sum(time(piece, COLD) - time(piece, H200) for piece in pieces)
    assert np.all(saved <= (throttling + caching) * (1 + 1e-9) + 1e-15)


@given(ops)
def test_a_rank_with_nothing_to_do_pays_the_launch_and_no_more(op):
    names = (*GROWING.get(type(op), ()), *(("prompts",) if isinstance(op, Attend) else ()))
    idle = replace(op, **{name: getattr(op, name) * 0 for name in names})
    assert np.all(time(idle, H200) <= time(op, H200))
    assert np.all(time(idle, H200) < 200e-6 if names else True)


RATES = ("peak", "bandwidth", "cache_bandwidth", "block_bandwidth", "quantize_bandwidth", "activation_bandwidth")
CONSTANTS = (
    "launch",
    "overhead",
    "split",
    "per_slot",
    "call",
    "latency",
    "per_message",
    "ll_launch",
    "ll128_launch",
    "simple_launch",
)


def _faster(base, factor, names=RATES):
    """The node with rates multiplied and times of its own divided by a factor, throttling off."""
    fits = {}
    for form in PARAMETERS:
        if form in ("all_to_all", "reduce", "send", "copy"):
            continue
        prior = host_prior(base) if form == "hosted" else fit_of(base.device, form)
        params = {"throttle": 0.0} if "throttle" in prior.params else {}
        params |= {name: prior.params[name] * factor for name in names if name in prior.params}
        params |= {name: prior.params[name] / factor for name in CONSTANTS if name in prior.params}
        fits[form] = fit(form, **params)
    return with_fits(base, fits)


ORDINARY, EIGHTFOLD = _faster(H200, 1.0), _faster(H200, 8.0)


@settings(max_examples=200)
@given(st.one_of(gemms, groups, attentions(), st.builds(Elementwise, traffic=st.integers(0, 2**34).map(one))))
def test_a_machine_that_is_faster_in_everything_is_faster_by_as_much(op):
    assert time(op, EIGHTFOLD) == pytest.approx(time(op, ORDINARY) / 8.0, rel=1e-9)


def _free(base, names):
    """The node with no time constants and some rates beyond all measure."""
    fits = {}
    for form in ("gemm", "grouped_gemm", "attention_prefill", "attention_decode", "attention_backward", "elementwise"):
        known = fit_of(base.device, form).params
        params = {name: 1e60 for name in names if name in known}
        params |= {
            name: 0.0 for name in ("launch", "overhead", "split", "per_slot", "throttle", "cache") if name in known
        }
        fits[form] = fit(form, **params)
    return with_fits(base, fits)


def _quicker(base, *, rate=1.0, bandwidth=1.0):
    flop_rate = {name: rate * peak for name, peak in base.device.flop_rate.items()}
    return replace(base, device=replace(base.device, flop_rate=flop_rate, bandwidth=bandwidth * base.device.bandwidth))


WORKER, MOVER = _free(H200, RATES[1:]), _free(H200, RATES[:1])
QUICK_WORKER, QUICK_MOVER = _quicker(WORKER, rate=4.0), _quicker(MOVER, bandwidth=4.0)


@settings(max_examples=200)
@given(st.one_of(gemms, groups, attentions()))
def test_time_from_work_follows_the_peak_and_time_from_traffic_the_bandwidth(op):
    assert time(op, QUICK_WORKER) == pytest.approx(time(op, WORKER) / 4, rel=1e-9)
    assert time(op, QUICK_MOVER) == pytest.approx(time(op, MOVER) / 4, rel=1e-9)


@pytest.mark.parametrize("op", [Send(size=one(6e6), tier="rail"), Copy(size=one(6e6), source="host", target="device")])
def test_a_transfer_without_latency_takes_its_bytes_over_the_rate(op):
    ideal = with_fits(
        H200,
        {
            "send": fit("send", launch=0.0, latency=0.0, efficiency=1.0),
            "copy": fit("copy", latency=0.0, efficiency=1.0),
        },
    )
    rate = 50e9 if isinstance(op, Send) else 64e9
    assert time(op, ideal) == pytest.approx(op.size / rate, rel=ROUNDING)


def test_norms_agree_with_the_general_power():
    first, second = one(0.3, 4.0, 0.0), one(2.0, 1.0, 5.0)
    for p in (2.0, 3.0, 4.0):
        assert norm(p, first, second) == pytest.approx((first**p + second**p) ** (1 / p), rel=1e-12)


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_more_activations_never_take_less_time_to_move(size, more):
    params = {"cache": 25e6, "cache_bandwidth": 8e12, "bandwidth": 4e12}
    assert warm_traffic(one(size + more), params) >= warm_traffic(one(size), params) * (1 - ROUNDING)


def attend(kind, heads=16, phase="decode", sequences=64, context=4096, tokens=None, dtype="bf16"):
    tokens = sequences if tokens is None else tokens
    return Attend(
        kind=kind,
        heads=one(heads),
        phase=phase,
        tokens=one(tokens),
        prompts=one(sequences),
        pairs=one(tokens * context),
        keys=one(sequences * context),
        dtype=dtype,
    )


GQA, WINDOW, MLA, LINEAR, CROSS = KINDS


def test_unmodelled_attention_is_refused_by_name():
    with pytest.raises(MoesimError, match=r"attention kind `hyena` \(layers.attention\) has no cost form"):
        time(attend(Unmodelled(name="hyena", heads=8, parameters=1)), H200)


def test_latent_decode_is_flat_in_heads_and_a_quarter_dearer_at_128():
    few, some, many = (time(attend(MLA, heads), H100)[0] for heads in (1, 64, 128))
    assert some / few < 1.10
    assert 1.10 < many / some < 1.35


def test_latent_attention_decodes_on_the_latent_and_prefills_on_heads():
    decode, prefill = needs_of(attend(MLA, heads=1)), needs_of(attend(MLA, heads=1, phase="prefill"))
    assert decode.work / prefill.work == pytest.approx((576 + 512) / (192 + 128))


def test_keys_shared_by_all_heads_are_read_once_and_never_divided_further():
    narrow = Gqa(heads=64, kv_heads=4, head_dim=128, value_dim=128)
    assert needs_of(attend(narrow, heads=8)).pieces == needs_of(attend(narrow, heads=16)).pieces
    assert needs_of(attend(narrow, heads=64)).pieces == 4 * needs_of(attend(narrow, heads=16)).pieces


def test_linear_attention_does_not_see_the_context():
    short, long = attend(LINEAR, context=16), attend(LINEAR, context=100_000)
    assert time(short, H200) == time(long, H200)
    state = needs_of(attend(LINEAR, heads=64, sequences=1, tokens=0)).traffic
    assert state == 2 * 64 * 128 * 128 * 4  # read and written once, in fp32


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_backward_is_two_and_a_half_times_the_work(kind):
    forward, backward = (needs_of(attend(kind, phase=phase, tokens=64 * 2048)) for phase in ("prefill", "backward"))
    assert backward.work == pytest.approx(2.5 * forward.work)
    assert time(attend(kind, phase="backward"), H200) > time(attend(kind, phase="prefill"), H200)


def test_a_window_costs_what_its_keys_cost():
    full = Gqa(heads=64, kv_heads=8, head_dim=64, value_dim=64)
    assert time(attend(WINDOW, context=128), H200) == time(attend(full, context=128), H200)
    assert isinstance(WINDOW, Window)


def test_an_fp8_cache_is_read_in_half_the_time():
    long = {"sequences": 256, "context": 32_768}
    halves = time(attend(GQA, 32, **long), H200) / time(attend(GQA, 32, dtype="fp8", **long), H200)
    assert halves == pytest.approx(2.0, rel=0.03)


# Against real machines by priors alone; of these only the time per message was guessed with DeepEP's figures in view.


def expert_times(rows, base=H200, slots=32):
    """DeepSeek-V3's two expert products, the first with gate and up side by side."""
    counts = np.full((slots, 1), rows)
    up = Grouped(rows=counts, n=one(4096), k=one(7168), dtype="fp8_block")
    down = Grouped(rows=counts, n=one(7168), k=one(2048), dtype="fp8_block")
    return (time(up, base) + time(down, base))[0]


def test_deepseek_experts_decode_at_the_measured_share_of_memory_bandwidth():
    """H200 vLLM, Mixtral, memory-bound: 0.86-0.89 of 4.8 TB/s (docs/background/evidence.md, section 7)."""
    weights = 32 * 3 * 7168 * 2048 * 1.0
    reached = [weights / expert_times(rows) / 4.8e12 for rows in (1, 2, 4, 8)]
    assert min(reached) > 0.86 * 0.97
    assert max(reached) < 0.89 * 1.03


def test_mixtral_experts_reach_the_measured_compute_plateau():
    """H200 vLLM bf16: 660-698 TFLOP/s from 1,000 tokens on (docs/background/evidence.md, section 7)."""
    counts = np.full((8, 1), 4096)
    seconds = sum(
        time(Grouped(rows=counts, n=one(n), k=one(k), dtype="bf16"), H200)[0] for n, k in ((28672, 4096), (4096, 14336))
    )
    assert 8 * 4096 * 6 * 4096 * 14336 / seconds == pytest.approx(680e12, rel=0.10)


def test_a_large_bf16_product_reaches_about_860_tflops_on_h100():
    """A fitted peak of 861 TFLOP/s, before throttling of 11-17 % (docs/background/evidence.md, section 1)."""
    square = Gemm(m=one(8192), n=one(8192), k=one(8192), dtype="bf16")
    assert 2 * 8192**3 / time(square, H100)[0] == pytest.approx(861e12, rel=0.10)
    cool = with_fits(H100, {"gemm": fit("gemm", throttle=0.0)})
    assert 2 * 8192**3 / time(square, cool)[0] == pytest.approx(861e12, rel=0.04)


LOW_LATENCY = {
    "dispatch": (7168 + 7168 / 128 * 4, (77, 118, 155, 173, 192, 194)),
    "combine": (7168 * 2.0, (114, 195, 273, 314, 369, 360)),
}


@pytest.mark.parametrize("way", LOW_LATENCY)
def test_a_low_latency_all_to_all_is_within_a_factor_of_two_of_deepep(way):
    """DeepEP V1, H800, CX7, 128 tokens a rank, d = 7168, k = 8: EP8-256 (docs/background/evidence.md, section 8)."""
    row, published = LOW_LATENCY[way]
    h800 = replace(H100, tiers=tuple(replace(t, bandwidth=200e9) if t.name == "nvlink" else t for t in H100.tiers))
    for ranks, microseconds in zip((8, 16, 32, 64, 128, 256), published, strict=True):
        moved = 128 * 8 * row * np.array([[7 / ranks], [(ranks - 8) / ranks]])
        op = AllToAll(tiers=("nvlink", "rail"), sent=moved, received=moved, messages=np.array([[7.0], [ranks - 8.0]]))
        ratio = time(op, h800)[0] / (microseconds * 1e-6)
        print(f"{way} EP{ranks}: {time(op, h800)[0] * 1e6:.0f} us predicted, {microseconds} published, {ratio:.2f}")
        assert 0.5 < ratio < 2.0


@pytest.mark.parametrize(("tokens", "microseconds"), [(1, 12), (32, 16), (128, 35), (256, 61)])
def test_a_low_latency_all_to_all_on_nvlink_is_near_the_measured_one(tokens, microseconds):
    """DeepEP low latency on H200, EP8, 256 experts, dispatch (docs/background/evidence.md, section 8)."""
    moved = np.array([[tokens * 8 * (7168 + 224) * 7 / 8]])
    op = AllToAll(tiers=("nvlink",), sent=moved, received=moved, messages=np.array([[7.0]]))
    assert time(op, H200)[0] == pytest.approx(microseconds * 1e-6, rel=0.25)


@pytest.mark.parametrize(
    ("ranks", "elements", "microseconds"),
    [(2, 512, 6.6), (2, 32768, 12.0), (4, 65536, 12.5), (8, 2**19, 15.6), (8, 2**25, 221.3), (2, 2**28, 958.9)],
)
def test_nccl_s_all_to_all_changes_its_protocol_with_the_size(ranks, elements, microseconds):
    """NCCL 2.29.2 on H100, half precision (aiconfigurator 0.12.0); unfitted, from what is expected of NCCL anywhere."""
    moved = np.array([[2.0 * elements * (ranks - 1) / ranks]])
    op = AllToAll(tiers=("nvlink",), sent=moved, received=moved, messages=np.array([[ranks - 1.0]]))
    assert time(op, NCCL)[0] == pytest.approx(microseconds * 1e-6, rel=0.35)


def test_an_all_reduce_of_64_mb_has_a_plausible_bus_bandwidth():
    """Eight H100, no in-switch reduction: Simple reaches 355 of 450 GB/s (docs/background/evidence.md, section 4)."""
    op = Reduce(size=one(64e6), form="all_reduce", ranks=one(8), tier="nvlink")
    assert 64e6 * 2 * 7 / 8 / time(op, H100)[0] == pytest.approx(340e9, rel=0.10)
    small = replace(op, size=one(1024))
    assert 8e-6 < time(small, H100)[0] < 25e-6


@pytest.mark.parametrize("name", NODES)
def test_every_form_has_a_prior_on_every_machine(name):
    base = node(name)
    others = ("all_to_all", "reduce", "send", "copy", "hosted")
    kernels = [fit_of(base.device, form) for form in PARAMETERS if form not in others]
    transfers = [
        fit_of_tier(base.device, form, t) for form in ("all_to_all", "reduce", "send") for t in network(base, ())
    ]
    for prior in (*kernels, *transfers, host_prior(base)):
        assert prior.source.kind == "derived"
        assert prior.shared > 0
        assert prior.point > 0
        assert not prior.box
        assert set(prior.params) == set(PARAMETERS[prior.form])
        assert all(np.isfinite(value) and value >= 0 for value in prior.params.values())


def test_the_most_specific_fit_is_used():
    fits = {
        key: replace(fit_of(H200.device, "gemm"), shared=shared, source=replace(fit("gemm").source, kind="fitted"))
        for key, shared in (("gemm", 0.1), ("gemm/fp8", 0.2), ("gemm/fp8/deep", 0.3))
    }
    device = with_fits(H200, fits).device
    assert fit_of(device, "gemm", "fp8", "deep").shared == 0.3
    assert fit_of(device, "gemm", "fp8").shared == 0.2
    assert fit_of(device, "gemm", "bf16").shared == 0.1
    assert fit_of(device, "gemm", "bf16").source.kind == "fitted"


def test_a_format_without_a_fit_takes_that_of_one_multiplied_alike() -> None:
    own = replace(
        fit_of(H200.device, "gemm", "fp8_block"), shared=0.3, source=replace(fit("gemm").source, kind="fitted")
    )
    device = replace(H200.device, fits={"gemm/fp8_block": own})
    taken = fit_of(device, "gemm", "fp8")
    assert (taken.shared, taken.source.kind) == (0.3, "derived")
    assert taken.source.title.startswith("as fp8_block: ")
    assert fit_of(device, "gemm", "bf16").shared != 0.3
    assert fit_of(device, "elementwise").source.kind == "derived"


def test_a_tier_has_its_own_fit():
    base = with_fits(H200, {"all_to_all/nvlink": fit("all_to_all", efficiency=0.5)})
    assert machine(base).transfer("all_to_all", "nvlink").params["efficiency"] == 0.5
    assert machine(base).transfer("all_to_all", "rail").params["efficiency"] == 0.92
    assert FABRIC[0].name == "rail"


def test_a_fit_that_states_some_parameters_takes_the_rest_from_the_prior_and_is_no_stronger():
    measured = replace(fit("gemm", throttle=0.0), source=replace(fit("gemm").source, kind="measured"))
    used = fit_of(with_fits(H200, {"gemm": measured}).device, "gemm")
    assert used.params["throttle"] == 0.0
    assert used.params["peak"] == fit_of(H200.device, "gemm").params["peak"]
    assert used.source.kind == "derived"
    assert "launch" in used.source.title


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (fit("gem"), "a fit for `gemm` is of form `gem`; write `form: gemm`"),
        (fit("gemm", throtle=0.0), "has the parameter `throtle`, which the form lacks; did you mean `throttle`?"),
    ],
)
def test_a_wrong_fit_is_refused(wrong, message):
    with pytest.raises(MoesimError, match=message.replace("?", r"\?")):
        fit_of(with_fits(H200, {"gemm": wrong}).device, "gemm")


def test_a_device_without_a_dtype_multiplies_in_a_wider_one():
    assert machine(node("nvidia/hgx-a100")).multiplied("fp8_block") == "bf16"
    assert machine(H200).multiplied("fp8_block") == "fp8"
    assert machine(H200).multiplied("nvfp4") == "bf16"
    bare = replace(H200.device, flop_rate={"fp8": 1.0})
    with pytest.raises(MoesimError, match="has no flop_rate for `int4` or a wider dtype"):
        machine(replace(H200, device=bare)).multiplied("int4")


def test_latent_attention_has_its_own_tile():
    assert isinstance(MLA, Mla)
    assert fit_of(H200.device, "attention_decode", "bf16", "mla").params["head_tile"] == 50.0
    assert fit_of(H200.device, "attention_decode", "bf16", "gqa").params["head_tile"] == 16.0
