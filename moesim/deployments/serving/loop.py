"""Time moves: a heap of run ends, and three phases an instant: end runs, route arrivals, start runs.

An instant's phases keep ties from being decided by the order of insertion: replicas that start alike stay alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from moesim.deployments.serving.book import Book
from moesim.deployments.serving.links import Links
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import NEVER

Route = Callable[[int, Sequence[int]], int]
"""Choose a replica for a request, given how many requests each has in hand."""

PROGRESS = 1 << 14
"""Instants between two reports of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Idle replicas that do the same for requests, and how requests are dealt to them."""

    replicas: Sequence[Replica]
    route: Route


def serve(
    book: Book,
    stages: Sequence[Stage],
    links: Links | None = None,
    *,
    concurrency: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Serve all requests of a book, to the end.

    Parameters
    ----------
    book : Book
        In order of arrival; in a closed loop arrivals are written into it.
    stages : sequence of Stage
        What requests come to, and where that hands them over with their prompt's token, if it does.
    links : Links
        What hands them over.
    concurrency : int
        Requests kept in flight in a closed loop; 0: arrivals are as the book has them.
    progress : callable
        Told the share of requests that have come, from 0 to 1, now and then.
    """
    _Loop(book, stages, links, concurrency).run(progress)


class _Loop:
    """What the three phases share. Replicas have places: those of the second stage come after those of the first."""

    __slots__ = (
        "book",
        "border",
        "coming",
        "ends",
        "hands",
        "links",
        "moving",
        "number",
        "released",
        "replicas",
        "routes",
        "version",
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
        self.hands = [0] * self.border, [0] * (len(self.replicas) - self.border)
        self.version = [0] * len(self.replicas)  # run ends of earlier versions are stale
        self.ends: list[tuple[int, int, int]] = []
        self.moving: list[tuple[int, int]] = []  # when a request's cache reaches the second stage
        if concurrency:
            self.released = min(concurrency, self.number)
            book.arrived[: self.released] = [0] * self.released

    def run(self, progress: Callable[[float], None]) -> None:
        """Go from instant to instant until nothing is left."""
        arrived, ends, moving, version, turn = self.book.arrived, self.ends, self.moving, self.version, 0
        while self.coming < self.number or ends or moving:
            if ends and ends[0][2] != version[ends[0][1]]:
                heappop(ends)  # the run was cut
                continue
            now = arrived[self.coming] if self.coming < self.number else NEVER
            if ends and ends[0][0] < now:
                now = ends[0][0]
            if moving and moving[0][0] < now:
                now = moving[0][0]
            touched = self.end_runs(now) if ends and ends[0][0] == now else set()
            if moving and moving[0][0] == now:
                self.deliver(now, touched)
            if self.coming < self.number and arrived[self.coming] == now:
                self.route_arrivals(now, touched)
            self.start_runs(now, touched)
            turn += 1
            if not turn % PROGRESS:
                progress(self.coming / self.number)

    def end_runs(self, now: int) -> set[int]:
        """End the runs of this instant; a closed loop lets one request in for each that is done."""
        touched, ends = set(), self.ends
        while ends and ends[0][0] == now:
            _, place, version = heappop(ends)
            if version != self.version[place]:
                continue
            done = self.replicas[place].end(now)
            touched.add(place)
            if not done:
                continue
            if place >= self.border:
                self.hands[1][place - self.border] -= len(done)
                self.release(len(done), now)
            else:
                self.hands[0][place] -= len(done)
                self.release(len(done) - self.hand_over(done, place, now), now)
        return touched

    def hand_over(self, done: list[int], place: int, now: int) -> int:
        """Send the caches of requests to the second stage that have more tokens to give; how many there are."""
        if self.links is None:
            return 0
        book, handed = self.book, [request for request in done if self.book.left[request]]
        for request in handed:
            book.ready[request] = True
            heappush(self.moving, (self.links.send(place, book.held[request], now), request))
        return len(handed)

    def release(self, number: int, now: int) -> None:
        """Let requests of a closed loop in."""
        last = min(self.released + number, self.number)
        for request in range(self.released, last):
            self.book.arrived[request] = now
        self.released = last

    def deliver(self, now: int, touched: set[int]) -> None:
        """Hand requests whose caches arrive to replicas of the second stage."""
        while self.moving and self.moving[0][0] == now:
            request = heappop(self.moving)[1]
            place = self.routes[1](request, self.hands[1])
            self.hands[1][place] += 1
            place += self.border
            self.book.replica[request] = place
            self.replicas[place].add(request)
            touched.add(place)

    def route_arrivals(self, now: int, touched: set[int]) -> None:
        """Hand the requests of this instant to replicas; one that can never fit is refused."""
        book, hand = self.book, self.hands[0]
        while self.coming < self.number and book.arrived[self.coming] == now:
            request, self.coming = self.coming, self.coming + 1
            place = self.routes[0](request, hand)
            if self.fits(place, request):
                self.replicas[place].add(request)
                book.replica[request] = place
                hand[place] += 1
                touched.add(place)
            else:
                book.refused[request] = True
                self.release(1, now)

    def fits(self, place: int, request: int) -> bool:
        """Whether a request's cache fits where it comes to, and where it is handed over to."""
        return self.replicas[place].fits(request) and self.replicas[-1].fits(request)

    def start_runs(self, now: int, touched: set[int]) -> None:
        """Start idle replicas, and cut the runs of those that somebody came to."""
        for place in touched:
            replica = self.replicas[place]
            end = replica.interrupt(now) if replica.busy else replica.start(now)
            if end != NEVER:
                self.version[place] += 1
                heappush(self.ends, (end, place, self.version[place]))
