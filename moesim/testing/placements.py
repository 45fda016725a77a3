"""The suite of placements."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from moesim.policies.placement.contiguous import Contiguous
from moesim.policies.protocols import (
    Placement,
)
from moesim.testing.drawing import seeded

_CLUSTERS = ((16, 4, 1), (64, 16, 2), (60, 8, 2), (12, 12, 3))  # experts, ranks, nodes


def check_placement(placement: Placement) -> None:
    """Check that every expert has a slot, ranks have equally many, and a promise to balance is kept."""
    for experts, ranks, nodes in _CLUSTERS:
        load = seeded(experts).lognormal(sigma=0.6, size=(4, 3, experts))
        load.flags.writeable = False
        slots = placement.slots(experts, ranks)
        assert slots >= experts, f"slots({experts}, {ranks}) = {slots}, fewer than the experts"
        assert slots % ranks == 0, f"slots({experts}, {ranks}) = {slots}, which {ranks} ranks do not share evenly"
        chosen = placement(load, slots, ranks, nodes, seeded(1))
        assert chosen.shape == (3, slots), f"expert_of_slot has shape {chosen.shape}, not {(3, slots)}"
        for row in chosen:
            assert set(row.tolist()) == set(range(experts)), "an expert has no slot, or a slot no expert"
        assert np.array_equal(chosen, placement(load, slots, ranks, nodes, seeded(1))), "two answers for one seed"
        if placement.balances:
            _check_balance(placement, load, chosen, ranks, nodes)


def _check_balance(
    placement: Placement,
    load: Float[np.ndarray, "step layer expert"],
    chosen: Any,
    ranks: int,
    nodes: int,
) -> None:
    mean, slots = load.mean(axis=0), chosen.shape[1]
    loads = rank_loads(chosen, mean, ranks)
    even = rank_loads(Contiguous()(load, slots, ranks, nodes, seeded(1)), mean, ranks)
    assert np.all(loads.max(axis=1) <= even.max(axis=1) * (1 + 1e-12)), "heavier than contiguous placement"
    # Read backwards, because that keeps groups of consecutive experts whole.
    mirrored = rank_loads(placement(load[..., ::-1], slots, ranks, nodes, seeded(1)), mean[:, ::-1], ranks)
    same = np.allclose(np.sort(loads, axis=1), np.sort(mirrored, axis=1), rtol=1e-9)
    assert same, "another balance when the experts are numbered backwards"


def rank_loads(
    expert_of_slot: Any, load: Float[np.ndarray, "layer expert"], ranks: int
) -> Float[np.ndarray, "layer rank"]:
    """Add up the load of each rank's slots; an expert's copies share its load evenly.

    Examples
    --------
    >>> rank_loads(np.array([[0, 1, 2, 0]]), np.array([[6.0, 1.0, 2.0]]), 2).tolist()
    [[4.0, 5.0]]
    """
    layers, experts = load.shape
    copies = np.stack([np.bincount(row, minlength=experts) for row in expert_of_slot])
    share = np.take_along_axis(load / copies, expert_of_slot, axis=1)
    return np.asarray(share.reshape(layers, ranks, -1).sum(axis=2))
