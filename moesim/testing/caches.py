"""The suites of expert caches: what leaves, and what is fetched early."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from moesim.policies.protocols import (
    Buffering,
    CacheView,
    Prefetch,
)
from moesim.testing.drawing import seeded
from moesim.world.hardware import MEMORY_TIERS


def check_buffering(buffering: Buffering) -> None:
    """Check that no more slots are resident than there are, and that a key ranks every expert of every cache alike."""
    for slots in (16, 64):
        assert 1 <= buffering.resident_of(slots) <= slots, f"{buffering.resident_of(slots)} of {slots} slots resident"
    assert buffering.hosted == 0 or buffering.tier == "host", "the host computes what is in its own memory"
    assert buffering.tier in MEMORY_TIERS, f"keeps experts in `{buffering.tier}`, not in {' or '.join(MEMORY_TIERS)}"
    seen = _cache_view()
    key = buffering(seen)
    assert key.shape == seen.used.shape, f"keys of shape {key.shape} for caches and experts of {seen.used.shape}"
    assert not np.isnan(key.astype(float)).any(), "a key that is no number"
    assert np.array_equal(key, buffering(seen)), "two answers for the same caches"
    mirrored = {each.name: getattr(seen, each.name) for each in fields(seen) if each.name != "now"}
    turned = replace(seen, **{name: values[::-1, ::-1] for name, values in mirrored.items()})
    assert np.array_equal(buffering(turned), key[::-1, ::-1]), "depends on how caches or experts are numbered"


def _cache_view() -> CacheView:
    """Three caches of eight experts, some never used."""
    shape, now = (3, 8), 40
    used = seeded(7).integers(-1, now, size=shape)
    return CacheView(
        now=now,
        needed=seeded(8).random(shape) < 0.5,
        used=used,
        inserted=np.minimum(used, seeded(9).integers(-1, now, size=shape)),
        count=np.where(used < 0, 0, seeded(10).integers(1, 9, size=shape)),
        share=seeded(11).random(shape),
        next_use=now + seeded(12).permutation(24).reshape(shape),
    )


def check_prefetch(prefetch: Prefetch) -> None:
    """Check that what is missing is copied in once, early or late, and that nothing is more than free."""
    for missing in (np.array([[0.0, 1e9, 3.5e8]]), np.zeros((2, 1))):
        sorted_out = prefetch(missing)
        parts = (sorted_out.early, sorted_out.wasted, sorted_out.late)
        assert all(part.shape == missing.shape for part in parts), "sizes are shaped like what is missing"
        assert all(np.all(part >= 0) for part in parts), "negative bytes"
        assert np.allclose(sorted_out.early + sorted_out.late, missing, rtol=1e-12), "not all that is missing arrives"
        assert np.all(sorted_out.wasted[missing == 0] == 0), "copies experts where all are resident"
