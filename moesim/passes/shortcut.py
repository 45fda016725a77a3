"""What a shortcut policy changes before anything is lowered: mixtures, how many rows they get, which layers join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int, Shaped

from moesim.ground.streams import stream
from moesim.passes.exchanges import Routed
from moesim.policies.protocols import Shortcut
from moesim.world.model import Model, Moe

GOLDEN = (5**0.5 - 1) / 2
"""Turns between the first choices that ranks of one draw keep, so that they differ evenly."""

FORGIVEN = 1e-9
"""Added where a product of decimals is rounded down."""


def changed_model(model: Model, shortcut: Shortcut) -> Model:
    """Give a model the mixtures that a shortcut policy makes of its own."""
    if not shortcut.changes_model:
        return model
    layers = (
        replace(layer, ffn=shortcut.mixture(layer.ffn)) if isinstance(layer.ffn, Moe) else layer
        for layer in model.layers
    )
    return replace(model, layers=tuple(layers))


def kept_share(model: Model, shortcut: Shortcut) -> float:
    """Share of the choices drawn for a model that are left where its tokens choose fewer experts."""
    if not shortcut.changes_model or not model.moe_layers:
        return 1.0
    moe = model.moe(model.moe_layers[0])
    return shortcut.mixture(moe).topk / moe.topk


def thinned(routed: Routed, share: float, block: int) -> Routed:
    """Leave each expert its share of fewer choices: counts are drawn for the model's k, and used for the changed one.

    Parameters
    ----------
    block : ranks that share an expert block: counts that are means over them are whole once multiplied with it
    """
    if share == 1.0:
        return routed
    scale = block if routed.alike else 1
    return replace(routed, counts=thin(routed.counts * scale, share) / scale)


def thin(
    counts: Shaped[np.ndarray, "draw *lead rank expert"], share: float
) -> Int[np.ndarray, "draw *lead rank expert"]:
    """Keep a share of whole counts, whole again: every so many of the choices in order, from a random one on.

    Totals are kept to within one, and every expert keeps its share in the mean. One choice of two is one, not two
    halves: a token has an expert to go to however few there are.

    Examples
    --------
    >>> thin(np.array([[1, 0, 0, 1], [4, 2, 0, 2]]), 0.5).sum(axis=-1)
    array([1, 4])
    """
    begin = stream(0, "thinned").random(len(counts)).reshape(-1, *(1,) * (counts.ndim - 1))
    turn = np.arange(counts.shape[-2])[:, None] * GOLDEN
    passed = np.floor(np.cumsum(counts, axis=-1) * share + (begin + turn) % 1.0 + FORGIVEN)
    return np.diff(passed, axis=-1, prepend=0.0).astype(np.int64)


def joined_layers(model: Model, layers: Sequence[int], shortcut: Shortcut) -> list[tuple[int, ...]]:
    """Group layers into the blocks that policies rearrange: one each, or a dense layer and the MoE layer after it."""
    blocks: list[tuple[int, ...]] = []
    for number in layers:
        moe = isinstance(model.layers[number].ffn, Moe)
        before = blocks[-1][-1] if blocks else -1
        if shortcut.joins and moe and before == number - 1 >= 0 and not isinstance(model.layers[before].ffn, Moe):
            blocks[-1] = (*blocks[-1], number)
        else:
            blocks.append((number,))
    return blocks
