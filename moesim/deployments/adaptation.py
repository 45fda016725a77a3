"""Reacting policies step by step over a routing trace, beside the choices of somebody who knows the trace.

A step's price is looked up, never simulated: `Switched` holds prices by configuration and capacity, `Loaded` by the
rows of the busiest rank. Both are tabulated beforehand with `moesim.passes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.ground.streams import stream
from moesim.ground.units import BytesPerSecond, Seconds
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.policies.adaptation.rebalance import heaviest
from moesim.policies.protocols import Adaptation, Change, Seen, Sizes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """What happened, step by step.

    Attributes
    ----------
    row_of_step : which row of the others each step has; None: steps have rows of their own
    counts : tokens that chose each expert, over all gpus
    most : largest count of any expert on any gpu
    agreement : share of the tokens whose cached experts were chosen again
    """

    counts: Int[np.ndarray, "row layer expert"]
    most: Int[np.ndarray, "row layer"]
    agreement: Float[np.ndarray, "row"]
    row_of_step: Int[np.ndarray, "step"] | None = None

    @property
    def rows(self) -> Int[np.ndarray, "step"]:
        """Row of each step."""
        return np.arange(len(self.most)) if self.row_of_step is None else self.row_of_step

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.most) if self.row_of_step is None else len(self.row_of_step)

    def row(self, step: int) -> int:
        """Row of one step."""
        return step if self.row_of_step is None else int(self.row_of_step[step])


class Prices(Protocol):
    """What each layer of a step costs under a layout."""

    def __call__(self, layout: Layout, step: int) -> Float[np.ndarray, "layer"]:
        """Return seconds per layer."""
        ...


Knobs = tuple[int, int, str]
"""r, degree, all-to-all: a configuration of one layer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Switched:
    """Prices by configuration and capacity.

    Attributes
    ----------
    configurations : r, degree and all-to-all
    seconds : of one layer
    bucket : which capacity each step and layer needs
    """

    configurations: tuple[Knobs, ...]
    seconds: Float[np.ndarray, "configuration bucket"]
    bucket: Int[np.ndarray, "step layer"]
    _number: dict[Knobs, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Number the configurations."""
        self._number.update({knobs: number for number, knobs in enumerate(self.configurations)})

    def __call__(self, layout: Layout, step: int) -> Float[np.ndarray, "layer"]:
        """Look every layer up."""
        knobs = zip(layout.r.tolist(), layout.degree.tolist(), layout.alltoall, strict=True)
        return np.asarray(self.seconds[[self._number[each] for each in knobs], self.bucket[step]])

    def by_configuration(self) -> Float[np.ndarray, "step configuration"]:
        """Price every step with all layers under each configuration."""
        return np.asarray(self.seconds[:, self.bucket].sum(axis=2).T)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """Prices by the rows of the busiest rank, linear between `rows`; capacities, where there are any, are what is run.

    Attributes
    ----------
    rows, seconds : a table of one layer's time
    counts : tokens that chose each expert, over all gpus
    gpus : source ranks, each of which fills an expert's capacity
    cached : what a layer's time is multiplied with while assignments are cached
    """

    rows: Float[np.ndarray, "knot"]
    seconds: Float[np.ndarray, "knot"]
    counts: Int[np.ndarray, "step layer expert"]
    gpus: int
    cached: float = 1.0

    def __call__(self, layout: Layout, step: int) -> Float[np.ndarray, "layer"]:
        """Find the busiest rank of every layer and read its time off the table."""
        fixed = layout.capacity.flat[0] < NO_LIMIT
        load = layout.capacity * self.gpus if fixed else self.counts[step]
        ranks = int(layout.rank_of_slot.max()) + 1
        busiest = heaviest(layout.expert_of_slot, load.astype(float), ranks)
        return np.asarray(np.interp(busiest, self.rows, self.seconds) * (self.cached if layout.cached else 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Charges:
    """What changes cost.

    `rebuild` is for draining, compiling and capturing one graph, `host` for deciding where experts move, `rate` that at
    which a gpu copies their weights in, `trials` the share that is lost of what layers take longer that try knobs: as
    in Tutel a trial does a step's work, under other knobs.
    """

    rebuild: Seconds = 0.0
    host: Seconds = 0.0
    rate: BytesPerSecond = float("inf")
    trials: float = 0.0

    def stall(self, change: Change) -> Seconds:
        """How long all ranks stand still."""
        moving = change.moved / self.rate + self.host if change.moved and not change.background else 0.0
        return change.rebuilt * self.rebuild + moving

    def wait(self, change: Change) -> Seconds:
        """How long a change in the background takes before it is in force."""
        return change.moved / self.rate if change.background else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walk:
    """A policy's way through a trace: what each step took, and what was changed before which step."""

    seconds: Float[np.ndarray, "step"]
    stalls: Float[np.ndarray, "step"]
    changes: tuple[tuple[int, Change], ...]
    state: list[Any]

    @property
    def total(self) -> Seconds:
        """Steps and stalls together."""
        return float(self.seconds.sum() + self.stalls.sum())


def walk(
    policies: Sequence[Adaptation],
    layout: Layout,
    sizes: Sizes,
    trace: Trace,
    prices: Prices,
    *,
    charges: Charges | None = None,
    lag: int = 1,
    seed: int = 0,
) -> Walk:
    """Let policies react, asked in order before every step.

    Parameters
    ----------
    policies : each with a state of its own; they see the layout that those before them have made
    layout : what the first step runs on
    lag : a step sees the one so many before it; 0, which no system can have, is for tests and rivals
    charges : what changes cost; nothing where left out

    Returns
    -------
    Walk
        A change stalls the step it comes before; one in the background is in force once its copies are done, and until
        then nobody is asked.
    """
    rng, paid = stream(seed, "adaptation"), charges or Charges()
    states = [policy.start(layout, sizes) for policy in policies]
    seconds, stalls = np.zeros(trace.steps), np.zeros(trace.steps)
    changes: list[tuple[int, Change]] = []
    coming: tuple[Seconds, Layout] | None = None
    rows, happened = trace.rows.tolist(), list(zip(trace.counts, trace.most, trace.agreement.tolist(), strict=True))
    for step in range(trace.steps):
        if coming is not None and coming[0] <= 0:
            layout, coming = coming[1], None
        if step >= lag and coming is None:
            for number, policy in enumerate(policies):
                tried: list[Seconds] = []
                seen = _seen(happened[rows[step - lag]], step - lag, layout, prices, tried)
                states[number], change = policy(states[number], seen, rng)
                stalls[step] += paid.trials * sum(tried)
                if change is None:
                    continue
                changes.append((step, change))
                stalls[step] += paid.stall(change)
                if change.background and paid.wait(change) > 0:
                    coming = (paid.wait(change), change.layout)
                    break
                layout = change.layout
        seconds[step] = prices(layout, step).sum()
        if coming is not None:
            coming = (coming[0] - seconds[step], coming[1])
    return Walk(seconds=seconds, stalls=stalls, changes=tuple(changes), state=states)


Happened = tuple[Int[np.ndarray, "layer expert"], Int[np.ndarray, "layer"], float]
"""Counts, largest counts and agreement of a row of a trace: the same objects in all of its steps."""


def _seen(happened: Happened, step: int, layout: Layout, prices: Prices, tried: list[Seconds]) -> Seen:
    """Show a step; what it takes longer with other knobs is written down for each that is tried."""

    def cost_of(other: Layout) -> Float[np.ndarray, "layer"]:
        seconds = prices(other, step)
        turned = _turned(layout, other) & np.isfinite(seconds)
        if turned.any():
            tried.append(float(np.maximum(seconds - prices(layout, step), 0.0)[turned].sum()))
        return seconds

    counts, most, agreement = happened
    return Seen(step=step, layout=layout, counts=counts, most=most, agreement=agreement, cost_of=cost_of)


def _turned(before: Layout, after: Layout) -> Bool[np.ndarray, "layer"]:
    """Say which layers have other knobs."""
    others = np.array([one != other for one, other in zip(before.alltoall, after.alltoall, strict=True)], bool)
    return np.asarray(others | (before.r != after.r) | (before.degree != after.degree))


def clairvoyant(
    seconds: Float[np.ndarray, "step configuration"], switch: Float[np.ndarray, "before after"]
) -> tuple[Seconds, Int[np.ndarray, "step"]]:
    """Find the cheapest way through all steps for somebody who knows them: the shortest path over configurations.

    The first configuration is free to choose.

    Parameters
    ----------
    seconds : what every step takes under every configuration
    switch : what it costs to change; its diagonal is what staying costs, usually nothing

    Returns
    -------
    total, and the configuration of each step

    Examples
    --------
    >>> clairvoyant(np.array([[1.0, 3.0], [3.0, 1.0], [3.0, 1.0]]), np.array([[0.0, 2.0], [2.0, 0.0]]))
    (5.0, array([0, 1, 1]))
    """
    steps, configurations = seconds.shape
    before = np.zeros((steps, configurations), dtype=np.int64)
    best = seconds[0].copy()
    into = np.ascontiguousarray(switch.T)
    every = np.arange(configurations)
    for step in range(1, steps):
        ways = into + best
        before[step] = ways.argmin(axis=1)
        best = ways[every, before[step]] + seconds[step]
    path = np.zeros(steps, dtype=np.int64)
    path[-1] = best.argmin()
    for step in range(steps - 1, 0, -1):
        path[step - 1] = before[step, path[step]]
    return float(best.min()), path


def regret(reached: Seconds, best: Seconds) -> float:
    """How much more a policy took than the clairvoyant, relatively.

    Examples
    --------
    >>> regret(5.5, 5.0)
    0.10000000000000009
    """
    return reached / best - 1


def break_even(cost: Seconds, gain: Seconds) -> float:
    """Steps a change must last to pay, for what it costs and what it saves per step; infinite where it saves nothing.

    Examples
    --------
    >>> break_even(2.0, 0.5), break_even(2.0, 0.0)
    (4.0, inf)
    """
    return cost / gain if gain > 0 else float("inf")


def at_best_fixed(seconds: Float[np.ndarray, "step configuration"]) -> tuple[Seconds, int]:
    """Return what the best single configuration takes over all steps, and which it is."""
    totals = seconds.sum(axis=0)
    return float(totals.min()), int(totals.argmin())
