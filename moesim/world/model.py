"""A model's architecture, layer by layer; parameters, expert bytes and KV bytes follow from it.

Conventions: widths are in elements, `tokens` is relative to the input tokens, and a gated feed-forward (SwiGLU) has
three matrices where a plain one has two. Norms are counted with the layer they precede.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from moesim.ground.units import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gqa:
    """Grouped-query attention (multi-head where `kv_heads` = `heads`), optionally with a gate on its output."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    gated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Grouped-query attention that sees only the last `window` tokens (or, in Swin, its own window)."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int
    gated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention: one shared latent of `kv_lora` + `rope` per token is all that is cached.

    DeepSeek-V2, arXiv 2405.04434, section 2.1. `q_lora` = 0 means queries are projected directly.
    """

    heads: int
    q_lora: int
    kv_lora: int
    rope: int
    nope: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Linear attention with a gated delta rule: a constant state per sequence, no cache that grows.

    Gated DeltaNet, arXiv 2412.06464; as in Qwen3.5. `conv` is the width of the short convolution.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int

    @property
    def heads(self) -> int:
        """Heads that tensor parallelism divides."""
        return self.value_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Cross:
    """Self-attention followed by attention over the encoder's output, as in an encoder-decoder's decoder."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmodelled:
    """An attention kind for which no formula is stated; parameters are known, KV and time are refused."""

    name: str
    heads: int
    parameters: int


Attention = Gqa | Window | Mla | Linear | Cross | Unmodelled


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


@dataclass(frozen=True, slots=True, kw_only=True)
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

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers whose feed-forward part is a mixture of experts, in order."""
        return tuple(i for i, layer in enumerate(self.layers) if isinstance(layer.ffn, Moe))

    @property
    def dim(self) -> int:
        """Width of the last layer: what the head reads."""
        return self.layers[-1].dim

    @property
    def encoder_decoder(self) -> bool:
        """Whether prompts go through an encoder and answers through a decoder."""
        return len({layer.part for layer in self.layers}) == 2

    def moe(self, layer: int) -> Moe:
        """Return the mixture of a layer that has one."""
        ffn = self.layers[layer].ffn
        assert isinstance(ffn, Moe)
        return ffn


BITS: Mapping[str, float] = MappingProxyType(
    {
        "fp32": 32.0,
        "bf16": 16.0,
        "fp16": 16.0,
        "fp8": 8.0,
        "fp8_block": 8.0 + 32.0 / (128 * 128),  # one fp32 scale per 128 x 128 block
        "int8": 8.0,
        "int4": 4.0 + 16.0 / 32,  # one bf16 scale per group of 32
        "fp4": 4.0,
        "mxfp4": 4.0 + 8.0 / 32,  # one e8m0 scale per 32 (OCP Microscaling v1.0)
        "nvfp4": 4.0 + 8.0 / 16,  # one e4m3 scale per 16
    }
)
"""Bits per element of each storage format, scales included."""

COMPUTE_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fp32": ("fp32",),
        "bf16": ("bf16", "fp16"),
        "fp16": ("fp16", "bf16"),
        "fp8": ("fp8", "bf16"),
        "fp8_block": ("fp8", "bf16"),
        "int8": ("int8", "bf16"),
        "int4": ("bf16",),  # weight-only: unpacked to bf16 before the product
        "fp4": ("fp4", "fp8", "bf16"),
        "mxfp4": ("fp4", "bf16"),
        "nvfp4": ("fp4", "bf16"),
    }
)
"""Dtypes in which a storage format is multiplied, the preferred first; a device uses the first that it has."""


def bytes_of(dtype: str) -> Bytes:
    """Bytes per element of a storage format, scales included.

    Examples
    --------
    >>> bytes_of("bf16"), bytes_of("mxfp4")
    (2.0, 0.53125)
    """
    return BITS[dtype] / 8


def attention_parameters(attention: Attention, dim: int) -> int:
    """Count the weights of an attention part.

    Mixtral-8x7B: 4096 x (32 x 128 + 2 x 8 x 128) + 32 x 128 x 4096.

    Examples
    --------
    >>> attention_parameters(Gqa(heads=32, kv_heads=8, head_dim=128, value_dim=128), 4096)
    41943040
    """
    match attention:
        case Mla():
            query = attention.heads * (attention.nope + attention.rope)
            down = dim * (attention.q_lora + attention.kv_lora + attention.rope)
            up = (attention.q_lora or dim) * query + attention.kv_lora * attention.heads * (
                attention.nope + attention.value_dim
            )
            return down + up + attention.heads * attention.value_dim * dim
        case Linear():
            keys = attention.key_heads * attention.key_dim
            values = attention.value_heads * attention.value_dim
            mixed = 2 * keys + 2 * values + 2 * attention.value_heads  # q, k, v, output gate; decay and write strength
            return dim * mixed + (2 * keys + values) * attention.conv + values * dim
        case Unmodelled():
            return attention.parameters
        case Cross():
            return 2 * _gqa_parameters(attention, dim, gated=False)
        case Gqa() | Window():
            return _gqa_parameters(attention, dim, gated=attention.gated)


def _gqa_parameters(attention: Gqa | Window | Cross, dim: int, *, gated: bool) -> int:
    query = attention.heads * attention.head_dim * (2 if gated else 1)
    cached = attention.kv_heads * (attention.head_dim + attention.value_dim)
    return dim * (query + cached) + attention.heads * attention.value_dim * dim


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


def kv_bytes(attention: Attention | None, dtype: str) -> Bytes:
    """Bytes a token adds to the cache of one layer, all heads together.

    A window's cache stops growing after `window` tokens (`kv_tokens`); linear attention keeps a constant state
    (`state_bytes`) and adds nothing.

    Raises
    ------
    ValueError
        For an attention kind without a formula.

    Examples
    --------
    >>> kv_bytes(Mla(heads=128, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128), "bf16")
    1152.0
    """
    match attention:
        case None | Linear():
            return 0.0
        case Mla():
            return (attention.kv_lora + attention.rope) * bytes_of(dtype)
        case Unmodelled():
            raise ValueError(f"KV bytes of attention kind `{attention.name}` are not modelled")
        case Gqa() | Window() | Cross():
            return attention.kv_heads * (attention.head_dim + attention.value_dim) * bytes_of(dtype)


def kv_tokens(attention: Attention | None, context: float) -> float:
    """Tokens a layer keeps of a context: all of it, or no more than its window."""
    return min(context, attention.window) if isinstance(attention, Window) else context


def state_bytes(attention: Attention | None) -> Bytes:
    """Bytes of constant state per sequence and layer: linear attention's matrices (fp32), convolution tail (bf16)."""
    if not isinstance(attention, Linear):
        return 0.0
    matrix = attention.value_heads * attention.key_dim * attention.value_dim * 4.0
    tail = 2 * attention.key_heads * attention.key_dim + attention.value_heads * attention.value_dim
    return matrix + tail * (attention.conv - 1) * 2.0
