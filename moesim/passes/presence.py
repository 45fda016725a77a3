"""Which tokens of a batch a layer sees: an encoder prompts only, a decoder behind one answers only, Swin a share."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.passes.columns import Sizes
from moesim.world.model import Layer, Model
from moesim.world.workload import Batch


def presence(layer: Layer, model: Model, *, backward: bool) -> tuple[float, float]:
    """Tokens here per prompt token and per decoded token of the batch.

    In training the answer is as long as the prompt, so a decoder behind an encoder sees the batch's tokens too.
    """
    encoder = layer.part == "encoder"
    answers_only = model.encoder_decoder and not encoder and not backward
    return (0.0 if answers_only else layer.tokens), (0.0 if encoder else layer.tokens)


def home_tokens(layer: Layer, model: Model, batch: Batch) -> Sizes:
    """Tokens of a batch that a rank is home to, as this layer sees them; the mean rank where not all carry prompts."""
    prompt, answer = presence(layer, model, backward=batch.backward)
    return batch.prefill * prompt * batch.carriers + batch.decode * answer


def mixture_kinds(model: Model) -> tuple[Layer, ...]:
    """One MoE layer of each kind that sees a different number of tokens, in order of depth."""
    kinds: dict[tuple[str, float], Layer] = {}
    for number in model.moe_layers:
        layer = model.layers[number]
        kinds.setdefault((layer.part, layer.tokens), layer)
    return tuple(kinds.values())


def kind_of(layer: Layer, kinds: Sequence[Layer]) -> int:
    """Number of a MoE layer's kind among `mixture_kinds`."""
    return [(kind.part, kind.tokens) for kind in kinds].index((layer.part, layer.tokens))
