"""The gate and what moves rows to experts inside one rank: sparse by sorting, dense by einsum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .bench import Bench, Case, Inputs


def gate(tokens: Tensor, weights: Tensor, topk: int, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose experts: tokens [t, dim], weights [expert, dim]; gives shares [t, topk] that sum to 1, and experts.

    With experts `given`, those are used: a choice is made all the same, so that it takes its time.
    """
    return choose(functional.linear(tokens, weights), topk, given)


def choose(scores: Tensor, topk: int, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose the experts of highest score [t, expert]: shares [t, topk] that sum to 1, and experts [t, topk]."""
    likely = torch.softmax(scores, dim=-1, dtype=torch.float32)
    shares, experts = torch.topk(likely, topk, dim=-1)
    if given is not None:
        shares, experts = likely.gather(1, given), given
    return shares / shares.sum(dim=-1, keepdim=True), experts


def sort_rows(experts: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Sort a batch's choices [t, topk] by expert: the order of its rows, and how many each expert has, int64.

    The host waits for nothing here; `torch.bincount` would make it wait on a gpu.
    """
    flat = experts.flatten()
    counts = flat.new_zeros(number).scatter_add_(0, flat, torch.ones_like(flat))
    return flat.argsort(stable=True), counts


def permute(tokens: Tensor, order: Tensor, topk: int) -> Tensor:
    """Gather the rows of all experts: tokens [t, dim], order [t x topk]; row i is token order[i] / topk."""
    return tokens.index_select(0, order // topk)


def pack(tokens: Tensor, experts: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bring rows to their experts: sort a batch's choices and gather; gives rows, their order, and rows per expert."""
    order, counts = sort_rows(experts, number)
    return permute(tokens, order, experts.shape[1]), order, counts


def unpermute(rows: Tensor, order: Tensor, shares: Tensor) -> Tensor:
    """Add rows back to their tokens, weighted: rows [t x topk, dim], shares [t, topk]; gives [t, dim]."""
    tokens, topk = shares.shape
    weighted = rows * shares.flatten()[order].unsqueeze(1).to(rows.dtype)
    return rows.new_zeros(tokens, rows.shape[1]).index_add_(0, order // topk, weighted)


def buffer_order(experts: Tensor, rooms: Tensor, rows: int) -> Tensor:
    """Place a batch's choices [t, topk] in buffers of `rooms` [expert] rows, `rows` in all, in order of arrival.

    Gives for each row of the buffers the number of the choice that fills it, or -1 where none does: Tutel's sparse
    encoding, which builds no mask. Choices that find no room are dropped.
    """
    order, counts = sort_rows(experts, rooms.numel())
    held = experts.flatten()[order]
    place = torch.arange(order.numel(), device=order.device) - (counts.cumsum(0) - counts)[held]
    row = torch.where(place < rooms[held], (rooms.cumsum(0) - rooms)[held] + place, rows)
    return order.new_full((rows + 1,), -1).scatter_(0, row, order)[:rows]  # all that is dropped goes to the last row


def encode(tokens: Tensor, order: Tensor, topk: int) -> Tensor:
    """Fill buffers by gathering: tokens [t, dim], order of `buffer_order`; rows that nothing fills hold anything."""
    if not tokens.shape[0]:
        return functional.pad(tokens, (0, 0, 0, order.numel()))
    return tokens.index_select(0, order.clamp(min=0) // topk)


def decode(rows: Tensor, order: Tensor, shares: Tensor) -> Tensor:
    """Add the rows of buffers back to their tokens, weighted: what nothing filled counts nothing; gives [t, dim]."""
    tokens, topk = shares.shape
    if not tokens:
        return rows[:0]
    weights = functional.pad(shares.flatten(), (0, 1))[order]  # -1 is the last one: 0
    weighted = rows * weights.unsqueeze(1).to(rows.dtype)
    return rows.new_zeros(tokens, rows.shape[1]).index_add_(0, order.clamp(min=0) // topk, weighted)


def dispatch_mask(shares: Tensor, experts: Tensor, number: int, capacity: int) -> Tensor:
    """Write the dense mask [t, expert, capacity] of static gating; rows beyond an expert's capacity are dropped.

    A token's place in an expert's buffer is how many choices before it, in token order, went there. The host waits for
    nothing here: `index_put_` would look at the indices on a gpu, and could not be captured.
    """
    tokens, topk = experts.shape
    flat = experts.flatten()
    chosen = torch.zeros(flat.numel(), number, dtype=torch.int32, device=flat.device)
    chosen.scatter_(1, flat.unsqueeze(1), 1)
    place = (chosen.cumsum(0) - 1).gather(1, flat.unsqueeze(1)).squeeze(1)
    kept = shares.flatten() * (place < capacity)
    token = torch.arange(tokens * topk, device=flat.device) // topk
    cell = (token * number + flat) * capacity + place.clamp(max=capacity - 1)
    mask = shares.new_zeros(tokens * number * capacity)
    return mask.scatter_add(0, cell, kept).view(tokens, number, capacity)


def dispatch_dense(mask: Tensor, tokens: Tensor) -> Tensor:
    """Fill experts' buffers by a product with the mask: tokens [t, dim], mask [t, expert, capacity] of 0 and 1."""
    return torch.einsum("tec,td->ecd", mask, tokens)


def combine_dense(mask: Tensor, rows: Tensor) -> Tensor:
    """Gather results by a product with the weighted mask: rows [expert, capacity, dim]; gives [t, dim]."""
    return torch.einsum("tec,ecd->td", mask, rows)


def gate_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the gate ready."""
    tokens = bench.pool.cut(dtype, inputs["tokens"], inputs["dim"])
    topk = int(inputs["topk"])
    return Case(call=gate, args=lambda: (tokens, bench.pool.cut(dtype, inputs["experts"], inputs["dim"]), topk))


def choose_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the choice of experts by given scores ready."""
    topk = int(inputs["topk"])
    return Case(call=choose, args=lambda: (bench.pool.cut(dtype, inputs["tokens"], inputs["experts"]), topk))


def sort_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the sorting of choices ready."""
    experts = _choices(inputs, bench)
    return Case(call=sort_rows, args=lambda: (experts, int(inputs["experts"])))


def permute_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the gathering of rows ready."""
    order, _ = sort_rows(_choices(inputs, bench), int(inputs["experts"]))
    topk = int(inputs["topk"])
    return Case(call=permute, args=lambda: (bench.pool.cut(dtype, inputs["tokens"], inputs["dim"]), order, topk))


def pack_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make sorting and gathering ready, as one."""
    experts, number = _choices(inputs, bench), int(inputs["experts"])
    return Case(call=pack, args=lambda: (bench.pool.cut(dtype, inputs["tokens"], inputs["dim"]), experts, number))


def unpermute_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the weighted adding of rows ready."""
    order, _ = sort_rows(_choices(inputs, bench), int(inputs["experts"]))
    shares = torch.rand(int(inputs["tokens"]), int(inputs["topk"]), device=bench.device)
    return Case(call=unpermute, args=lambda: (bench.pool.cut(dtype, order.numel(), inputs["dim"]), order, shares))


def dispatch_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the dense dispatch ready."""
    mask = _mask(inputs, bench).ne(0)
    held = mask.to(bench.pool.cut(dtype, 1).dtype)
    return Case(call=dispatch_dense, args=lambda: (held, bench.pool.cut(dtype, inputs["tokens"], inputs["dim"])))


def combine_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the dense combine ready."""
    held = _mask(inputs, bench).to(bench.pool.cut(dtype, 1).dtype)
    shape = (inputs["experts"], inputs["capacity"], inputs["dim"])
    return Case(call=combine_dense, args=lambda: (held, bench.pool.cut(dtype, *shape)))


def mask_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the writing of the dense mask ready."""
    experts = _choices(inputs, bench)
    shares = torch.rand(experts.shape, device=bench.device)
    return Case(call=dispatch_mask, args=lambda: (shares, experts, int(inputs["experts"]), int(inputs["capacity"])))


def _choices(inputs: Inputs, bench: Bench) -> Tensor:
    """Draw distinct experts for each token, uniformly."""
    scores = bench.pool.cut("fp32", inputs["tokens"], inputs["experts"])
    return scores.topk(int(inputs["topk"]), dim=-1).indices


def _mask(inputs: Inputs, bench: Bench) -> Tensor:
    experts = _choices(inputs, bench)
    shares = torch.rand(experts.shape, device=bench.device)
    return dispatch_mask(shares, experts, int(inputs["experts"]), int(inputs["capacity"]))
