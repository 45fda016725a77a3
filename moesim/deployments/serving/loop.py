"""Time moves: a heap of run ends, and three phases an instant: end runs, route arrivals, start runs.

An instant's phases keep ties from being decided by the order of insertion: replicas that start alike stay alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from moesim.deployments.serving.book import Book
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import NEVER

Route = Callable[[int, Sequence[int]], int]
"""Choose a replica for a request, given how many requests each has in hand."""

PROGRESS = 1 << 14
"""Instants between two reports of progress."""


def serve(
    replicas: Sequence[Replica],
    book: Book,
    route: Route,
    *,
    concurrency: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Serve all requests of a book, to the end.

    Parameters
    ----------
    replicas : sequence of Replica
        Idle ones, that write into the book.
    book : Book
        In order of arrival; in a closed loop arrivals are written into it.
    route : callable
        Called once per request.
    concurrency : int
        Requests kept in flight in a closed loop; 0: arrivals are as the book has them.
    progress : callable
        Told the share of requests that have come, from 0 to 1, now and then.
    """
    _Loop(replicas, book, route, concurrency).run(progress)


class _Loop:
    """What the three phases share."""

    __slots__ = ("book", "coming", "ends", "hand", "number", "released", "replicas", "route", "version")

    def __init__(self, replicas: Sequence[Replica], book: Book, route: Route, concurrency: int) -> None:
        self.replicas = replicas
        self.book = book
        self.route = route
        self.number = len(book.arrived)
        self.coming = 0  # next request to come
        self.released = self.number  # next request that a closed loop lets in
        self.hand = [0] * len(replicas)
        self.version = [0] * len(replicas)  # run ends of earlier versions are stale
        self.ends: list[tuple[int, int, int]] = []
        if concurrency:
            self.released = min(concurrency, self.number)
            book.arrived[: self.released] = [0] * self.released

    def run(self, progress: Callable[[float], None]) -> None:
        """Go from instant to instant until nothing is left."""
        arrived, ends, turn = self.book.arrived, self.ends, 0
        while self.coming < self.number or ends:
            now = arrived[self.coming] if self.coming < self.number else NEVER
            if ends and ends[0][0] < now:
                now = ends[0][0]
            touched = self.end_runs(now) if ends and ends[0][0] == now else set()
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
            if version == self.version[place]:
                done = len(self.replicas[place].end(now))
                self.hand[place] -= done
                self.release(done, now)
                touched.add(place)
        return touched

    def release(self, number: int, now: int) -> None:
        """Let requests of a closed loop in."""
        last = min(self.released + number, self.number)
        for request in range(self.released, last):
            self.book.arrived[request] = now
        self.released = last

    def route_arrivals(self, now: int, touched: set[int]) -> None:
        """Hand the requests of this instant to replicas; one that can never fit is refused."""
        book = self.book
        while self.coming < self.number and book.arrived[self.coming] == now:
            request, self.coming = self.coming, self.coming + 1
            place = self.route(request, self.hand)
            book.replica[request] = place
            if self.replicas[place].fits(request):
                self.replicas[place].add(request)
                self.hand[place] += 1
                touched.add(place)
            else:
                book.refused[request] = True
                self.release(1, now)

    def start_runs(self, now: int, touched: set[int]) -> None:
        """Start idle replicas, and cut the runs of those that somebody came to."""
        for place in touched:
            replica = self.replicas[place]
            end = replica.interrupt(now) if replica.busy else replica.start(now)
            if end != NEVER:
                self.version[place] += 1
                heappush(self.ends, (end, place, self.version[place]))
