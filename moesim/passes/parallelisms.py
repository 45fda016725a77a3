"""One MoE layer under each of Tutel's parallelisms, with even rows: what adaptive studies tabulate.

Every gpu sends the same number of rows to every expert. With r >= 1 an expert is sliced over r gpus and copied on
W / E / r groups of them, whose weights are gathered from ZeRO-3 slices; r = 0 gathers all experts everywhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.ground.units import Seconds
from moesim.passes.backward import with_backward
from moesim.passes.chain import Chain
from moesim.passes.timeline import makespan
from moesim.plans.plan import Policy
from moesim.policies.finding import make
from moesim.policies.overlap.pipeline import chunked
from moesim.policies.parallelism import check_r
from moesim.policies.protocols import AllToAllPolicy, Phase
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import Elementwise, Exchange, Grouped, Reduce
from moesim.schedules.schedule import Schedule
from moesim.world.formats import bytes_of
from moesim.world.hardware import Node, Tier, reach, tier_between
from moesim.world.model import Moe, matrices

GROUPS = ("all", "ep", "node", "rail")


def layer_seconds(
    moe: Moe,
    node: Node,
    fabric: tuple[Tier, ...],
    gpus: int,
    capacity: int,
    knobs: tuple[int, int, str],
    dtype: str = "bf16",
    backward: bool = True,
) -> Seconds:
    """Time one MoE layer of so many rows per expert and gpu under (r, degree, all-to-all).

    Raises
    ------
    PolicyError
        r is not in the family, or the all-to-all doesn't suit the gpus.
    """
    schedule = expert_layer(moe, node, fabric, gpus, capacity, knobs, dtype)
    return float(makespan(price(with_backward(schedule) if backward else schedule, node, fabric)).max())


def expert_layer(
    moe: Moe,
    node: Node,
    fabric: tuple[Tier, ...],
    gpus: int,
    capacity: int,
    knobs: tuple[int, int, str],
    dtype: str,
) -> Schedule:
    """Write the layer: gather of weights, pack, dispatch, experts, combine, unpack, cut into `degree` chunks."""
    r, degree, alltoall = knobs
    check_r(r, gpus, moe.experts)
    alike = np.zeros(min(gpus, 1), int)
    chain = Chain(layer=0, groups=dict.fromkeys(GROUPS, alike), count=np.array([float(gpus)]))
    shards = max(1, gpus // moe.experts)
    local = moe.experts if r == 0 else max(1, moe.experts // gpus)
    gathered = gpus if r == 0 else shards // r
    element, tier = bytes_of(dtype), tier_between(reach(node, fabric), 0, gathered - 1)
    weights = local * matrices(gated=moe.gated) * moe.input_dim * moe.width / max(r, 1) * element
    if gathered > 1:
        ranks = np.array([float(gathered)])
        chain.add("reduce", Reduce(size=np.array([weights]), form="all_gather", ranks=ranks, tier=tier), stream="side")
    traffic = np.array([2.0 * capacity * moe.experts * moe.input_dim * element])
    chain.tail = ()
    chain.add("pack", Elementwise(traffic=traffic, kernel="pack"))
    there, back = _exchanges(moe, node, fabric, gpus, capacity, r, alltoall, element)
    for phase in there:
        chain.add("dispatch", phase.op, stream=phase.stream, group=phase.group)
    if gathered > 1:
        chain.tail = (*chain.tail, 0)
    rows = np.full((local, 1), float(capacity * (1 if r == 0 else gpus // max(1, shards // r))))
    width = np.array([float(moe.width) / max(r, 1)])
    inner = width * (matrices(gated=moe.gated) - 1)
    dim = np.array([float(moe.input_dim)])
    chain.add("experts", Grouped(rows=rows, n=inner, k=dim, dtype=dtype))
    chain.add("experts", Elementwise(traffic=rows.sum(axis=0) * (inner + width) * element, kernel="activation"))
    chain.add("experts", Grouped(rows=rows, n=dim, k=width, dtype=dtype))
    for phase in back:
        chain.add("combine", phase.op, stream=phase.stream, group=phase.group)
    chain.add("unpack", Elementwise(traffic=traffic, kernel="unpack"))
    return chunked(chain.schedule(), degree)


def _exchanges(
    moe: Moe,
    node: Node,
    fabric: tuple[Tier, ...],
    gpus: int,
    capacity: int,
    r: int,
    alltoall: str,
    element: float,
) -> tuple[tuple[Phase, ...], tuple[Phase, ...]]:
    """Return the phases of dispatch and combine; none for r = 0, where rows stay."""
    if r == 0:
        return (), ()
    replicas = max(1, gpus // moe.experts // r)
    slots = moe.experts * replicas
    if moe.experts >= gpus:
        owners = np.arange(slots)[:, None] // (moe.experts // gpus)
    else:
        owners = np.arange(slots)[:, None] * r + np.arange(r)
    even = Exchange(
        rows=np.full((slots, 1, 1), capacity / replicas),
        ranks_of_slot=owners,
        ranks=gpus,
        row=moe.input_dim * element,
        reverse=False,
        tokens=np.full((1, 1), float(capacity * moe.experts / moe.topk)),
    )
    policy: AllToAllPolicy = make("alltoall", Policy(name=alltoall))
    reaches = reach(node, fabric)
    return tuple(map(_first, policy(even, reaches))), tuple(map(_first, policy(replace(even, reverse=True), reaches)))


def _first(phase: Phase) -> Phase:
    """Keep one rank of an even exchange, which stands for all."""
    op = phase.op
    if isinstance(op, Elementwise):
        return replace(phase, op=Elementwise(traffic=op.traffic[..., :1].reshape(-1)[:1]))
    sizes = {
        name: getattr(op, name)[..., :1].reshape(len(getattr(op, name)), 1) for name in ("sent", "received", "messages")
    }
    return replace(phase, op=replace(op, **sizes))
