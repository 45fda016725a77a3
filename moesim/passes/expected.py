"""A MoE layer at its mean: rows, active experts and bytes averaged over ranks and draws, for many plans at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from moesim.passes.columns import Column, Sizes, as_column
from moesim.passes.exchanges import Mixture, Topology, block_phases, element, stays
from moesim.passes.table import PoolTable
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Buffering, Phase, Placement
from moesim.schedules.ops import AllToAll, Elementwise, Exchange
from moesim.world.model import Moe

Phases = tuple[tuple[Phase, ...], tuple[Phase, ...], tuple[Phase, ...]]

Distinct = Callable[[Pool], Mapping[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Sizes MoE layers of plans that issue the same ops, at the mean of what is drawn.

    Dispatch and combine move what one token moves, times the tokens. All-to-all policies move bytes in proportion to
    the rows, however these are spread; one that saves copies moves as many more where they are spread unevenly as it
    moves fewer here, and then its slowest rank decides (tested against draws of any skew).

    Attributes
    ----------
    active : mean number of experts with rows in an expert block, for each cell
    distinct : mean number of blocks of ranks a token's experts live in, by ranks per block, for a pool
    known : phases for one token per rank, by what decides them; shared by all tables
    """

    table: PoolTable
    topology: Topology
    active: tuple[Column, ...]
    distinct: Distinct
    known: dict[Hashable, Phases] = field(default_factory=dict)

    def __call__(self, moe: Moe, cell: int, home: Sizes) -> Mixture:
        """Size a MoE layer from the home tokens per rank of each plan."""
        if not self._exact():
            home = home * 0.0
        block = as_column(self.table["ep"] * self.table["etp"])
        rows = home * block * moe.topk / as_column(self.table["ep"])
        sizes, dispatch, combine = self._phases(moe, home)
        here = stays(self._policy(self.table.variants[self.table.variant[0]]))
        return Mixture(
            rows=rows[None],
            sizes=sizes,
            dispatch=dispatch,
            combine=combine,
            packed=rows if here else home * moe.topk,
            returned=rows if here else home * (moe.topk * as_column(self.table["etp"])),
            mask=np.zeros((1, 1, 1)),
            active=self.active[cell] / as_column(self.table["ep"]) * self._exact(),
        )

    def _exact(self) -> bool:
        """Whether the gpus compute the rows that are drawn.

        Where gating drops or pads, or the host computes some, nothing is claimed about them.
        """
        first = self.table.variants[self.table.variant[0]]
        buffering: Buffering = make("buffering", first.policy("buffering"))
        return bool(first.policy("gating").name == "dynamic" and not buffering.hosted)

    def _policy(self, pool: Pool) -> AllToAllPolicy:
        policy: AllToAllPolicy = make("alltoall", pool.policy("alltoall"))
        return policy

    def _phases(self, moe: Moe, home: Sizes) -> Phases:
        """Stack the phases of all plans, their bytes in proportion to the home tokens."""
        codes: dict[Hashable, int] = {}
        likes = [codes.setdefault(_names(like), len(codes)) for like in self.table.variants]
        names = np.stack([np.array(likes)[self.table.variant], self.table["ep"], self.table["etp"]])
        _, first, place = np.unique(names, axis=1, return_index=True, return_inverse=True)
        each = [self._one(moe, self.table.pool(int(row))) for row in first]
        place = place.reshape(-1)
        tokens = np.broadcast_to(home, (len(self.table), 1, 1))
        one = np.ones_like(tokens)
        sizes, dispatch, combine = (
            tuple(_gathered(phases, place, scale) for phases in zip(*kind, strict=True))
            for kind, scale in zip(zip(*each, strict=True), (one, tokens, tokens), strict=True)
        )
        return sizes, dispatch, combine

    def _one(self, moe: Moe, pool: Pool) -> Phases:
        """Phases of one plan for one home token per rank, averaged over ranks."""
        p, policy = pool.parallel, self._policy(pool)
        if policy.replicated or p.ep * p.etp == 1:
            return (), (), ()
        key = (moe, _names(pool), p.ep, p.etp, self.topology)
        if key not in self.known:
            self.known[key] = self._written(moe, pool, policy)
        return self.known[key]

    def _written(self, moe: Moe, pool: Pool, policy: AllToAllPolicy) -> Phases:
        p = pool.parallel
        placement: Placement = make("placement", pool.policy("placement"))
        slots = placement.slots(moe.experts, p.ep) / p.ep
        dispatch = Exchange(
            rows=np.full((p.ep, 1, 1), moe.topk / p.ep),
            ranks_of_slot=np.arange(p.ep * p.etp).reshape(p.ep, p.etp),
            ranks=p.ep * p.etp,
            row=moe.input_dim * element(pool, "dispatch"),
            reverse=False,
            tokens=np.ones((1, 1)),
            distinct=self.distinct(pool),
        )
        combined = moe.input_dim * element(pool, "combine")
        sizes, sent, back = block_phases(policy, dispatch, combined, self.topology, True)
        return tuple(_scaled(_mean(phase), slots) for phase in sizes), _means(sent), _means(back)


def _names(pool: Pool) -> Hashable:
    """Name what decides a pool's phases, besides where its experts are."""
    policies = tuple(pool.policy(kind) for kind in ("alltoall", "placement"))
    return (*policies, pool.precision.get("dispatch"), pool.precision.get("combine"))


def _means(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    return tuple(_mean(phase) for phase in phases)


def _mean(phase: Phase) -> Phase:
    """Average a phase over ranks, and give it a plan axis of size 1."""
    op = phase.op
    if isinstance(op, AllToAll):
        sent, received, messages = (_averaged(size) for size in (op.sent, op.received, op.messages))
        return replace(phase, op=replace(op, sent=sent, received=received, messages=messages))
    assert isinstance(op, Elementwise)
    return replace(phase, op=Elementwise(traffic=_averaged(op.traffic[None])[0]))


def _averaged(size: Float[np.ndarray, "tier ..."]) -> Float[np.ndarray, "tier 1 1 1"]:
    return np.asarray(size.reshape(len(size), -1).mean(axis=1).reshape(-1, 1, 1, 1))


def _scaled(phase: Phase, factor: float) -> Phase:
    assert isinstance(phase.op, AllToAll)
    return replace(phase, op=replace(phase.op, sent=phase.op.sent * factor, received=phase.op.received * factor))


def _gathered(phases: tuple[Phase, ...], place: np.ndarray, scale: Sizes) -> Phase:
    """Stack one phase of several kinds of plan, deal it to the plans, and scale its bytes."""
    first = phases[0]
    if isinstance(first.op, AllToAll):
        ops = [phase.op for phase in phases if isinstance(phase.op, AllToAll)]
        sent, received, messages = (
            np.concatenate([getattr(op, name) for op in ops], axis=1)[:, place]
            for name in ("sent", "received", "messages")
        )
        return replace(first, op=replace(first.op, sent=sent * scale, received=received * scale, messages=messages))
    traffic = [phase.op.traffic for phase in phases if isinstance(phase.op, Elementwise)]
    return replace(first, op=Elementwise(traffic=np.concatenate(traffic)[place] * scale))
