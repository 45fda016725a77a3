"""The suite of gatings."""

from __future__ import annotations

from typing import Any

import numpy as np

from moesim.plans.layout import NO_LIMIT
from moesim.policies.protocols import (
    Gated,
    Gating,
)
from moesim.testing.drawing import seeded


def check_gating(gating: Gating) -> None:
    """Check that capacity is respected, nothing is kept that was not routed, and only drops change the model."""
    tokens, experts, topk = 48, 8, 2
    counts = seeded(2).multinomial(tokens * topk, seeded(3).dirichlet(np.ones(experts)), size=(2, 3, 4))
    counts = np.minimum(counts, tokens)
    capacity = np.full(experts, gating.capacity(tokens, experts, topk))
    home = np.full(counts.shape[:-1], tokens)
    gated = gating(counts, capacity, home)
    _check_gated(gating, gated, counts, capacity)
    _check_gated(gating, gating(counts * 0.97, capacity.astype(float), home), counts * 0.97, capacity)
    assert np.array_equal(gated.rows, gating(counts, capacity, home).rows), "two answers for the same counts"
    turned = gating(counts[:, ::-1, :, ::-1], capacity, home)
    assert np.array_equal(turned.kept, gated.kept[:, ::-1, :, ::-1]), "depends on how ranks or experts are numbered"
    larger = gating.capacity(2 * tokens, experts, topk)
    assert larger >= capacity[0], "less capacity for more tokens"


def _check_gated(gating: Gating, gated: Gated, counts: Any, capacity: Any) -> None:
    assert gated.rows.shape == gated.kept.shape == counts.shape, "rows and kept must be shaped like the counts"
    assert gated.mask.shape == counts.shape[:-1], "the mask is one size per rank"
    assert gated.rows.dtype == gated.kept.dtype == counts.dtype, "whole rows must stay whole, and means means"
    assert np.all(gated.kept <= counts), "keeps assignments that were not routed"
    assert np.all(gated.kept <= gated.rows), "keeps more assignments than it computes rows"
    assert np.all(gated.mask >= 0), "a negative mask"
    if capacity[0] < NO_LIMIT:
        assert np.all(gated.rows <= capacity), "more rows than the capacity"
    if not gating.changes_model:
        assert np.array_equal(gated.kept, counts), "drops assignments, though it says the model is unchanged"
