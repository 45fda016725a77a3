"""The suite of policies that react."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moesim.plans.layout import Layout
from moesim.policies.protocols import (
    Adaptation,
    Change,
    Seen,
    Sizes,
)
from moesim.testing.blocks import plain_layout
from moesim.testing.drawing import seeded


def check_adaptation(adaptation: Adaptation) -> None:
    """Check that it asks for other layouts only where it says so, repeats itself, and returns whole layouts."""
    layout, experts = _adaptive_layout(), 12
    sizes = Sizes(tokens=48, topk=2, gpus=4, nodes=1, expert=1e6)
    counts = seeded(13).multinomial(48 * 4 * 2, seeded(14).dirichlet(np.ones(experts)), size=(30, 2))
    asked: list[int] = []

    def steps() -> list[Change | None]:
        state, now, found = adaptation.start(layout, sizes), layout, []
        for step in range(30):

            def cost_of(other: Layout, step: int = step) -> Any:
                asked.append(step)
                return other.degree * 1.0 + other.r

            seen = Seen(
                step=step,
                layout=now,
                counts=counts[step],
                most=counts[step].max(axis=1),
                agreement=0.5,
                cost_of=cost_of,
            )
            state, change = adaptation(state, seen, seeded(step))
            now = now if change is None else change.layout
            found.append(change)
        return found

    changes = steps()
    assert adaptation.profiles or not asked, "asks what other layouts cost, though it says that it does not"
    assert [change is None for change in changes] == [change is None for change in steps()], "two answers for one trace"
    for change in changes:
        if change is not None:
            _check_layout(change.layout, layout)
            assert change.rebuilt >= 0, "fewer than no graphs"
            assert change.moved >= 0, "moves negative bytes"


def _check_layout(changed: Layout, before: Layout) -> None:
    for field in ("expert_of_slot", "rank_of_slot", "capacity", "resident", "r", "degree"):
        shapes = getattr(changed, field).shape, getattr(before, field).shape
        assert shapes[0] == shapes[1], f"{field} has the shape {shapes[0]} and had {shapes[1]}"
    for row in changed.expert_of_slot:
        assert set(row.tolist()) == set(range(before.capacity.shape[1])), "an expert has no slot"
    assert np.all(changed.capacity > 0), "an expert without capacity"


def _adaptive_layout() -> Layout:
    """Two layers of 12 experts on 4 ranks, with a capacity of 4 times the mean."""
    return replace(
        plain_layout(),
        expert_of_slot=np.tile(np.arange(12), (2, 1)),
        capacity=np.full((2, 12), 32),
        resident=np.ones((2, 12), dtype=bool),
        r=np.ones(2, dtype=int),
        degree=np.ones(2, dtype=int),
        alltoall=("linear", "linear"),
    )
