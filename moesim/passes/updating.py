"""What ends a training step, besides its passes: gradients reduced, weights updated, shares of them gathered.

Weights outside the experts are copied on the dp x cp ranks that share a tensor slice; experts on the edp copies of
their block. A collective over several nodes goes by levels: inside the node, then over the network, where every gpu of
a node carries its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from moesim.passes.columns import Column, Columns, group_tiers
from moesim.passes.parameters import model_of, stage_parameters
from moesim.passes.trained import GRADIENT, OPTIMIZERS
from moesim.policies.finding import make
from moesim.policies.protocols import Sharding
from moesim.schedules.ops import Elementwise, Reduce
from moesim.schedules.schedule import Schedule, Task
from moesim.world.formats import bytes_of
from moesim.world.hardware import reach
from moesim.world.scenario import Scenario
from moesim.world.workload import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Weights of one kind on a rank, and the ranks that have the same ones: `inside` its node, in so many nodes."""

    size: Column
    inside: Column
    nodes: Column
    tiers: tuple[str, str]
    stored: float

    @property
    def copies(self) -> Column:
        """Ranks that have the same weights."""
        return np.asarray(self.inside * self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Updating:
    """Passes of one stage once a step; `gathered` is also what gathering weights takes for one forward."""

    gradients: Schedule
    update: Schedule
    gathered: Schedule


def updating(scenario: Scenario, cols: Columns, stage: int) -> Updating:
    """Write what ends a step on one stage of plans of one structure."""
    assert isinstance(scenario.workload, Training)
    policy: Sharding = make("sharding", cols.first.policy("sharding"))
    kinds = tuple(_copied(scenario, cols, stage))
    form = "reduce_scatter" if policy.stage else "all_reduce"
    traffic = _update_traffic(kinds, policy, scenario.workload.optimizer)
    gathered = kinds if policy.stage else ()
    return Updating(
        gradients=_series("gradients", (op for kind in kinds for op in _levels(form, kind, GRADIENT))),
        update=_series("update", iter([Elementwise(traffic=traffic)])),
        gathered=_series("gathered", (op for kind in gathered for op in _levels("all_gather", kind, kind.stored))),
    )


def _copied(scenario: Scenario, cols: Columns, stage: int) -> Iterator[Copied]:
    """List the weights of a stage by who has the same ones: all outside the experts, and the experts."""
    pool = cols.first
    node = scenario.hardware.offer(pool.node).node
    reaches = reach(node, scenario.hardware.fabric)
    tiers = group_tiers(pool.parallel, reaches)
    others, experts = stage_parameters(model_of(scenario, pool), cols, stage)
    block = cols.ep * cols.etp
    groups = (
        (others, cols.dp * cols.cp, cols.tp, "dp", "dense"),
        (experts, cols.ranks / block, block, "edp", "experts"),
    )
    for size, copies, stride, group, tensors in groups:
        inside = np.minimum(np.maximum(np.floor(node.gpus / stride), 1.0), copies)
        yield Copied(
            size=size,
            inside=inside,
            nodes=copies / inside,
            tiers=(reaches[0][0], tiers[group]),
            stored=bytes_of(cols.formats[tensors]),
        )


def _levels(form: str, kind: Copied, element: float) -> Iterator[Reduce]:
    """Write a collective by levels; a level of one rank takes no time."""
    inner, outer = kind.tiers
    whole, share = kind.size * element, kind.size * element / kind.inside

    def level(way: str, size: Column, ranks: Column, tier: str) -> Reduce:
        return Reduce(size=size, form=way, ranks=ranks, tier=tier)

    match form:
        case "all_reduce":
            yield level("reduce_scatter", whole, kind.inside, inner)
            yield level("all_reduce", share, kind.nodes, outer)
            yield level("all_gather", whole, kind.inside, inner)
        case "reduce_scatter":
            yield level(form, whole, kind.inside, inner)
            yield level(form, share, kind.nodes, outer)
        case _:
            yield level(form, share, kind.nodes, outer)
            yield level(form, whole, kind.inside, inner)


def _update_traffic(kinds: tuple[Copied, ...], policy: Sharding, optimizer: str) -> Column:
    """Bytes the optimizer reads and writes: its state both ways, gradients in, weights out, of a rank's share."""
    per_parameter = 2 * OPTIMIZERS[optimizer] + GRADIENT
    shares = [kind.size / (kind.copies if policy.stage else 1.0) * (per_parameter + kind.stored) for kind in kinds]
    return np.asarray(np.sum(shares, axis=0))


def _series(name: str, ops: Iterator[Elementwise | Reduce]) -> Schedule:
    """Write ops one after another on every rank alike."""
    tasks = [
        Task(name=name, stream="comm" if isinstance(op, Reduce) else "compute", op=op, after=(at - 1,) if at else ())
        for at, op in enumerate(ops)
    ]
    return Schedule(tasks=tuple(tasks), out=(len(tasks) - 1,) if tasks else (), groups=_NOBODY)


_NOBODY: Mapping[str, np.ndarray] = MappingProxyType({})
