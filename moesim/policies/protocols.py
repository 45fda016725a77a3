"""What each kind of policy must answer. A plain function is a policy; one with settings is a frozen dataclass.

A policy's file offers one name, ``policy``: either the function itself, or the dataclass, whose fields are the settings
and all have defaults. Its ``__post_init__`` raises `ValueError` for a setting out of range. `finding.make` builds it.

A policy sees sizes, places and random generators, and returns a decision. It never sees how fast anything is, so no
policy can time anything. `changes_model` marks one that changes what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from moesim.plans.layout import Layout
from moesim.schedules.ops import Exchange, Op
from moesim.schedules.schedule import Schedule, Task
from moesim.world.model import Moe

Counts = Shaped[np.ndarray, "*#lead rank expert"]


@runtime_checkable
class Placement(Protocol):
    """Decide which expert each slot holds."""

    @property
    def balances(self) -> bool:
        """Whether it promises to follow the load: no worse than contiguous, and blind to how experts are numbered."""
        ...

    def slots(self, experts: int, ranks: int) -> int:
        """Slots wanted per layer: the experts and their redundant copies, rounded up to a multiple of `ranks`."""
        ...

    def __call__(
        self,
        load: Float[np.ndarray, "step layer expert"],
        slots: int,
        ranks: int,
        nodes: int,
        rng: np.random.Generator,
    ) -> Int[np.ndarray, "layer slot"]:
        """Return each slot's expert; slot s lives on rank s // (slots / ranks), and every expert has a slot.

        `load` is what each expert received; `nodes` is how many nodes the ranks fill, in order.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gated:
    """What gating makes of the drawn counts.

    Attributes
    ----------
    rows : rows sent to and computed for each expert, padding included
    kept : assignments that survive; the rest are dropped
    mask : elements of the dense dispatch mask each rank builds (tokens x experts x capacity); 0 where rows are gathered
    sizes : whether row counts must be exchanged before the rows
    apart : whether an expert multiplies the rows of each source by themselves
    """

    rows: Counts
    kept: Counts
    mask: Shaped[np.ndarray, "*#lead rank"]
    sizes: bool
    apart: bool = False


@runtime_checkable
class Gating(Protocol):
    """Turn drawn counts into rows to compute."""

    @property
    def changes_model(self) -> bool:
        """Whether it may drop assignments."""
        ...

    def capacity(self, tokens: int, experts: int, topk: int) -> int:
        """Rows per expert and source rank for a rank with `tokens` tokens; `NO_LIMIT` where nothing is dropped."""
        ...

    def __call__(
        self,
        counts: Counts,
        capacity: Shaped[np.ndarray, "*#lead #rank expert"],
        tokens: Shaped[np.ndarray, "*#lead #rank"],
    ) -> Gated:
        """Apply the capacity to counts over (rank, expert), whole numbers or means, made of so many tokens per rank."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step of an all-to-all: its op, the group that meets in it, and its stream.

    The group is ``""`` (every rank alone), ``"ep"`` (all ranks of the exchange), ``"node"`` or ``"rail"``.
    """

    op: Op
    group: str
    stream: str


@runtime_checkable
class AllToAllPolicy(Protocol):
    """Turn an exchange into phases; `replicated` marks the one that keeps tokens in place and sends nothing."""

    @property
    def replicated(self) -> bool:
        """Whether tokens stay where they are, replicated, and a reduction of the results replaces the exchange."""
        ...

    @property
    def everywhere(self) -> bool:
        """Whether every rank gets every token, so that no counts of rows travel first."""
        ...

    def __call__(self, op: Exchange, reach: tuple[tuple[str, int], ...]) -> tuple[Phase, ...]:
        """Return the phases in order, none when there is nobody to send to.

        `reach` lists (tier, gpus one hop reaches) from the innermost outwards; the exchange's ranks are gpus 0, 1, ...
        of it, and its innermost tier is taken to join a node.

        Raises
        ------
        PolicyError
            The ranks do not suit the algorithm; the message names one that does.
        """
        ...


@runtime_checkable
class Overlap(Protocol):
    """Rearrange a schedule so that communication hides behind computation."""

    @property
    def halves(self) -> int:
        """Sub-batches it wants lowered separately: 1, or 2 for two-batch overlap."""
        ...

    def block(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Rearrange one layer's schedule; several results are alternatives, of which the planner keeps the fastest.

        Every block of one policy gets the same number of alternatives, in the same order.
        """
        ...

    def whole(self, halves: tuple[Schedule, ...]) -> Schedule:
        """Join the lowered sub-batches, as many as `halves`, into one schedule."""
        ...


@runtime_checkable
class Shortcut(Protocol):
    """Change what the routed experts are and which representation they read."""

    @property
    def changes_model(self) -> bool:
        """Whether it does either."""
        ...

    @property
    def joins(self) -> bool:
        """Whether it rearranges a dense layer and the MoE layer after it as one block."""
        ...

    def mixture(self, moe: Moe) -> Moe:
        """Return the mixture it makes of the model's."""
        ...

    def __call__(self, block: Schedule, layout: Layout) -> tuple[Schedule, ...]:
        """Rearrange a block; several results are alternatives, of which the planner keeps the fastest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a reacting policy is told once.

    Attributes
    ----------
    tokens : per gpu and step
    topk : experts a token chooses
    gpus : all that share the layers
    nodes : that one copy of all experts spans
    expert : bytes of one expert's weights on one gpu
    node : gpus of a node
    state : bytes that an optimizer keeps of these weights, whole; 0 where nothing is trained
    keepers : gpus that share this state out; 1: each keeps all of it
    """

    tokens: int
    topk: int
    gpus: int
    nodes: int
    expert: float
    node: int = 8
    state: float = 0.0
    keepers: int = 1

    @property
    def moving(self) -> float:
        """Bytes that a gpu copies in with an expert: its weights, and its share of what an optimizer keeps of them."""
        return self.expert + self.state / self.keepers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What a running system can have seen before a step: an earlier step, `lag` steps ago, never the one to come.

    Attributes
    ----------
    step : the step seen
    layout : the layout in force now
    counts : tokens that chose each expert in the step seen
    most : largest count of any expert on any gpu in the step seen: the capacity that would have dropped nothing
    agreement : share of the tokens whose cached experts were those chosen in the step seen
    cost_of : what each layer of the step seen would have cost under a layout; for policies that `profile`
    """

    step: int
    layout: Layout
    counts: Shaped[np.ndarray, "layer expert"]
    most: Int[np.ndarray, "layer"]
    agreement: float
    cost_of: Callable[[Layout], Float[np.ndarray, "layer"]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """A new layout, and what it takes to get there; how long that is is for others to say.

    Attributes
    ----------
    layout : in force from the next step on, or once a change in the background is done
    rebuilt : graphs to compile and capture anew, for which all ranks stop
    moved : bytes every gpu has to copy in
    background : whether steps go on, on the old layout, while bytes are copied
    """

    layout: Layout
    rebuilt: int = 0
    moved: float = 0.0
    background: bool = False


@runtime_checkable
class Adaptation(Protocol):
    """React to what was seen, step by step. The state is a value: it is returned, and never changed in place."""

    @property
    def profiles(self) -> bool:
        """Whether it asks what other layouts would have cost, as a system that measures them can."""
        ...

    def start(self, layout: Layout, sizes: Sizes) -> Any:
        """Return the state before the first step."""
        ...

    def __call__(self, state: Any, seen: Seen, rng: np.random.Generator) -> tuple[Any, Change | None]:
        """Return the next state, and a change where there is to be one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CacheView:
    """What is known of some caches when one expert each has to leave. Uses are numbered in the order they happen.

    Attributes
    ----------
    now : number of the use that misses
    needed : whether the current batch uses the expert, before this use or after it
    used : number of the last use; -1: never
    inserted : number of the use for which it was last copied in; -1: never
    count : uses so far
    share : mean share of the uses over a whole history: what a popularity measured offline would say
    next_use : number of the next use; only a clairvoyant rival may read it
    """

    now: int
    needed: Bool[np.ndarray, "cache expert"]
    used: Int[np.ndarray, "cache expert"]
    inserted: Int[np.ndarray, "cache expert"]
    count: Int[np.ndarray, "cache expert"]
    share: Float[np.ndarray, "cache expert"]
    next_use: Int[np.ndarray, "cache expert"]


@runtime_checkable
class Buffering(Protocol):
    """Keep some expert slots of each MoE layer and rank on the gpu, and fetch others when they are used."""

    @property
    def tier(self) -> str:
        """Where experts that are not on the gpu live: ``host`` or ``disk``."""
        ...

    @property
    def hosted(self) -> int:
        """Rows up to which an expert that is not on the gpu is computed by the host instead of fetched; 0: none is.

        Above 0, what is on the gpu is never replaced: an expert with more rows is copied in for one pass.
        """
        ...

    def resident_of(self, slots: int) -> int:
        """Return how many of `slots` expert slots per rank are on the gpu.

        Raises
        ------
        PolicyError
            It wants more resident than there are.
        """
        ...

    def __call__(self, seen: CacheView) -> Shaped[np.ndarray, "cache expert"]:
        """Return a key: of the experts on the gpu, the one with the smallest key leaves."""
        ...


@runtime_checkable
class Router(Protocol):
    """Choose the replica that a request goes to."""

    def __call__(self, turn: int, session: int, hand: Sequence[int]) -> int:
        """Return a replica's number.

        `turn` counts the requests that came before; `session` is that of the request, -1 where it has none; `hand` is
        how many requests each replica has in hand, waiting ones too.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What an autoscaler sees of a pool.

    Attributes
    ----------
    replicas : that there are
    on : that serve, or are starting
    waiting : requests that wait for a place, over all replicas
    working : requests that have one
    places : of one replica
    """

    replicas: int
    on: int
    waiting: int
    working: int
    places: int


@runtime_checkable
class Scaling(Protocol):
    """Choose how many replicas should be on."""

    @property
    def every(self) -> float:
        """Seconds between two looks; 0: it never looks, and all replicas are on."""
        ...

    @property
    def lag(self) -> float:
        """Seconds from a look to what is done about it."""
        ...

    @property
    def hold(self) -> float:
        """Seconds for which fewer replicas must have been wanted before any is taken away."""
        ...

    def __call__(self, seen: Demand) -> int:
        """Return a number from 1 to all replicas."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefetched:
    """Bytes to copy in, sorted by when: before the gate has spoken, and after; `wasted` ones come early for nothing."""

    early: Shaped[np.ndarray, "..."]
    wasted: Shaped[np.ndarray, "..."]
    late: Shaped[np.ndarray, "..."]


@runtime_checkable
class Prefetch(Protocol):
    """Start copies of experts before the gate has chosen them."""

    def __call__(self, missing: Shaped[np.ndarray, "..."]) -> Prefetched:
        """Sort the bytes that a layer will have to copy in."""
        ...


@runtime_checkable
class Batching(Protocol):
    """Settings of the batch a replica works on."""

    @property
    def max_batch(self) -> int:
        """Most sequences that decode together."""
        ...

    @property
    def budget(self) -> int:
        """Most new tokens in one step, decoded ones included; `NO_LIMIT` where prompts are never cut."""
        ...

    @property
    def speculated(self) -> int:
        """Draft tokens verified per sequence and step, beside the one that is certain."""
        ...

    @property
    def emitted(self) -> float:
        """Output tokens per sequence and step: the certain one, and the drafts that prove right on average."""
        ...

    @property
    def preemption(self) -> Literal["recompute", "swap"]:
        """What becomes of a sequence whose cache is taken away: its prompt is worked on again, or its cache copied."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes with a compiled graph, ascending; empty: any size runs as it is."""
        ...

    @property
    def graphs(self) -> int:
        """How many graphs may be compiled, where their sizes are still to be chosen; 0: those of `buckets` are."""
        ...


Turn = tuple[int, int]
"""A chunk of a stage, and a microbatch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What a pipeline stage does at a time: any of these, side by side where there are two.

    Attributes
    ----------
    forward, backward : a microbatch's pass through a chunk
    inputs, weights : a backward's two halves, the gradients of inputs and those of weights
    """

    forward: Turn | None = None
    backward: Turn | None = None
    inputs: Turn | None = None
    weights: Turn | None = None


@runtime_checkable
class Pipeline(Protocol):
    """Order the microbatches of a training step on every pipeline stage."""

    @property
    def chunks(self) -> int:
        """Chunks of layers a stage is cut into, which a microbatch passes one after another."""
        ...

    @property
    def lanes(self) -> int:
        """Ways through the stages; each takes an equal share of the microbatches, and needs weights of its own."""
        ...

    def __hash__(self) -> int:
        """Hash by content: a policy is a value."""
        ...

    def fault(self, stages: int, microbatches: int, layers: int) -> str:
        """Say why it does not suit these numbers, and a remedy; nothing where it does."""
        ...

    def position(self, stage: int, chunk: int, stages: int) -> int:
        """Return how many chunks a microbatch passes before this one, on its way through this one."""
        ...

    def order(self, stage: int, stages: int, microbatches: int) -> Sequence[Unit]:
        """Return what a stage does, in order. Where there are two lanes, the chunk of a turn is the lane."""
        ...


@runtime_checkable
class Sharding(Protocol):
    """Share the state of training out among data-parallel ranks."""

    def __hash__(self) -> int:
        """Hash by content: a policy is a value."""
        ...

    @property
    def stage(self) -> int:
        """What is shared out: 0, nothing; 1, the optimizer; 2, gradients too; 3, weights too."""
        ...

    @property
    def behind(self) -> bool:
        """Whether gradients are reduced, and weights gathered, behind computing."""
        ...


Kept = Literal["all", "products", "inputs"]
"""What a layer keeps for its backward: all, the inputs of what is a product or an exchange, or its own input alone."""


@runtime_checkable
class Recompute(Protocol):
    """Choose what the backward pass computes again."""

    @property
    def keeps(self) -> Kept:
        """What is kept for it."""
        ...

    def __call__(self, task: Task) -> bool:
        """Say whether a task of the forward is run again before the backward."""
        ...
