"""Time of the core of attention, for every kind: work, bytes and the longest chain of one tile.

An `Attend` op is first reduced to its needs (`needs_of`), which depend on the kind and the phase; two forms, one for
prefill and backward and one for decode, turn needs into time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.ground.errors import MoesimError
from moesim.schedules.costs.kernels import Params, Size, Time, norm
from moesim.schedules.ops import Attend
from moesim.world.attention import Attention, Compressed, Linear, Mla, Unmodelled
from moesim.world.formats import bytes_of

QUERY_TILE = 128
"""Queries of one tile in prefill kernels (FlashAttention-2 and -3 on 128-wide heads)."""
CHUNK = 128
"""Cached tokens below which a decode kernel does not split a sequence further (docs/background/evidence.md, 10)."""
ACTIVATION = 2.0
"""Bytes of an element of queries, expanded keys and values, and outputs: bf16."""
PART = 4.0
"""Bytes of an element of a part's output, written and read once, fp32, at twice the memory's bandwidth (assumed)."""
STATE = 4.0
"""Bytes of an element of linear attention's state: fp32."""
BACKWARD_WORK = 2.5
"""Products of the backward pass over those of the forward pass, 5 against 2 (FlashAttention-2, arXiv 2307.08691)."""
BACKWARD_TRAFFIC = 2.0
"""Tensors of the backward pass (q, k, v, o, do in; dq, dk, dv out) over those of the forward pass (q, k, v; o)."""
DELTA_RULE = 6.0
"""Work per state element and token: decay and erase by k k^T S, write k v^T, read S q (arXiv 2412.06464, eq. 10)."""
PLAIN_RULE = 4.0
"""The same where nothing is erased: write k v^T, read S q (Mamba-2, arXiv 2405.21060, eq. 6)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Needs:
    """What the core of attention must do on each rank.

    Attributes
    ----------
    work : FLOP
    surplus : FLOP on keys that a tile holds but its queries do not see, per key of a tile's diagonal
    traffic : bytes of keys and values (or states), queries and outputs
    chain : FLOP of the longest tile, which one processor works off alone
    padded : FLOP of one query head on every key read, by which a kernel pads few heads to a tile
    tiles : of 128 queries, one at least for each sequence and head
    blocks : independent pieces of work: sequences times key-value heads
    pieces : cached tokens times key-value heads, which a decode kernel may cut into splits
    group : query heads to a key-value head
    width : mean of the query-key and value dimensions of a head
    """

    work: Time
    surplus: Time
    traffic: Time
    chain: Time
    padded: Time
    tiles: Size
    blocks: Size
    pieces: Size
    group: Size
    width: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Heads:
    """Dimensions of a head, how many share keys, and bytes per cached token on one rank."""

    key_dim: int
    value_dim: int
    sharing: Size
    cached: Size


def _heads(kind: Attention, heads: Size, phase: str, dtype: str) -> _Heads:
    match kind:
        case Unmodelled():
            raise MoesimError(
                f"attention kind `{kind.name}` (layers.attention) has no cost form; "
                "replace it by a kind that is modelled, or give the layer no attention"
            )
        case Compressed():
            return _heads(kind.core, heads, phase, dtype)
        case Linear():
            return _Heads(key_dim=kind.key_dim, value_dim=kind.value_dim, sharing=heads, cached=0.0 * heads)
        case Mla() if phase == "decode":
            latent = kind.kv_lora + kind.rope
            cached = np.full_like(heads, latent * bytes_of(dtype), dtype=float)
            return _Heads(key_dim=latent, value_dim=kind.kv_lora, sharing=np.ones_like(heads), cached=cached)
        case Mla():
            expanded = (kind.nope + kind.rope + kind.value_dim) * ACTIVATION
            return _Heads(
                key_dim=kind.nope + kind.rope, value_dim=kind.value_dim, sharing=heads, cached=heads * expanded
            )
        case _:
            sharing = np.maximum(heads * (kind.kv_heads / kind.heads), 1.0)
            cached = sharing * ((kind.head_dim + kind.value_dim) * bytes_of(dtype))
            return _Heads(key_dim=kind.head_dim, value_dim=kind.value_dim, sharing=sharing, cached=cached)


def needs_of(op: Attend) -> Needs:
    """Work, bytes and chains follow from an attention op's kind, phase and sizes.

    Softmax kinds do 2 x heads x pairs x (key_dim + value_dim) FLOP. Multi-head latent attention decodes on the latent
    itself (absorbed: key_dim = kv_lora + rope, value_dim = kv_lora, one key head) and prefills on expanded heads.
    Linear attention does 6 x heads x tokens x key_dim x value_dim FLOP (4 where it does not erase) and reads and
    writes a state per sequence.

    DeepSeek-V2, arXiv 2405.04434, section 2.1 (latent attention); Gated DeltaNet, arXiv 2412.06464 (linear).

    Raises
    ------
    MoesimError
        The kind has no cost form.

    Examples
    --------
    >>> from moesim.world.attention import Gqa
    >>> one = np.array([1.0])
    >>> op = Attend(kind=Gqa(heads=4, kv_heads=1, head_dim=3, value_dim=2), heads=4 * one, phase="decode", tokens=one,
    ...             prompts=one, pairs=10 * one, keys=10 * one, dtype="bf16")
    >>> needs_of(op).work, needs_of(op).traffic  # 2 x 4 x 10 x 5; 10 x 5 x 2 cached and 4 x 5 x 2 of query and output
    (array([400.]), array([140.]))
    """
    head = _heads(op.kind, op.heads, op.phase, op.dtype)
    if isinstance(op.kind, Linear):
        return _recurrent(op, op.kind)
    dims = 2.0 * (head.key_dim + head.value_dim)
    work = op.heads * op.pairs * dims
    traffic = op.keys * head.cached + op.tokens * op.heads * ((head.key_dim + head.value_dim) * ACTIVATION)
    more = BACKWARD_WORK if op.phase == "backward" else 1.0
    moved = BACKWARD_TRAFFIC if op.phase == "backward" else 1.0
    return Needs(
        work=more * work,
        surplus=op.heads * op.tokens * (more * dims),
        traffic=moved * traffic,
        chain=op.keys / np.maximum(op.prompts, 1.0) * (more * dims * QUERY_TILE),
        padded=head.sharing * op.keys * (more * dims),
        tiles=op.heads * np.maximum(op.prompts, op.tokens / QUERY_TILE),
        blocks=op.prompts * head.sharing,
        pieces=op.keys * head.sharing,
        group=op.heads / head.sharing,
        width=(head.key_dim + head.value_dim) / 2,
    )


def _recurrent(op: Attend, kind: Linear) -> Needs:
    """Size up linear attention: a state per sequence and head, read and written once, whatever the context."""
    more = BACKWARD_WORK if op.phase == "backward" else 1.0
    moved = BACKWARD_TRAFFIC if op.phase == "backward" else 1.0
    state = kind.key_dim * kind.value_dim
    rule = DELTA_RULE if kind.delta else PLAIN_RULE
    per_token = op.heads * (rule * state * more)
    mixed = 2 * kind.key_heads * kind.key_dim / kind.heads + 2 * kind.value_dim
    return Needs(
        work=op.tokens * per_token,
        surplus=0.0 * op.tokens * per_token,
        traffic=moved * op.heads * (op.prompts * (2.0 * STATE * state) + op.tokens * (mixed * ACTIVATION)),
        chain=op.tokens / np.maximum(op.prompts, 1.0) * (rule * state * more),
        padded=0.0 * op.tokens * per_token,
        tiles=0.0 * op.tokens * op.heads,
        blocks=op.prompts * op.heads,
        pieces=0.0 * op.prompts * op.heads,
        group=np.ones_like(op.heads, dtype=float),
        width=(kind.key_dim + kind.value_dim) / 2,
    )


def prefill(needs: Needs, *, params: Params, processors: int) -> Time:
    """Attention over a prompt takes its launch, and then the slower of tensor cores and memory.

    launch + norm_p(max(longest, total + tail x longest) + overhead x tiles / processors, traffic / bandwidth)

    total   = (work + diagonal x surplus) / rate,  rate = peak x width / (width + half_width)
    longest = chain / (rate / processors)

    `width` is a head's mean dimension, `diagonal` the keys of a tile's diagonal that a query does not see, and
    `chain` the work of one tile of 128 queries against a whole context, which one processor does alone. A tile is
    begun, ended and, where a prompt is short, padded: that is its `overhead`.

    Functional form of docs/background/evidence.md, section 3 (FlashAttention-3, arXiv 2407.08608).

    Parameters
    ----------
    needs : of `needs_of`
    params : launch (s), peak (FLOP/s), bandwidth (B/s), half_width (elements), diagonal (keys), tail, overhead (s per
        tile), p
    processors : processors of the device

    Examples
    --------
    >>> zero, one = np.zeros(1), np.ones(1)
    >>> needs = Needs(work=80 * one, surplus=zero, traffic=zero, chain=one, padded=zero, tiles=20 * one, blocks=one,
    ...               pieces=zero, group=one, width=64.0)
    >>> prefill(needs, params={"launch": 1.0, "peak": 16.0, "bandwidth": 1.0, "half_width": 64.0, "diagonal": 64.0,
    ...                        "tail": 0.0, "overhead": 2.0, "p": 2.0}, processors=10)  # 1 + 80 / 8 + 2 x 2
    array([15.])
    """
    rate = params["peak"] * needs.width / (needs.width + params["half_width"])
    longest = needs.chain * (processors / rate)
    total = (needs.work + params["diagonal"] * needs.surplus) / rate
    tensor = np.maximum(total + params["tail"] * longest, longest) + needs.tiles * (params["overhead"] / processors)
    return params["launch"] + norm(params["p"], tensor, needs.traffic / params["bandwidth"])


def decode(needs: Needs, *, params: Params, processors: int) -> Time:
    """Attention of single tokens reads the cache, as fast as the blocks in flight allow.

    launch + joined + norm_p(tensor, traffic / bandwidth, traffic / (flying x block_bandwidth))

    joined  = split x (1 - blocks' / flying) + (flying - blocks') x part / bandwidth
    part    = width x min(group, group_tile) x 4
    tensor  = (work^4 + (head_tile x padded)^4)^(1/4) / peak + overhead x blocks' / processors
    blocks' = blocks x max(1, group / group_tile)
    flying  = max(blocks', min(processors, pieces / 128), 1)

    Few query heads are padded to a tile (`head_tile`), so that latent attention takes the same time for 1 to 64 heads;
    of more to a key-value head than `group_tile`, each tile is a block. A kernel splits sequences of more than 128
    cached tokens until every processor has a block, and joins the parts, which takes `split` where there are many, and
    reads and writes the output of each in fp32, which is still in the cache: at twice the memory's bandwidth.

    Functional form of docs/background/evidence.md, section 3 (FlashDecoding; FlashMLA).

    Parameters
    ----------
    needs : of `needs_of`
    params : launch (s), split (s), peak (FLOP/s), bandwidth, block_bandwidth (B/s), head_tile, group_tile (heads),
        overhead (s per block), p
    processors : processors of the device

    Examples
    --------
    >>> zero, one = np.zeros(1), np.ones(1)
    >>> needs = Needs(work=zero, surplus=zero, traffic=80 * one, chain=zero, padded=zero, tiles=zero, blocks=2 * one,
    ...               pieces=512 * one, group=one, width=5 / 3)  # 1 + (2 x 1/2 + 2 x 1/2) + norm(6, 8)
    >>> time = decode(needs, params={"launch": 1.0, "split": 2.0, "peak": 1.0, "bandwidth": 80 / 6, "p": 2.0,
    ...                              "block_bandwidth": 2.5, "head_tile": 16.0, "group_tile": 64.0, "overhead": 0.0},
    ...               processors=10)
    >>> f"{time.item():.6f}"  # as text: whole numbers would be compared to within one
    '13.000000'
    """
    filled = norm(4.0, needs.work, params["head_tile"] * needs.padded)
    blocks = needs.blocks * np.maximum(1.0, needs.group / params["group_tile"])
    tensor = filled / params["peak"] + blocks * (params["overhead"] / processors)
    flying = np.maximum(np.maximum(blocks, np.minimum(needs.pieces / CHUNK, processors)), 1.0)
    streamed = needs.traffic / flying / params["block_bandwidth"]
    part = needs.width * np.minimum(needs.group, params["group_tile"]) * PART
    joined = params["split"] * (1.0 - blocks / flying) + (flying - blocks) * part / params["bandwidth"]
    core = norm(params["p"], tensor, needs.traffic / params["bandwidth"], streamed)
    return np.asarray(params["launch"] + joined + core)


def attention(op: Attend, *, params: Params, processors: int) -> Time:
    """An attention op takes the time of its phase's form; with nothing to attend there is no kernel to launch.

    Examples
    --------
    >>> from moesim.world.attention import Unmodelled
    >>> one = np.array([1.0])
    >>> op = Attend(kind=Unmodelled(name="hyena", heads=1, parameters=1), heads=one, phase="decode", tokens=one,
    ...             prompts=one, pairs=one, keys=one, dtype="bf16")
    >>> attention(op, params={}, processors=1)
    Traceback (most recent call last):
    moesim.ground.errors.MoesimError: attention kind `hyena` (layers.attention) has no cost form; ...
    """
    form = decode if op.phase == "decode" else prefill
    return np.asarray(form(needs_of(op), params=params, processors=processors) * (op.tokens + op.keys > 0))


def attention_loads(op: Attend, *, params: Params) -> tuple[Time, Time]:
    """At least so long are the tensor cores (work / peak) and the memory (traffic / bandwidth) busy.

    The larger of the two is the floor of `attention`.

    Examples
    --------
    >>> from moesim.world.attention import Gqa
    >>> one = np.array([1.0])
    >>> op = Attend(kind=Gqa(heads=4, kv_heads=1, head_dim=3, value_dim=2), heads=4 * one, phase="decode", tokens=one,
    ...             prompts=one, pairs=10 * one, keys=10 * one, dtype="bf16")
    >>> attention_loads(op, params={"peak": 200.0, "bandwidth": 140.0})
    (array([2.]), array([1.]))
    """
    needs = needs_of(op)
    return needs.work / params["peak"], needs.traffic / params["bandwidth"]
