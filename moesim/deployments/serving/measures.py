"""What a run of requests measures: latencies by request, gaps between tokens, rates over the measured window.

Measured are the requests after the first `warm_up`, in order of arrival. The window opens when the first of them comes
and closes when the last request comes, before the deployment drains; where all come at once, when the last is done.
Rates count what happens in the window: tokens that are given in it, and requests that are done in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.book import Book
from moesim.deployments.serving.replica import Replica
from moesim.deployments.serving.ticks import PER_SECOND, seconds
from moesim.ground.units import Seconds

PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Record = tuple[int, int, str, int, float]
"""What happened to a replica besides requests: when, which, what, the ticks that it took, and the bytes it moved."""

Times = Float[np.ndarray, "request"]


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for what is computed once
class Served:
    """A run that is over: its requests, what each replica did, and what happened to replicas besides requests."""

    asked: Asked
    book: Book
    replicas: Sequence[Replica]
    warm_up: int
    record: Sequence[Record] = ()

    @cached_property
    def arrived(self) -> Times:
        """Seconds at which requests came."""
        return _seconds(self.book.arrived)

    @cached_property
    def done(self) -> Times:
        """Seconds at which they were done; infinite where refused."""
        return _seconds(self.book.done)

    @cached_property
    def ttft(self) -> Times:
        """Seconds from arrival to the first token."""
        return _since(_seconds(self.book.first), self.arrived)

    @cached_property
    def e2e(self) -> Times:
        """Seconds from arrival to the last token."""
        return _since(self.done, self.arrived)

    @cached_property
    def tpot(self) -> Times:
        """Seconds per output token after the first; NaN where there is one only."""
        gaps = self.asked.output - 1
        both = np.isfinite(self.done) & (gaps > 0)
        found = np.full(len(gaps), np.nan)
        found[both] = (self.e2e[both] - self.ttft[both]) / gaps[both]
        return found

    @cached_property
    def wait(self) -> Times:
        """Seconds from arrival to admission."""
        return _since(_seconds(self.book.admitted), self.arrived)

    @cached_property
    def measured(self) -> Bool[np.ndarray, "request"]:
        """Whether a request counts: it is served, and not among the first."""
        return np.asarray((np.arange(len(self.done)) >= self.warm_up) & np.isfinite(self.done))

    @cached_property
    def window(self) -> tuple[Seconds, Seconds]:
        """When measuring begins and ends."""
        first, last = self.arrived[min(self.warm_up, len(self.arrived) - 1)], self.arrived[-1]
        if last == first:
            last = np.max(self.done, where=np.isfinite(self.done), initial=first)
        return float(first), float(max(last, first + 1 / PER_SECOND))

    @cached_property
    def log(self) -> Int[np.ndarray, "run 7"]:
        """Runs of all replicas: start, steps, ticks, decoding sequences, prompt tokens, plain gaps, replica."""
        parts = [np.array(replica.log).reshape(-1, 6) for replica in self.replicas]
        table = np.empty((sum(map(len, parts)), 7), np.int64)
        np.concatenate(parts, out=table[:, :6])
        table[:, 6] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return table


def _seconds(column: Sequence[int]) -> Times:
    return seconds(np.fromiter(column, np.int64, len(column)))


def _since(later: Times, earlier: Times) -> Times:
    """Time between; infinite where it never came."""
    return np.where(np.isfinite(later), later - np.where(np.isfinite(later), earlier, 0.0), np.inf)


def latencies(served: Served) -> dict[str, float]:
    """Mean and percentiles of TTFT, TPOT and end-to-end time over measured requests, and of ITL over the window."""
    found: dict[str, float] = {}
    for name in ("ttft", "tpot", "e2e"):
        values = getattr(served, name)[served.measured]
        values = values[~np.isnan(values)]
        found |= _plain_statistics(name, values)
    return found | _statistics("itl", *gaps(served))


def gaps(served: Served) -> tuple[Float[np.ndarray, "gap"], Float[np.ndarray, "gap"]]:
    """Gaps between tokens that begin in the window, and how many gaps each value stands for.

    Steps of one run differ by little, and stand in with their mean; each makes a gap for every decoding sequence.
    Longer gaps, of requests that were preempted or paused, count wherever they are.
    """
    begins, closes = served.window
    log = served.log
    start = log[:, 0] / PER_SECOND
    kept = log[(log[:, 3] > 0) & (start >= begins) & (start <= closes)]
    longer = np.concatenate([np.array(replica.gaps).reshape(-1, 2) for replica in served.replicas])
    values = np.concatenate([kept[:, 2] / kept[:, 1], longer[:, 0]]) / PER_SECOND
    return values, np.concatenate([kept[:, 5], longer[:, 1]]).astype(float)


def _plain_statistics(name: str, values: Float[np.ndarray, "value"]) -> dict[str, float]:
    """Mean and percentiles of values that count once each."""
    number = len(values)
    if not number:
        return {f"{name}.{statistic}": np.nan for statistic in ("mean", *PERCENTILES)}
    places = [max(ceil(share * number * (1 - 1e-12)), 1) - 1 for share in PERCENTILES.values()]
    ordered = np.partition(values, places)
    return {f"{name}.mean": float(values.mean())} | {
        f"{name}.{statistic}": float(ordered[place]) for statistic, place in zip(PERCENTILES, places, strict=True)
    }


def _statistics(name: str, values: Float[np.ndarray, "value"], weights: Float[np.ndarray, "value"]) -> dict[str, float]:
    """Weighted mean and percentiles; a percentile is the smallest value that so large a share does not exceed."""
    if not len(values):
        return {f"{name}.{statistic}": np.nan for statistic in ("mean", *PERCENTILES)}
    order = np.argsort(values)
    ranks = np.cumsum(weights[order])
    found = {f"{name}.mean": float(np.average(values, weights=weights))}
    for statistic, share in PERCENTILES.items():
        place = min(int(np.searchsorted(ranks, share * ranks[-1] * (1 - 1e-12))), len(order) - 1)
        found[f"{name}.{statistic}"] = float(values[order[place]])
    return found


def rates(served: Served, limits: Mapping[str, Seconds]) -> dict[str, float]:
    """Goodput, throughput, what was asked for, utilization and queue over the window; hits and preemptions by request.

    Parameters
    ----------
    limits : mapping
        Seconds that a request's `ttft`, `tpot` and `e2e` may take to count as good.
    """
    begins, closes = served.window
    length = closes - begins
    inside = (served.done >= begins) & (served.done <= closes)
    came = served.arrived >= begins
    good = inside.copy()
    for name, limit in limits.items():
        values = getattr(served, name)
        good &= np.isnan(values) | (values <= limit)
    chosen = served.measured
    admitted = served.arrived + served.wait
    taken = np.isfinite(admitted)  # refused requests do not wait
    waited = np.clip(admitted[taken], begins, closes) - np.clip(served.arrived[taken], begins, closes)
    return {
        "goodput": float(good.sum() / length),
        "completed": float(inside.sum() / length),
        "throughput": float(given(served, begins, closes).sum() / length),
        "offered": float(served.asked.output[came].sum() / length),
        "utilization": float(busy_shares(served).sum() / len(served.replicas)),
        "availability": serving_share(served),
        "queue": float(waited.sum() / length),
        "prefix_hits": float(np.array(served.book.cached)[chosen].sum() / max(served.asked.prompt[chosen].sum(), 1)),
        "preemptions": float(np.array(served.book.preempted)[chosen].sum() / max(chosen.sum(), 1)),
    }


def given(served: Served, begins: Seconds, closes: Seconds) -> Times:
    """Output tokens that each request is given in a window: the first, and the others evenly up to the last."""
    first, last = served.arrived + served.ttft, served.done
    ever = np.isfinite(last)
    tokens = np.zeros(len(last))
    first, last, others = first[ever], last[ever], served.asked.output[ever] - 1
    within = np.clip(last, begins, closes) - np.clip(first, begins, closes)
    at_once = last == first  # one token, or all of them
    share = np.where(at_once, (first >= begins) & (first <= closes), within / np.where(at_once, 1.0, last - first))
    tokens[ever] = ((first >= begins) & (first <= closes)) + others * share
    return tokens


def busy_shares(served: Served) -> Float[np.ndarray, "replica kind"]:
    """Share of the window that each replica is in steps that only decode, and in steps with prompts."""
    begins, closes = served.window
    log = served.log
    start, ticks = log[:, 0] / PER_SECOND, log[:, 2] / PER_SECOND
    within = np.clip(start + ticks, begins, closes) - np.clip(start, begins, closes)
    place = 2 * log[:, 6] + (log[:, 4] > 0)
    busy = np.bincount(place, within, minlength=2 * len(served.replicas))
    return np.asarray(busy.reshape(-1, 2) / (closes - begins))


OUT = ("rank failed", "node failed", "switched off")
"""What takes a replica out of service; `BACK` is what brings it back."""

BACK = "serves"


def serving_share(served: Served) -> float:
    """Share of the window that replicas serve; in the beginning all do."""
    begins, closes = served.window
    lost, since = 0.0, dict[int, float]()
    for tick, place, what, _, _ in served.record:
        time = min(max(tick / PER_SECOND, begins), closes)
        if what in OUT:
            since.setdefault(place, time)
        elif what == BACK and place in since:
            lost += time - since.pop(place)
    lost += sum(closes - time for time in since.values())
    return 1.0 - lost / (closes - begins) / len(served.replicas)


def event_table(served: Served) -> pd.DataFrame:
    """One row per thing that happened to a replica besides requests."""
    names = ("time", "replica", "event", "duration", "moved")
    table = pd.DataFrame(served.record, columns=list(names))
    table["time"] /= PER_SECOND
    table["duration"] /= PER_SECOND
    table.attrs["units"] = {"time": "s", "duration": "s", "moved": "B"}
    return table


def request_table(served: Served) -> pd.DataFrame:
    """One row per request."""
    table = pd.DataFrame(
        {
            "arrival": served.arrived,
            "replica": served.book.replica,
            "input": served.asked.prompt,
            "cached": served.book.cached,
            "output": served.asked.output,
            "wait": served.wait,
            "ttft": served.ttft,
            "tpot": served.tpot,
            "e2e": served.e2e,
            "preempted": served.book.preempted,
            "refused": served.book.refused,
            "measured": served.measured,
        }
    )
    units = dict.fromkeys(("arrival", "wait", "ttft", "tpot", "e2e"), "s")
    table.attrs["units"] = units | dict.fromkeys(("input", "cached", "output"), "tokens")
    return table


def step_table(served: Served) -> pd.DataFrame:
    """One row per run of equal steps."""
    log = served.log
    table = pd.DataFrame(
        {
            "replica": log[:, 6],
            "start": log[:, 0] / PER_SECOND,
            "steps": log[:, 1],
            "duration": log[:, 2] / PER_SECOND,
            "decoding": log[:, 3],
            "prompt": log[:, 4],
        }
    )
    table.attrs["units"] = {"start": "s", "duration": "s", "prompt": "tokens"}
    return table
