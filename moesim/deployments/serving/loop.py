"""Time moves: a heap of run ends, and the phases of an instant: end runs, control, route arrivals, start runs.

An instant's phases keep ties from being decided by the order of insertion: replicas that start alike stay alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from moesim.deployments.serving.book import Book
from moesim.deployments.serving.links import Links
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import NEVER
from moesim.deployments.steps import StepTable

Route = Callable[[int, Sequence[int]], int]
"""Choose a replica for a request, given how many requests each has in hand."""

PROGRESS = 1 << 14
"""Instants between two reports of progress."""

_SHIFT = 20
_MASK = (1 << _SHIFT) - 1
"""A run's end and its replica's place are one whole number, which a heap compares faster than a pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Idle replicas that do the same for requests, and how requests are dealt to them."""

    replicas: Sequence[Replica]
    route: Route


class Control(Protocol):
    """What happens to replicas besides requests: it is asked when it acts next, and then acts on the `Fleet`."""

    def next(self) -> int:
        """When it acts next; `NEVER` where it does not."""
        ...

    def act(self, fleet: Fleet, now: int) -> None:
        """Do what is due at this instant."""
        ...


def serve(
    book: Book,
    stages: Sequence[Stage],
    links: Links | None = None,
    *,
    concurrency: int = 0,
    control: Control | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Serve all requests of a book, to the end.

    Parameters
    ----------
    book : Book
        In order of arrival; in a closed loop arrivals are written into it.
    stages : sequence of Stage
        What requests come to, and where that hands them over with their prompt's token, if it does. Replicas of a stage
        may hold equally much.
    links : Links
        What hands them over.
    concurrency : int
        Requests kept in flight in a closed loop; 0: arrivals are as the book has them.
    control : Control
        What else happens to replicas.
    progress : callable
        Told the share of requests that have come, from 0 to 1, now and then.
    """
    Fleet(book, stages, links, concurrency).run(control, progress)


class Fleet:
    """Replicas at work. They have places: those of the second stage come after those of the first."""

    __slots__ = (
        "accepting",
        "book",
        "border",
        "coming",
        "due",
        "ends",
        "hands",
        "links",
        "moving",
        "number",
        "released",
        "replicas",
        "routes",
        "stranded",
        "touched",
    )

    def __init__(self, book: Book, stages: Sequence[Stage], links: Links | None, concurrency: int) -> None:
        self.book = book
        self.routes = [stage.route for stage in stages]
        self.links = links
        self.replicas = [replica for stage in stages for replica in stage.replicas]
        self.border = len(stages[0].replicas)
        self.number = len(book.arrived)
        self.coming = 0  # next request to come
        self.released = self.number  # next request that a closed loop lets in
        sizes = self.border, len(self.replicas) - self.border
        self.hands = [[0] * size for size in sizes]  # requests in hand, by stage and replica of it
        self.accepting: list[list[int] | None] = [None, None]  # replicas that requests go to; None: all
        self.stranded: list[list[int]] = [[], []]  # requests that no replica is there for
        self.due = [NEVER] * len(self.replicas)  # when runs end; an entry of the heap that says otherwise is stale
        self.ends: list[int] = []
        self.moving: list[tuple[int, int]] = []  # when a request's cache reaches the second stage
        self.touched: set[int] = set()  # replicas that something happened to in this instant
        if concurrency:
            self.released = min(concurrency, self.number)
            book.arrived[: self.released] = [0] * self.released
        self.refuse()

    def run(self, control: Control | None, progress: Callable[[float], None]) -> None:
        """Go from instant to instant until nothing is left."""
        arrived, ends, moving, due, touched = self.book.arrived, self.ends, self.moving, self.due, self.touched
        turn, number = 0, self.number
        while True:
            while ends and due[ends[0] & _MASK] != ends[0] >> _SHIFT:
                heappop(ends)  # the run was cut
            coming = now = arrived[self.coming] if self.coming < number else NEVER
            if ends and ends[0] >> _SHIFT < now:
                now = ends[0] >> _SHIFT
            if moving and moving[0][0] < now:
                now = moving[0][0]
            if now == NEVER and not any(self.stranded):
                return
            if control is not None:
                now = min(now, control.next())
            if ends and ends[0] >> _SHIFT == now:
                self.end_runs(now)
            if control is not None and control.next() == now:
                control.act(self, now)
            if moving and moving[0][0] == now:
                self.deliver(now)
            if coming == now or (self.coming < number and arrived[self.coming] == now):
                self.route_arrivals(now)
            self.start_runs(now)
            touched.clear()
            turn += 1
            if not turn % PROGRESS:
                progress(self.coming / number)

    def refuse(self) -> None:
        """Find the requests whose cache can never fit where they come to, or where they are handed over to."""
        first, last = self.replicas[0], self.replicas[-1]
        most, most_last = first.limits.largest, last.limits.largest
        book = self.book
        held = book.held if first.limits.hands_over else book.last
        if max(held, default=0) > most or max(book.last, default=0) > most_last:
            book.refused = [a > most or b > most_last for a, b in zip(held, book.last, strict=True)]

    def end_runs(self, now: int) -> None:
        """End the runs of this instant; a closed loop lets one request in for each that is done."""
        ends, due, border = self.ends, self.due, self.border
        while ends and ends[0] >> _SHIFT == now:
            place = heappop(ends) & _MASK
            if due[place] != now:
                continue
            due[place] = NEVER
            done = self.replicas[place].end(now)
            self.touched.add(place)
            if not done:
                continue
            if place >= border:
                self.hands[1][place - border] -= len(done)
                self.release(len(done), now)
            else:
                self.hands[0][place] -= len(done)
                handed = self.hand_over(done, place, now) if self.links is not None else 0
                self.release(len(done) - handed, now)

    def hand_over(self, done: list[int], place: int, now: int) -> int:
        """Send the caches of requests to the second stage that have more tokens to give; how many there are."""
        assert self.links is not None
        book, handed = self.book, [request for request in done if self.book.left[request]]
        for request in handed:
            book.ready[request] = True
            book.done[request] = NEVER
            book.stalled[request] = now
            heappush(self.moving, (self.links.send(place, book.held[request], now), request))
        return len(handed)

    def release(self, number: int, now: int) -> None:
        """Let requests of a closed loop in."""
        if self.released == self.number:
            return
        last = min(self.released + number, self.number)
        for request in range(self.released, last):
            self.book.arrived[request] = now
        self.released = last

    def deliver(self, now: int) -> None:
        """Hand requests whose caches arrive to replicas of the second stage."""
        while self.moving and self.moving[0][0] == now:
            self.send(heappop(self.moving)[1], 1)

    def route_arrivals(self, now: int) -> None:
        """Hand the requests of this instant to replicas; one that can never fit is refused."""
        book, arrived, number = self.book, self.book.arrived, self.number
        while self.coming < number and arrived[self.coming] == now:
            request, self.coming = self.coming, self.coming + 1
            if book.refused[request]:
                self.release(1, now)
            else:
                self.send(request, 0)

    def send(self, request: int, stage: int) -> None:
        """Hand a request to a replica of a stage; where there is none it waits for one."""
        hand, accepting = self.hands[stage], self.accepting[stage]
        if accepting is None:
            place = self.routes[stage](request, hand)
        elif accepting:
            place = accepting[self.routes[stage](request, [hand[each] for each in accepting])]
        else:
            self.stranded[stage].append(request)
            return
        hand[place] += 1
        if stage:
            place += self.border
        self.book.replica[request] = place
        self.replicas[place].add(request)
        self.touched.add(place)

    def start_runs(self, now: int) -> None:
        """Start idle replicas, and cut the runs of those that somebody came to."""
        for place in self.touched:
            replica = self.replicas[place]
            end = replica.start(now) if self.due[place] == NEVER else replica.interrupt(now)
            if end != NEVER:
                self.due[place] = end
                heappush(self.ends, end << _SHIFT | place)

    def stage_of(self, place: int) -> tuple[int, int]:
        """A replica's stage, and its number there."""
        return (1, place - self.border) if place >= self.border else (0, place)

    def accept(self, stage: int, replicas: Iterable[int]) -> None:
        """Let requests go to these replicas of a stage, by their numbers there, and send those that had none."""
        listed = sorted(replicas)
        self.accepting[stage] = None if len(listed) == len(self.hands[stage]) else listed
        if listed:
            waiting, self.stranded[stage] = self.stranded[stage], []
            for request in waiting:
                self.send(request, stage)

    def fail(self, place: int, now: int) -> None:
        """Lose a replica, which accepts no more: what it had in hand comes again, from the first stage on."""
        stage, number = self.stage_of(place)
        lost = self.replicas[place].fail(now)
        self.due[place] = NEVER
        self.hands[stage][number] = 0
        self.touched.discard(place)
        for request in lost:
            if self.book.held[request] > self.replicas[0].limits.largest:
                self.book.refused[request] = True  # what it has given no longer fits where prompts are worked on
                self.release(1, now)
            else:
                self.send(request, 0)

    def swap(self, place: int, table: StepTable, stall: int, now: int) -> None:
        """Give a replica another step table from its next step on, which is so many ticks later for it."""
        end = self.replicas[place].swap(table, stall, now)
        if end != NEVER:
            self.due[place] = end
            heappush(self.ends, end << _SHIFT | place)
