"""What a routing trace shows, added up piece by piece: memory does not grow with its length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a trace is of. `topk` is 0 where only counts were kept."""

    layers: int
    experts: int
    topk: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Following:
    """How tokens hang together, of traces that keep single choices.

    Attributes
    ----------
    first : share of the tokens whose first choice is that of the token before
    first_by_chance : the same if tokens were independent
    any : share that has any expert in common with the token before
    next_one, next_two : share of the tokens of one first choice that also share the most popular first choice of the
        next layer, or one of the two most popular
    next_one_by_chance : the same if layers were independent
    """

    first: Float[np.ndarray, "layer"]
    first_by_chance: Float[np.ndarray, "layer"]
    any: Float[np.ndarray, "layer"]
    next_one: Float[np.ndarray, "gap"]
    next_two: Float[np.ndarray, "gap"]
    next_one_by_chance: Float[np.ndarray, "gap"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Description:
    """What a trace shows.

    Attributes
    ----------
    batches, choices : how many batches, and single choices in one layer over all of them
    shares : of the choices, over the whole trace
    cv : deviation over mean of the shares
    top : share of the choices that goes to the most popular fifth of the experts
    idle : share of the experts that no token of a batch chose, mean over batches
    imbalance : by size of expert parallelism, load of the fullest of equal runs of experts over their mean, mean over
        batches
    following : None where the trace keeps counts only
    """

    shape: Shape
    batches: int
    choices: int
    shares: Float[np.ndarray, "layer expert"]
    cv: Float[np.ndarray, "layer"]
    top: Float[np.ndarray, "layer"]
    idle: Float[np.ndarray, "layer"]
    imbalance: Mapping[int, Float[np.ndarray, "layer"]]
    following: Following | None


def describe_counts(pieces: Iterable[Integer[np.ndarray, "batch layer expert"]], shape: Shape) -> Description:
    """Describe counts of whole batches, such as an engine's expert log."""
    sums = _Sums(shape=shape)
    for piece in pieces:
        for start in range(0, len(piece), _BATCHES):
            sums.add(np.asarray(piece[start : start + _BATCHES], dtype=np.int64))
    return sums.description(None)


def describe_choices(
    pieces: Iterable[Integer[np.ndarray, "token layer topk"]], shape: Shape, batch: int
) -> Description:
    """Describe single choices, taken `batch` tokens at a time; what is left over makes a last, smaller batch."""
    sums, order = _Sums(shape=shape), _Order(shape=shape)
    for piece in _recut(pieces, batch):
        sums.add(_counted(piece, shape)[None])
        order.add(piece)
    return sums.description(order.following())


_BATCHES = 64
"""Batches of counts taken together."""


def _recut(
    pieces: Iterable[Integer[np.ndarray, "token layer topk"]], batch: int
) -> Iterable[Integer[np.ndarray, "token layer topk"]]:
    """Cut pieces of any length into ones of `batch` tokens."""
    held: list[Integer[np.ndarray, "token layer topk"]] = []
    waiting = 0
    for piece in pieces:
        start = 0
        while waiting + len(piece) - start >= batch:
            end = start + batch - waiting
            yield np.concatenate([*held, piece[start:end]]) if held else piece[start:end]
            held, waiting, start = [], 0, end
        if start < len(piece):
            held.append(piece[start:])
            waiting += len(piece) - start
    if held:
        yield np.concatenate(held)


def _counted(piece: Integer[np.ndarray, "token layer topk"], shape: Shape) -> Int[np.ndarray, "layer expert"]:
    """Count the choices of one batch."""
    cells = piece.astype(np.int32) + np.arange(shape.layers, dtype=np.int32)[:, None] * shape.experts
    found = np.bincount(cells.ravel(), minlength=shape.layers * shape.experts)
    return found.reshape(shape.layers, shape.experts)


def _sizes(experts: int) -> tuple[int, ...]:
    """List powers of two from 2 to 64 that divide the experts."""
    return tuple(size for size in (2, 4, 8, 16, 32, 64) if experts % size == 0 and size < experts)


@dataclass(slots=True, kw_only=True)
class _Sums:
    """Adds up what counts show."""

    shape: Shape
    batches: int = 0
    counts: Int[np.ndarray, "layer expert"] = field(init=False)
    idle: Float[np.ndarray, "layer"] = field(init=False)
    imbalance: dict[int, Float[np.ndarray, "layer"]] = field(init=False)

    def __post_init__(self) -> None:
        layers = self.shape.layers
        self.counts = np.zeros((layers, self.shape.experts), dtype=np.int64)
        self.idle = np.zeros(layers)
        self.imbalance = {size: np.zeros(layers) for size in _sizes(self.shape.experts)}

    def add(self, counts: Int[np.ndarray, "batch layer expert"]) -> None:
        busy = counts.sum(axis=-1) > 0
        counts = counts[busy.any(axis=1)]  # a batch without tokens says nothing
        self.batches += len(counts)
        self.counts += counts.sum(axis=0)
        self.idle += (counts == 0).mean(axis=-1).sum(axis=0)
        whole = np.maximum(counts.sum(axis=-1), 1)
        for size, found in self.imbalance.items():
            load = counts.reshape(*counts.shape[:2], size, -1).sum(axis=-1)
            found += (load.max(axis=-1) * size / whole).sum(axis=0)

    def description(self, following: Following | None) -> Description:
        whole = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        shares = self.counts / whole
        fifth = max(1, round(self.shape.experts / 5))
        batches = max(self.batches, 1)
        return Description(
            shape=self.shape,
            batches=self.batches,
            choices=int(self.counts.sum(axis=1).max()),
            shares=shares,
            cv=shares.std(axis=1) * self.shape.experts,
            top=np.sort(shares, axis=1)[:, -fifth:].sum(axis=1),
            idle=self.idle / batches,
            imbalance={size: found / batches for size, found in self.imbalance.items()},
            following=following,
        )


@dataclass(slots=True, kw_only=True)
class _Order:
    """Adds up what the order of tokens and layers shows."""

    shape: Shape
    pairs: int = 0
    first: Int[np.ndarray, "layer"] = field(init=False)
    any: Int[np.ndarray, "layer"] = field(init=False)
    leading: Int[np.ndarray, "layer expert"] = field(init=False)
    joint: Int[np.ndarray, "gap expert expert"] = field(init=False)
    last: Integer[np.ndarray, "token layer topk"] = field(init=False)

    def __post_init__(self) -> None:
        layers, experts = self.shape.layers, self.shape.experts
        self.first, self.any = np.zeros(layers, dtype=np.int64), np.zeros(layers, dtype=np.int64)
        self.leading = np.zeros((layers, experts), dtype=np.int64)
        self.joint = np.zeros((layers - 1, experts, experts), dtype=np.int32)
        self.last = np.zeros((0, layers, self.shape.topk), dtype=np.int16)

    def add(self, piece: Integer[np.ndarray, "token layer topk"]) -> None:
        run = np.concatenate([self.last, piece])
        now, before = run[1:], run[:-1]
        self.pairs += len(now)
        self.first += (now[..., 0] == before[..., 0]).sum(axis=0)
        shared = np.zeros(now.shape[:2], dtype=bool)
        for turn in range(self.shape.topk):
            shared |= (now == np.roll(before, turn, axis=-1)).any(axis=-1)
        self.any += shared.sum(axis=0)
        self.leading += _counted(piece[..., :1], self.shape)
        experts = self.shape.experts
        for gap, joint in enumerate(self.joint):
            cells = piece[:, gap, 0].astype(np.int32) * experts + piece[:, gap + 1, 0]
            joint += np.bincount(cells, minlength=experts**2).reshape(experts, experts)
        self.last = piece[-1:]

    def following(self) -> Following:
        share = self.leading / np.maximum(self.leading.sum(axis=1, keepdims=True), 1)
        popular = np.sort(self.joint, axis=2)[:, :, -2:]
        tokens = np.maximum(self.joint.sum(axis=(1, 2)), 1)
        pairs = max(self.pairs, 1)
        return Following(
            first=self.first / pairs,
            first_by_chance=(share**2).sum(axis=1),
            any=self.any / pairs,
            next_one=popular[:, :, -1].sum(axis=1) / tokens,
            next_two=popular.sum(axis=(1, 2)) / tokens,
            next_one_by_chance=share[1:].max(axis=1),
        )
