"""The exact executor: SimPy processes, one per stream of each rank, and flows that hold each other up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, nan, prod
from typing import Generic, final

import numpy as np
from jaxtyping import Float, Int, Shaped

from moesim.ground.clock import Clock, Event, Steps
from moesim.ground.units import Seconds
from moesim.passes.fairness import CoflowWants, CoLinks, Flow, FlowWants, Links, Neighbors, Sharing, Wants
from moesim.passes.program import check
from moesim.schedules.schedule import ALONE, KIND_OF_OP, Priced, Records, Schedule

RATES = 1
"""Phase of an instant in which rates are settled: after all that starts or ends then."""


def engine(priced: Priced, *, coflows: bool = False) -> Records:
    """Run a priced schedule exactly, event by event.

    Parameters
    ----------
    priced : without leading axes, or with leading axes of size 1
    coflows : whether the flows of one task and label keep one rate, as those of a collective would, their demand
        spread over the longest of their durations: another model, much faster on many ranks; say so in a result

    Raises
    ------
    ValueError
        There is more than one plan, step or draw.
    MoesimError
        The schedule cannot be run; see `program.check`.
    """
    check(priced.schedule)
    if any(duration.size > duration.shape[-1] for duration in priced.duration):
        lead = np.broadcast_shapes(*{duration.shape[:-1] for duration in priced.duration})
        raise ValueError(f"the engine runs one plan at a time; these durations have leading axes {lead}: index them")
    run = _CoflowRun(priced) if coflows else _FlowRun(priced)
    return run.records()


@final
class _Network(Generic[Wants]):
    """Flows under way, each at the rate that the others leave it."""

    def __init__(self, clock: Clock, sharings: Sequence[Sharing[Wants]]) -> None:
        self._clock = clock
        self._sharings = sharings
        self._fresh: list[Flow[Wants]] = []
        self._settling = False

    def start(self, flow: Flow[Wants]) -> None:
        for sharing in self._sharings:
            sharing.add(flow)
        self._fresh.append(flow)
        self._settle_soon()

    def _settle_soon(self) -> None:
        """Whatever else starts or ends in this instant is settled with it."""
        if not self._settling:
            self._settling = True
            _call(self._clock.phase(RATES), self._settle)

    def _settle(self, _: Event) -> None:
        self._settling = False
        touched = dict.fromkeys(self._fresh)
        self._fresh.clear()
        for sharing in self._sharings:
            touched.update(dict.fromkeys(sharing.changed()))
        for flow in touched:
            rate = prod(sharing.share(flow) for sharing in self._sharings)
            if rate != flow.rate:
                self._pace(flow, rate)

    def _pace(self, flow: Flow[Wants], rate: float) -> None:
        now = self._clock.now
        flow.left -= (now - flow.since) * flow.rate
        flow.since, flow.rate = now, rate
        self._look_again(flow, flow.left / rate)

    def _look_again(self, flow: Flow[Wants], delay: Seconds) -> None:
        """An alarm that has become too early is kept, and set anew when it rings; most never need to be."""
        flow.end = self._clock.now + delay
        if flow.end < flow.alarm:
            flow.alarm = flow.end
            _call(self._clock.timeout(delay), partial(self._ring, flow))

    def _ring(self, flow: Flow[Wants], _: Event) -> None:
        now = self._clock.now
        if now != flow.alarm:
            return
        flow.alarm = inf
        if now < flow.end:
            self._look_again(flow, flow.end - now)
        else:
            self._end_stage(flow)

    def _end_stage(self, flow: Flow[Wants]) -> None:
        duration, over = flow.stages.popleft()
        over.succeed()
        if flow.stages:
            flow.since, flow.left = self._clock.now, flow.stages[0][0] - duration
            self._look_again(flow, flow.left / flow.rate)
        else:
            for sharing in self._sharings:
                sharing.remove(flow)
            self._settle_soon()


def _call(event: Event, function: Callable[[Event], None]) -> None:
    assert event.callbacks is not None  # None only after an event has come
    event.callbacks.append(function)


class _Run(ABC, Generic[Wants]):
    """One run: what has started and ended, and who waits for whom. Abstract: subclasses say how tasks take time.

    Attributes
    ----------
    rows : the rows of the rank axis that are run; ranks are numbered by their place among them
    """

    def __init__(self, priced: Priced, rows: Sequence[int], sharing: Sharing[Wants]) -> None:
        schedule = priced.schedule
        self.priced = priced
        self.rows = rows
        self.tasks = schedule.tasks
        self.kinds = [KIND_OF_OP.get(type(task.op).__name__, "") for task in self.tasks]
        self.duration = [_column(duration, rows) for duration in priced.duration]
        self.start = [[nan] * len(rows) for _ in self.tasks]
        self.finish = [[nan] * len(rows) for _ in self.tasks]
        self.ended = [[False] * len(rows) for _ in self.tasks]
        self.waiting: dict[tuple[int, int], Event] = {}
        self.gates: dict[tuple[int, int], _Gate] = {}
        self.part = {on: part[rows].tolist() for on, part in schedule.parts.items()} | {"": [True] * len(rows)}
        places = {(task.group, task.on) for task in self.tasks if task.group}
        self.labels = {place: _labels(schedule, *place)[rows].tolist() for place in places}
        self.crowd = {place: Counter(labels) for place, labels in self.labels.items()}
        self.clock = Clock()
        neighbors: Neighbors[Wants] = Neighbors(priced.slowdown, len(rows))
        self.network = _Network(self.clock, (sharing, neighbors) if priced.slowdown else (sharing,))

    def records(self) -> Records:
        """Run to the end, one process per stream of a rank and one per task that a rank skips."""
        for rank in range(len(self.rows)):
            streams: dict[str, list[int]] = {}
            for number, task in enumerate(self.tasks):
                if self.part[task.on][rank]:
                    streams.setdefault(task.stream, []).append(number)
                else:
                    self.clock.process(self._skip(number, rank))
            for queue in streams.values():
                self.clock.process(self._stream(queue, rank))
        self.clock.run()
        return Records(start=np.array(self.start, float), finish=np.array(self.finish, float))

    def _stream(self, queue: Sequence[int], rank: int) -> Steps:
        for number in queue:
            task = self.tasks[number]
            for earlier in task.after:
                if not self.ended[earlier][rank]:
                    yield self._end_of(earlier, rank)
            if task.group:
                opened = self._arrive(number, rank)
                if opened is not None:
                    yield opened
            self.start[number][rank] = self.clock.now
            if self.duration[number][rank] > 0.0:
                yield self._launch(number, rank)
            self._end(number, rank)

    def _skip(self, number: int, rank: int) -> Steps:
        for earlier in self.tasks[number].after:
            if not self.ended[earlier][rank]:
                yield self._end_of(earlier, rank)
        self.start[number][rank] = self.clock.now
        self._end(number, rank)

    def _end_of(self, number: int, rank: int) -> Event:
        """An event that comes when a task ends on a rank."""
        event = self.waiting.get((number, rank))
        if event is None:
            event = self.waiting[number, rank] = self.clock.event()
        return event

    def _end(self, number: int, rank: int) -> None:
        self.finish[number][rank] = self.clock.now
        self.ended[number][rank] = True
        waiting = self.waiting.pop((number, rank), None)
        if waiting is not None:
            waiting.succeed()

    def _arrive(self, number: int, rank: int) -> Event | None:
        """Meet the ranks of one's label: the last to arrive goes on at once, the rest wait for it."""
        place = (self.tasks[number].group, self.tasks[number].on)
        label = self.labels[place][rank]
        if label == ALONE or self.crowd[place][label] == 1:
            self._open(number, label, (rank,))
            return None
        gate = self.gates.get((number, label))
        if gate is None:
            gate = self.gates[number, label] = _Gate(ranks=[], opened=self.clock.event())
        gate.ranks.append(rank)
        if len(gate.ranks) < self.crowd[place][label]:
            return gate.opened
        del self.gates[number, label]
        self._open(number, label, gate.ranks)
        gate.opened.succeed()
        return None

    def _open(self, number: int, label: int, ranks: Sequence[int]) -> None:
        """Do what is to be done when the last rank of a label has arrived."""

    @abstractmethod
    def _launch(self, number: int, rank: int) -> Event:
        """An event that comes when a task that starts now on a rank ends there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Gate:
    ranks: list[int]
    opened: Event


def _labels(schedule: Schedule, group: str, on: str) -> Int[np.ndarray, "rank"]:
    labels = schedule.groups[group]
    return np.where(schedule.parts[on], labels, ALONE) if on else labels


def _column(array: Shaped[np.ndarray, "..."], rows: Sequence[int]) -> list[float]:
    """Values of some rows of an array whose leading axes have size 1."""
    values: list[float] = array.reshape(-1).tolist()
    return values * len(rows) if len(values) == 1 else [values[row] for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Wiring:
    """All shared links under one numbering, and what each task would have of them.

    Attributes
    ----------
    capacity : bytes per second of each link
    link, members : for each tier, each row's link and how many of its real ranks meet there
    demand : for each task, the tiers that it uses anywhere with the bytes of each row
    """

    capacity: CoflowWants
    link: Mapping[str, Int[np.ndarray, "rank"]]
    members: Mapping[str, Float[np.ndarray, "rank"]]
    demand: tuple[Mapping[str, Float[np.ndarray, "rank"]], ...]


def _wiring(priced: Priced) -> _Wiring:
    rows = priced.schedule.rows
    link: dict[str, Int[np.ndarray, "rank"]] = {}
    capacity: list[float] = []
    for tier, shared in priced.links.items():
        link[tier] = shared.link_of_rank + len(capacity)
        capacity += [shared.capacity] * (int(shared.link_of_rank.max()) + 1)
    used = (
        {tier: priced.demand[tier][task] for tier in link if tier in priced.demand and priced.demand[tier][task].any()}
        for task in range(len(priced.duration))
    )
    return _Wiring(
        capacity=np.array(capacity),
        link=link,
        members={tier: _spread(shared.members, rows) for tier, shared in priced.links.items()},
        demand=tuple({tier: _spread(demand, rows) for tier, demand in tiers.items()} for tiers in used),
    )


def _spread(array: Float[np.ndarray, "..."], rows: int) -> Float[np.ndarray, "rank"]:
    flat = array.reshape(-1)
    return flat if len(flat) == rows else np.broadcast_to(flat, (rows,))


def _slowing(slowdown: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Find the kinds that are slowed by some kind, or slow one."""
    pairs = [(kind, other) for kind, others in slowdown.items() for other, much in others.items() if much > 0.0]
    return {kind for pair in pairs for kind in pair}


@final
class _FlowRun(_Run[FlowWants]):
    """Every task on every rank is a flow of its own."""

    def __init__(self, priced: Priced) -> None:
        wiring = _wiring(priced)
        super().__init__(priced, range(priced.schedule.rows), Links(wiring.capacity.tolist()))
        self.link = {tier: link.tolist() for tier, link in wiring.link.items()}
        self.members = {tier: members.tolist() for tier, members in wiring.members.items()}
        self.demand = [{tier: demand.tolist() for tier, demand in tiers.items()} for tiers in wiring.demand]
        self.slowing = _slowing(priced.slowdown)

    def _launch(self, number: int, rank: int) -> Event:
        duration, kind = self.duration[number][rank], self.kinds[number]
        wants = {
            self.link[tier][rank]: (demand[rank] / duration, self.members[tier][rank])
            for tier, demand in self.demand[number].items()
            if demand[rank] > 0.0
        }
        if not wants and kind not in self.slowing:
            return self.clock.timeout(duration)
        over = self.clock.event()
        self.network.start(Flow([(duration, over)], wants, kind, (rank,), self.clock.now))
        return over


@final
class _CoflowRun(_Run[CoflowWants]):
    """The flows of one task and label are one coflow; ranks that cannot be told apart are run once."""

    def __init__(self, priced: Priced) -> None:
        self.wiring = _wiring(priced)
        self.slowing = _slowing(priced.slowdown)
        rows, self.class_of_row = _classes(priced, self.wiring)
        super().__init__(priced, rows, CoLinks(self.wiring.capacity))
        self.over: dict[tuple[int, int], Event] = {}
        self.rows_of: dict[tuple[str, str, int], Int[np.ndarray, "row"]] = {}

    def records(self) -> Records:
        """Give every row what its class has recorded."""
        folded = super().records()
        return Records(start=folded.start[:, self.class_of_row], finish=folded.finish[:, self.class_of_row])

    def _open(self, number: int, label: int, ranks: Sequence[int]) -> None:
        rows = self._met(number, label) if label != ALONE else np.array([self.rows[ranks[0]]])
        self._start(number, rows, ranks)

    def _met(self, number: int, label: int) -> Int[np.ndarray, "row"]:
        """Rows that meet for a task under a label."""
        task = self.tasks[number]
        key = (task.group, task.on, label)
        if key not in self.rows_of:
            self.rows_of[key] = np.flatnonzero(_labels(self.priced.schedule, task.group, task.on) == label)
        return self.rows_of[key]

    def _start(self, number: int, rows: Int[np.ndarray, "row"], ranks: Sequence[int]) -> None:
        """Start the coflow of a task, if it has reason to be one."""
        durations = self.duration[number]
        longest = max(durations[rank] for rank in ranks)
        if longest > 0.0 and (self.wiring.demand[number] or self.kinds[number] in self.slowing):
            ends = {duration: self.clock.event() for duration in sorted({durations[rank] for rank in ranks} - {0.0})}
            self.over |= {(number, rank): ends[durations[rank]] for rank in ranks if durations[rank] > 0.0}
            wants = self._wants(number, rows) / longest
            self.network.start(Flow(list(ends.items()), wants, self.kinds[number], ranks, self.clock.now))

    def _wants(self, number: int, rows: Int[np.ndarray, "row"]) -> CoflowWants:
        """Bytes that a task moves over each link on some rows."""
        total = np.zeros(len(self.wiring.capacity))
        for tier, demand in self.wiring.demand[number].items():
            weight = demand[rows] * self.wiring.members[tier][rows]
            total += np.bincount(self.wiring.link[tier][rows], weight, len(total))
        return total

    def _launch(self, number: int, rank: int) -> Event:
        if not self.tasks[number].group:
            self._start(number, np.array([self.rows[rank]]), (rank,))
        over = self.over.pop((number, rank), None)
        return self.clock.timeout(self.duration[number][rank]) if over is None else over


def _classes(priced: Priced, wiring: _Wiring) -> tuple[list[int], Int[np.ndarray, "rank"]]:
    """Put rows into classes: those that do the same and always meet, unless one uses a link by itself.

    Returns
    -------
    One row of each class, and the class of each row.
    """
    schedule = priced.schedule
    rows = schedule.rows
    met = {(task.group, task.on) for task, demand in zip(schedule.tasks, wiring.demand, strict=True) if demand}
    if ("", "") in met or any(not group or _someone_alone(_labels(schedule, group, on)) for group, on in met):
        return list(range(rows)), np.arange(rows)
    same = [_spread(duration, rows) for duration in priced.duration]
    same += [np.asarray(labels, float) for labels in (*schedule.groups.values(), *schedule.parts.values())]
    _, representative, class_of_row = np.unique(np.stack(same), axis=1, return_index=True, return_inverse=True)
    return representative.tolist(), class_of_row.reshape(-1)


def _someone_alone(labels: Int[np.ndarray, "rank"]) -> bool:
    present = labels[labels != ALONE]
    return len(present) < len(labels) or bool((np.unique(present, return_counts=True)[1] == 1).any())
