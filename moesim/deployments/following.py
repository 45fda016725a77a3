"""A pool over steps in which its routing changes: what its reacting policies make of them.

A step is priced as an estimate prices it, at the routing of its phase and under the layout in force; what Tutel's knobs
change is priced on one layer alone. Phases are stretches of steps in which draws follow one law, one draw a phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from math import ceil, log2

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.adaptation import Charges, Knobs, Trace, Walk, walk
from moesim.deployments.arrangements import Arrangements
from moesim.deployments.training import microbatches_of
from moesim.ground.errors import PolicyError
from moesim.ground.units import Seconds
from moesim.passes.parallelisms import layer_seconds
from moesim.passes.table import table_of
from moesim.passes.trained import state_of_experts
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Adaptation, Sizes
from moesim.schedules.costs.fits import machine_of
from moesim.schedules.costs.rebuilding import rebuilding
from moesim.world.formats import bytes_of
from moesim.world.hardware import reach, tier_between
from moesim.world.model import Moe, expert_parameters
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

SHORTEST, LONGEST = 1000, 8000
"""Steps a pool is followed for, at least and at most."""
FEWEST, MOST = 4, 64
"""Phases it is followed through, where the steps allow."""
FINENESS = 8
"""Capacities per doubling at which knobs are priced."""

PRODUCTS = 8
"""Products of a layer, as graphs have them: four of attention, the gate's, three of experts; rarely far from it."""

OPEN = np.zeros(1)
"""A price that is still to be found."""

Timed = Callable[[Sequence[Arrangements], bool], Float[np.ndarray, "moment"]]
"""Seconds of a mean step under each of some arrangements, and whether experts read cached assignments."""


def horizon(period: int) -> int:
    """Steps to follow a routing for that changes every so many; 0 where it is not seen to change.

    Examples
    --------
    >>> horizon(0), horizon(50), horizon(1), horizon(500), horizon(9000)
    (0, 1000, 64, 2000, 0)
    """
    if period == 0 or period >= LONGEST:
        return 0
    return min(max(FEWEST * period, SHORTEST), MOST * period, LONGEST)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Watched:
    """A pool at its operating point.

    Attributes
    ----------
    tokens : home tokens per rank of its mean pass
    phases : layouts and draws at the first step of each phase
    timed : prices its steps
    """

    scenario: Scenario
    pool: Pool
    tokens: float
    phases: tuple[Arrangements, ...]
    timed: Timed

    @property
    def layers(self) -> tuple[int, ...]:
        """The sampled MoE layers, which stand for all."""
        return self.phases[0].layers

    @property
    def each(self) -> float:
        """MoE layers that one of the sampled stands for."""
        return self.scenario.routing.layers / len(self.layers)

    @property
    def passes(self) -> float:
        """Passes of a layer in a step: in training those of all microbatches; stages work side by side."""
        workload, p = self.scenario.workload, self.pool.parallel
        if not isinstance(workload, Training):
            return 1.0
        return float(microbatches_of(workload, table_of([self.pool]))[0]) / p.pp

    def moe(self, layer: int) -> Moe:
        """Return the mixture of a sampled layer."""
        model = self.scenario.model
        return model.moe(model.moe_layers[self.layers[layer]])

    def trace(self) -> Trace:
        """Draw each phase's counts once; a row a phase."""
        p, period = self.pool.parallel, self.scenario.routing.period
        total = round(self.tokens * p.ep * p.etp)
        counts = np.stack([phase.drawn(total, 0)[:, 0] for phase in self.phases]) * p.edp
        return Trace(
            counts=counts,
            most=-(-counts.max(axis=2) // p.ranks),
            agreement=self._agreement(),
            row_of_step=np.arange(horizon(period)) // period,
        )

    def _agreement(self) -> Float[np.ndarray, "phase"]:
        """Share of the tokens that choose what they chose a phase ago: at most what the shares have in common.

        Tokens that could keep an expert are taken to keep it, each of their experts apart.
        """
        shares = [phase.sample.shares(phase.step) for phase in self.phases]
        common = [np.minimum(*pair).sum(axis=1) ** self.scenario.routing.topk for pair in pairwise(shares)]
        return np.array([1.0, *(float(each.mean()) for each in common)])

    def start(self) -> Layout:
        """Return the layout of the sampled layers before the first step."""
        whole, layers = self.phases[0].layout(self.pool, self.tokens), list(self.layers)
        return replace(
            whole,
            expert_of_slot=whole.expert_of_slot[layers],
            capacity=whole.capacity[layers],
            resident=whole.resident[layers],
            r=np.full(len(layers), self.pool.parallel.etp),
            degree=whole.degree[layers],
            alltoall=tuple(whole.alltoall[layer] for layer in layers),
        )

    def sizes(self) -> Sizes:
        """Tell policies what they are told once; an expert counts for all the layers that its layer stands for."""
        p, node = self.pool.parallel, self.scenario.hardware.offer(self.pool.node).node.gpus
        parameters = expert_parameters(self.moe(0)) / p.etp * self.each
        workload = self.scenario.workload
        state, keepers = state_of_experts(workload, self.pool) if isinstance(workload, Training) else (0.0, 1)
        return Sizes(
            tokens=max(1, round(self.tokens)),
            topk=self.scenario.routing.topk,
            gpus=p.ranks,
            nodes=max(1, p.ep * p.etp // node),
            expert=parameters * bytes_of(self.format),
            node=node,
            state=parameters * state,
            keepers=keepers,
        )

    @property
    def format(self) -> str:
        """Storage format of the experts."""
        return self.pool.precision.get("experts") or self.scenario.model.dtype_of.get("experts", "bf16")

    def charges(self) -> Charges:
        """Price changes: deciding is the framework's; so is recompiling where nobody timed it on the device.

        Weights come over the experts' last tier. Knobs are tried on one layer, not on all a sampled one stands for.
        """
        node, fabric = self.scenario.node(self.pool.node, self.pool.framework), self.scenario.hardware.fabric
        p, machine = self.pool.parallel, machine_of(node, fabric)
        tier = tier_between(reach(node, fabric), 0, p.ep * p.etp - 1)
        rate = machine.transfer("send", tier).params["efficiency"] * machine.tier(tier).bandwidth
        framework = self.scenario.frameworks[self.pool.framework]
        measured = rebuilding(node.device, PRODUCTS * len(self.scenario.model.layers) / p.pp)
        rebuild = framework.recompile if measured is None else measured
        return Charges(rebuild=rebuild, host=framework.rebalance, rate=rate, trials=1 / self.each)


Key = tuple[int, int, bool]


def key_of(layout: Layout) -> Key:
    """Name what a pass's work depends on; arrays that are kept alive have addresses of their own."""
    return id(layout.expert_of_slot), id(layout.capacity), layout.cached


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phases:
    """Prices of every phase under every layout that was asked for."""

    watched: Watched
    trace: Trace
    own: Knobs
    _whole: dict[tuple[Key, int], Seconds] = field(default_factory=dict)
    _kept: dict[Key, Layout] = field(default_factory=dict)
    _layer: dict[tuple[Moe, Knobs, int], Seconds] = field(default_factory=dict)
    _asked: dict[tuple[int, int], tuple[Layout, Float[np.ndarray, "layer"]]] = field(default_factory=dict)

    def __call__(self, layout: Layout, step: int) -> Float[np.ndarray, "layer"]:
        """Share a step's time among its layers, and add what their knobs change; steps of a phase are alike."""
        phase = self.trace.row(step)
        key = (id(layout), phase)  # a layout that is kept has an address of its own
        if key not in self._asked:
            each = self.whole(layout, phase) / len(self.watched.layers)
            self._asked[key] = (layout, each + self.changed(layout, phase))
        return self._asked[key][1]

    def whole(self, layout: Layout, phase: int) -> Seconds:
        """Time a step of a phase under a layout, knobs aside."""
        key = (key_of(layout), phase)
        if key not in self._whole:
            self.fill([(layout, phase)])
        return self._whole[key]

    def fill(self, pairs: Iterable[tuple[Layout, int]]) -> None:
        """Time steps of several phases under several layouts together."""
        pairs = list({(key_of(layout), phase): (layout, phase) for layout, phase in pairs}.values())
        for cached in (False, True):
            wanted = {
                (key_of(layout), phase): layout
                for layout, phase in pairs
                if layout.cached == cached and (key_of(layout), phase) not in self._whole
            }
            if wanted:
                moments = [self.watched.phases[phase].holding(layout) for (_, phase), layout in wanted.items()]
                self._whole.update(zip(wanted, self.watched.timed(moments, cached).tolist(), strict=True))
                self._kept.update({key: layout for (key, _), layout in wanted.items()})

    def changed(self, layout: Layout, phase: int) -> Float[np.ndarray, "layer"]:
        """Seconds that each layer's knobs add to what its own, those of the plan, take."""
        knobs = zip(layout.r.tolist(), layout.degree.tolist(), layout.alltoall, strict=True)
        return np.array([self.added(layout, layer, each, phase) for layer, each in enumerate(knobs)])

    def added(self, layout: Layout, layer: int, knobs: Knobs, phase: int) -> Seconds:
        """Seconds that one layer's knobs add in a phase."""
        if knobs == self.own:
            return 0.0
        capacity = layout.capacity[layer].max()
        rows = int(self.trace.most[phase, layer] if capacity == NO_LIMIT else capacity)
        return (
            self.watched.each * self.watched.passes * (self._one(layer, knobs, rows) - self._one(layer, self.own, rows))
        )

    def _one(self, layer: int, knobs: Knobs, rows: int) -> Seconds:
        """Time one layer alone at a capacity, rounded up to the next that is priced."""
        watched = self.watched
        place = ceil(FINENESS * log2(max(rows, 1)))
        key = (watched.moe(layer), knobs, place)
        if key not in self._layer:
            scenario, pool = watched.scenario, watched.pool
            training = isinstance(scenario.workload, Training)
            node = scenario.node(pool.node, pool.framework)
            machine = node, scenario.hardware.fabric, pool.parallel.ranks
            rows = ceil(2 ** (place / FINENESS))
            try:
                found = layer_seconds(key[0], *machine, rows, knobs, watched.format, backward=training)
            except PolicyError:
                found = float("inf")
            self._layer[key] = found
        return self._layer[key]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Followed:
    """A pool's way through the steps, on the layout it started with and as its policies changed it."""

    watched: Watched
    prices: Phases
    charges: Charges
    sizes: Sizes
    start: Layout
    walk: Walk

    @property
    def trace(self) -> Trace:
        """What happened."""
        return self.prices.trace

    @property
    def mean(self) -> Seconds:
        """A mean step, what stood still included."""
        return self.walk.total / self.trace.steps

    @property
    def still(self) -> Seconds:
        """A mean step if nothing had been changed."""
        self.prices.fill([(self.start, phase) for phase in range(len(self.watched.phases))])
        each = [self.prices.whole(self.start, phase) for phase in range(len(self.watched.phases))]
        return float(np.array(each) @ self.lengths / self.trace.steps)

    @property
    def lengths(self) -> Int[np.ndarray, "phase"]:
        """Steps of each phase."""
        return np.bincount(self.trace.rows, minlength=len(self.watched.phases))

    @property
    def factor(self) -> float:
        """How much longer a mean step is than the first: what an estimate of the first step is multiplied with."""
        return self.mean / self.prices.whole(self.start, 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visits:
    """Notes from which step on each layout is in force, for all steps to be priced together.

    Prices decide nothing where no policy profiles and no step's length says when a change is in force.
    """

    begins: list[int] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)

    def __call__(self, layout: Layout, step: int) -> Float[np.ndarray, "layer"]:
        """Note a step's layout, and leave its price open."""
        if not self.layouts or layout is not self.layouts[-1]:
            self.begins.append(step)
            self.layouts.append(layout)
        return OPEN

    def priced(self, prices: Phases) -> Float[np.ndarray, "step"]:
        """Price all steps."""
        spans = np.split(prices.trace.rows, self.begins[1:])
        visited = [(layout, np.unique(span)) for layout, span in zip(self.layouts, spans, strict=True)]
        prices.fill((layout, phase) for layout, phases in visited for phase in phases.tolist())
        found = []
        for (layout, phases), span in zip(visited, spans, strict=True):
            each = np.array([prices.whole(layout, phase) for phase in phases.tolist()])
            found.append(each[np.searchsorted(phases, span)])
        return np.concatenate(found)


def follow(watched: Watched) -> Followed:
    """Let a pool's reacting policies have their way with it."""
    start, sizes, trace, charges = watched.start(), watched.sizes(), watched.trace(), watched.charges()
    own = int(start.r[0]), int(start.degree[0]), start.alltoall[0]
    prices = Phases(watched=watched, trace=trace, own=own)
    acting = [policy for policy in watched.pool.adaptation if policy.name != "none"]
    policies: list[Adaptation] = [make("adaptation", policy) for policy in acting]
    step_by_step = partial(walk, policies, start, sizes, trace, charges=charges, seed=watched.phases[0].seed)
    visits = Visits()
    way = step_by_step(visits) if not any(policy.profiles for policy in policies) else None
    if way is None or any(change.background for _, change in way.changes):
        way = step_by_step(prices)
    else:
        way = replace(way, seconds=visits.priced(prices))
    return Followed(watched=watched, prices=prices, charges=charges, sizes=sizes, start=start, walk=way)
