"""One fit of all frameworks, scored in sample, with whole groups left out and with one row of each group given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .anchoring import with_one_row
from .fitting import NAMES, Numbers, Sample, Slope, fit, habits, left_out, sample_of, without
from .measured import Measured, Setup
from .outcome import LEFT_OUT, ONE_ROW, TRUSTED, page
from .prediction import Predicted, Predictor
from .rivals import rivals
from .roofline import rival
from .runs import doubted
from .scores import METRICS, Pair, scored
from .spreads import FILE
from .written import rewritten


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Numbers of each framework, how many setups they were fitted on, scores by what was left out, and rivals'."""

    names: tuple[str, ...]
    numbers: Numbers
    setups: tuple[int, ...]
    scores: dict[str, list[Pair]]
    rivals: dict[str, list[Pair]]
    origin: str

    def files(self, folder: Path, place: Path) -> dict[Path, str]:
        """Write the frameworks' files, the page of results and the spread of predictions."""
        written = {}
        for name, row, count in zip(self.names, np.exp(self.numbers).tolist(), self.setups, strict=True):
            file = folder / f"{name}.yaml"
            note = f"moesim calibrate frameworks, {count} setups of {self.origin}"
            written[file] = rewritten(file.read_text(encoding="utf-8"), dict(zip(NAMES, row, strict=True)), "fit", note)
        rows = {name: np.exp(row) for name, row in zip(self.names, self.numbers, strict=True)}
        return {
            **written,
            place: page(self.scores, self.rivals, rows, self.origin),
            FILE: spread_file(self.scores, self.origin),
        }


def fit_and_score(rows: Sequence[Measured], origin: str) -> Fitted:
    """Fit, and score every way that is reported."""
    sample, predictor = sample_of(rows), Predictor()
    return scored_fit(predictor, rows, sample, fit(predictor, sample), origin)


def scored_fit(
    predictor: Predictor, rows: Sequence[Measured], sample: Sample, found: tuple[Numbers, Slope], origin: str
) -> Fitted:
    """Score a fit in sample, with a model or a system left out, with one row of every group given, and its rivals."""
    numbers, slope = found
    whole = zip(sample.setups, predictor.predict(sample.setups, habits(sample.names, numbers)), strict=True)
    found_out = _pairs(rows, left_out(predictor, sample, slope, model))
    one_row = _one_row(predictor, rows, sample, slope)
    return Fitted(
        names=sample.names,
        numbers=numbers,
        setups=tuple(int((sample.trusted & (sample.place == place)).sum()) for place in range(len(sample.names))),
        scores={
            "in sample": _pairs(rows, whole),
            LEFT_OUT: found_out,
            LEFT_OUT + TRUSTED: _trusted(found_out),
            "leave one system out": _pairs(rows, left_out(predictor, sample, slope, lambda setup: setup.system)),
            ONE_ROW: one_row,
            ONE_ROW + TRUSTED: _trusted(one_row),
            "roofline, leave one model out": _pairs(rows, rival(sample, model)),
        },
        rivals=rivals(rows),
        origin=origin,
    )


def model(setup: Setup) -> str:
    """Name what is left out."""
    return setup.model


def _one_row(predictor: Predictor, rows: Sequence[Measured], sample: Sample, slope: Slope) -> list[Pair]:
    """Give one row of every group to a fit that has not seen its model, and score it on the others."""
    found: list[tuple[Measured, Predicted]] = []
    for name, numbers in without(sample, slope, model).items():
        mine = [row for row in rows if row.setup is not None and row.setup.model == name]
        found += with_one_row(predictor, mine, habits(sample.names, numbers))
    return scored([row for row, _ in found], [each for _, each in found])


def _pairs(rows: Sequence[Measured], found: Iterable[tuple[Setup, Predicted]]) -> list[Pair]:
    """Set predictions of setups beside all rows that measured them."""
    known = dict(found)
    kept = [row for row in rows if row.setup in known]
    return scored(kept, [known[row.setup] for row in kept if row.setup is not None])


def _trusted(pairs: Sequence[Pair]) -> list[Pair]:
    """Leave out rows whose columns are known not to be what ran."""
    return [pair for pair in pairs if pair[0].setup is not None and not doubted(pair[0].setup)]


def spread_file(scores: dict[str, list[Pair]], origin: str) -> str:
    """Write P10 and P90 of measured over predicted, over the rows of models that were left out."""
    lines = ["# Tenth and ninetieth percentile of measured over predicted; written by moesim calibrate frameworks."]
    for metric in METRICS:
        ratio = [getattr(row, metric) / getattr(found, metric) for row, found in scores[LEFT_OUT]]
        low, high = np.quantile(ratio, (0.1, 0.9))
        lines.append(f"{metric}: [{low:.3f}, {high:.3f}]")
    return "\n".join([*lines, f"note: rows of {origin} whose model was left out of the fit", ""])
