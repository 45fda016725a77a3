"""Datasheet priors: the fit of every form on a device or tier that nobody has calibrated.

Every number is exact, comes from the datasheet in the profile, or carries its source in a comment: "section N" is one
of docs/background/evidence.md, mostly values fitted to published aiconfigurator tables (Apache-2.0); what is marked
"assumed" is an order of magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from moesim.ground.errors import MoesimError
from moesim.ground.units import Source
from moesim.schedules.costs.collectives import PROTOCOLS
from moesim.world.formats import COMPUTE_OF
from moesim.world.hardware import Device, Fit, Node, Tier

# Share of the datasheet's peak that the best shapes reach. Section 1: bf16 264/312 on A100, 861/989 on H100, 860/989 on
# H200, 1771/2250 on B200; fp8 1578/1979, 1646/1979, 3290/4500. fp32 and int8 as their neighbors; fp4 assumed.
PEAK: Mapping[str, float] = MappingProxyType(
    {"fp32": 0.86, "tf32": 0.86, "bf16": 0.86, "fp16": 0.86, "fp8": 0.81, "int8": 0.81, "fp4": 0.70}
)
MEMORY = 0.90  # share of HBM bandwidth; section 1: 92, 88, 92 and 97 % on A100, H100, H200 and B200
LAUNCH = 2e-6  # section 1: 1.4-2.0 us for torch bf16
CACHE_SPEED = 2.0  # last-level cache over HBM; assumed (H100: about 5.5-7 TB/s against 3.35)
CACHE_SHARE = 0.5  # of the cache that activations of the last kernel still hold; assumed
BLOCK_SPEED = 4.0  # a processor can ask for this many times its share of HBM; assumed (64 KB in flight, 700 ns)
THROTTLE = 0.11  # section 1: 5 % on A100, 11-17 % on H100 to B200
TAIL = 0.125  # waves lost at the end: half of g, section 1: 0.15-0.4
THIN = 0.3  # small tiles; assumed
OVERHEAD = 0.5e-6  # prologue and epilogue of a tile; assumed
SPLIT = 2e-6  # adding up the parts of a cut k, or of a split sequence; section 10: 2 to 4 us and 2 to 6 us
ATTENDED = 2e-6  # the same as OVERHEAD of a tile of queries; section 10: 1 to 3 us in prefill, 2 to 6 us in decode
PAD = 0.5  # tiles lost per expert: the mean of rounding ragged rows up
PER_SLOT = 2e-8  # section 10: 0.11 us in TensorRT-LLM's grouped products in fp8 blocks, 0.004 us in SGLang's
NORM = 2.0  # section 1: p is about 2-3
HEAD_TILE = 16.0  # rows of the smallest tensor-core instruction (NVIDIA PTX ISA, mma.m16n8k16)
LATENT_TILE = 50.0  # section 3: heads are padded to about 45-60 in latent-attention kernels
GROUP_TILE = 64.0  # query heads of a block in decode; section 10: 52 to 72 in latent-attention kernels
HALF_WIDTH = 32.0  # assumed: 128-wide heads reach 680 of 989 TFLOP/s (FlashAttention-3, arXiv 2407.08608: up to 740)
DIAGONAL = 64.0  # keys of a 128-wide diagonal tile that a query does not see, in the mean
HOST_CALL = 10e-6  # a size read back and waited for; assumed
CPU_PEAK = 0.29  # KTransformers (SOSP 2025): 21.3 TFLOP/s of a Xeon 8452Y, whose 36 cores reach 73.7 at 2 GHz with AMX
CPU_MEMORY = (
    0.72  # STREAM on a socket of a DGX A100: 148 of 204.8 GB/s (gist.github.com/v0dro/0559e1d9b205ca9ac0ad1a29fe10377b)
)
CPU_ERROR = 0.50  # assumed: kernels of CPUs differ more than those of gpus

# Operations of one pass over the datasheet: launches, and how wrong. Section 6, spec-only errors across an
# architecture (H100 to B200): the mean error is 0.8 sd, shared out evenly over all shapes and each shape.
_KERNELS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "gemm": (LAUNCH, 0.11),  # 12.2 %
        "grouped_gemm": (2 * LAUNCH, 0.12),  # 13.9 %; a second launch schedules the groups
        "attention_prefill": (LAUNCH, 0.21),  # 24.2 %
        "attention_decode": (LAUNCH, 0.43),  # 49 %
        "attention_backward": (3 * LAUNCH, 0.30),  # assumed; a kernel before and one after convert do and dq
        "elementwise": (LAUNCH, 0.11),  # as gemm
        "host": (0.0, 0.50),  # assumed
    }
)
_LATENT_DECODE = 0.21  # 23.9 %, section 6

_TILED = ("launch", "peak", "bandwidth", "block_bandwidth", "overhead", "throttle", "tail", "thin", "p")
PARAMETERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gemm": (*_TILED, "split", "cache", "cache_bandwidth", "quantize_bandwidth"),
        "grouped_gemm": (*_TILED, "activation_bandwidth", "pad", "per_expert", "per_slot"),
        "attention_prefill": ("launch", "peak", "bandwidth", "half_width", "diagonal", "tail", "overhead", "p"),
        "attention_backward": ("launch", "peak", "bandwidth", "half_width", "diagonal", "tail", "overhead", "p"),
        "attention_decode": (
            *("launch", "split", "peak", "bandwidth", "block_bandwidth"),
            *("head_tile", "group_tile", "overhead", "p"),
        ),
        "elementwise": ("launch", "bandwidth", "cache", "cache_bandwidth"),
        "host": ("call",),
        "all_to_all": (
            *("launch", "latency", "per_message", "per_doubling", "per_slot", "copy", "efficiency"),
            *("ll_launch", "ll_copy", "ll_efficiency"),
        ),
        "reduce": (
            *(f"{protocol}_{what}" for protocol in PROTOCOLS for what in ("launch", "efficiency")),
            "latency",
            "copy",
        ),
        "hosted": ("call", "peak", "bandwidth"),
        "send": ("launch", "latency", "efficiency"),
        "copy": ("latency", "efficiency"),
    }
)
"""Parameters of each form; what they mean stands with the form."""

# Share of a tier's bandwidth that each operation reaches, on NVLink, PCIe and other networks. Section 4: Simple
# 355/450 on H100; section 5: NIC 46/50; section 9: NVLink all-to-all 0.62-0.69, PCIe all-to-all 18/64.
_REACHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "nvlink": MappingProxyType({"all_to_all": 0.65, "reduce": 0.79, "send": 0.79}),
        "pcie": MappingProxyType({"all_to_all": 0.28, "reduce": 0.28, "send": 0.80}),
        "network": MappingProxyType({"all_to_all": 0.92, "reduce": 0.92, "send": 0.92}),
    }
)
NVLINKS = ("nvlink", "nvswitch", "xgmi")
PINNED = 0.80  # section 9: pinned host copies reach 0.75-0.85 of PCIe
LL_SHARE = 0.40  # NCCL, graph/tuning.cc: llMaxBws, 141 GB/s on one Hopper node, of the 355 of Simple
LL128_SHARE = 0.92  # 120 of 128 bytes are payload (NCCL), and 2 % less for its flags' polling (assumed)
LL_LAUNCH = 5e-6  # section 4: LL floor 5 us
LL128_LAUNCH = 7e-6  # assumed, between the two
SIMPLE_LAUNCH = 12e-6  # section 9: 6-16 us for a collective on NVLink
RING_HOP = 0.85e-6  # section 4: per hop of a ring on NVLink
RING_COPY = 1.2e-12  # section 4: 1.2 ns per KB of local copy
LL_COPY = 1.5e-10  # section 10: 6 GB/s to each peer on Hopper, 5 on Blackwell
ALL_TO_ALL_LAUNCH = 11e-6  # section 5: 11-15 us inside a node
PER_MESSAGE = 0.1e-6  # assumed, after DeepEP's published EP16 to EP256: about 20 us for 240 more peers
PER_DOUBLING = 3e-6  # section 5: 2 to 4 us for each doubling of the nodes
PER_EXPERT = 1e-8  # section 10: 0.007 to 0.014 us for each expert that DeepEP's low-latency kernels send to
SEND_LAUNCH = 5e-6  # assumed, as LL


def compute_dtype(device: Device, dtype: str) -> str:
    """Name the dtype in which a device multiplies a storage format: the preferred one it has, else a wider one.

    Raises
    ------
    MoesimError
        The device has none of them.
    """
    for candidate in (*COMPUTE_OF[dtype], "bf16", "fp16", "fp32"):
        if candidate in device.flop_rate:
            return candidate
    raise MoesimError(
        f"device `{device.name}` has no flop_rate for `{dtype}` or a wider dtype; it has {sorted(device.flop_rate)}"
    )


def kernel_prior(device: Device, operation: str, dtype: str, kernel: str) -> Fit:
    """Derive the fit of a compute kernel from the datasheet.

    Parameters
    ----------
    device : the device
    operation : gemm, grouped_gemm, attention_prefill, attention_decode, attention_backward, elementwise or host
    dtype : storage format of the weights or the cache; attention always multiplies in bf16
    kernel : of attention, its kind (gqa, window, cross, mla, linear)

    Returns
    -------
    a fit of source kind ``derived`` with an empty box
    """
    launch, error = _KERNELS[operation]
    if operation == "attention_decode" and kernel == "mla":
        error = _LATENT_DECODE
    multiplied = compute_dtype(device, dtype if operation in ("gemm", "grouped_gemm") else "bf16")
    bandwidth = MEMORY * device.bandwidth
    params = {
        "launch": launch,
        "peak": PEAK[multiplied] * device.flop_rate[multiplied],
        "bandwidth": bandwidth,
        "cache_bandwidth": CACHE_SPEED * bandwidth,
        "block_bandwidth": BLOCK_SPEED * bandwidth / device.processors,
        "quantize_bandwidth": bandwidth,
        "activation_bandwidth": bandwidth,
        "cache": CACHE_SHARE * device.cache,
        "overhead": ATTENDED if operation.startswith("attention") else OVERHEAD,
        "throttle": THROTTLE,
        "split": SPLIT,
        "tail": TAIL,
        "thin": THIN,
        "pad": PAD,
        "per_expert": 0.0,  # a fused kernel; a loop over experts launches each
        "per_slot": PER_SLOT,
        "p": NORM,
        "half_width": HALF_WIDTH,
        "diagonal": DIAGONAL,
        "head_tile": LATENT_TILE if kernel == "mla" else HEAD_TILE,
        "group_tile": GROUP_TILE,
        "call": HOST_CALL,
    }
    if operation == "elementwise":  # only a machine's own measurements say what a pass finds in the cache
        params |= {"cache": 0.0, "cache_bandwidth": 0.0}
    return _derived(operation, params, error, device.name)


def tier_prior(operation: str, tier: Tier) -> Fit:
    """Derive the fit of a transfer from a tier's bandwidth and latency.

    An all-to-all is expected without NCCL's protocols: its launch is that of kernels made for it (DeepEP).

    Parameters
    ----------
    operation : all_to_all, reduce, send or copy
    tier : the tier

    Returns
    -------
    a fit of source kind ``derived`` with an empty box
    """
    copying = operation == "copy"
    family = _family(tier)
    reached = PINNED if copying else _REACHED[family][operation]
    params = {
        "launch": SEND_LAUNCH if operation == "send" else ALL_TO_ALL_LAUNCH,
        "latency": RING_HOP if operation == "reduce" and family == "nvlink" else tier.latency,
        "efficiency": reached,
        "per_message": PER_MESSAGE,
        "ll_launch": LL_LAUNCH,
        "ll128_launch": LL128_LAUNCH,
        "simple_launch": SIMPLE_LAUNCH,
        "ll_efficiency": LL_SHARE * reached,
        "ll128_efficiency": LL128_SHARE * reached,
        "simple_efficiency": reached,
        "copy": RING_COPY,
    }
    if operation == "all_to_all":
        off = ("per_doubling", "per_slot", "copy", "ll_launch", "ll_copy", "ll_efficiency")
        params |= dict.fromkeys(off, 0.0)
    # Section 6: NCCL 26.9 %; copies assumed.
    return _derived(operation, params, 0.15 if copying else 0.24, tier.name)


def nccl_prior(tier: Tier) -> Fit:
    """Derive the fit of NCCL's own all-to-all on a tier, from which it is fitted: both protocols, and the local copy.

    Returns
    -------
    a fit of source kind ``derived`` with an empty box
    """
    plain, protocols = tier_prior("all_to_all", tier), tier_prior("reduce", tier).params
    shared = {name: protocols[name] for name in ("copy", "ll_launch", "ll_efficiency")}
    own = {"ll_copy": LL_COPY, "launch": SIMPLE_LAUNCH}
    return replace(plain, params=MappingProxyType({**plain.params, **shared, **own}))


def deepep_prior(tier: Tier) -> Fit:
    """Derive the fit of DeepEP's low-latency kernels on a tier, from which it is fitted.

    They start by doublings of the ranks they reach and by experts, not by messages.

    Returns
    -------
    a fit of source kind ``derived`` with an empty box
    """
    plain = tier_prior("all_to_all", tier)
    own = {"per_message": 0.0, "per_doubling": PER_DOUBLING, "per_slot": PER_EXPERT}
    return replace(plain, params=MappingProxyType({**plain.params, **own}))


def host_prior(node: Node) -> Fit:
    """Derive the fit of experts computed on the host, by one of its memory domains, from the node's sheet.

    Returns
    -------
    a fit of source kind ``derived`` with an empty box
    """
    params = {
        "call": HOST_CALL,
        "peak": CPU_PEAK * node.host_flop_rate / node.numa,
        "bandwidth": CPU_MEMORY * node.host_bandwidth / node.numa,
    }
    return _derived("hosted", params, CPU_ERROR, node.name)


def _family(tier: Tier) -> str:
    if tier.name in NVLINKS:
        return "nvlink"
    return "pcie" if tier.name == "pcie" else "network"


def _derived(operation: str, params: Mapping[str, float], error: float, name: str) -> Fit:
    return Fit(
        form=operation,
        params=MappingProxyType({key: params[key] for key in PARAMETERS[operation]}),
        shared=error,
        point=error,
        box=MappingProxyType({}),
        source=Source(kind="derived", title=f"datasheet of {name}, derated as in schedules/costs/priors.py"),
    )
