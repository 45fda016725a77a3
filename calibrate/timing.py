"""How long a case takes: warmed up, repeated, by the clock that sees all of it.

On a CPU that is the host's clock. On a gpu it is a pair of events in the kernel's own stream, recorded while the device
is kept waiting, so that the time between them has no gap for the host in it; how long the host took is told apart.
What ranks do together takes from when the last one starts until the last one ends; what each does by itself, side by
side with the others, takes their mean.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import distributed as dist

from .pieces.bench import Bench, Case

ROOM = {"cpu": 0.05, "cuda": 0.05}
"""Seconds of repetitions for one visit of a point, about."""
FEWEST, MOST = 3, 15
WARM = {"cpu": 0.002, "cuda": 0.010}
"""Seconds of warm-up, at least: a gpu's clock rises from idle in milliseconds."""
BEFORE = (256, 512, 512)
"""Rows, inner and columns of the product that ranks compute before a collective: about a millisecond."""
CYCLES = 2e9
"""Cycles of a gpu's clock in a second, about: a little too long a wait does no harm."""
SLACK = 20e-6
"""Seconds that the device waits beyond what the host took in the warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of every repetition, of the same without what runs beside, and until the host was free (or None)."""

    seconds: list[float]
    alone: list[float]
    issue: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Warm:
    """What the warm-up saw: seconds of the last call, and until the host was free again, at best."""

    whole: float
    issue: float


def timed(case: Case, bench: Bench) -> Timing:
    """Warm a case up and time it, as often as its length allows."""
    warm = _warmed(case, bench)
    number = _agreed(_repetitions(case, warm, bench), bench)
    on_device = bench.device.type == "cuda" and not case.on_host
    seconds, alone = [], []
    _meet(bench)
    for _ in range(number):
        if case.beside is None:
            seconds.append(_once(case, bench, warm, on_device))
            continue
        alone.append(_once(case, bench, warm, on_device))
        args = case.args()
        with case.beside():
            seconds.append(_once(case, bench, warm, on_device, args))
    if bench.ranks > 1 and not case.joint:
        seconds = _over_ranks(seconds, dist.ReduceOp.SUM, bench)
    elif bench.ranks > 1 and on_device:
        seconds = _over_ranks(seconds, dist.ReduceOp.MAX, bench)
    return Timing(seconds=seconds, alone=alone, issue=warm.issue if on_device else None)


def _repetitions(case: Case, warm: _Warm, bench: Bench) -> int:
    affordable = int(ROOM[bench.device.type] / max(warm.whole, 1e-6))
    return min(max(FEWEST, min(affordable, MOST)), case.most)


def _warmed(case: Case, bench: Bench) -> _Warm:
    """Call a case until it is warm; what ranks do together they do equally often."""
    whole = issue = float("inf")
    begun, calls = time.perf_counter(), 0
    counted = bench.ranks > 1 and case.joint
    while calls < case.warm or (not counted and _still_cold(begun, bench) and case.warm and calls < 100):
        args = case.args()
        _settle(bench)
        start = time.perf_counter()
        case.call(*args)
        issue = min(issue, time.perf_counter() - start)
        _settle(bench)
        whole = time.perf_counter() - start
        calls += 1
    return _Warm(whole=whole, issue=issue)


def _still_cold(begun: float, bench: Bench) -> bool:
    return time.perf_counter() - begun < WARM[bench.device.type]


def _once(case: Case, bench: Bench, warm: _Warm, on_device: bool, args: tuple[object, ...] | None = None) -> float:
    args = case.args() if args is None else args
    return _by_events(case, args, bench, warm) if on_device else _by_clock(case, args, bench)


def _by_clock(case: Case, args: tuple[object, ...], bench: Bench) -> float:
    if case.beside is None:
        _settle(bench)  # it would wait for what runs beside, too
    if case.joint:
        _meet(bench)
        _compute(bench)
    start = time.perf_counter()
    case.call(*args)
    if bench.device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    end = time.perf_counter()
    return _together(start, end, bench) if case.joint else end - start


def _by_events(case: Case, args: tuple[object, ...], bench: Bench, warm: _Warm) -> float:
    """Keep the device waiting until the host has queued everything, then let it run."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.current_stream().synchronize()
    if case.joint:
        _meet(bench)
    torch.cuda._sleep(int((1.5 * min(warm.issue, 0.01) + SLACK) * CYCLES))
    start.record()
    case.call(*args)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _compute(bench: Bench) -> None:
    """Come to a collective from computing, as in a model: on a CPU the threads that move bytes have gone to sleep."""
    if bench.device.type == "cpu":
        torch.mm(bench.pool.cut("fp32", *BEFORE[:2]), bench.pool.cut("fp32", *BEFORE[1:]))


def _settle(bench: Bench) -> None:
    """Wait until the device is idle."""
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def _meet(bench: Bench) -> None:
    """Wait for all ranks."""
    if bench.ranks > 1:
        dist.barrier(group=bench.talk)


def _together(start: float, end: float, bench: Bench) -> float:
    """Return the time from the last start to the last end; ranks of one host share its clock."""
    if bench.ranks == 1:
        return end - start
    if bench.one_host:
        last = torch.tensor([start, end], dtype=torch.float64)
        dist.all_reduce(last, op=dist.ReduceOp.MAX, group=bench.talk)
        return float(last[1] - last[0])
    longest = torch.tensor([end - start], dtype=torch.float64)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=bench.talk)
    return float(longest[0])


def _over_ranks(seconds: list[float], how: dist.ReduceOp.RedOpType, bench: Bench) -> list[float]:
    """Return the slowest rank's time of every repetition (MAX), or the mean (SUM)."""
    joined = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(joined, op=how, group=bench.talk)
    return [float(time) / (bench.ranks if how == dist.ReduceOp.SUM else 1) for time in joined]


def _agreed(number: int, bench: Bench) -> int:
    """Return rank 0's number on all ranks."""
    if bench.ranks == 1:
        return number
    said = torch.tensor([number])
    dist.broadcast(said, 0, group=bench.talk)
    return int(said[0])
