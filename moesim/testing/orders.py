"""The suites of what rearranges a pass: overlap, shortcuts, and what is run again in backward."""

from __future__ import annotations

import numpy as np

from moesim.policies.protocols import (
    Overlap,
    Recompute,
    Shortcut,
)
from moesim.schedules.ops import Elementwise
from moesim.schedules.schedule import Schedule, Task, relayered, series
from moesim.testing.blocks import (
    check_conserved,
    check_order,
    check_rearranged,
    dense,
    dense_block,
    moe_block,
    plain_layout,
    sizes_by_name,
)
from moesim.world.model import Moe


def check_overlap(overlap: Overlap) -> None:
    """Check that a rearranged schedule does the same work, in an order that respects what waits for what."""
    layout = plain_layout()
    width = len(overlap.block(dense_block(), layout))
    assert width == len(overlap.block(moe_block(1), layout)), "other numbers of alternatives for dense and MoE blocks"
    for phases in (1, 2):
        block = moe_block(phases)
        for alternative in overlap.block(block, layout):
            check_rearranged(block, alternative)
    halves = tuple(moe_block(1) for _ in range(overlap.halves))
    whole = overlap.whole(halves)
    check_order(whole)
    check_conserved(sizes_by_name(*halves), sizes_by_name(whole), "the joined halves do other work")


def check_shortcut(shortcut: Shortcut) -> None:
    """Check that the same work is done in an order that respects what waits for what, and that changes are owned up to.

    A block that starts the routed stream early computes the norm before its gate once more.
    """
    moe = Moe(experts=8, topk=2, width=64, input_dim=32)
    assert shortcut.changes_model or shortcut.mixture(moe) == moe, (
        "changes the mixture, but says the model is unchanged"
    )
    assert shortcut.mixture(shortcut.mixture(moe)) == shortcut.mixture(moe), "changes what it has changed before"
    dense = dense_block()
    assert shortcut(dense, plain_layout()) == (dense,), "changes a block without experts"
    pair = series((_dense_pair(), relayered(moe_block(2), 1)))
    for alternative in shortcut(pair, plain_layout()):
        check_rearranged(pair, alternative)


def _dense_pair() -> Schedule:
    """A layer of attention and a dense network."""
    tasks = [
        Task(name="attention", stream="compute", op=dense(24)),
        Task(name="mlp", stream="compute", op=dense(24), after=(0,)),
    ]
    return Schedule(tasks=tuple(tasks), out=(1,), count=np.ones(4))


def check_recompute(recompute: Recompute) -> None:
    """Check that what is run again is what was not kept."""
    block = moe_block(phases=1)
    again = [task for task in block.tasks if recompute(task)]
    match recompute.keeps:
        case "all":
            assert not again, f"keeps all, and runs {again[0].name} again"
        case "products":
            products = [task.name for task in again if not isinstance(task.op, Elementwise)]
            assert again, "keeps less than all, and runs nothing again"
            assert not products, f"keeps what products need, and runs {products[0]} again"
        case "inputs":
            assert len(again) == len(block.tasks), "keeps its input alone, and does not run all again"
