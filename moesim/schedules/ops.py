"""The ops: what a task does and how much of it, never how long it takes.

Sizes are arrays over leading axes (plans, draws); those that differ between ranks end in a rank axis, of size 1
where all ranks are alike. ``op.split(n)`` cuts an op into n that add up to it: integer sizes are dealt out so that
sums are exact (chunk c of n of slot s gets ``(rows + (c + s) % n) // n``), other sizes are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int, Shaped

from moesim.ground.units import Bytes, Seconds
from moesim.world.attention import Attention

Lead = Shaped[np.ndarray, "..."]
"""A size that is alike on all ranks but may differ between plans; its last axis has size 1."""
Rows = Shaped[np.ndarray, "..."]
"""A size per rank: leading axes, then rank (size 1: all alike)."""


def shares(size: Rows, parts: int) -> tuple[Rows, ...]:
    """Cut a size into `parts` that add up to it; whole numbers stay whole.

    Examples
    --------
    >>> [int(part[0]) for part in shares(np.array([7]), 3)]
    [2, 2, 3]
    """
    if np.issubdtype(size.dtype, np.integer):
        return tuple((size + chunk) // parts for chunk in range(parts))
    return tuple(size / parts for _ in range(parts))


def slot_shares(rows: Rows, parts: int) -> tuple[Rows, ...]:
    """Cut rows per slot (axis 0), staggered by slot so that single rows do not all fall in one chunk."""
    if not np.issubdtype(rows.dtype, np.integer):
        return tuple(rows / parts for _ in range(parts))
    slot = np.arange(rows.shape[0]).reshape(-1, *[1] * (rows.ndim - 1))
    return tuple((rows + (chunk + slot) % parts) // parts for chunk in range(parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gemm:
    """A dense product of an m x k by a k x n matrix; `dtype` is the weights' storage format."""

    m: Rows
    n: Lead
    k: Lead
    dtype: str

    def split(self, parts: int) -> tuple[Gemm, ...]:
        """Cut along the rows."""
        return tuple(replace(self, m=m) for m in shares(self.m, parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouped:
    """One product per local expert: slot s multiplies rows[s] x k by k x n. Empty slots cost no weights.

    `active` is given where rows are means over draws: how many slots have rows in the mean, which mean rows cannot say.
    Such an op has loads, and no price. So many products in a row, `repeats`, are by one expert's weights.
    """

    rows: Shaped[np.ndarray, "slot ..."]
    n: Lead
    k: Lead
    dtype: str
    active: Shaped[np.ndarray, "..."] | None = None
    repeats: int = 1

    def split(self, parts: int) -> tuple[Grouped, ...]:
        """Cut each slot's rows."""
        return tuple(replace(self, rows=rows) for rows in slot_shares(self.rows, parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hosted:
    """Experts computed where their weights lie, in the host's memory, by its CPUs: all products of each in one go.

    `weights` is parameters of an expert. Empty slots cost nothing.
    """

    rows: Shaped[np.ndarray, "slot ..."]
    weights: Lead
    dtype: str

    def split(self, parts: int) -> tuple[Hosted, ...]:
        """Cut each slot's rows."""
        return tuple(replace(self, rows=rows) for rows in slot_shares(self.rows, parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attend:
    """The core of attention on `heads` local heads, projections left out.

    `phase` is ``prefill``, ``decode`` or ``backward``; `prompts` counts sequences, `pairs` query-key pairs and `keys`
    cached tokens read, windows applied. `dtype` is the cache's storage format.
    """

    kind: Attention
    heads: Lead
    phase: str
    tokens: Rows
    prompts: Rows
    pairs: Rows
    keys: Rows
    dtype: str

    def split(self, parts: int) -> tuple[Attend, ...]:
        """Cut along the sequences; the cached tokens are divided with them."""
        columns = zip(
            *(shares(size, parts) for size in (self.tokens, self.prompts, self.pairs, self.keys)), strict=True
        )
        return tuple(replace(self, tokens=t, prompts=q, pairs=p, keys=k) for t, q, p, k in columns)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Elementwise:
    """A pass over memory: norm, residual, gather, scatter; `traffic` is bytes read plus written.

    `kernel` names what is known to differ in speed where a device was calibrated for it: gate (scores to choices), pack
    and unpack (rows to experts and back), mask (of dense dispatch), activation. Others are ``default``.
    """

    traffic: Rows
    kernel: str = "default"

    def split(self, parts: int) -> tuple[Elementwise, ...]:
        """Cut the traffic."""
        return tuple(replace(self, traffic=traffic) for traffic in shares(self.traffic, parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Copy:
    """A copy between memory tiers: ``device``, ``host``, ``disk``; `size` in bytes."""

    size: Rows
    source: str
    target: str

    def split(self, parts: int) -> tuple[Copy, ...]:
        """Cut the bytes."""
        return tuple(replace(self, size=size) for size in shares(self.size, parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exchange:
    """Rows on their way to the slots of their experts (or back, with `reverse`), before an algorithm is chosen.

    `rows[s, ..., r]` rows go from source rank r to slot s, which lives on ranks `ranks_of_slot[s]` (several with
    expert tensor parallelism; then each gets every row). `row` is bytes per row. `distinct` is the mean number of
    different blocks one token's rows touch, keyed by the block's number of ranks (1: ranks) and shaped to go with
    `tokens`, for algorithms that send a token to a block once.
    """

    rows: Shaped[np.ndarray, "slot ..."]
    ranks_of_slot: Int[np.ndarray, "slot copies"]
    ranks: int
    row: Bytes
    reverse: bool
    tokens: Rows
    distinct: Mapping[int, float | Rows] = field(default_factory=lambda: MappingProxyType({}))

    def split(self, parts: int) -> tuple[Exchange, ...]:
        """Cut each slot's rows by the rule that cuts the expert's product."""
        columns = zip(slot_shares(self.rows, parts), shares(self.tokens, parts), strict=True)
        return tuple(replace(self, rows=rows, tokens=tokens) for rows, tokens in columns)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AllToAll:
    """Bytes each rank sends and receives on each tier, and messages it posts there, made from an `Exchange`.

    `way` is ``dispatch`` or ``combine`` where each row goes straight to its expert or comes straight back, which
    frameworks may have kernels of their own for; ``hierarchical`` in either phase of an exchange by levels; else
    ``all_to_all``. `slots` is how many experts, copies included, all
    ranks hold then.
    """

    tiers: tuple[str, ...]
    sent: Float[np.ndarray, "tier ..."]
    received: Float[np.ndarray, "tier ..."]
    messages: Float[np.ndarray, "tier ..."]
    way: str = "all_to_all"
    slots: int = 0

    def split(self, parts: int) -> tuple[AllToAll, ...]:
        """Cut the bytes; every part posts all the messages."""
        part = replace(self, sent=self.sent / parts, received=self.received / parts)
        return (part,) * parts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reduce:
    """A collective over equal buffers; `form` is ``all_reduce``, ``reduce_scatter`` or ``all_gather``.

    `size` is the bytes of the whole buffer on each rank (the gathered one for ``all_gather``), `ranks` how many take
    part, `tier` the outermost tier they span.
    """

    size: Rows
    form: str
    ranks: Lead
    tier: str

    def split(self, parts: int) -> tuple[Reduce, ...]:
        """Cut the buffer."""
        return tuple(replace(self, size=size) for size in shares(self.size, parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Send:
    """One message to a peer in a group of two; both end with it."""

    size: Rows
    tier: str

    def split(self, parts: int) -> tuple[Send, ...]:
        """Cut the message."""
        return tuple(replace(self, size=size) for size in shares(self.size, parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Host:
    """Host calls that the device waits for (a size read back, a launch that is not captured)."""

    calls: Lead

    def split(self, parts: int) -> tuple[Host, ...]:
        """Repeat: every part needs the calls."""
        return (self,) * parts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fixed:
    """A duration already known: a pass timed before (training units), or a case worked by hand."""

    duration: Float[np.ndarray, "..."]

    def split(self, parts: int) -> tuple[Fixed, ...]:
        """Cut the duration."""
        return tuple(replace(self, duration=duration) for duration in shares(self.duration, parts))


Op = Gemm | Grouped | Hosted | Attend | Elementwise | Copy | Exchange | AllToAll | Reduce | Send | Host | Fixed


def fixed(duration: Seconds) -> Fixed:
    """Build a known duration that is alike on all ranks."""
    return Fixed(duration=np.array([float(duration)]))
