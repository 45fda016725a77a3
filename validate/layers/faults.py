"""What no layer can be: everything wrong with a spec at once, each with its field and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moesim.ground.errors import Fault, nearest

if TYPE_CHECKING:
    from .spec import LayerSpec

GATINGS = ("static", "sparse", "dynamic", "grouped")
"""Static gating by products with a mask or by gathering; dynamic gating, one product per expert or one for all."""
DTYPES = ("fp32", "bf16")
ALLTOALLS = ("linear", "two_dh")
OVERLAPS = ("none", "shared_expert")
EVICTIONS = ("belady", "fifo", "lfru", "lfu", "lifo", "lru", "pinned")
TIERS = ("host", "disk")
REACTIONS = ("caching", "dynamoe")
PASSES = ("forward", "forward+backward")
OPERATORS = 4
"""Of a block of two layers: attention, dense network, attention, shared expert."""


def faults(spec: LayerSpec) -> Iterator[Fault]:
    """Name all that does not fit."""
    yield from _wrong_words(spec)
    low = [name for name in ("hidden", "intermediate", "experts", "topk", "tokens", "ranks", "ep") if _low(spec, name)]
    for name in low:
        yield _fault(name, f"{getattr(spec, name)!r} is not a positive whole number", "give at least 1")
    if low:
        return
    if spec.topk > spec.experts:
        yield _fault("topk", f"{spec.topk} of {spec.experts} experts", f"give at most {spec.experts}")
    if spec.fraction < 0 or (spec.fraction > 0 and spec.factor != 1.0):
        yield _fault("fraction", f"{spec.fraction} beside factor {spec.factor}", "give one positive rule of capacity")
    if spec.degree < 1:
        yield _fault("degree", f"{spec.degree} chunks", "give 1, 2, 4 or 8")
    yield from _wrong_ranks(spec)
    yield from _wrong_cache(spec)
    yield from _wrong_block(spec)
    yield from _wrong_compiling(spec)


def _low(spec: LayerSpec, name: str) -> bool:
    value = getattr(spec, name)
    return not isinstance(value, int) or isinstance(value, bool) or value < 1


def _fault(path: str, problem: str, remedy: str) -> Fault:
    return Fault(path=path, problem=problem, remedy=remedy)


def _wrong_words(spec: LayerSpec) -> Iterator[Fault]:
    words = [
        ("dtype", spec.dtype, DTYPES),
        ("gating", spec.gating, GATINGS),
        ("alltoall", spec.alltoall, ALLTOALLS),
        ("overlap", spec.overlap, OVERLAPS),
        ("direction", spec.direction, PASSES),
        *(("reactions", reaction.name, REACTIONS) for reaction in spec.reactions),
    ]
    if spec.cache is not None:
        words += [("cache.eviction", spec.cache.eviction, EVICTIONS), ("cache.tier", spec.cache.tier, TIERS)]
    for path, word, known in words:
        if word not in known:
            yield _fault(path, f"no such choice: {word!r}", nearest(str(word), known))


def _wrong_ranks(spec: LayerSpec) -> Iterator[Fault]:
    """Name what is wrong with degrees and placement."""
    if spec.ranks % spec.ep:
        yield _fault("ep", f"{spec.ep} does not divide {spec.ranks} ranks", "give a divisor")
    among = spec.ep if spec.r is None else spec.ranks
    if spec.width < 1 or (spec.alltoall == "two_dh" and (among % spec.width or not 1 < spec.width < among)):
        remedy = "two_dh needs two or more whole nodes of 2 or more"
        yield _fault("width", f"nodes of {spec.width} in exchanges of {among} ranks", remedy)
    if spec.r is not None:
        yield from _wrong_r(spec)
        return
    missing = set(range(spec.experts)) - set(spec.placement)
    unknown = set(spec.placement) - set(range(spec.experts))
    if missing or unknown:
        yield _fault("expert_of_slot", f"experts {sorted(missing | unknown)} have no slot or do not exist", "list all")
    if len(spec.placement) % spec.ep:
        yield _fault("expert_of_slot", f"{len(spec.placement)} slots on {spec.ep} ranks", "give each rank equally many")
    elif any(most > 1 for rank in _by_rank(spec) for most in Counter(rank).values()):
        yield _fault("expert_of_slot", "two copies of an expert on one rank", "keep copies on different ranks")


def _by_rank(spec: LayerSpec) -> list[tuple[int, ...]]:
    local = len(spec.placement) // spec.ep
    return [spec.placement[first : first + local] for first in range(0, len(spec.placement), local)]


def _wrong_r(spec: LayerSpec) -> Iterator[Fault]:
    """Name what keeps ranks from switching between parallelisms without moving weights."""
    few, many = sorted((spec.ranks, spec.experts))
    if many % few:
        yield _fault("r", f"{spec.experts} experts on {spec.ranks} ranks", "make one a multiple of the other")
    elif spec.r not in (known := [0, *(r for r in range(1, spec.shards + 1) if spec.shards % r == 0)]):
        yield _fault("r", f"{spec.r} with {spec.shards} ranks an expert", f"give one of {known}")
    if spec.intermediate % spec.shards:
        yield _fault("intermediate", f"{spec.intermediate} over {spec.shards} ranks", "give a multiple")
    if spec.ep not in (1, spec.ranks) or spec.expert_of_slot or spec.cache:
        yield _fault("r", "adaptive parallelism decides where experts live", "leave out ep, expert_of_slot and cache")


def _wrong_cache(spec: LayerSpec) -> Iterator[Fault]:
    if spec.cache is None:
        return
    local = len(spec.placement) // spec.ep
    if not 1 <= spec.cache.resident <= local:
        yield _fault("cache.resident", f"{spec.cache.resident} of a rank's {local} slots", f"give 1 to {local}")
    if spec.backward:
        yield _fault("cache", "experts that come and go keep no gradients", "run a forward pass")
    if spec.compiled or spec.graphed or spec.gating == "grouped" or spec.degree > 1:
        yield _fault("cache", "experts are run one by one as they come in", "use another gating, whole")


def _wrong_block(spec: LayerSpec) -> Iterator[Fault]:
    block = spec.block
    if block is None:
        if spec.overlap == "shared_expert" and (not spec.shared or spec.shared_slot not in (0, 1)):
            yield _fault(
                "overlap", f"shared {spec.shared}, shared_slot {spec.shared_slot}", "give a shared expert, 0 or 1"
            )
        return
    if min(block.heads, block.sequence, block.dense) < 1 or spec.hidden % block.heads:
        yield _fault("block", f"{block.heads} heads of width {spec.hidden}", "give heads that divide it")
    if block.position not in (0, 1, 2, 3):
        yield _fault("block.position", f"{block.position}", "give 1, 2 or 3, or 0 for no shortcut")
    elif not (block.tap < block.slot <= OPERATORS or (block.position == 0 and block.slot in (0, 3))):
        yield _fault("block.slot", f"{block.slot} after a tap at {block.tap}", f"give {block.tap + 1} to {OPERATORS}")
    if not spec.shared:
        yield _fault("shared", "a block has a shared expert", "give its width")
    if spec.overlap != "none":
        yield _fault("overlap", "a block's own slot says what overlaps", "leave it out")


def _wrong_compiling(spec: LayerSpec) -> Iterator[Fault]:
    if (spec.compiled or spec.graphed) and not (spec.static and (spec.fraction > 0 or spec.factor > 0)):
        yield _fault("gating", f"{spec.gating} with factor {spec.factor} has no fixed shapes", "give a fixed capacity")
    if spec.graphed and (spec.ranks > 1 or spec.backward or spec.block is not None):
        yield _fault("graphed", "only a forward pass of a layer on one rank is captured", "leave out one or the other")
    names = [reaction.name for reaction in spec.reactions]
    if "dynamoe" in names and not (spec.static and spec.factor > 0 and not spec.fraction):
        yield _fault("reactions", "dynamoe alters capacities", "use static or sparse gating with a factor")
    if names and (spec.block is not None or spec.graphed or spec.r is not None):
        yield _fault("reactions", "a layer that reacts is run alone", "leave out block, graphed and r")
