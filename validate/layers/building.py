"""From a spec to a layer on this rank: its weights, where its rows go, how they are made, and the order of it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch import distributed as dist

from moesim.ground.errors import Fault, InputError

from . import experts, packing
from .backbone import added, attention_of, dense_network, norm, shared_expert
from .bodies import Block, Gate, Operator, Plain, Stream
from .cache import CLAIRVOYANT, CachedExperts, Decisions
from .capacity import Capacity
from .clock import SILENT, Clock, timed
from .emulated import Link
from .experts import Experts, Matrices
from .kernels import EAGER, Kernels, compiled
from .lanes import Lanes, lanes_of
from .layer import Layer
from .pieces import bench, collectives
from .reacting import Reacting
from .routed import Routed
from .running import Built
from .spec import LayerSpec
from .tiers import DiskTier, HostTier
from .travel import Travel
from .weights import gate_weights, held, joined, sliced

History = Bool[np.ndarray, "step slot"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Site:
    """Where a layer is built: this rank among the others, its device, the seed of all weights."""

    spec: LayerSpec
    members: tuple[int, ...]
    group: Any
    rank: int
    device: torch.device
    seed: int

    def part(self, first: int, number: int) -> Any:
        """Return the group of some ranks in a row, to which this one belongs."""
        if number == len(self.members):
            return self.group
        return collectives.group_of(self.members[first : first + number])


def build(
    spec: LayerSpec,
    group: Any,
    rank: int,
    device: torch.device,
    seed: int,
    *,
    history: History | None = None,
    scratch: Path | None = None,
    link: Link | None = None,
) -> Layer:
    """Build a layer on this rank; all ranks of the group do so together, from one spec and seed.

    Parameters
    ----------
    group : process group of the spec's ranks; None: all processes, or this one alone
    rank : this one's number in the group
    history : which of this rank's slots each step of a run will use, for caches that know the future or the whole past
    scratch : a folder on the disk where experts are kept; None: where temporary files go
    link : between nodes, where a slow one is emulated; None: the network is what it is

    Raises
    ------
    InputError
        The device, the processes or the compiler are not what the spec asks for.
    """
    site = _site(spec, group, rank, device, seed)
    kernels = compiled(device) if spec.compiled else EAGER
    lanes = lanes_of(spec, rank % spec.ep if spec.r is None else rank, device)
    weights, matrices = _matrices(site)
    cache = None if spec.cache is None else _cached(site, matrices, history, scratch)
    travel = _travel(site, lanes, link)
    capacity = Capacity(spec=spec, lanes=lanes, travel=travel, device=device)
    routed = Routed(
        lanes=lanes,
        travel=travel,
        kernels=kernels,
        packing={"static": packing.dense, "sparse": packing.sparse}.get(spec.gating, packing.gathered),
        fixed=spec.static,
        degree=spec.degree if travel is not None else 1,
        experts=_experts(spec, kernels),
        matrices=matrices,
        room=capacity.room,
        fetched=None if cache is None else cache.fetched,
    )
    body, own = _body(site, kernels, routed)
    return Built(
        spec=spec,
        weights={name: weight.requires_grad_(spec.backward) for name, weight in (weights | own).items()},
        body=body,
        routed=routed,
        cache=cache,
        reacting=_reacting(site, capacity),
        altered=capacity.follow,
    )


def _site(spec: LayerSpec, group: Any, rank: int, device: torch.device, seed: int) -> _Site:
    """Check the surroundings."""
    problems = []
    if device.type == "cuda" and not torch.cuda.is_available():
        problems.append(Fault(path="device", problem="torch sees no gpu here", remedy="use cpu"))
    if spec.graphed and device.type != "cuda":
        problems.append(Fault(path="graphed", problem="CUDA graphs need a gpu", remedy="leave it out"))
    together = dist.is_available() and dist.is_initialized()
    members = tuple(dist.get_process_group_ranks(group or dist.group.WORLD)) if together else (0,)
    if len(members) != spec.ranks:
        remedy = "start as many, with torchrun, and init_process_group in each"
        problems.append(Fault(path="ranks", problem=f"{spec.ranks} in a group of {len(members)}", remedy=remedy))
    elif members != tuple(range(members[0], members[0] + len(members))):
        problems.append(Fault(path="ranks", problem=f"a group of {members}", remedy="take ranks in a row"))
    if problems:
        raise InputError("layer", problems)
    return _Site(spec=spec, members=members, group=group, rank=rank, device=device, seed=seed)


def _travel(site: _Site, lanes: Lanes, link: Link | None) -> Travel | None:
    """Find the ranks that rows travel between; none where each computes its own.

    Raises
    ------
    InputError
        The link is emulated, and the exchange has two phases.
    """
    spec = site.spec
    if lanes.ranks == 1:
        return None
    first = site.rank - lanes.rank
    two = spec.alltoall == "two_dh"
    if two and link is not None:
        remedy = "use linear exchanges, or a system that lets users make network namespaces"
        raise InputError("layer", [Fault(path="alltoall", problem="two_dh over an emulated link", remedy=remedy)])
    return Travel(
        group=site.part(first, lanes.ranks),
        ranks=lanes.ranks,
        levels=collectives.levels(lanes.ranks, spec.width, site.members[first]) if two else None,
        link=None if link is None else replace(link, first=first, rank=lanes.rank),
        # On a CPU two phases are waited for at once: in a thread beside other work, gloo was once seen to hang. Some
        # hundred steps over the loopback and over a slow link did not show it again, and nobody knows why it did.
        beside=site.device.type == "cuda"
        and (spec.degree > 1 or spec.overlap != "none" or (spec.block is not None and spec.block.slot > 0)),
    )


def _matrices(site: _Site) -> tuple[dict[str, Tensor], Callable[[Clock], Matrices]]:
    """Make this rank's experts, by name and as they are computed with."""
    spec = site.spec
    if spec.r is None:
        local = len(spec.placement) // spec.ep
        first = site.rank % spec.ep * local
        stored = held(spec, spec.placement[first : first + local], site.seed, site.device)
    elif spec.shards == 1:
        local = spec.experts // spec.ranks
        stored = held(spec, range(site.rank * local, (site.rank + 1) * local), site.seed, site.device)
    else:
        expert, slice_ = divmod(site.rank, spec.shards)
        stored = sliced(spec, [expert], slice_, site.seed, site.device)
    own = {"experts.inner": stored.inner, "experts.outer": stored.outer}
    gathered = _gathering(site)
    return own, (lambda clock: stored) if gathered == 1 else partial(_gather, site, gathered, stored)


def _gathering(site: _Site) -> int:
    """How many ranks' weights are gathered: all with r = 0, else those that hold parts of one slice."""
    spec = site.spec
    if spec.r is None:
        return 1
    return spec.ranks if spec.r == 0 else spec.shards // spec.r


def _gather(site: _Site, ranks: int, stored: Matrices, clock: Clock) -> Matrices:
    """Gather weights from ranks in a row and join their slices."""
    group = site.part(site.rank // ranks * ranks, ranks)
    inner, outer = (
        timed(clock, "gather", lambda each: collectives.all_gather(each, ranks, group), part)
        for part in (stored.inner, stored.outer)
    )
    whole = Matrices(inner=inner, outer=outer, gated=stored.gated)
    return joined(whole, ranks if site.spec.r else site.spec.shards)


def _experts(spec: LayerSpec, kernels: Kernels) -> Experts:
    if spec.static:
        return partial(experts.batched, multiply=kernels.experts)
    return experts.grouped if spec.gating == "grouped" else experts.looped


def _cached(
    site: _Site, matrices: Callable[[Clock], Matrices], history: History | None, scratch: Path | None
) -> CachedExperts:
    """Send all experts to the cold tier and make places for some."""
    spec = site.spec.cache
    assert spec is not None
    if spec.eviction in CLAIRVOYANT and history is None:
        problem = f"`{spec.eviction}` decides by what a whole run uses"
        raise InputError("layer", [Fault(path="cache.eviction", problem=problem, remedy="give build the history")])
    everything = matrices(SILENT)
    slots = everything.inner.shape[0]
    places = Matrices(
        inner=torch.empty_like(everything.inner[: spec.resident]),
        outer=torch.empty_like(everything.outer[: spec.resident]),
        gated=everything.gated,
    )
    tier = HostTier(everything) if spec.tier == "host" else DiskTier(everything, scratch)
    return CachedExperts(decisions=Decisions(spec=spec, slots=slots, history=history), tier=tier, places=places)


def _body(site: _Site, kernels: Kernels, routed: Routed) -> tuple[Plain | Block, dict[str, Tensor]]:
    """Put gate and routed stream into their order with the rest, and name the rest's weights."""
    spec, seed, device = site.spec, site.seed, site.device
    weight = torch.ones(spec.hidden, dtype=bench.DTYPES[spec.dtype], device=device)
    gate = gate_weights(spec, seed, device)
    stream = Stream(weight=weight, gate=Gate(kernels=kernels, weights=gate, topk=spec.topk), routed=routed)
    own = {"norm": weight, "gate": gate}
    shared = shared_expert(spec, seed, device) if spec.shared else None
    if shared is not None:
        own |= {"shared.inner": shared.inner, "shared.outer": shared.outer}
    if spec.block is None:
        after = 2 - spec.shared_slot if spec.overlap == "shared_expert" else 0
        return Plain(stream=stream, shared=shared, shared_after=after), own
    assert shared is not None
    first, second = (attention_of(spec, number, seed, device) for number in range(2))
    dense = dense_network(spec, spec.block.dense, seed, device)
    for name, each in (("attention.0", first), ("mlp", dense), ("attention.1", second)):
        own |= {f"{name}.inner": each.inner, f"{name}.outer": each.outer}
    operators: Sequence[Operator] = [partial(_operate, each, weight) for each in (first, dense, second)]
    return Block(stream=stream, operators=operators, shared=shared, tap=spec.block.tap, slot=spec.block.slot), own


def _operate(compute: Operator, weight: Tensor, state: Tensor, clock: Clock) -> Tensor:
    """Add to a state what an operator makes of it, normed."""
    return added(state, compute(norm(state, weight, clock), clock), clock)


def _reacting(site: _Site, capacity: Capacity) -> Reacting | None:
    if not site.spec.reactions:
        return None
    return Reacting(spec=site.spec, group=site.group, capacity=capacity.rows)
