"""A whole MoE layer, put together from the other pieces: what parts add up to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import collectives, passes, products, routing
from .bench import Args, Bench, Case, Inputs


def local_layer(tokens: Tensor, router: Tensor, inner: Tensor, outer: Tensor, experts: Tensor) -> Tensor:
    """Run all experts on one rank: tokens [t, dim], router [expert, dim], inner [expert, dim, 2 width], outer back.

    The gate is run for its time and its shares; where rows go is given, experts [t, topk].
    """
    shares, _ = routing.gate(tokens, router, experts.shape[1])
    rows, order, counts = routing.pack(tokens, experts, router.shape[0])
    return routing.unpermute(_experts(rows, inner, outer, counts.tolist()), order, shares)


def exchanged_layer(
    tokens: Tensor, router: Tensor, inner: Tensor, outer: Tensor, experts: Tensor, ranks: int
) -> Tensor:
    """Run experts where they live, an equal part of them on each rank: `inner` and `outer` are this rank's."""
    shares, _ = routing.gate(tokens, router, experts.shape[1])
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
    number = torch.arange(experts, device=coming.device).repeat(ranks).repeat_interleave(coming.flatten())
    return number.argsort(stable=True), coming.sum(0).tolist()


def local_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a layer ready whose experts are all here."""
    return Case(call=local_layer, args=_args(inputs, dtype, bench, inputs["experts"]), on_host=True)


def exchanged_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a layer ready whose experts live on all ranks."""
    call = partial(exchanged_layer, ranks=bench.ranks)
    return Case(call=call, args=_args(inputs, dtype, bench, inputs["experts"] // bench.ranks), joint=True, on_host=True)


def _args(inputs: Inputs, dtype: str, bench: Bench, here: float) -> Callable[[], Args]:
    """Keep tokens, dealt to experts evenly, and cut the weights of the experts that are here anew for each call.

    At every call other tokens would give experts other numbers of rows, and a CPU builds a kernel for each number of
    them that it has not seen.
    """
    dim, width, cut = inputs["dim"], inputs["width"], bench.pool.cut
    tokens, router = cut(dtype, inputs["tokens"], dim), cut(dtype, inputs["experts"], dim)
    number, topk = int(inputs["tokens"]), int(inputs["topk"])
    experts = (torch.arange(number * topk, device=bench.device) % int(inputs["experts"])).view(number, topk)
    return lambda: (tokens, router, cut(dtype, here, dim, 2 * width), cut(dtype, here, width, dim), experts)
