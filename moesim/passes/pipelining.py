"""A training step as a schedule: pipeline stages are its ranks, and passes timed before are its tasks.

Every stage works through its units in the order its pipeline policy gives; hidden states and their gradients are handed
on between stages, on streams of their own. Weights are gathered before a stage's first forward and gradients reduced
after its last backward, behind them by quarters where the sharding policy wants it so; the update comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from moesim.policies.protocols import Pipeline, Turn, Unit
from moesim.schedules.ops import Fixed
from moesim.schedules.schedule import ALONE, Schedule, Task

QUARTERS = 4
"""Pieces in which gradients are reduced and weights gathered: the last, or first, has nothing to hide behind."""

StageTimes = Float[np.ndarray, "*lead stage"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Durations:
    """Seconds of what each stage does.

    Attributes
    ----------
    forward, backward : a microbatch's pass through all of the stage's layers
    weights : the part of a backward that makes gradients of weights
    beside : a forward and a backward side by side
    send : handing a hidden state on, or its gradient back
    gradients, gathered, update : once a step: reducing gradients, gathering weights, the optimizer
    """

    forward: StageTimes
    backward: StageTimes
    weights: StageTimes
    beside: StageTimes
    send: StageTimes
    gradients: StageTimes
    gathered: StageTimes
    update: StageTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A task without its op: the op's duration is a share of a kind of work, of a way through the stages."""

    kind: str
    lane: int
    share: float
    stream: str
    after: tuple[int, ...]
    group: str
    on: str


def training_step(
    pipeline: Pipeline, microbatches: int, durations: Durations, *, behind: bool, updated: bool = True
) -> Schedule:
    """Write a training step of so many microbatches.

    Parameters
    ----------
    durations : their last axis is the stage
    behind : whether weights are gathered and gradients reduced behind computing
    updated : whether to gather, reduce and update at all; else only the pipeline is written

    Returns
    -------
    Schedule
        Its ranks are the pipeline stages.
    """
    stages = durations.forward.shape[-1]
    ops: dict[tuple[str, int, float], Fixed] = {}
    tasks = []
    for draft in drafts(pipeline, stages, microbatches, behind=behind, updated=updated):
        key = draft.kind, draft.lane, draft.share
        if key not in ops:
            ops[key] = Fixed(duration=_seconds(durations, draft.kind, draft.lane) * draft.share)
        task = Task(
            name=draft.kind, stream=draft.stream, op=ops[key], after=draft.after, group=draft.group, on=draft.on
        )
        tasks.append(task)
    used = {task.group for task in tasks} - {""}
    return Schedule(
        tasks=tuple(tasks),
        out=tuple(range(len(tasks))),
        groups={name: _labels(name, stages) for name in sorted(used)},
        parts={name: _labels(name, stages) == 0 for name in sorted({task.on for task in tasks})},
        count=np.ones(stages),
    )


def _labels(name: str, stages: int) -> np.ndarray:
    """Label the stages whose numbers a name ends in with 0, the others with `ALONE`."""
    labels = np.full(stages, ALONE)
    labels[[int(number) for number in name.split(" ")[1:]]] = 0
    return labels


def _seconds(durations: Durations, kind: str, lane: int) -> StageTimes:
    """Durations of a kind of work; on the second way, a stage holds the layers of its mirror image."""
    known = {each.name: getattr(durations, each.name) for each in fields(durations)}
    if kind == "beside":
        return np.asarray((known[kind] + known[kind][..., ::-1]) / 2)
    found = known["backward"] - known["weights"] if kind == "inputs" else known[kind]
    return np.asarray(found[..., ::-1] if lane else found)


@lru_cache(maxsize=256)
def drafts(
    pipeline: Pipeline, stages: int, microbatches: int, *, behind: bool = True, updated: bool = True
) -> tuple[Draft, ...]:
    """Write the tasks of a step without their durations, once for all plans that have them."""
    writer = _Writer(pipeline=pipeline, stages=stages, quarters=QUARTERS if behind else 1)
    orders = [list(pipeline.order(stage, stages, microbatches)) for stage in range(stages)]
    at = [0] * stages
    while True:
        ready = [
            stage
            for stage, order in enumerate(orders)
            if at[stage] < len(order) and writer.ready(stage, order[at[stage]])
        ]
        if not ready:
            break
        for stage in ready:
            ends = (at[stage] == 0, at[stage] == len(orders[stage]) - 1) if updated else (False, False)
            writer.add(stage, orders[stage][at[stage]], *ends)
            at[stage] += 1
    stuck = [stage for stage, order in enumerate(orders) if at[stage] < len(order)]
    assert not stuck, f"stages {stuck} of {pipeline} wait for each other"
    return tuple(writer.drafts)


@dataclass(slots=True, kw_only=True)
class _Writer:
    """A step being written, in an order in which nothing waits for what comes later."""

    pipeline: Pipeline
    stages: int
    quarters: int
    drafts: list[Draft] = field(default_factory=list)
    arrived: dict[tuple[str, int, int, int], int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Last position on a microbatch's way."""
        return self.stages * (self.pipeline.chunks if self.pipeline.lanes == 1 else 1) - 1

    def ready(self, stage: int, unit: Unit) -> bool:
        """Whether all that a unit waits for has been written."""
        return all(key in self.arrived for key in self._awaited(stage, unit))

    def add(self, stage: int, unit: Unit, first: bool, last: bool) -> None:
        """Write a unit of a stage, its first or last with what gathers weights or reduces gradients."""
        after = tuple(self.arrived[key] for key in self._awaited(stage, unit))
        kind, lane = self._work(unit)
        share = 1.0 if kind == "beside" or self.pipeline.lanes > 1 else 1.0 / self.pipeline.chunks
        pieces = self.quarters if first or last else 1
        reduced: list[int] = []
        for _ in range(pieces):
            if first:
                after = (*after, self._put("gathered", stage, "comm", share=1 / pieces))
            done = self._put(kind, stage, "compute", lane=lane, share=share / pieces, after=after)
            if last:
                reduced.append(self._put("gradients", stage, "comm", share=1 / pieces, after=(done,)))
        if last:
            self._put("update", stage, "compute", after=reduced)
        self._hand_on(stage, unit, done)

    def _work(self, unit: Unit) -> tuple[str, int]:
        """Name what a unit does, and the way it is on."""
        if unit.forward and (unit.backward or unit.inputs):
            return "beside", 0
        kinds = {name: getattr(unit, name) for name in ("forward", "backward", "inputs", "weights")}
        kind, turn = next((kind, turn) for kind, turn in kinds.items() if turn is not None)
        return kind, self._lane(turn)

    def _lane(self, turn: Turn) -> int:
        return turn[0] if self.pipeline.lanes > 1 else 0

    def _key(self, way: str, stage: int, turn: Turn) -> tuple[str, int, int, int]:
        """Name a microbatch's arrival at a chunk, on its way forward or backward."""
        return way, self._lane(turn), turn[1], self.pipeline.position(stage, turn[0], self.stages)

    def _awaited(self, stage: int, unit: Unit) -> list[tuple[str, int, int, int]]:
        """List the arrivals that a unit waits for; the first chunk of a way waits for none."""
        found = []
        if unit.forward is not None:
            key = self._key("forward", stage, unit.forward)
            found += [key] if key[3] else []
        back = unit.backward or unit.inputs
        return found if back is None else [*found, self._key("backward", stage, back)]

    def _put(
        self, kind: str, stage: int, stream: str, *, lane: int = 0, share: float = 1.0, after: Sequence[int] = ()
    ) -> int:
        draft = Draft(
            kind=kind, lane=lane, share=share, stream=stream, after=tuple(after), group="", on=f"stage {stage}"
        )
        self.drafts.append(draft)
        return len(self.drafts) - 1

    def _hand_on(self, stage: int, unit: Unit, done: int) -> None:
        """Send results to the next stages on their ways; where the way ends, a microbatch turns round."""
        back = unit.backward or unit.inputs
        for way, turn, step in (("forward", unit.forward, 1), ("backward", back, -1)):
            if turn is None:
                continue
            _, lane, microbatch, position = self._key(way, stage, turn)
            if way == "forward" and position == self.end:
                self.arrived["backward", lane, microbatch, position] = done
            elif 0 <= position + step <= self.end:
                arrival = self._send(stage, self._stage_at(lane, position + step), done)
                self.arrived[way, lane, microbatch, position + step] = arrival

    def _stage_at(self, lane: int, position: int) -> int:
        """Find the stage of a position on a way."""
        chunks = [lane] if self.pipeline.lanes > 1 else range(self.pipeline.chunks)
        places = ((stage, chunk) for stage in range(self.stages) for chunk in chunks)
        return next(stage for stage, chunk in places if self.pipeline.position(stage, chunk, self.stages) == position)

    def _send(self, stage: int, other: int, done: int) -> int:
        """Write a message between two stages, which both end with."""
        pair = f"stages {min(stage, other)} {max(stage, other)}"
        draft = Draft(kind="send", lane=0, share=1.0, stream=f"net:{stage}>{other}", after=(done,), group=pair, on=pair)
        self.drafts.append(draft)
        return len(self.drafts) - 1


@lru_cache(maxsize=4096)
def held(pipeline: Pipeline, stage: int, stages: int, microbatches: int) -> float:
    """Most microbatches whose activations a stage holds at once, counted in whole stages.

    Examples
    --------
    >>> from moesim.policies.pipeline.one_f_one_b import OneForwardOneBackward
    >>> [held(OneForwardOneBackward(), stage, 4, 16) for stage in range(4)]
    [4.0, 3.0, 2.0, 1.0]
    """
    now = most = 0
    for unit in pipeline.order(stage, stages, microbatches):
        now += unit.forward is not None
        most = max(most, now)
        now -= (unit.backward or unit.weights) is not None
    return most / (pipeline.chunks if pipeline.lanes == 1 else 1)
