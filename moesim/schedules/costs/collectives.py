"""Time of collectives on one rank: all-to-all, reductions, messages to a peer.

A form sees one rank. Ranks of a group start together and the slowest decides what follows, so the bottleneck rank
comes from the executor, never from here. `rate` is a tier's bandwidth per gpu in one direction, times what the fit
says is achieved of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Shaped

from moesim.ground.units import BytesPerSecond
from moesim.schedules.costs.kernels import Params, Size, Time, fitting
from moesim.world.hardware import Tier

ByTier = Shaped[np.ndarray, "tier ..."]

ROUNDS: Mapping[str, float] = MappingProxyType({"all_reduce": 2.0, "reduce_scatter": 1.0, "all_gather": 1.0})
"""How often a ring passes the buffer around (nccl-tests, PERFORMANCE.md)."""
DIRECT = ("dispatch", "combine")
"""All-to-alls in which rows go straight to their expert and straight back."""
WAYS = ("all_to_all", *DIRECT, "hierarchical")
"""All-to-alls that may have fits of their own; all others fall back on the first."""
PROTOCOLS = ("ll", "ll128", "simple")
"""NCCL's protocols, from the lowest latency to the highest bandwidth."""
RING = 8
"""Ranks up to which a ring is assumed; beyond, latency grows by tree levels (NCCL 2.4's double binary trees)."""


def all_to_all(
    moved: ByTier, messages: ByTier, *, params: Sequence[Params], tiers: Sequence[Tier], slots: int = 0
) -> Time:
    """An all-to-all ends on a rank when its busiest tier has moved all it sends and receives.

    max over tiers of softmin(simple, ll), with moved / messages the part of a peer and

    start  = latency + messages x per_message + log2(1 + messages) x per_doubling + slots x per_slot
    simple = launch + start + copy x part + moved / (efficiency x bandwidth)
    ll     = ll_launch + start + ll_copy x part + moved / (ll_efficiency x bandwidth)

    The node's own tiers and the network move bytes side by side, and both directions of a link at once, so `moved` is
    the larger of sent and received. What goes further than one tier of the network has crossed it (`carried`), so each
    of them counts what leaves by the same card. A tier without messages has nothing to start; a rank without any still
    takes the launch of the innermost tier. `ll`, NCCL's protocol for small parts, one thread block a peer, is left out
    where its efficiency is 0: on machines whose collectives nobody has measured, and for kernels that are not NCCL's.
    DeepEP's low-latency kernels start by the doublings of the ranks they reach and by the experts they send to.

    Functional form of docs/background/evidence.md, sections 4, 5 and 10 (NCCL; DeepEP; FasterMoE's bottleneck rank,
    PPoPP 2022).

    Parameters
    ----------
    moved, messages : per tier, bytes and messages that each rank has on it, those on their way further out included
    params : per tier, launch, ll_launch, latency, per_message, per_doubling and per_slot (s), copy and ll_copy
        (s per byte), efficiency and ll_efficiency
    tiers : the tiers
    slots : experts that rows are sent to, copies included

    Examples
    --------
    >>> tier = Tier(name="nvlink", ranks=8, bandwidth=10.0, latency=0.0)
    >>> off = dict.fromkeys(("per_doubling", "per_slot", "copy", "ll_efficiency"), 0.0)
    >>> fit = {"launch": 1.0, "latency": 0.5, "per_message": 0.25, "efficiency": 0.5, **off}
    >>> all_to_all(np.array([[20.0, 10.0]]), np.array([[2.0]]), params=[fit], tiers=[tier])
    array([6., 4.])
    """
    slowest = None
    for i, (fit, tier) in enumerate(zip(params, tiers, strict=True)):
        start = _started(messages[i], slots, fit)
        if slowest is None:
            start = np.maximum(start, fit["launch"])
        time = _crossing(moved[i], messages[i], start, fit, tier)
        slowest = time if slowest is None else np.maximum(slowest, time, out=fitting(slowest, time))
    return np.asarray(slowest)


def _started(messages: Size, slots: int, fit: Params) -> Time:
    """Time until all messages on a tier are on their way; none where there are none."""
    start = (messages > 0) * (fit["launch"] + fit["latency"] + slots * fit["per_slot"]) + messages * fit["per_message"]
    if not fit["per_doubling"]:
        return np.asarray(start)
    return np.asarray(start + np.log2(1.0 + messages) * fit["per_doubling"])


def _crossing(moved: Size, messages: Size, start: Time, fit: Params, tier: Tier) -> Time:
    """Time on one tier from the launch to the last byte."""
    time = moved / (fit["efficiency"] * tier.bandwidth)
    time = np.add(time, start, out=fitting(time, start))
    part = moved / np.maximum(messages, 1.0) if fit["copy"] or fit["ll_efficiency"] else moved
    if fit["copy"]:
        time = np.asarray(time + part * fit["copy"])
    if not fit["ll_efficiency"]:
        return time
    quick = start + (fit["ll_launch"] - fit["launch"]) * (start > 0)
    return softest([time, quick + part * fit["ll_copy"] + moved / (fit["ll_efficiency"] * tier.bandwidth)])


def carried(size: ByTier, networked: Sequence[bool]) -> ByTier:
    """Add to each tier of the network what goes further out: it leaves the gpu by the same card and the same leaf.

    Parameters
    ----------
    size : per tier, from the innermost outwards, what ends there
    networked : whether a tier is outside the node

    Examples
    --------
    >>> carried(np.array([[8.0], [2.0], [1.0]]), (False, True, True)).ravel()  # nvlink, rail, spine
    array([8., 3., 1.])
    """
    if sum(networked) < 2:
        return size
    found = size.copy()
    for tier in range(len(size) - 2, -1, -1):
        if networked[tier]:
            found[tier] = found[tier] + found[tier + 1]
    return found


def all_to_all_loads(
    sent: ByTier, received: ByTier, *, params: Sequence[Params], tiers: Sequence[Tier]
) -> tuple[Time, ...]:
    """At least so long is each direction of each tier busy: bytes / `all_to_all_rate`.

    A soft minimum of times of at least bytes / rate each is at least bytes times that of 1 / rate, so this never
    exceeds `all_to_all`.

    Examples
    --------
    >>> tier = Tier(name="nvlink", ranks=8, bandwidth=10.0, latency=0.0)
    >>> fit = {"efficiency": 0.5, "ll_efficiency": 0.0}
    >>> all_to_all_loads(np.array([[5.0]]), np.array([[20.0]]), params=[fit], tiers=[tier])
    (array([1.]), array([4.]))
    """
    rates = [all_to_all_rate(fit, tier) for fit, tier in zip(params, tiers, strict=True)]
    return tuple(side[i] / rate for i, rate in enumerate(rates) for side in (sent, received))


def all_to_all_rate(params: Params, tier: Tier) -> BytesPerSecond:
    """Bytes per second that an all-to-all puts on a tier at most: its protocols' rates, softly joined like their times.

    Examples
    --------
    >>> tier = Tier(name="nvlink", ranks=8, bandwidth=10.0, latency=0.0)
    >>> all_to_all_rate({"efficiency": 0.5, "ll_efficiency": 0.5}, tier) > 5.0
    True
    """
    return _softest_rate([params["efficiency"], params["ll_efficiency"]], tier)


def _softest_rate(efficiencies: Sequence[float], tier: Tier) -> BytesPerSecond:
    slowness = [np.array([1 / (share * tier.bandwidth)]) for share in efficiencies if share]
    return float(1 / softest(slowness)[0])


def wire_bytes(size: Size, ranks: Size, form: str) -> Time:
    """Bytes each rank sends in a ring: size x rounds x (ranks - 1) / ranks, rounds = 2 for an all-reduce, else 1.

    Examples
    --------
    >>> wire_bytes(np.array([8.0]), np.array([4.0]), "all_reduce")
    array([12.])
    """
    return np.asarray(size * (ROUNDS[form] * (ranks - 1) / ranks))


def _eighth(value: Time) -> Time:
    square = value * value
    fourth = square * square
    return np.asarray(fourth * fourth)


def softest(times: Sequence[Time]) -> Time:
    """Choose the fastest of several protocols, softly: (sum of t^-8)^(-1/8).

    A power mean of exponent below 1 is concave, so that cutting a buffer never lowers the sum of what the parts take.

    Examples
    --------
    >>> softest([np.array([1.0]), np.array([1e9])])
    array([1.])
    """
    least = np.minimum.reduce(np.broadcast_arrays(*times))
    total = sum(_eighth(np.divide(least, time, out=np.ones_like(least), where=time > 0)) for time in times)
    return np.asarray(least / np.sqrt(np.sqrt(np.sqrt(total))))


def _per_byte(ranks: Size, form: str, params: Params, bandwidth: BytesPerSecond) -> list[Time]:
    """Seconds per byte of the buffer by protocol: the local copy of a chunk, and the chunk's trips around the ring."""
    trips = ROUNDS[form] * (ranks - 1)
    return [(params["copy"] + trips / (params[f"{name}_efficiency"] * bandwidth)) / ranks for name in PROTOCOLS]


def reduce(size: Size, ranks: Size, *, form: str, params: Params, tier: Tier) -> Time:
    """A reduction takes the best of NCCL's protocols, each a latency plus the buffer's way around a ring.

    softmin over protocols of (launch_p + latency x hops + size / ranks x (copy + trips / (efficiency_p x bandwidth)))

    trips = rounds x (ranks - 1), rounds = 2 for an all-reduce, 1 for a reduce-scatter or an all-gather; hops = trips
    up to 8 ranks, and beyond 8 rounds x (7 + 2 log2(ranks / 8)). In-switch reduction (NVLS) is not assumed. Where there
    is nothing to join, nothing starts.

    Functional form of docs/background/evidence.md, section 4 (NCCL; nccl-tests for the bytes on the wire).

    Parameters
    ----------
    size : bytes of the whole buffer, the gathered one for an all-gather
    ranks : how many take part
    form : all_reduce, reduce_scatter or all_gather
    params : by protocol launch (s) and efficiency; latency (s per hop), copy (s per byte)
    tier : the outermost tier they span

    Examples
    --------
    >>> tier = Tier(name="nvlink", ranks=8, bandwidth=10.0, latency=0.0)
    >>> fit = {"latency": 1.0, "copy": 0.0, "ll_launch": 1e9, "ll128_launch": 1e9, "simple_launch": 2.0,
    ...        "ll_efficiency": 1.0, "ll128_efficiency": 1.0, "simple_efficiency": 0.5}
    >>> reduce(np.array([80.0]), np.array([4.0]), form="all_reduce", params=fit, tier=tier)  # 2 + 6 hops + 20 x 6 / 5
    array([32.])
    """
    levels = np.maximum(np.log2(np.maximum(ranks, RING) / RING), 0.0)
    hops = ROUNDS[form] * (np.minimum(ranks, RING) - 1 + 2 * levels)
    per_byte = _per_byte(ranks, form, params, tier.bandwidth)
    starts = [params[f"{name}_launch"] + params["latency"] * hops for name in PROTOCOLS]
    time = softest([start + size * slope for start, slope in zip(starts, per_byte, strict=True)])
    return time * ((size > 0) & (ranks > 1))


def reduce_loads(size: Size, ranks: Size, *, form: str, params: Params, tier: Tier) -> tuple[Time]:
    """At least so long is the ring busy: size times the soft minimum of the protocols' seconds per byte.

    A concave function that starts above zero lies above its final slope, so this never exceeds `reduce`.

    Examples
    --------
    >>> tier = Tier(name="nvlink", ranks=8, bandwidth=10.0, latency=0.0)
    >>> fit = {"copy": 0.0, "ll_efficiency": 1e-9, "ll128_efficiency": 1e-9, "simple_efficiency": 0.5}
    >>> reduce_loads(np.array([80.0]), np.array([4.0]), form="all_reduce", params=fit, tier=tier)
    (array([24.]),)
    """
    return (size * softest(_per_byte(ranks, form, params, tier.bandwidth)),)


def reduce_rate(params: Params, tier: Tier) -> BytesPerSecond:
    """Bytes per second that a reduction puts on its tier at most: the protocols' rates, softly joined like their times.

    Examples
    --------
    >>> tier = Tier(name="nvlink", ranks=8, bandwidth=10.0, latency=0.0)
    >>> reduce_rate({"ll_efficiency": 1e-9, "ll128_efficiency": 1e-9, "simple_efficiency": 0.5}, tier)
    5.0
    """
    return _softest_rate([params[f"{name}_efficiency"] for name in PROTOCOLS], tier)


def send(size: Size, *, params: Params, tier: Tier) -> Time:
    """A message takes its launch and latency, and its bytes at the link's rate.

    launch + latency + size / (efficiency x bandwidth)

    Hockney's model, Parallel Computing 20(3), 1994.

    Parameters
    ----------
    size : bytes
    params : launch (s), latency (s), efficiency
    tier : the tier it crosses

    Examples
    --------
    >>> tier = Tier(name="rail", ranks=64, bandwidth=10.0, latency=0.0)
    >>> send(np.array([10.0]), params={"launch": 1.0, "latency": 1.0, "efficiency": 0.5}, tier=tier)
    array([4.])
    """
    return params["launch"] + params["latency"] + size / (params["efficiency"] * tier.bandwidth)


def send_loads(size: Size, *, params: Params, tier: Tier) -> tuple[Time]:
    """At least so long is the link busy: size / (efficiency x bandwidth).

    Examples
    --------
    >>> tier = Tier(name="rail", ranks=64, bandwidth=10.0, latency=0.0)
    >>> send_loads(np.array([10.0]), params={"efficiency": 0.5}, tier=tier)
    (array([2.]),)
    """
    return (size / (params["efficiency"] * tier.bandwidth),)
