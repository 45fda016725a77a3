"""Enumerating pools: every valid layout on the offers, within the alternatives a scenario lists."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from moesim.ground.errors import Fault, PlanError, nearest
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy, Pool, Space, divisors
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy
from moesim.world.attention import Linear
from moesim.world.hardware import Node, Offer
from moesim.world.model import Dense, Model
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Training

SLICE = 128
"""Narrowest slice of a feed-forward width worth multiplying: fp8 weights are scaled in blocks of 128."""

SERVING_AXES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "alltoall": tuple(Policy(name=name) for name in ("reduce", "linear", "two_dh", "deduplicated")),
        "overlap": (Policy(name="none"), Policy(name="two_batch")),
        "placement": (Policy(name="contiguous"), Policy(name="eplb", settings={"redundant": 32})),
        "max_batch": (16, 32, 64, 128, 256),
        "microbatch": (1,),
        "parallel.pp": (1, 2),
        "parallel.cp": (1,),
    }
)
"""Alternatives tried where a serving scenario lists none; other axes are open to every value that divides."""

TRAINING_AXES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {**SERVING_AXES, "placement": (Policy(name="contiguous"),), "max_batch": (256,), "microbatch": (1, 2, 4)}
)
"""The same for training, where a batch is a microbatch of whole sequences and experts have no copies."""

POLICY_AXES = ("placement", "gating", "alltoall", "shortcut", "overlap", "buffering", "prefetch")
PRECISION = "precision."
OTHER_AXES = ("node", "framework", "max_batch", "microbatch")
DEGREE_AXES = tuple(f"parallel.{degree}" for degree in ("pp", "dp", "tp", "cp", "ep", "etp"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Enumerated:
    """Pools of one replica each that are valid, and how many combinations were not, by reason."""

    pools: tuple[Pool, ...]
    invalid: Mapping[str, int]


def enumerate_pools(scenario: Scenario, space: Space) -> Enumerated:
    """List every valid pool of one replica on the scenario's offers.

    Raises
    ------
    PlanError
        The space names an axis that this search does not vary.
    """
    _check_axes(space)
    space = with_defaults(space, scenario.workload)
    refused: Counter[str] = Counter()
    found: list[Pool] = []
    for offer in scenario.hardware.offers:
        if not _allowed(space, "node", offer.node.name):
            continue
        for parallel in _degrees(scenario.model, offer, space):
            found.extend(_pools(scenario, space, offer.node, parallel, refused))
    return Enumerated(pools=tuple(found), invalid=MappingProxyType(dict(refused)))


def _check_axes(space: Space) -> None:
    """Refuse axes that would be ignored; number of replicas and nodes are always varied."""
    known = (*POLICY_AXES, *OTHER_AXES, *DEGREE_AXES)
    faults = [
        Fault(path=name, problem="this search does not vary it", remedy=nearest(name, known))
        for name in space.axes
        if name not in known and not name.startswith(PRECISION)
    ]
    if faults:
        raise PlanError("space", faults)


def with_defaults(space: Space, workload: Serving | Training) -> Space:
    """Fill in the alternatives of axes that a space leaves out."""
    defaults = TRAINING_AXES if isinstance(workload, Training) else SERVING_AXES
    return Space(axes=MappingProxyType({**defaults, **space.axes}))


def axis(space: Space, name: str) -> tuple[Any, ...]:
    """Return a space's alternatives of an axis; none means that it is open."""
    return space.axes.get(name, ())


def _degrees(model: Model, offer: Offer, space: Space) -> Iterator[Parallel]:
    """List degrees that divide what they must: tp the heads and widths, ep x etp the ranks, etp the expert width."""
    gpus = offer.node.gpus
    pps = [pp for pp in axis(space, "parallel.pp") if pp <= len(model.layers)]
    for size, pp in itertools.product(_sizes(offer), pps):
        if size % pp or (pp > 1 and size <= gpus):
            continue
        ranks = size // pp
        for tp, cp in itertools.product(_tensor_degrees(model, gpus, space), axis(space, "parallel.cp")):
            if ranks % (tp * cp) or not _allowed(space, "parallel.dp", ranks // (tp * cp)):
                continue
            for etp in _expert_slices(model, ranks, space):
                yield Parallel(pp=pp, dp=ranks // (tp * cp), tp=tp, cp=cp, ep=ranks // etp, etp=etp)


def _sizes(offer: Offer) -> list[int]:
    """Gpus per replica: every divisor of a node, and nodes in powers of two."""
    gpus = offer.node.gpus
    nodes = [2**power for power in range(1, offer.max_nodes.bit_length()) if 2**power <= offer.max_nodes]
    return [*divisors(gpus), *(gpus * number for number in nodes)]


def _tensor_degrees(model: Model, gpus: int, space: Space) -> list[int]:
    """Tensor-parallel degrees within a node that divide every layer's heads and leave slices worth multiplying."""
    wanted = axis(space, "parallel.tp") or divisors(gpus)
    return [tp for tp in wanted if all(_divides(layer.attention, layer.ffn, tp) for layer in set(model.layers))]


def _divides(attention: Any, ffn: Any, tp: int) -> bool:
    heads = attention is None or attention.heads % tp == 0
    if isinstance(attention, Linear):
        heads = heads and attention.key_heads % tp == 0
    return heads and (not isinstance(ffn, Dense) or ffn.width % (tp * SLICE) == 0 or tp == 1)


def _expert_slices(model: Model, ranks: int, space: Space) -> list[int]:
    """Expert-tensor degrees that divide the ranks and leave slices worth multiplying; no more ranks than experts."""
    if not model.moe_layers:
        return [ranks]
    moe = model.moe(model.moe_layers[0])
    wanted = axis(space, "parallel.etp") or divisors(ranks)
    return [
        etp
        for etp in wanted
        if ranks % etp == 0
        and (etp == 1 or moe.width % (etp * SLICE) == 0)
        and ranks // etp <= moe.experts
        and _allowed(space, "parallel.ep", ranks // etp)
    ]


def _allowed(space: Space, name: str, value: int | str) -> bool:
    listed = axis(space, name)
    return not listed or value in listed


def _pools(scenario: Scenario, space: Space, node: Node, parallel: Parallel, refused: Counter[str]) -> Iterator[Pool]:
    """Combine one set of degrees with every policy, batch and framework; count the combinations that make no sense."""
    policies = [axis(space, kind) or (DEFAULT_POLICIES[kind],) for kind in POLICY_AXES]
    frameworks = axis(space, "framework") or (next(iter(scenario.frameworks)),)
    batches = itertools.product(axis(space, "max_batch"), axis(space, "microbatch"))
    rest = itertools.product(batches, frameworks, _precisions(space))
    for *chosen, ((batch, microbatch), framework, precision) in itertools.product(*policies, rest):
        named = dict(zip(POLICY_AXES, chosen, strict=True))
        reason = _senseless(named, parallel, node, bool(scenario.model.moe_layers))
        if reason:
            refused[reason] += 1
            continue
        yield Pool(
            role="all",
            node=node.name,
            replicas=1,
            parallel=parallel,
            framework=framework,
            microbatch=microbatch,
            precision=precision,
            policies=MappingProxyType(named | {"batching": Policy(name="chunked", settings={"max_batch": batch})}),
        )


def _senseless(named: Mapping[str, Policy], parallel: Parallel, node: Node, mixture: bool) -> str:
    """Say why a combination is left out; "" where it is not."""
    policy: AllToAllPolicy = make("alltoall", named["alltoall"])
    block = parallel.ep * parallel.etp
    if not mixture:
        return "" if policy.replicated else "a dense model exchanges nothing"
    if policy.replicated:
        return "" if parallel.dp == 1 and parallel.cp == 1 else "`reduce` needs tokens replicated: dp = cp = 1"
    if block == 1:
        return "one rank exchanges nothing"
    if named["alltoall"].name != "linear" and (block <= node.gpus or block % node.gpus):
        return f"`{named['alltoall'].name}` needs experts over several whole nodes"
    return ""


def _precisions(space: Space) -> list[Mapping[str, str]]:
    """Combine the storage formats to try; the model's own where none are listed."""
    named = {name.removeprefix(PRECISION): values for name, values in space.axes.items() if name.startswith(PRECISION)}
    return [dict(zip(named, map(str, values), strict=True)) for values in itertools.product(*named.values())]


def deployments(pools: Sequence[Pool], offers: Mapping[str, Offer]) -> Iterator[tuple[int, int]]:
    """List (pool, replicas): for every number of nodes on offer, as many replicas as they hold."""
    for index, pool in enumerate(pools):
        offer = offers[pool.node]
        last = 0
        for nodes in range(1, offer.max_nodes + 1):
            replicas = nodes * offer.node.gpus // pool.parallel.gpus
            if replicas > last:
                yield index, replicas
            last = replicas


def with_replicas(pool: Pool, replicas: int) -> Pool:
    """Return the pool with that many replicas."""
    return replace(pool, replicas=replicas)
