"""Predicted beside measured: step times, speedups of one trial over another, and which of the two is faster.

A ratio is taken round by round, of two trials that were run right after each other, and its median counts: what slows
a machine down for a while slows both. A pair tells something about the order where it differs by more than a tenth
and by more than twice what identical runs differ by. What predicting "no difference" would score stands beside.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundle import Bundle, Pair, Predicted, read_bundle, read_predictions
from .results import Measured, Results, read_results

TELLING = 1.10
"""Measured ratio from which a pair's order counts."""
LARGE = 1.3
"""Measured ratio from which a pair's difference is called large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A bundle, what was predicted and what was measured.

    Attributes
    ----------
    floor : median difference between two runs of the same trial, round by round, relative
    """

    folder: Path
    bundle: Bundle
    predictions: Mapping[str, Predicted]
    results: Results
    floor: float

    @property
    def emulated(self) -> bool:
        """Whether its link was slow by waiting only."""
        return self.bundle.setting.link == "emulated"

    @property
    def finished(self) -> Mapping[str, Measured]:
        """Trials that were run to their end, the repeated one aside."""
        names = [trial.name for trial in self.bundle.trials if trial.name != self.bundle.repeated]
        held = {name: self.results.trials[name] for name in names if name in self.results.trials}
        return {name: each for name, each in held.items() if each.rounds and not each.failed}

    @property
    def failed(self) -> Mapping[str, str]:
        """Why trials were not, by name."""
        unsaid = {trial.name: "was never run" for trial in self.bundle.trials if trial.name not in self.results.trials}
        return {name: each.failed for name, each in self.results.trials.items() if each.failed} | unsaid


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A pair of trials, the slower one (as measured) over the faster.

    Attributes
    ----------
    slow, fast : names
    measured, predicted : seconds of the one over those of the other; a prediction below 1 has the wrong order
    telling : whether the order counts
    """

    axis: str
    slow: str
    fast: str
    measured: float
    predicted: float
    telling: bool

    @property
    def error(self) -> float:
        """How far the predicted ratio is from the measured one, relative."""
        return abs(self.predicted / self.measured - 1)

    @property
    def unmoved(self) -> float:
        """The same of a prediction that both take equally long."""
        return abs(1 / self.measured - 1)

    @property
    def right(self) -> bool:
        """Whether the predicted order is the measured one."""
        return self.predicted > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Scores over some pairs and times. Shares and errors are NaN where there is nothing to take them of.

    Attributes
    ----------
    pairs, telling, large : how many there are, whose order counts, and that differ by `LARGE`
    speedup_median_error, unmoved_median_error : of ours, and of "no difference"
    ordered_right : share of the telling pairs
    times, time_median_error, inside_interval : how many step times, their error, and their share within P10-P90
    floor : median noise floor of the bundles
    failed : trials that were not run to their end
    """

    pairs: int
    telling: int
    large: int
    speedup_median_error: float
    unmoved_median_error: float
    ordered_right: float
    times: int
    time_median_error: float
    inside_interval: float
    floor: float
    failed: int


def compare(folder: Path) -> Compared:
    """Read a bundle that was run.

    Raises
    ------
    InputError
        Something is missing or damaged, or the predictions were changed after measuring.
    """
    bundle, results = read_bundle(folder), read_results(folder)
    return Compared(
        folder=folder,
        bundle=bundle,
        predictions=read_predictions(folder),
        results=results,
        floor=_floor(bundle, results),
    )


def real(some: Sequence[Compared]) -> list[Compared]:
    """Leave out what was run over emulated links, which is scored apart."""
    return [each for each in some if not each.emulated]


def _floor(bundle: Bundle, results: Results) -> float:
    """Return how far two runs of one trial lie apart in a round, the median over rounds."""
    one, other = (results.trials.get(name, Measured()) for name in (bundle.pick, bundle.repeated))
    apart = [abs(math.log(ratio)) for ratio in _ratios(one, other)]
    return math.expm1(statistics.median(apart)) if apart else math.nan


def _ratios(one: Measured, other: Measured) -> list[float]:
    return [seconds / other.rounds[number] for number, seconds in one.rounds.items() if number in other.rounds]


def scored(compared: Compared) -> list[Scored]:
    """Score every pair of trials that were both run."""
    finished = compared.finished
    pairs = [pair for pair in compared.bundle.pairs if pair.first in finished and pair.second in finished]
    return [_scored(pair, compared) for pair in pairs]


def _scored(pair: Pair, compared: Compared) -> Scored:
    finished, predictions = compared.finished, compared.predictions
    ratio = statistics.median(_ratios(finished[pair.first], finished[pair.second]))
    slow, fast = (pair.first, pair.second) if ratio >= 1 else (pair.second, pair.first)
    measured = max(ratio, 1 / ratio)
    least = max(TELLING, 1 + 2 * compared.floor) if math.isfinite(compared.floor) else TELLING
    return Scored(
        axis=pair.axis,
        slow=slow,
        fast=fast,
        measured=measured,
        predicted=predictions[slow].seconds / predictions[fast].seconds,
        telling=measured > least,
    )


def summary(some: Sequence[Compared]) -> Summary:
    """Score several bundles together."""
    pairs = [pair for compared in some for pair in scored(compared)]
    times = [
        (compared.predictions[name], measured.seconds)
        for compared in some
        for name, measured in compared.finished.items()
    ]
    telling = [pair for pair in pairs if pair.telling]
    return Summary(
        pairs=len(pairs),
        telling=len(telling),
        large=sum(pair.measured >= LARGE for pair in pairs),
        speedup_median_error=_median([pair.error for pair in pairs]),
        unmoved_median_error=_median([pair.unmoved for pair in pairs]),
        ordered_right=_share([pair.right for pair in telling]),
        times=len(times),
        time_median_error=_median([abs(told.seconds / seconds - 1) for told, seconds in times]),
        inside_interval=_share([told.low <= seconds <= told.high for told, seconds in times]),
        floor=_median([each.floor for each in some if math.isfinite(each.floor)]),
        failed=sum(len(each.failed) for each in some),
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else math.nan
