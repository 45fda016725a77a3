"""Kinds of attention: their weights, what a token leaves in the cache, and how that divides over ranks.

Widths are in elements. Biases and the norms of queries and keys (below a thousandth of any model) are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from moesim.ground.units import Bytes
from moesim.world.formats import bytes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """A light scorer of all cached tokens, of which attention then reads the `topk` best, by blocks of `block`.

    DeepSeek sparse attention, DeepSeek-V3.2 report, section 2.1: `heads` query heads of width `dim`, one key a token,
    which is cached beside the latent. MiniMax-M3 does it beside grouped queries and picks blocks by their best score.
    """

    heads: int
    dim: int
    topk: int
    block: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gqa:
    """Grouped-query attention (multi-head where `kv_heads` = `heads`).

    `gated`: its output is multiplied by a gate as wide as the heads. `tied_values`: values are made of the keys'
    projection, so that there is one matrix less; both are still cached, as norm and rotation make them differ.
    `joint_norm`: queries and keys are each normalized over all heads together, so that a tensor-parallel group adds up
    two sums of squares for each token. With an `indexer` it is sparse (MiniMax-M3).
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    gated: bool = False
    tied_values: bool = False
    joint_norm: bool = False
    indexer: Indexer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Grouped-query attention that sees only the last `window` tokens (or, in Swin, its own window).

    `chunked`: it sees the tokens since the last multiple of `window` instead, half as many on average (Llama 4).
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int
    gated: bool = False
    chunked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention: one shared latent of `kv_lora` + `rope` per token is all that is cached.

    DeepSeek-V2, arXiv 2405.04434, section 2.1. `q_lora` = 0 means queries are projected directly. With an `indexer`
    it is sparse.
    """

    heads: int
    q_lora: int
    kv_lora: int
    rope: int
    nope: int
    value_dim: int
    gated: bool = False
    indexer: Indexer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """Attention to a window of single tokens and to all tokens before, compressed `ratio`:1 (0: the window alone).

    DeepSeek-V4: one key of `head_dim` for all heads, which is the value too; queries by a rank of `q_lora`, the output
    by one of `o_lora` for each of `o_groups` groups of heads. A block of `ratio` tokens leaves one key, made of
    `streams` compressions (2 where blocks overlap), and where an `indexer` picks among these, one of its own.
    """

    heads: int
    head_dim: int
    q_lora: int
    o_lora: int
    o_groups: int
    window: int
    ratio: int
    streams: int = 1
    indexer: Indexer | None = None

    @property
    def core(self) -> Mla:
        """What computes it: latent attention whose latent is the key, nothing to expand."""
        width = self.head_dim
        return Mla(heads=self.heads, q_lora=self.q_lora, kv_lora=width, rope=0, nope=width, value_dim=width)

    @property
    def compressors(self) -> int:
        """Width of what compression makes of each token: keys and their weights, the indexer's too."""
        if not self.ratio:
            return 0
        return 2 * self.streams * (self.head_dim + (self.indexer.dim if self.indexer else 0))

    def reads(self, context: float) -> float:
        """Keys that a token reads of a context: the window's, and compressed ones, as many as the indexer picks."""
        blocks = context / self.ratio if self.ratio else 0.0
        return min(context, self.window) + (min(blocks, self.indexer.topk) if self.indexer else blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Linear attention: a constant state per sequence, no cache that grows. `conv` is its short convolution's width.

    Gated DeltaNet (arXiv 2412.06464; Qwen3-Next, Qwen3.5) erases before it writes (`delta`), with a decay per head.
    Kimi delta attention (arXiv 2510.26692) decays each channel, by a matrix of rank `decay_rank`; its output gate may
    have a rank, too (`gate_rank`; 0: full). Mamba-2 (arXiv 2405.21060) does not erase: its groups are the key heads,
    its states the keys.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int
    delta: bool = True
    decay_rank: int = 0
    gate_rank: int = 0

    @property
    def heads(self) -> int:
        """Heads that tensor parallelism divides."""
        return self.value_heads

    @property
    def mixed(self) -> int:
        """Width of what the short convolution runs over: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def controls(self) -> int:
        """Scalars per head made of each token: the decay where it is one per head, and how strongly to write."""
        return self.value_heads * ((0 if self.decay_rank else 1) + (1 if self.delta else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cross:
    """Self-attention followed by attention over the encoder's output, as in an encoder-decoder's decoder."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmodelled:
    """An attention kind for which no formula is stated; parameters are known, KV and time are refused.

    `name` says which, and which field of the configuration asks for it.
    """

    name: str
    heads: int
    parameters: int


Attention = Gqa | Window | Mla | Compressed | Linear | Cross | Unmodelled


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
            return _latent_parameters(attention, dim) + indexer_parameters(attention, dim)
        case Compressed():
            heads = attention.heads * attention.head_dim
            out = attention.o_lora * (heads + attention.o_groups * dim)
            return attention.q_lora * heads + out + copied_parameters(attention, dim)
        case Linear():
            values = attention.value_heads * attention.value_dim
            decay = attention.decay_rank * (dim + attention.key_heads * attention.key_dim)
            gate = attention.gate_rank * (dim + values) if attention.gate_rank else dim * values
            inward = dim * (attention.mixed + attention.controls)
            return inward + gate + decay + attention.mixed * attention.conv + values * dim
        case Unmodelled():
            return attention.parameters
        case Cross():
            return 2 * _grouped_parameters(attention, dim, gated=False, tied=False)
        case Gqa():
            grouped = _grouped_parameters(attention, dim, gated=attention.gated, tied=attention.tied_values)
            return grouped + indexer_parameters(attention, dim)
        case Window():
            return _grouped_parameters(attention, dim, gated=attention.gated, tied=False)


def _latent_parameters(attention: Mla, dim: int) -> int:
    query = attention.heads * (attention.nope + attention.rope)
    down = dim * (attention.q_lora + attention.kv_lora + attention.rope)
    expand = attention.kv_lora * attention.heads * (attention.nope + attention.value_dim)
    out = attention.heads * attention.value_dim * dim * (2 if attention.gated else 1)
    return down + (attention.q_lora or dim) * query + expand + out


def indexer_parameters(attention: Gqa | Mla | Compressed, dim: int) -> int:
    """Count the weights of an indexer: queries from the query latent, one key, a weight per head.

    Beside grouped queries there is neither a latent nor a weight; compressed keys are counted as `compressors`.

    Examples
    --------
    >>> lightning = Indexer(heads=64, dim=128, topk=2048)
    >>> mla = Mla(heads=128, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128, indexer=lightning)
    >>> indexer_parameters(mla, 7168)  # 1536 x 64 x 128 + 7168 x (128 + 64)
    13959168
    """
    if attention.indexer is None:
        return 0
    scorer = attention.indexer
    match attention:
        case Gqa():
            return dim * (scorer.heads + 1) * scorer.dim
        case Mla():
            return (attention.q_lora or dim) * scorer.heads * scorer.dim + dim * (scorer.dim + scorer.heads)
        case Compressed():
            return attention.q_lora * scorer.heads * scorer.dim + dim * scorer.heads


def copied_parameters(attention: Attention, dim: int) -> int:
    """Count the weights that tensor parallelism cannot divide: latent down-projections, compressors, the indexer."""
    match attention:
        case Gqa():
            return indexer_parameters(attention, dim)
        case Compressed():
            down = dim * (attention.q_lora + attention.head_dim + attention.compressors)
            return down + indexer_parameters(attention, dim)
        case Mla():
            down = dim * (attention.q_lora + attention.kv_lora + attention.rope)
            return down + indexer_parameters(attention, dim)
        case Linear():
            return dim * (attention.decay_rank + attention.gate_rank)
        case _:
            return 0


def _grouped_parameters(attention: Gqa | Window | Cross, dim: int, *, gated: bool, tied: bool) -> int:
    query = attention.heads * attention.head_dim
    gate = attention.heads * attention.value_dim if gated else 0
    cached = attention.kv_heads * (attention.head_dim + (0 if tied else attention.value_dim))
    return dim * (query + gate + cached) + attention.heads * attention.value_dim * dim


def kv_bytes(attention: Attention | None, dtype: str) -> Bytes:
    """Bytes a token adds to the cache of one layer, all heads together.

    A window's cache stops growing after `window` tokens (`kv_tokens`); linear attention keeps a constant state
    (`state_bytes`) and adds nothing; an indexer's key is cached beside the latent. Compressed keys are `ratio` times
    fewer than tokens, and their window is a state.

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
            index = attention.indexer.dim if attention.indexer else 0
            return (attention.kv_lora + attention.rope + index) * bytes_of(dtype)
        case Compressed():
            index = attention.indexer.dim if attention.indexer else 0
            return (attention.head_dim + index) / attention.ratio * bytes_of(dtype) if attention.ratio else 0.0
        case Unmodelled():
            raise ValueError(f"KV bytes of attention kind `{attention.name}` are not modelled")
        case Gqa() | Window() | Cross():
            return (_grouped_width(attention) + _index_width(attention)) * bytes_of(dtype)


def _grouped_width(attention: Gqa | Window | Cross) -> int:
    return attention.kv_heads * (attention.head_dim + attention.value_dim)


def _index_width(attention: Gqa | Window | Cross) -> int:
    return attention.indexer.dim if isinstance(attention, Gqa) and attention.indexer else 0


def kv_tokens(attention: Attention | None, context: float) -> float:
    """Tokens a layer keeps of a context: all of it, or no more than its window."""
    return min(context, attention.window) if isinstance(attention, Window) else context


def state_bytes(attention: Attention | None) -> Bytes:
    """Bytes of constant state per sequence and layer.

    Linear attention's matrices (fp32) and convolution tail (bf16); the window beside compressed keys (bf16), and the
    blocks not yet compressed (fp32).
    """
    match attention:
        case Linear():
            matrix = attention.value_heads * attention.key_dim * attention.value_dim * 4.0
            return matrix + attention.mixed * (attention.conv - 1) * 2.0
        case Compressed():
            unfinished = attention.streams * attention.ratio * attention.compressors * 4.0
            return attention.window * attention.head_dim * 2.0 + unfinished
        case _:
            return 0.0


def state_share(attention: Attention | None, tp: Float[np.ndarray, "*ranks"]) -> Float[np.ndarray, "*ranks"]:
    """Share of a layer's constant state on each tensor-parallel rank: heads are divided, a window of one key is not."""
    return np.ones_like(tp) if isinstance(attention, Compressed) else 1.0 / tp


def kv_share(attention: Attention | None, tp: Float[np.ndarray, "*ranks"]) -> Float[np.ndarray, "*ranks"]:
    """Share of a layer's cache that each tensor-parallel rank holds.

    Heads are divided until one is left, then copied; a latent and an indexer's key have no heads, so every rank holds
    all of them. Data parallelism divides sequences, not a sequence's cache.

    Parameters
    ----------
    attention : a layer's attention
    tp : tensor-parallel degrees

    Examples
    --------
    >>> tp = np.array([1.0, 4.0, 16.0])
    >>> kv_share(Gqa(heads=64, kv_heads=4, head_dim=128, value_dim=128), tp)
    array([1.  , 0.25, 0.25])
    >>> kv_share(Mla(heads=128, q_lora=1536, kv_lora=512, rope=64, nope=128, value_dim=128), tp)
    array([1., 1., 1.])
    """
    if isinstance(attention, Gqa | Window | Cross):
        index = _index_width(attention)
        grouped = _grouped_width(attention)
        return (kv_heads_held(attention.kv_heads, tp) / attention.kv_heads * grouped + index) / (grouped + index)
    return np.ones_like(tp)


def kv_heads_held(kv_heads: int, tp: Float[np.ndarray, "*ranks"]) -> Float[np.ndarray, "*ranks"]:
    """KV heads on each rank: divided by tensor parallelism until one is left, then copied."""
    return np.maximum(kv_heads / tp, 1.0)
