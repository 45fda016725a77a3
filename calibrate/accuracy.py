"""How wrong fits are on rows of published tables that they have not seen, goal by goal.

Splits are fixed by a seed before anything is fitted, and `scores` sees numbers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moesim.world.hardware import Fit

from .cases import Cases
from .choose import split
from .fit import Bench, fit_cases, predict
from .from_tables import SEED, bench_of
from .goals import CARRIES, EIGHT, FORMED, GOALS, HELD, KEPT, PUBLISHED, TWO, Carry, Goal
from .layer_sums import Scored, layers
from .published import RAIL, ROW
from .residual import with_residual
from .scores import Score, score
from .spread import TENTH, residuals, with_spread
from .tables import folder_of
from .transfer import carried, transferred

MOST = 1000
"""Rows that are scored at most, and as many that set the intervals."""
SIBLING = 256
"""Points that the sibling of a carried device is fitted to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What was asked for on one system, as it came out."""

    name: str
    system: str
    kernel: str
    points: int
    reach: float
    record: float
    score: Score

    @property
    def verdict(self) -> str:
        """Say whether the mean error is what was asked for."""
        if self.score.mean > self.reach:
            return "missed"
        return "record" if self.score.mean <= self.record else "reached"


def lines(data: Path | None = None) -> Iterator[Line]:
    """Fit and score every goal on every system it is scored on, devices that are carried over, and sums over a layer.

    Parameters
    ----------
    data : folder of tables; those of the installed package if not given

    Raises
    ------
    MoesimError
        The tables are not there, or are not whole.
    """
    found: dict[tuple[str, str], Scored] = {}
    for goal in GOALS:
        for system in (*FORMED, *KEPT):
            cases = table(goal, system, data)
            if cases is not None:
                one = found[goal.name, system] = _held_out(goal, system, cases)
                yield _line(goal, goal.name, system, cases, one)
        yield from _more_gpus(goal, data)
        yield from _many_nodes(goal, data)
        yield from _carried(goal, data)
    for name, system, sums, (reach, record) in layers(found, FORMED[0], KEPT[0]):
        yield Line(name=name, system=system, kernel="", points=0, reach=reach, record=record, score=sums)


def table(goal: Goal, system: str, data: Path | None = None) -> Cases | None:
    """Read the table of a goal; None where the system has none of that kernel."""
    found = [
        cases
        for cases in goal.read(folder_of(system, data), system)
        if cases.key == goal.key and cases.kernel.startswith(goal.kernel)
    ]
    return max(found, key=len, default=None)


def _held_out(goal: Goal, system: str, cases: Cases) -> Scored:
    parts = split(cases, goal.points, seed=SEED, families=goal.families, most=MOST)
    bench = bench_of(system, cases)
    fitted = cases.take(parts.fitted)
    fit = with_residual(fit_cases(fitted, bench), fitted, bench)
    return _scored(fit, cases.take(parts.spread), cases.take(parts.scored), bench)


def _scored(fit: Fit, spread: Cases, held_out: Cases, bench: Bench) -> Scored:
    """Set a fit's standard deviations by points that are not scored, and predict those that are."""
    wide = with_spread(fit, residuals(spread, bench, fit), spread.family)
    return Scored(cases=held_out, predicted=predict(held_out, bench, wide), shared=wide.shared, point=wide.point)


def _more_gpus(goal: Goal, data: Path | None) -> Iterator[Line]:
    """Fit a collective to what was measured on up to four gpus and predict eight; half of those set the interval."""
    for system in (*FORMED, *KEPT):
        cases = table(goal, system, data) if goal.kernel == "nccl" else None
        if cases is None or cases.inputs["ranks"].max() < 8:
            continue
        few, many = cases.take(cases.inputs["ranks"] <= 4), cases.take(cases.inputs["ranks"] == 8)
        bench = bench_of(system, cases)
        fit = fit_cases(few.take(split(few, goal.points, seed=SEED).fitted), bench)
        order = np.random.default_rng(0).permutation(len(many))
        half = len(order) // 2
        one = _scored(fit, many.take(order[:half]), many.take(order[half:]), bench)
        yield _line(goal, f"{goal.name}, up to 4 gpus to 8", system, cases, one, asked=EIGHT)


def _many_nodes(goal: Goal, data: Path | None) -> Iterator[Line]:
    """Fit DeepEP to what was measured on two nodes and predict what it published of four and more.

    Nothing published sets the interval: that is what the fit shows of four and eight nodes of its own table.
    """
    cases = table(goal, FORMED[0], data) if goal.key.endswith(f"/{RAIL}") else None
    if cases is None:
        return
    two = cases.inputs["ranks"] == 2 * HELD["gpus"]
    bench = bench_of(FORMED[0], cases)
    fit = fit_cases(cases.take(two), bench)
    one = _scored(fit, cases.take(~two), published_exchange(cases), bench)
    name = f"{goal.name.rpartition(',')[0]}, 16 gpus to the published 32 to 256"
    yield _line(goal, name, FORMED[0], cases, one, asked=TWO, points=int(two.sum()))


def published_exchange(cases: Cases) -> Cases:
    """Return what DeepEP published of an operation as points like those of a table."""
    times = PUBLISHED[cases.operation]
    ranks, zero = np.array(list(times), dtype=float), np.zeros(len(times))
    away = (ranks - HELD["gpus"]) / ranks
    sent = HELD["tokens"] * HELD["topk"] * HELD["dim"] * ROW[cases.operation]
    messages = ranks - HELD["gpus"]
    inputs = {"moved": sent * away, "messages": messages, "experts": HELD["experts"] + zero, "ranks": ranks}
    return replace(cases, inputs=inputs, seconds=np.array(list(times.values())), family=zero.astype(int))


def _carried(goal: Goal, data: Path | None) -> Iterator[Line]:
    whole = table(goal, FORMED[0], data)
    if whole is None:
        return
    sibling = bench_of(FORMED[0], whole)
    known = fit_cases(whole.take(split(whole, SIBLING, seed=SEED).fitted), sibling)
    for how, carry in CARRIES.items():
        cases = table(goal, carry.system, data)
        if cases is not None:  # a kernel that the other architecture lacks has nothing to carry over
            one = _carry(carry, known, cases, sibling)
            yield _line(
                goal, f"{goal.name}: {how}", carry.system, cases, one, (carry.reach, carry.record), carry.points
            )


def _carry(carry: Carry, known: Fit, cases: Cases, sibling: Bench) -> Scored:
    bench = bench_of(carry.system, cases)
    parts = split(cases, max(carry.points, 1), seed=SEED, most=MOST)
    own = cases.take(parts.fitted)
    fit = transferred(known, own, sibling, bench) if carry.points else carried(known, cases, sibling, bench)
    return _scored(fit, cases.take(parts.spread), cases.take(parts.scored), bench)


def _line(
    goal: Goal,
    name: str,
    system: str,
    cases: Cases,
    one: Scored,
    asked: tuple[float, float] | None = None,
    points: int | None = None,
) -> Line:
    factor = np.exp(TENTH * np.hypot(one.shared, one.point))
    reach, record = asked or (goal.reach, goal.record)
    return Line(
        name=name,
        system=system,
        kernel=cases.kernel,
        points=goal.points if points is None else points,
        reach=reach,
        record=record,
        score=score(one.cases.seconds, one.predicted, one.predicted / factor, one.predicted * factor),
    )
