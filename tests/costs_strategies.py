"""Random ops of every kind, and machines to price them on."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from worlds import offer

from moesim.ground.units import Source
from moesim.schedules.costs.fits import Machine, machine_of
from moesim.schedules.costs.forms import form_of
from moesim.schedules.costs.priors import PARAMETERS
from moesim.schedules.ops import (
    AllToAll,
    Attend,
    Copy,
    Elementwise,
    Fixed,
    Gemm,
    Grouped,
    Host,
    Hosted,
    Op,
    Reduce,
    Send,
)
from moesim.world.attention import Cross, Gqa, Linear, Mla, Window
from moesim.world.hardware import Fit, Node, Tier

ASSUMED = Source(kind="assumed", title="tests")
RAIL = Tier(name="rail", ranks=256, bandwidth=50e9, latency=5e-6)
FABRIC = (RAIL,)
KINDS = (
    Gqa(heads=32, kv_heads=8, head_dim=128, value_dim=128),
    Window(heads=64, kv_heads=8, head_dim=64, value_dim=64, window=128),
    Mla(heads=128, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128),
    Linear(key_heads=16, value_heads=64, key_dim=128, value_dim=128, conv=4),
    Cross(heads=16, kv_heads=16, head_dim=64, value_dim=64),
)
NODES = ("nvidia/hgx-a100", "nvidia/hgx-h100", "nvidia/hgx-h200", "nvidia/gb200-nvl72", "pcie/a30x8", "generic/cpu")


def node(name: str = "nvidia/hgx-h200") -> Node:
    return offer(name).node


def fit(form: str, **params: float) -> Fit:
    return Fit(form=form, params=params, shared=0.0, point=0.0, box={}, source=ASSUMED)


def with_fits(base: Node, fits: dict[str, Fit]) -> Node:
    return replace(base, device=replace(base.device, fits=fits))


def plain(base: Node) -> Node:
    """The same node with the throttling and cache terms off."""
    return with_fits(
        base, {"gemm": fit("gemm", throttle=0.0, cache=0.0), "grouped_gemm": fit("grouped_gemm", throttle=0.0)}
    )


_MACHINES: dict[int, tuple[Node, Machine]] = {}


def machine(base: Node) -> Machine:
    """Build a node's machine once, so that its priors are."""
    if id(base) not in _MACHINES:
        _MACHINES[id(base)] = (base, machine_of(base, FABRIC))
    return _MACHINES[id(base)][1]


def time(op: Op, base: Node) -> np.ndarray:
    return form_of(op).price(op, machine(base))[0]


def one(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def everywhere(base: Node, **params: float) -> Node:
    """The same node with some parameters set in every form that has them."""
    wanted = {form: {key: value for key, value in params.items() if key in names} for form, names in PARAMETERS.items()}
    return with_fits(base, {form: fit(form, **chosen) for form, chosen in wanted.items() if chosen})


H200 = node()
PLAIN = plain(H200)
IDEAL = everywhere(
    H200,
    **dict.fromkeys(("launch", "latency", "per_message", "ll_launch", "ll128_launch", "simple_launch", "copy"), 0.0),
    **dict.fromkeys(("overhead", "split", "throttle", "tail", "thin", "pad", "cache", "half_width", "diagonal"), 0.0),
    **dict.fromkeys(("block_bandwidth", "quantize_bandwidth", "activation_bandwidth"), 1e30),
    head_tile=0.0,
)
"""A machine that loses nothing, on which times are close to their floors."""
STARVED = everywhere(
    H200, block_bandwidth=5e9, overhead=20e-6, throttle=0.0, cache=0.0, tail=1.0, thin=1.0, half_width=200.0, p=4.0
)
"""A machine on which few blocks, small tiles and ragged ends cost a lot; no throttling, no cache."""

counts = st.one_of(st.integers(0, 3), st.sampled_from([64, 65, 129, 1024, 2**20]), st.integers(0, 2**20))
widths = st.one_of(st.sampled_from([64, 192, 512, 2112, 4096, 7168, 24576]), st.integers(1, 40_000))
volumes = st.one_of(st.sampled_from([0, 1, 2**20, 2**27, 2**34]), st.integers(0, 2**34))
dtypes = st.sampled_from(["bf16", "fp8", "fp8_block", "mxfp4", "int4"])
whole = st.builds(lambda value: np.array([value]), counts)
volume = st.builds(lambda value: np.array([value]), volumes)
width = st.builds(lambda value: np.array([float(value)]), widths)
gemms = st.builds(Gemm, m=whole, n=width, k=width, dtype=dtypes)
groups = st.builds(
    Grouped,
    rows=st.lists(counts, min_size=1, max_size=9).map(lambda rows: np.array(rows).reshape(-1, 1)),
    n=width,
    k=width,
    dtype=dtypes,
)
hosteds = st.builds(
    Hosted,
    rows=st.lists(counts, min_size=1, max_size=9).map(lambda rows: np.array(rows).reshape(-1, 1)),
    weights=width,
    dtype=dtypes,
)


@st.composite
def attentions(draw, phases=("prefill", "decode", "backward")):
    prompts = draw(st.one_of(st.integers(0, 3), st.integers(0, 300)))
    length = draw(st.one_of(st.integers(1, 64), st.integers(1, 9000)))
    prefix = draw(st.integers(0, 60_000))
    phase = draw(st.sampled_from(phases))
    tokens = prompts if phase == "decode" else prompts * length
    return Attend(
        kind=draw(st.sampled_from(KINDS)),
        heads=one(draw(st.sampled_from([1, 4, 16, 64]))),
        phase=phase,
        tokens=np.array([tokens]),
        prompts=np.array([prompts]),
        pairs=np.array([tokens * (prefix + 1 + length // 2)]),
        keys=np.array([prompts * (prefix + length)]),
        dtype=draw(st.sampled_from(["bf16", "fp8"])),
    )


@st.composite
def exchanges(draw):
    def bytes_by_tier() -> np.ndarray:
        return np.array([[draw(volumes)], [draw(volumes)]], dtype=float)

    return AllToAll(
        tiers=("nvlink", "rail"), sent=bytes_by_tier(), received=bytes_by_tier(), messages=np.array([[7.0], [24.0]])
    )


reduces = st.builds(
    Reduce,
    size=volume,
    form=st.sampled_from(["all_reduce", "reduce_scatter", "all_gather"]),
    ranks=st.sampled_from([2, 4, 8, 64, 1000]).map(lambda ranks: one(ranks)),
    tier=st.sampled_from(["nvlink", "rail"]),
)
copies = st.builds(
    Copy,
    size=volume,
    source=st.sampled_from(["device", "host", "disk"]),
    target=st.sampled_from(["device", "host"]),
).filter(lambda op: op.source != op.target or op.source == "device")
ops = st.one_of(
    gemms,
    groups,
    hosteds,
    attentions(),
    st.builds(Elementwise, traffic=volume),
    copies,
    exchanges(),
    reduces,
    st.builds(Send, size=volume, tier=st.sampled_from(["nvlink", "rail"])),
    st.builds(Host, calls=whole),
    st.builds(Fixed, duration=st.floats(0, 10, allow_subnormal=False).map(lambda value: one(value))),
)
