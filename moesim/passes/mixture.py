"""Feed-forward parts as ops: a mixture of experts under expert parallelism, or a dense network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Int

from moesim.passes.attention import ACTIVATION, NORM_PASSES, join_group
from moesim.passes.buffering import add_fetches, add_hosted, buffered, rows_on_host
from moesim.passes.chain import Chain
from moesim.passes.columns import Columns, Sizes, column
from moesim.passes.exchanges import Mixture
from moesim.policies.protocols import Phase
from moesim.schedules.ops import Elementwise, Gemm, Grouped
from moesim.world.formats import bytes_of
from moesim.world.model import Dense, Moe, matrices

MASK = 4.0
"""Bytes per element of a dense dispatch mask: fp32, as fairseq builds it."""

GATE_SCORE = 4.0
"""Bytes read per expert by top-k: an fp32 score."""

GATE_TRAFFIC = 12.0
"""Bytes written per chosen expert by top-k: an int64 index and an fp32 weight."""


def add_mixture(
    chain: Chain, moe: Moe, dim: int, cols: Columns, sized: Mixture, tokens: Sizes, missing: Sizes, *, replicated: bool
) -> None:
    """Append a mixture of experts: gate, shared expert, pack, dispatch, experts, combine, unpack.

    `tokens` are each rank's own tokens, or those of its whole tensor-parallel group where they are `replicated`; then
    nothing is dispatched, and the caller adds the partial results up. `missing` is the share of the experts used that
    are not on the gpu.
    """
    chain.add("norm", Elementwise(traffic=tokens * dim * NORM_PASSES * ACTIVATION))
    chain.add("gate", Gemm(m=tokens, n=column([moe.experts]), k=column([dim]), dtype="bf16"))
    chain.add("gate", Elementwise(traffic=tokens * (moe.experts * GATE_SCORE + moe.topk * GATE_TRAFFIC), kernel="gate"))
    if moe.shared_width:
        width = moe.shared_width / (cols.tp if replicated else np.ones_like(cols.tp))
        _add_network(chain, "shared", dim, width, cols, tokens, gated=moe.gated)
    latent = moe.input_dim != dim
    if latent:
        _add_projection(chain, "pack", dim, moe.input_dim, cols, tokens)
    _add_pack(chain, moe, cols, sized, tokens)
    _add_phases(chain, "sizes", sized.sizes)
    fetched = add_fetches(chain, moe, cols, sized, missing) if buffered(cols.first) else ()
    _add_phases(chain, "dispatch", sized.dispatch)
    away = rows_on_host(cols.first, sized)
    hosted = () if away is None else (add_hosted(chain, moe, cols, away),)
    chain.tail = (*chain.tail, *fetched)
    _add_experts(chain, moe, cols, sized if away is None else replace(sized, rows=sized.rows - away))
    chain.tail = (*chain.tail, *hosted)
    _add_phases(chain, "combine", sized.combine)
    _add_unpack(chain, moe, cols, sized, tokens)
    if latent:
        _add_projection(chain, "unpack", moe.input_dim, dim, cols, tokens)


def add_dense(chain: Chain, dense: Dense, dim: int, cols: Columns, tokens: Sizes, tiers: Mapping[str, str]) -> None:
    """Append a dense feed-forward part, its width divided over the tensor-parallel group that shares `tokens`."""
    chain.add("norm", Elementwise(traffic=tokens * dim * NORM_PASSES * ACTIVATION))
    _add_network(chain, "mlp", dim, dense.width / cols.tp, cols, tokens, gated=dense.gated)
    join_group(chain, tokens * dim * ACTIVATION, "all_reduce", cols, tiers)


def _add_network(chain: Chain, name: str, dim: int, width: Sizes, cols: Columns, tokens: Sizes, *, gated: bool) -> None:
    """Append the products of a feed-forward network of inner `width` per rank, with the activation between them."""
    weights = cols.formats["dense"]
    inner = width * (matrices(gated=gated) - 1)
    chain.add(name, Gemm(m=tokens, n=inner, k=column([dim]), dtype=weights))
    chain.add(name, Elementwise(traffic=tokens * (inner + width) * ACTIVATION, kernel="activation"))
    chain.add(name, Gemm(m=tokens, n=column([dim]), k=width, dtype=weights))


def _add_projection(chain: Chain, name: str, inner: int, outer: int, cols: Columns, tokens: Sizes) -> None:
    """Append the projection into or out of the latent space experts work in."""
    chain.add(name, Gemm(m=tokens, n=column([outer]), k=column([inner]), dtype=cols.formats["dense"]))


def _add_pack(chain: Chain, moe: Moe, cols: Columns, sized: Mixture, tokens: Sizes) -> None:
    """Append the reorder: a gather of the rows, or a product with the dispatch mask where gating builds one."""
    if not np.any(sized.mask > 0):
        chain.add("pack", Elementwise(traffic=(tokens + sized.packed) * moe.input_dim * ACTIVATION, kernel="pack"))
        return
    chain.add("pack", Elementwise(traffic=sized.mask * MASK, kernel="mask"))
    chain.add("pack", Gemm(m=sized.packed, n=column([moe.input_dim]), k=tokens, dtype=_mask_format(cols)))


def _add_unpack(chain: Chain, moe: Moe, cols: Columns, sized: Mixture, tokens: Sizes) -> None:
    """Append the reorder back: a weighted sum of each token's rows, or a product with the combine mask."""
    if not np.any(sized.mask > 0):
        chain.add(
            "unpack",
            Elementwise(traffic=(sized.returned + tokens) * moe.input_dim * ACTIVATION, kernel="unpack"),
        )
        return
    chain.add("unpack", Elementwise(traffic=sized.mask * MASK, kernel="mask"))
    chain.add("unpack", Gemm(m=tokens, n=column([moe.input_dim]), k=sized.packed, dtype=_mask_format(cols)))


def _mask_format(cols: Columns) -> str:
    """Masks are made on the fly, so they are never stored in less than 16 bits."""
    dense = cols.formats["dense"]
    return dense if bytes_of(dense) >= ACTIVATION else "bf16"


def _add_phases(chain: Chain, name: str, phases: tuple[Phase, ...]) -> None:
    for phase in phases:
        chain.add(name, phase.op, stream=phase.stream, group=phase.group)


def _add_experts(chain: Chain, moe: Moe, cols: Columns, sized: Mixture) -> None:
    """Append the experts' two products, rows grouped by slot, with the activation between them."""
    weights = cols.formats["experts"]
    width = moe.width / cols.etp
    inner = width * (matrices(gated=moe.gated) - 1)
    rows = sized.rows.sum(axis=0)
    active, outer = sized.active, column([moe.input_dim])
    products = sized.rows if sized.sources == 1 else _apart(sized.rows, sized.sources)
    into = Grouped(rows=products, n=inner, k=outer, dtype=weights, active=active, repeats=sized.sources)
    chain.add("experts", into)
    chain.add("experts", Elementwise(traffic=rows * (inner + width) * ACTIVATION, kernel="activation"))
    chain.add("experts", replace(into, n=outer, k=width))


def _apart(rows: Int[np.ndarray, "slot plan draw rank"], sources: int) -> Int[np.ndarray, "product plan draw rank"]:
    """Deal each slot's rows to its sources, which send equally many to an expert of one capacity.

    Examples
    --------
    >>> _apart(np.array([[[[8]]], [[[5]]]]), 4).ravel()
    array([2, 2, 2, 2, 2, 1, 1, 1])
    """
    source = np.arange(sources)[:, None, None, None]
    return np.concatenate([(slot + sources - 1 - source) // sources for slot in rows[:, None]])
