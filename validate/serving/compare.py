"""A file of measurements beside its predictions, row by row."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .measured import Measured, read_table
from .prediction import Predicted, Predictor
from .scores import Pair, scored
from .spreads import Spread, shipped_spread

NAMES = {"ttft": "predicted_ttft_ms", "tpot": "predicted_tpot_ms", "throughput": "predicted_tokens_per_s_per_gpu"}
SCALES = {"ttft": 1e3, "tpot": 1e3, "throughput": 1.0}


def with_predictions(
    columns: Sequence[str], rows: Sequence[Measured], predicted: Sequence[Predicted], spread: Spread
) -> str:
    """Write every row as CSV: its columns, what is predicted with P10 and P90, and the reason where nothing is.

    Columns of the file that are called like these are replaced.
    """
    added = [name + end for name in NAMES.values() for end in ("", "_p10", "_p90")]
    columns = [name for name in columns if name not in (*added, "reason")]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*columns, *added, "reason"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row, found in zip(rows, predicted, strict=True):
        writer.writerow({**row.text, **_cells(found, spread), "reason": row.reason or found.reason})
    return file.getvalue()


def _cells(found: Predicted, spread: Spread) -> dict[str, str]:
    """Write a prediction and its range; empty where there is none."""
    cells = {}
    for metric, name in NAMES.items():
        value = getattr(found, metric) * SCALES[metric]
        low, high = spread.factors(metric)
        for end, factor in (("", 1.0), ("_p10", low), ("_p90", high)):
            cells[name + end] = f"{value * factor:.6g}" if math.isfinite(value) else ""
    return cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Rows of a file and what is predicted for each; `text` is both as CSV."""

    rows: Sequence[Measured]
    predicted: Sequence[Predicted]
    text: str

    @property
    def pairs(self) -> list[Pair]:
        """Rows that can be scored."""
        return scored(self.rows, self.predicted)

    def reasons(self) -> dict[str, int]:
        """Why rows are not predicted, and how many, the most frequent first."""
        return dict(Counter(each.reason for each in self.predicted if each.reason).most_common())


def compare(file: Path) -> Compared:
    """Predict every row of a file.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    columns, rows = read_table(file)
    predicted = predict_rows(rows, Predictor())
    return Compared(rows=rows, predicted=predicted, text=with_predictions(columns, rows, predicted, shipped_spread()))


def predict_rows(rows: Sequence[Measured], predictor: Predictor) -> list[Predicted]:
    """Predict rows in their order; one without a setup keeps its reason."""
    found = iter(predictor.predict(row.setup for row in rows if row.setup is not None))
    return [Predicted(reason=row.reason) if row.setup is None else next(found) for row in rows]
