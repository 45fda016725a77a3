"""A model's architecture, layer by layer; its parameters and expert bytes follow from it.

Conventions: widths are in elements, `tokens` is relative to the input tokens, and a gated feed-forward (SwiGLU) has
three matrices where a plain one has two. Norms are counted with the layer they precede.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from moesim.ground.units import Bytes
from moesim.world.attention import Attention, attention_parameters
from moesim.world.formats import bytes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A plain feed-forward network of inner width `width`."""

    width: int
    gated: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """A mixture-of-experts feed-forward network.

    `width` is an expert's inner width and `input_dim` what it reads and writes: the layer's width, or less where
    experts work in a latent space (then two projections of the layer's width precede and follow them).
    `shared_width` is the inner width of all shared experts together. `groups` and `group_topk` limit a token to
    experts of that many groups (1 and 1: no limit).
    """

    experts: int
    topk: int
    width: int
    input_dim: int
    gated: bool = True
    shared_width: int = 0
    groups: int = 1
    group_topk: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer layer: an attention part and a feed-forward part, either of which may be absent.

    `tokens` is the number of tokens here per input token (Swin's stages: 1, 1/4, 1/16, 1/64).
    """

    part: str
    dim: int
    tokens: float
    attention: Attention | None
    ffn: Dense | Moe | None


@dataclass(frozen=True, kw_only=True)  # without slots, for the cached properties
class Model:
    """A whole model.

    `vocab` is the size of the embedding and of the head (0: none), `tied` whether they are one matrix. `mtp` counts
    multi-token-prediction modules; they draft tokens when a plan speculates and are in no parameter count.
    `dtype_of` names the storage format of each class of tensors: experts, attention, dense (shared experts and dense
    layers), embedding, kv. `others` counts parameters outside layers, embedding and head.
    """

    name: str
    layers: tuple[Layer, ...]
    vocab: int
    dtype_of: Mapping[str, str]
    mtp: int = 0
    tied: bool = False
    others: int = 0
    embedding_dim: int = field(default=0)

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers whose feed-forward part is a mixture of experts, in order."""
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer.ffn, Moe))

    @cached_property
    def dim(self) -> int:
        """Width of the last layer: what the head reads."""
        return self.layers[-1].dim

    @cached_property
    def encoder_decoder(self) -> bool:
        """Whether prompts go through an encoder and answers through a decoder."""
        return len({layer.part for layer in self.layers}) == 2

    def moe(self, layer: int) -> Moe:
        """Return the mixture of a layer that has one."""
        ffn = self.layers[layer].ffn
        assert isinstance(ffn, Moe)
        return ffn


def matrices(*, gated: bool) -> int:
    """Count the matrices of a feed-forward network: three where it is gated, else two."""
    return 3 if gated else 2


def expert_parameters(moe: Moe) -> int:
    """Count one routed expert's weights.

    Examples
    --------
    >>> expert_parameters(Moe(experts=256, topk=8, width=2048, input_dim=7168))
    44040192
    """
    return matrices(gated=moe.gated) * moe.input_dim * moe.width


def expert_bytes(moe: Moe, dtype: str) -> Bytes:
    """Bytes of one routed expert's weights in a storage format, scales included.

    Examples
    --------
    >>> expert_bytes(Moe(experts=256, topk=8, width=2048, input_dim=7168), "nvfp4")  # 44,040,192 x 4.5 bits
    24772608.0
    """
    return expert_parameters(moe) * bytes_of(dtype)


def shared_parameters(moe: Moe, dim: int) -> int:
    """Count the weights of a mixture that every token uses: gate, shared experts, latent projections."""
    latent = 2 * dim * moe.input_dim if moe.input_dim != dim else 0
    return dim * moe.experts + matrices(gated=moe.gated) * dim * moe.shared_width + latent


def layer_parameters(layer: Layer, *, active: bool) -> int:
    """Count a layer's weights: all of them, or those one token uses."""
    count = 0
    if layer.attention is not None:
        count += attention_parameters(layer.attention, layer.dim) + layer.dim
    match layer.ffn:
        case Dense():
            count += matrices(gated=layer.ffn.gated) * layer.dim * layer.ffn.width + layer.dim
        case Moe():
            used = layer.ffn.topk if active else layer.ffn.experts
            count += used * expert_parameters(layer.ffn) + shared_parameters(layer.ffn, layer.dim) + layer.dim
        case None:
            pass
    return count


def embedding_parameters(model: Model) -> int:
    """Count the weights of one vocabulary matrix."""
    return model.vocab * (model.embedding_dim or model.dim)


def parameters(model: Model) -> int:
    """Count all weights, multi-token-prediction modules left out (as published totals do)."""
    vocabulary = embedding_parameters(model) * (1 if model.tied else 2)
    return vocabulary + model.others + sum(layer_parameters(layer, active=False) for layer in model.layers)


def active_parameters(model: Model) -> int:
    """Count the weights one token is multiplied with: the head, but not the embedding, which is a look-up."""
    layers = sum(layer_parameters(layer, active=True) for layer in model.layers)
    return embedding_parameters(model) + model.others + layers
