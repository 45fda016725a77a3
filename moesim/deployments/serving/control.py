"""What happens to replicas besides requests: failures, repair, scaling, other steps. Rare, so SimPy's clock drives it.

The clock counts whole ticks, as the replicas do, and moves only when the loop of requests comes to what is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.deployments.serving.loop import Fleet
from moesim.deployments.serving.ticks import NEVER
from moesim.deployments.steps import StepTable
from moesim.ground.clock import Clock, Event, Steps
from moesim.policies.protocols import Demand, Scaling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Swap:
    """A step table that replicas change to.

    Attributes
    ----------
    wait : ticks of steps since the change before it
    stall : ticks for which each replica stands still
    what : what was done to the replicas, as a record tells it; "" where the routing alone has changed
    moved : bytes
    """

    table: StepTable
    wait: int
    stall: int = 0
    what: str = ""
    moved: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Upkeep:
    """What happens to the replicas of one stage besides requests; times in ticks.

    Attributes
    ----------
    replicas, gpus, node : how many replicas, gpus of each, and gpus of a node; replicas fill nodes one after the other
    interval : mean time between failures of a gpu that take its node out for repair; 0: never
    crash : mean time between failures of a gpu that a restart in place mends; 0: never
    repair : how long a node is out
    start : from nothing to serving: weights are loaded, and the engine starts
    spared : whether the spare nodes are of its kind
    scaling : how many replicas are on
    every, lag, hold : when scaling looks, acts, and how long fewer must have been wanted before any is taken away
    swaps : step tables that replicas change to, one after the other
    again : whether they come again when they are over
    """

    replicas: int
    gpus: int
    node: int
    interval: int = 0
    crash: int = 0
    repair: int = 0
    start: int = 0
    spared: bool = False
    scaling: Scaling | None = None
    every: int = 0
    lag: int = 0
    hold: int = 0
    swaps: tuple[Swap, ...] = ()
    again: bool = False

    @property
    def acts(self) -> bool:
        """Whether anything ever happens."""
        return bool(self.interval or self.crash or self.every or self.swaps)


@dataclass(slots=True, eq=False)
class _Pool:
    """One stage as it stands: which replicas serve, which are on, and which of its nodes are out."""

    stage: int
    first: int
    upkeep: Upkeep
    serving: set[int] = field(default_factory=set)
    on: set[int] = field(default_factory=set)
    out: set[int] = field(default_factory=set)
    starts: list[int] = field(
        default_factory=list
    )  # how often each replica began to start: of these only the last counts

    def nodes(self, replica: int) -> set[int]:
        """Nodes that a replica's gpus are in."""
        gpus, node = self.upkeep.gpus, self.upkeep.node
        return set(range(replica * gpus // node, ((replica + 1) * gpus - 1) // node + 1))


class Controller:
    """Runs the control of a deployment, and keeps a record of what happened: (tick, replica, what, ticks, bytes)."""

    def __init__(self, upkeeps: Sequence[Upkeep], *, spares: int, rng: np.random.Generator) -> None:
        self.record: list[tuple[int, int, str, int, float]] = []
        self._clock = Clock()
        self._rng = rng
        self._spares = spares
        self._wanting: deque[Event] = deque()  # nodes that wait for a spare
        self._fleet: Fleet | None = None
        self._pools: list[_Pool] = []
        first = 0
        for stage, upkeep in enumerate(upkeeps):
            every = set(range(upkeep.replicas))
            self._pools.append(
                _Pool(stage, first, upkeep, serving=set(every), on=set(every), starts=[0] * upkeep.replicas)
            )
            first += upkeep.replicas
        for pool in self._pools:
            for process in self._processes(pool):
                self._clock.process(process)

    def next(self) -> int:
        """When something happens next."""
        due = self._clock.peek()
        return NEVER if due == float("inf") else int(due)

    def act(self, fleet: Fleet, now: int) -> None:
        """Let happen what is due."""
        self._fleet = fleet
        while self._clock.peek() == now:
            self._clock.step()

    def _processes(self, pool: _Pool) -> Iterator[Steps]:
        upkeep = pool.upkeep
        if upkeep.interval:
            yield self._failing(pool, upkeep.interval, self._lose_node)
        if upkeep.crash:
            yield self._failing(pool, upkeep.crash, self._lose_rank)
        if upkeep.every:
            yield self._scaling(pool)
        if upkeep.swaps:
            yield self._changing(pool)

    @property
    def fleet(self) -> Fleet:
        """The replicas it acts on."""
        assert self._fleet is not None
        return self._fleet

    @property
    def now(self) -> int:
        """The present tick."""
        return int(self._clock.now)

    def _note(self, pool: _Pool, replica: int, what: str, ticks: int = 0, moved: float = 0.0) -> None:
        self.record.append((self.now, pool.first + replica, what, ticks, moved))

    def _failing(self, pool: _Pool, interval: int, strike: Callable[[_Pool, int], None]) -> Steps:
        """Strike gpus of a pool, each as often as the others; those that are out already are not hurt."""
        gpus = pool.upkeep.replicas * pool.upkeep.gpus
        while True:
            yield self._clock.timeout(max(round(self._rng.exponential(interval / gpus)), 1))
            strike(pool, int(self._rng.integers(gpus)))

    def _lose_rank(self, pool: _Pool, gpu: int) -> None:
        """A rank dies, and its replica with it; it starts again where it is."""
        replica = gpu // pool.upkeep.gpus
        if replica in pool.serving:
            self._down(pool, replica, "rank failed")
            self._start(pool, replica)

    def _lose_node(self, pool: _Pool, gpu: int) -> None:
        """A node goes out, and all replicas on it; another takes its place, a spare or the first to be repaired."""
        node = gpu // pool.upkeep.node
        if node in pool.out:
            return
        pool.out.add(node)
        for replica in range(pool.upkeep.replicas):
            if node in pool.nodes(replica):
                if replica in pool.serving:
                    self._down(pool, replica, "node failed")
                pool.starts[replica] += 1  # what was starting starts anew
        self._clock.process(self._replacing(pool, node))

    def _replacing(self, pool: _Pool, node: int) -> Steps:
        self._clock.process(self._repairing(pool))
        if pool.upkeep.spared and self._spares:
            self._spares -= 1
        else:
            come = self._clock.event()
            self._wanting.append(come)
            yield come
        pool.out.discard(node)
        for replica in sorted(pool.on):
            if node in pool.nodes(replica) and not pool.out & pool.nodes(replica):
                self._start(pool, replica)

    def _repairing(self, pool: _Pool) -> Steps:
        """Mend a node, and give it to whoever has waited longest; else it is a spare."""
        yield self._clock.timeout(pool.upkeep.repair)
        if self._wanting:
            self._wanting.popleft().succeed()
        else:
            self._spares += 1

    def _down(self, pool: _Pool, replica: int, why: str) -> None:
        pool.serving.discard(replica)
        self._note(pool, replica, why)
        self.fleet.accept(pool.stage, pool.serving)
        self.fleet.fail(pool.first + replica, self.now)

    def _start(self, pool: _Pool, replica: int) -> None:
        pool.starts[replica] += 1
        self._clock.process(self._starting(pool, replica, pool.starts[replica]))

    def _starting(self, pool: _Pool, replica: int, turn: int) -> Steps:
        """Load the weights and start the engine; it serves unless it was hit or switched off meanwhile."""
        yield self._clock.timeout(pool.upkeep.start)
        if pool.starts[replica] == turn and replica in pool.on and not pool.out & pool.nodes(replica):
            self._up(pool, replica, pool.upkeep.start)

    def _up(self, pool: _Pool, replica: int, ticks: int) -> None:
        pool.serving.add(replica)
        self._note(pool, replica, "serves", ticks)
        self.fleet.accept(pool.stage, pool.serving)

    def _scaling(self, pool: _Pool) -> Steps:
        """Look, and act on what was seen a lag ago; take away only what was too much for all of the hold."""
        upkeep, wants = pool.upkeep, deque[tuple[int, int]]()
        assert upkeep.scaling is not None
        while True:
            yield self._clock.timeout(upkeep.every)
            wants.append((self.now, upkeep.scaling(self._seen(pool))))
            while wants[0][0] < self.now - upkeep.hold:
                wants.popleft()
            most = max(want for _, want in wants) if self.now >= upkeep.hold else upkeep.replicas
            self._clock.process(self._acting(pool, wants[-1][1], most))

    def _acting(self, pool: _Pool, wanted: int, most: int) -> Steps:
        """Switch replicas on up to what is wanted, or off down to the most that was wanted of late."""
        yield self._clock.timeout(pool.upkeep.lag)
        for replica in range(pool.upkeep.replicas):
            if len(pool.on) < wanted and replica not in pool.on:
                self._switch_on(pool, replica)
        for replica in reversed(range(pool.upkeep.replicas)):
            if len(pool.on) > most and replica in pool.on:
                self._switch_off(pool, replica)

    def _switch_on(self, pool: _Pool, replica: int) -> None:
        pool.on.add(replica)
        self._note(pool, replica, "switched on")
        if self.fleet.hands[pool.stage][replica]:
            self._up(pool, replica, 0)  # it had not come to rest
        elif not pool.out & pool.nodes(replica):
            self._start(pool, replica)

    def _switch_off(self, pool: _Pool, replica: int) -> None:
        """Send no more requests to a replica; it works off what it has in hand."""
        pool.on.discard(replica)
        self._note(pool, replica, "switched off")
        if replica in pool.serving:
            pool.serving.discard(replica)
            self.fleet.accept(pool.stage, pool.serving)

    def _seen(self, pool: _Pool) -> Demand:
        """Count what is waiting and what is at work."""
        fleet, stage = self.fleet, pool.stage
        replicas = fleet.replicas[pool.first : pool.first + pool.upkeep.replicas]
        waiting = sum(len(replica.waiting) for replica in replicas) + len(fleet.stranded[stage])
        working = sum(fleet.hands[stage]) + len(fleet.stranded[stage]) - waiting
        return Demand(
            replicas=len(replicas),
            on=len(pool.on),
            waiting=waiting,
            working=working,
            places=replicas[0].limits.sequences,
        )

    def _changing(self, pool: _Pool) -> Steps:
        """Change all replicas to the next step table once as many steps are over; what serves notices."""
        stalled = 0
        while True:
            for swap in pool.upkeep.swaps:
                yield self._clock.timeout(swap.wait + stalled)
                for replica in range(pool.upkeep.replicas):
                    if swap.what and replica in pool.serving:
                        self._note(pool, replica, swap.what, swap.stall, swap.moved)
                    self.fleet.swap(pool.first + replica, swap.table, swap.stall, self.now)
                stalled = swap.stall
            if not pool.upkeep.again:
                return
