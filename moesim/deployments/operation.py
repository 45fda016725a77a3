"""The operating point of a pool: what one pass works on when a replica runs at its full batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

from moesim.passes.columns import column
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching
from moesim.world.workload import Batch, Serving, Training

Numbers = Float[np.ndarray, "plan"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """Steady state of every plan, at full batch.

    Attributes
    ----------
    sequences : sequences in flight per dp group, over all pipeline stages
    decoding : sequences of a dp group in one pass
    chunk : prompt tokens of a dp group in a pass that carries any
    carrying : share of the passes that carry prompt tokens
    kept : tokens cached per sequence, at its longest
    tokens : home tokens per rank in one pass, on average
    most : home tokens per rank in the largest pass the budget allows: what memory is set aside for
    prefills : passes one prompt needs
    emitted : output tokens per sequence and pass (more than 1 where tokens are speculated)
    """

    sequences: Numbers
    decoding: Numbers
    chunk: Numbers
    carrying: Numbers
    kept: Numbers
    tokens: Numbers
    most: Numbers
    prefills: Numbers
    emitted: Numbers

    def take(self, plans: Sequence[int]) -> Operation:
        """Keep some of the plans."""
        chosen = list(plans)
        return Operation(**{each.name: getattr(self, each.name)[chosen] for each in fields(self)})


def operation(workload: Serving | Training, pools: Sequence[Pool]) -> Operation:
    """Find every pool's operating point: a full batch in serving, one microbatch in training."""
    if isinstance(workload, Serving):
        return _serving_operation(workload, pools)
    return _training_operation(workload, pools)


def batch_share(
    workload: Serving | Training, pools: Sequence[Pool], point: Operation, share: float, *, carrying: bool
) -> Batch:
    """Write a share of the batch of an operating point, per rank, as columns over plans.

    `share` is 1/2 for two-batch overlap; `carrying` says whether the pass carries prompt tokens besides decodes (a
    training pass carries nothing else).
    """
    if isinstance(workload, Serving):
        return _serving_batch(workload, pools, point, share, carrying=carrying)
    return _training_batch(workload, pools, share)


def _training_operation(workload: Training, pools: Sequence[Pool]) -> Operation:
    """One microbatch of whole sequences per dp group; nothing is decoded."""
    sequences = np.array([float(pool.microbatch) for pool in pools])
    group = np.array([float(pool.parallel.tp * pool.parallel.cp) for pool in pools])
    none = np.zeros(len(pools))
    return Operation(
        sequences=sequences,
        decoding=none,
        chunk=sequences * workload.sequence,
        carrying=np.ones(len(pools)),
        kept=none,
        tokens=sequences * workload.sequence / group,
        most=sequences * workload.sequence / group,
        prefills=np.ones(len(pools)),
        emitted=none,
    )


def _serving_operation(workload: Serving, pools: Sequence[Pool]) -> Operation:
    """Balance prefill and decode: as many prompt tokens enter as keep the batch full.

    A full batch of S sequences ends S / output requests a step, so S x input / output prompt tokens must enter per
    step. They come in chunks, a whole prompt where the budget has room for it, and all dp groups take theirs in the
    same passes; the passes between decode only. Where the budget is too small the batch cannot stay full, and shrinks
    to what the budget feeds.
    """
    batching: list[Batching] = [make("batching", pool.policy("batching")) for pool in pools]
    requests = workload.requests
    new, output = requests.input.mean * (1 - requests.prefix_hits), requests.output.mean
    stages = np.array([float(pool.parallel.pp) for pool in pools])
    group = np.array([float(pool.parallel.tp * pool.parallel.cp) for pool in pools])
    speculated = np.array([float(policy.speculated) for policy in batching])
    emitted = np.array([policy.emitted for policy in batching])
    budget = np.array([float(policy.budget) for policy in batching])
    wanted = np.array([float(policy.max_batch) for policy in batching]) / stages
    decoding = np.minimum(wanted, budget * output / (new * emitted + output * (1 + speculated)))
    decoded = decoding * (1 + speculated)
    wanted_chunk = decoding * emitted * new / output
    chunk = np.maximum(np.minimum(budget - decoded, new), wanted_chunk)
    return Operation(
        sequences=decoding * stages,
        decoding=decoding,
        chunk=chunk,
        carrying=wanted_chunk / chunk,
        kept=np.full(len(pools), requests.input.mean + output),
        tokens=(wanted_chunk + decoded) / group,
        most=(chunk + decoded) / group,
        prefills=np.maximum(new / chunk, 1.0),
        emitted=emitted,
    )


def _serving_batch(
    workload: Serving, pools: Sequence[Pool], point: Operation, share: float, *, carrying: bool
) -> Batch:
    """Write one pass's batch, per rank: decodes, and prompt tokens where it is carrying.

    A chunk attends to its prompt's prefix: half the new tokens before it on average, besides cached ones.
    """
    requests = workload.requests
    group = column([pool.parallel.tp * pool.parallel.cp for pool in pools])
    speculated = column([float(_speculated(pool)) for pool in pools])
    new = requests.input.mean * (1 - requests.prefix_hits)
    cached = requests.input.mean * requests.prefix_hits
    chunk = column(list(point.chunk)) * carrying
    prefill = chunk * share / group
    decode = column(list(point.decoding)) * share / group
    chunks = np.maximum(chunk / new, 1.0) * carrying * share / group
    return Batch(
        prefill=prefill,
        prompts=prefill / new,
        pairs=prefill * (cached + new / 2),
        keys=chunks * (cached + (new + np.minimum(chunk, new)) / 2),
        decode=decode * (1 + speculated),
        context=np.full_like(prefill, requests.input.mean + requests.output.mean / 2),
    )


def _speculated(pool: Pool) -> int:
    policy: Batching = make("batching", pool.policy("batching"))
    return policy.speculated


def _training_batch(workload: Training, pools: Sequence[Pool], share: float) -> Batch:
    """Write one microbatch of training, per rank."""
    sequences = column([pool.microbatch / (pool.parallel.tp * pool.parallel.cp) for pool in pools]) * share
    length = float(workload.sequence)
    none = np.zeros_like(sequences)
    return Batch(
        prefill=sequences * length,
        prompts=sequences,
        pairs=sequences * length * length / 2,
        keys=sequences * length,
        decode=none,
        context=none,
        backward=True,
    )
