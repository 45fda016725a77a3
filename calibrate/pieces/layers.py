"""A whole MoE layer, put together from the other pieces: what parts add up to."""

from __future__ import annotations

import torch
from torch import Tensor

from . import collectives, passes, products, routing
from .bench import Bench, Case, Inputs


def local_layer(tokens: Tensor, router: Tensor, inner: Tensor, outer: Tensor, topk: int) -> Tensor:
    """Run all experts on one rank: tokens [t, dim], router [expert, dim], inner [expert, dim, 2 width], outer back."""
    shares, experts = routing.gate(tokens, router, topk)
    rows, order, counts = routing.pack(tokens, experts, router.shape[0])
    return routing.unpermute(_experts(rows, inner, outer, counts.tolist()), order, shares)


def exchanged_layer(tokens: Tensor, router: Tensor, inner: Tensor, outer: Tensor, topk: int, ranks: int) -> Tensor:
    """Run experts where they live, an equal part of them on each rank: `inner` and `outer` are this rank's."""
    shares, experts = routing.gate(tokens, router, topk)
    rows, order, counts = routing.pack(tokens, experts, router.shape[0])
    coming = collectives.exchange_sizes(counts).view(ranks, -1)
    given, taken = counts.view(ranks, -1).sum(1).tolist(), coming.sum(1).tolist()
    came = collectives.all_to_all(rows, taken, given)
    by_expert, per_expert = _by_expert(coming)
    done = _experts(came[by_expert], inner, outer, per_expert)
    back = done.new_empty(done.shape).index_copy_(0, by_expert, done)
    return routing.unpermute(collectives.all_to_all(back, given, taken), order, shares)


def _experts(rows: Tensor, inner: Tensor, outer: Tensor, counts: list[int]) -> Tensor:
    return products.looped(passes.swiglu(products.looped(rows, inner, counts)), outer, counts)


def _by_expert(coming: Tensor) -> tuple[Tensor, list[int]]:
    """Order rows that came rank by rank, [rank, expert] many, by expert; and how many each expert has."""
    ranks, experts = coming.shape
    number = torch.arange(experts).repeat(ranks).repeat_interleave(coming.flatten())
    return number.argsort(stable=True), coming.sum(0).tolist()


def local_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a layer ready whose experts are all here; weights are cold."""
    args = (inputs["experts"], inputs["experts"])
    return Case(call=local_layer, args=lambda: (*_cut(inputs, dtype, bench, *args), int(inputs["topk"])))


def exchanged_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a layer ready whose experts live on all ranks."""
    ranks = bench.ranks
    args = (inputs["experts"], inputs["experts"] // ranks)
    topk = int(inputs["topk"])
    return Case(call=exchanged_layer, args=lambda: (*_cut(inputs, dtype, bench, *args), topk, ranks), joint=True)


def _cut(inputs: Inputs, dtype: str, bench: Bench, experts: float, here: float) -> tuple[Tensor, ...]:
    """Cut tokens, the router and the weights of the experts that are here."""
    dim, width, cut = inputs["dim"], inputs["width"], bench.pool.cut
    shapes = ((inputs["tokens"], dim), (experts, dim), (here, dim, 2 * width), (here, width, dim))
    return tuple(cut(dtype, *shape) for shape in shapes)
