"""Work that runs beside a timed call, so that the slowdown of either can be seen.

On a gpu the other work is queued on a stream of its own, more of it than the timed call takes; on a CPU a thread does
it over and over until the timed call has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .bench import Bench, Case
from .collectives import all_to_all_start

QUEUED = 64
"""Calls queued on the other stream, at most."""


def beside(timed: Case, other: Case, bench: Bench) -> Case:
    """Return a case that times one case with and without another beside it."""
    running = _on_stream if bench.device.type == "cuda" else _in_thread
    return Case(
        call=timed.call,
        args=timed.args,
        warm=timed.warm,
        most=min(timed.most, 10),
        on_host=timed.on_host,
        beside=lambda: running(other),
        joint=timed.joint,
    )


@contextmanager
def _in_thread(other: Case) -> Iterator[None]:
    """Run the other case in a thread from before the timed call until after it."""
    ended, begun = threading.Event(), threading.Event()

    def work() -> None:
        while not ended.is_set():
            other.call(*other.args())
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _on_stream(other: Case) -> Iterator[None]:
    """Queue the other case on a stream of its own; the caller makes that stream's work last longer than its own."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(QUEUED):
            other.call(*other.args())
    yield
    stream.synchronize()


def beside_collective(timed: Case, size: int, bench: Bench) -> Case:
    """Return a case that times one case with and without an all-to-all of `size` bytes under way."""
    rows = bench.pool.cut("bytes", size // bench.ranks * bench.ranks)
    out = torch.empty_like(rows)

    @contextmanager
    def running() -> Iterator[None]:
        works = [all_to_all_start(out, rows, None, None) for _ in range(2)]
        yield
        for work in works:
            work.wait()

    return Case(call=timed.call, args=timed.args, most=5, beside=running, joint=True)
