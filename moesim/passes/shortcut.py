"""What a shortcut policy changes before anything is lowered: mixtures, how many rows they get, which layers join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moesim.passes.exchanges import Routed
from moesim.policies.protocols import Shortcut
from moesim.world.model import Model, Moe


def changed_model(model: Model, shortcut: Shortcut) -> Model:
    """Give a model the mixtures that a shortcut policy makes of its own."""
    if not shortcut.changes_model:
        return model
    layers = (
        replace(layer, ffn=shortcut.mixture(layer.ffn)) if isinstance(layer.ffn, Moe) else layer
        for layer in model.layers
    )
    return replace(model, layers=tuple(layers))


def thinned(routed: Routed, model: Model, changed: Model) -> Routed:
    """Leave each expert its share of fewer choices: counts are drawn for the model's k, and used for the changed one.

    Means, where the draw had whole numbers.
    """
    if not model.moe_layers:
        return routed
    first = model.moe_layers[0]
    before, after = model.moe(first).topk, changed.moe(first).topk
    return routed if before == after else replace(routed, counts=routed.counts * (after / before))


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
