"""Rules of case files that sweep something: placements over batches, communication up to a threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from jaxtyping import Float

from moesim.files.profiles import load_profile
from moesim.files.routings import load_preset
from moesim.ground.roots import crossing
from moesim.passes.buffering import missing_share
from moesim.passes.parallelisms import layer_seconds
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy, Pool
from moesim.policies.finding import make
from moesim.policies.parallelism import family
from moesim.schedules.costs.fits import machine_of
from moesim.schedules.costs.forms import form_of
from moesim.schedules.ops import Copy
from moesim.world.generators.choosing import Limits
from moesim.world.generators.making import made
from moesim.world.hardware import Node
from moesim.world.model import Moe

BATCHES, TOKENS, TOPICS = 64, 8192, 4
"""Batches of `device_share`, the assignments of each, and how many kinds of text take turns."""


def device_share(placement: str, experts: int, devices: int, exponent: float) -> float:
    """Largest share of a batch that any device gets: placed by the first half of the batches, worst of the second.

    Popularity falls with an expert's number by a Zipf law; each kind of text likes every `TOPICS`-th expert twice as
    much as the others.
    """
    rng = np.random.default_rng(0)
    popularity = np.arange(1.0, experts + 1) ** -exponent
    liked = np.stack([popularity * np.where(np.arange(experts) % TOPICS == topic, 2.0, 1.0) for topic in range(TOPICS)])
    liked /= liked.sum(axis=1, keepdims=True)
    counts = np.stack([rng.multinomial(TOKENS, liked[batch % TOPICS]) for batch in range(BATCHES)]) / TOKENS
    seen, later = np.split(counts, 2)
    slots = make("placement", Policy(name=placement))(seen[:, None], experts, devices, 1, rng)[0]
    return float(later[:, slots].reshape(len(later), devices, -1).sum(axis=2).max())


def copied(node: str, size: float) -> float:
    """Seconds that a copy of so many bytes from host memory takes a gpu of a shipped node alone."""
    found: Node = load_profile("node", node).profile
    op = Copy(size=np.array([size]), source="host", target="device")
    seconds, _ = form_of(op).price(op, machine_of(found, ()))
    return float(seconds[0])


def share_at(excess: Callable[[float], float], experts: float) -> float:
    """Communication over communication and experts at the point where an excess of time crosses zero."""
    exchanged = crossing(excess, 0.0, 64.0 * experts)
    return exchanged / (exchanged + experts)


def parallelism(r: int, gpus: int, experts: int, dim: int, width: int, tokens: int, rows: float) -> float:
    """Seconds that a training step of one layer takes under Tutel's r, in TF32 on A100 nodes joined by HDR InfiniBand.

    Every gpu sends `rows` rows for each of its tokens: capacity factor times topk.
    """
    node: Node = load_profile("node", "nvidia/hgx-a100").profile
    fabric = load_profile("fabric", "infiniband/hdr-200g").profile.tiers
    moe = Moe(experts=experts, topk=1, width=width, input_dim=dim, gated=False)
    capacity = max(1, round(rows * tokens / experts))
    return layer_seconds(moe, node, fabric, gpus, capacity, (r, 1, "linear"), dtype="tf32")


def best_parallelism(gpus: int, experts: int, dim: int, width: int, tokens: int, rows: Sequence[float]) -> list[int]:
    """Name the fastest r of the family at each number of rows per token."""
    known = family(gpus, experts)
    return [min(known, key=lambda r: parallelism(r, gpus, experts, dim, width, tokens, each)) for each in rows]


def parallelism_gap(gpus: int, experts: int, dim: int, width: int, tokens: int, rows: Sequence[float]) -> list[float]:
    """How much longer the slower of EP + DP (r = 1) and EP + MP (r = W / E) takes than the faster, as a share."""
    pairs = [[parallelism(r, gpus, experts, dim, width, tokens, each) for r in (1, gpus // experts)] for each in rows]
    return [max(pair) / min(pair) - 1 for pair in pairs]


@cache
def miss_shares(eviction: str, preset: str, experts: int, gpus: int, tokens: int) -> Float[np.ndarray, "slots"]:
    """How many of the experts a gpu uses are not on it, at 1, 2, ... slots: top-2 routing of a shipped kind."""
    slots = experts // gpus
    routing = made(load_preset(preset).recipe, 4, Limits(experts=experts, topk=2, groups=1, group_topk=1))
    layout = Layout(
        expert_of_slot=np.tile(np.arange(experts), (4, 1)),
        rank_of_slot=np.arange(experts) // slots,
        capacity=np.full((4, experts), NO_LIMIT),
        resident=np.ones((4, experts), bool),
        r=np.ones(4, int),
        degree=np.ones(4, int),
        alltoall=("linear",) * 4,
    )
    whole = Pool(role="all", node="", replicas=1, parallel=Parallel(dp=gpus, ep=gpus))
    caches = (Policy(name=eviction, settings={"resident": each}) for each in range(1, slots + 1))
    pools = (replace(whole, policies={**DEFAULT_POLICIES, "buffering": cache}) for cache in caches)
    return np.array([missing_share(routing, pool, layout, tokens, 0) for pool in pools])
