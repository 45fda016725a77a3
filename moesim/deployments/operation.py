"""The operating point of a pool: what one pass works on when a replica runs at its full batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.passes.columns import Column, as_column
from moesim.passes.table import PoolTable, batching_of
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
    carrying : share of the passes in which any dp group carries prompt tokens
    carriers : share of the dp groups that do, in such a pass
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
    carriers: Numbers
    kept: Numbers
    tokens: Numbers
    most: Numbers
    prefills: Numbers
    emitted: Numbers

    def take(self, plans: Sequence[int] | Int[np.ndarray, "plan"]) -> Operation:
        """Keep some of the plans."""
        return Operation(**{each.name: getattr(self, each.name)[plans] for each in fields(self)})


def _with(point: Operation, rows: Int[np.ndarray, "row"], part: Operation) -> Operation:
    """Replace some plans' operating points."""
    columns = {each.name: getattr(point, each.name).copy() for each in fields(point)}
    for name, values in columns.items():
        values[rows] = getattr(part, name)
    return Operation(**columns)


def operation(workload: Serving | Training, table: PoolTable) -> Operation:
    """Find every pool's operating point: a full batch in serving, one microbatch in training.

    Pools of role ``prefill`` work on prompts alone, as many as their budget holds; those of role ``decode`` on decodes
    alone.
    """
    if isinstance(workload, Training):
        return _training_operation(workload, table)
    point = _mixed_operation(workload, table)
    for role, alone in (("prefill", _prefill_operation), ("decode", _decode_operation)):
        likes = [number for number, like in enumerate(table.variants) if like.role == role]
        rows = np.flatnonzero(np.isin(table.variant, likes))
        if len(rows):
            point = _with(point, rows, alone(workload, table.take(rows)))
    return point


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passes:
    """Passes of pools at their operating points, one a row; `carrying` says which carry prompt tokens besides decodes.

    A training pass carries nothing else.
    """

    table: PoolTable
    point: Operation
    carrying: Bool[np.ndarray, "plan"]

    def batch(self, workload: Serving | Training, share: float | Numbers) -> Batch:
        """Write a share of every pass's batch, per rank, as columns; 1/2 for two-batch overlap."""
        part = as_column(np.broadcast_to(np.asarray(share, float), (len(self.table),)))
        if isinstance(workload, Serving):
            return _serving_batch(workload, self, part)
        return _training_batch(workload, self.table, part)


def _training_operation(workload: Training, table: PoolTable) -> Operation:
    """One microbatch of whole sequences per dp group; nothing is decoded."""
    sequences = table["microbatch"].astype(float)
    none, one = np.zeros(len(table)), np.ones(len(table))
    tokens = sequences * workload.sequence / table.members
    return Operation(
        sequences=sequences,
        decoding=none,
        chunk=sequences * workload.sequence,
        carrying=one,
        carriers=one,
        kept=none,
        tokens=tokens,
        most=tokens,
        prefills=one,
        emitted=none,
    )


def _new_tokens(workload: Serving) -> float:
    """Prompt tokens of a request that no prefix cache holds."""
    return workload.requests.input.mean * (1 - workload.requests.prefix_hits)


def _mixed_operation(workload: Serving, table: PoolTable) -> Operation:
    """Balance prefill and decode: as many prompt tokens enter as keep the batch full.

    A full batch of S sequences ends S / output requests a step, so S x input / output prompt tokens must enter per
    step. They come in chunks, a whole prompt where the budget has room for it. Each dp group takes its own when it has
    room, no matter what the others do, and all step together: with c the share of its passes in which one group carries
    prompts, 1 - (1 - c)^dp of the passes carry any, and in those c / (1 - (1 - c)^dp) of the groups do. Where the
    budget is too small the batch cannot stay full, and shrinks to what the budget feeds.
    """
    requests, stages = workload.requests, table["pp"].astype(float)
    new, output = _new_tokens(workload), requests.output.mean
    speculated = table.each(lambda like: batching_of(like).speculated)
    emitted = table.each(lambda like: batching_of(like).emitted)
    budget = table.each(lambda like: batching_of(like).budget)
    wanted = table["max_batch"] / stages
    decoding = np.minimum(wanted, budget * output / (new * emitted + output * (1 + speculated)))
    decoded = decoding * (1 + speculated)
    wanted_chunk = decoding * emitted * new / output
    chunk = np.maximum(np.minimum(budget - decoded, new), wanted_chunk)
    own = wanted_chunk / chunk
    carrying = 1.0 - (1.0 - own) ** table["dp"]
    return Operation(
        sequences=decoding * stages,
        decoding=decoding,
        chunk=chunk,
        carrying=carrying,
        carriers=own / carrying,
        kept=np.full(len(table), requests.input.mean + output),
        tokens=(wanted_chunk + decoded) / table.members,
        most=(chunk + decoded) / table.members,
        prefills=np.maximum(new / chunk, 1.0),
        emitted=emitted,
    )


def _prefill_operation(workload: Serving, table: PoolTable) -> Operation:
    """Prompts alone: a pass holds what the budget allows, a whole prompt at least where it has room for one."""
    budget = table.each(lambda like: batching_of(like).budget)
    new = _new_tokens(workload)
    chunk = np.minimum(budget, table["max_batch"] * new)
    none, one = np.zeros(len(table)), np.ones(len(table))
    return Operation(
        sequences=np.maximum(chunk / new, 1.0) * table["pp"],
        decoding=none,
        chunk=chunk,
        carrying=one,
        carriers=one,
        kept=np.full(len(table), float(workload.requests.input.mean)),
        tokens=chunk / table.members,
        most=chunk / table.members,
        prefills=np.maximum(new / chunk, 1.0),
        emitted=none,
    )


def _decode_operation(workload: Serving, table: PoolTable) -> Operation:
    """Decodes alone, at the full batch; prompts arrive with their caches."""
    speculated = table.each(lambda like: batching_of(like).speculated)
    decoding = table["max_batch"] / table["pp"]
    none = np.zeros(len(table))
    tokens = decoding * (1 + speculated) / table.members
    return Operation(
        sequences=table["max_batch"].astype(float),
        decoding=decoding,
        chunk=none,
        carrying=none,
        carriers=none + 1.0,
        kept=np.full(len(table), workload.requests.input.mean + workload.requests.output.mean),
        tokens=tokens,
        most=tokens,
        prefills=none,
        emitted=table.each(lambda like: batching_of(like).emitted),
    )


def _serving_batch(workload: Serving, passes: Passes, share: Column) -> Batch:
    """Write one pass's batch, per rank: decodes, and prompt tokens where it is carrying.

    A chunk attends to its prompt's prefix: half the new tokens before it on average, besides cached ones.
    """
    requests, table, point = workload.requests, passes.table, passes.point
    part = share / as_column(table.members)
    speculated = as_column(table.each(lambda like: batching_of(like).speculated))
    new = _new_tokens(workload)
    cached = requests.input.mean * requests.prefix_hits
    chunk = as_column(point.chunk * passes.carrying)
    prefill = chunk * part
    decode = as_column(point.decoding) * part
    chunks = np.maximum(chunk / new, 1.0) * (chunk > 0) * part
    return Batch(
        prefill=prefill,
        prompts=prefill / new,
        pairs=prefill * (cached + new / 2),
        keys=chunks * (cached + (new + np.minimum(chunk, new)) / 2),
        decode=decode * (1 + speculated),
        context=np.full_like(prefill, requests.input.mean + requests.output.mean / 2),
        carriers=as_column(point.carriers),
    )


def _training_batch(workload: Training, table: PoolTable, share: Column) -> Batch:
    """Write one microbatch of training, per rank."""
    sequences = as_column(table["microbatch"] / table.members) * share
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
