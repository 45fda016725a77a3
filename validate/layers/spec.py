"""What a layer to be run is: sizes, and what a plan decides. A value, checked when it is made, that JSON can keep.

Nothing is imported here but the library's errors, so that a plan can be turned into a spec where there is no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from moesim.ground.errors import Fault, InputError, nearest

from .faults import PASSES, faults

Setting = bool | int | float | str
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """An expert cache on every rank.

    Attributes
    ----------
    resident : expert slots held where experts are computed
    eviction : buffering policy, by name
    tier : where the other experts live: in pinned memory of the host, or in a file that is read past the page cache
    """

    resident: int
    eviction: str = "lru"
    tier: str = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """A dense layer and the MoE layer after it, as ScMoE joins them (arXiv 2404.05019).

    Attributes
    ----------
    heads, sequence : of the causal attention; tokens are whole sequences
    dense : inner width of the dense layer's network
    position : where the routed experts tap the backbone: 1, after the layer before; 2, after its attention; 3, before
        it; 0, no shortcut: they read what their own layer's attention made
    slot : how many of the backbone's four operators are issued before the experts; 0 with position 0: no overlap
    """

    heads: int
    sequence: int
    dense: int
    position: int = 0
    slot: int = 0

    @property
    def tap(self) -> int:
        """How many of the backbone's operators come before the routed stream."""
        return {0: 3, 1: 2, 2: 1, 3: 0}[self.position]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """A reacting policy, by name, with its settings: `dynamoe` alters capacities, `caching` keeps assignments."""

    name: str
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One MoE layer on so many ranks; `faults` says what fits together.

    Attributes
    ----------
    hidden, intermediate : width of the layer and inner width of an expert
    experts, topk : how many there are, and how many a token uses
    tokens : per rank, that capacities are sized for
    dtype : of weights and tokens
    gated : whether experts have three matrices
    shared : inner width of all shared experts together; 0: none
    gating : one of `faults.GATINGS`
    factor : Tutel's capacity factor: above 0 as it is, 0 as much as is needed, below 0 as needed and at most its size
    fraction : capacity as a share of the rank's tokens instead; 0: `factor` decides
    ranks, ep : processes, and how many of them share one set of experts
    r : Tutel's adaptive parallelism over all ranks; None: plain expert parallelism by `ep`
    alltoall : one of `faults.ALLTOALLS`
    width : ranks of a node, for `two_dh` and for choosing among an expert's copies
    degree : chunks of dispatch, experts and combine
    overlap : `shared_expert` issues the shared expert while rows travel
    shared_slot : with that overlap: 1, the shared expert goes behind the dispatch; 0, behind the combine
    expert_of_slot : which expert each slot of an ep group holds, rank after rank; empty: in order of their numbers
    cache : experts beyond those resident come from a cold tier; None: all are resident
    block : the layer is run with its attention and the dense layer before it; None: alone
    compiled : the parts between exchanges go through torch.compile, for fixed shapes
    graphed : what is launched is captured as a CUDA graph and replayed
    reactions : policies that change capacities or assignments between steps
    direction : one of `faults.PASSES`
    """

    hidden: int
    intermediate: int
    experts: int
    topk: int
    tokens: int
    dtype: str = "fp32"
    gated: bool = True
    shared: int = 0
    gating: str = "dynamic"
    factor: float = 1.0
    fraction: float = 0.0
    ranks: int = 1
    ep: int = 1
    r: int | None = None
    alltoall: str = "linear"
    width: int = 1
    degree: int = 1
    overlap: str = "none"
    shared_slot: int = 1
    expert_of_slot: tuple[int, ...] = ()
    cache: CacheSpec | None = None
    block: BlockSpec | None = None
    compiled: bool = False
    graphed: bool = False
    reactions: tuple[Reaction, ...] = ()
    direction: str = "forward"

    def __post_init__(self) -> None:
        """Refuse what no layer can be.

        Raises
        ------
        InputError
            All that does not fit, each with its field and a remedy.
        """
        found = tuple(faults(self))
        if found:
            raise InputError("layer", found)

    @property
    def backward(self) -> bool:
        """Whether a step has a backward pass."""
        return self.direction == PASSES[1]

    @property
    def static(self) -> bool:
        """Whether experts get a capacity."""
        return self.gating in ("static", "sparse")

    @property
    def placement(self) -> tuple[int, ...]:
        """Which expert each slot holds, spelled out."""
        return self.expert_of_slot or tuple(range(self.experts))

    @property
    def shards(self) -> int:
        """Ranks that share one expert under adaptive parallelism."""
        return max(1, self.ranks // self.experts)

    def json(self) -> dict[str, Any]:
        """Return what JSON can keep; `from_json` reads it back."""
        return asdict(self)


def from_json(tree: Mapping[str, Any]) -> LayerSpec:
    """Read a spec back from what JSON kept.

    Raises
    ------
    InputError
        An unknown or missing field, or one that does not fit.

    Examples
    --------
    >>> spec = LayerSpec(hidden=64, intermediate=128, experts=8, topk=2, tokens=16, cache=CacheSpec(resident=2))
    >>> from_json(spec.json()) == spec
    True
    >>> from_json({"hiden": 64})
    Traceback (most recent call last):
    moesim.ground.errors.InputError: layer: hiden: no such field; did you mean `hidden`?
    """
    values = dict(tree)
    if values.get("cache") is not None:
        values["cache"] = _made(CacheSpec, values["cache"], "cache.")
    if values.get("block") is not None:
        values["block"] = _made(BlockSpec, values["block"], "block.")
    values["expert_of_slot"] = tuple(values.get("expert_of_slot", ()))
    values["reactions"] = tuple(_made(Reaction, each, "reactions.") for each in values.get("reactions", ()))
    return _made(LayerSpec, values, "")


def _made(kind: type[_Made], values: Mapping[str, Any], where: str) -> _Made:
    """Make a record of named values, or name the first that is unknown or missing."""
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise InputError(
                "layer", [Fault(path=f"{where}{name}", problem="no such field", remedy=nearest(name, known))]
            )
    try:
        return kind(**values)
    except TypeError as fault:
        raise InputError("layer", [Fault(path=where.rstrip("."), problem=str(fault).partition("() ")[2])]) from None
