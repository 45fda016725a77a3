"""What `moesim calibrate anchor` reads and writes: rows of one framework, its shifted numbers, its new file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from moesim.ground.errors import Fault, InputError

from .anchoring import Anchored, anchor
from .fitting import NAMES, numbers_of, sample_of
from .measured import Measured
from .prediction import Predictor
from .worlds import FITTED
from .written import rewritten


def anchor_rows(rows: Sequence[Measured], file: str) -> Anchored:
    """Shift the framework that all rows are of.

    Raises
    ------
    InputError
        No row is usable, one cannot be predicted, or they are of several frameworks.
    """
    sample, predictor = sample_of(rows), Predictor()
    if len(sample.names) != 1:
        problem = "no row has a setup and results" if not sample.names else f"is of {', '.join(sample.names)}"
        raise InputError(file, [Fault(path="backend", problem=problem, remedy="give rows of one framework")])
    reasons = sorted({found.reason for found in predictor.predict(sample.setups) if found.reason})
    if reasons:
        raise InputError(file, [Fault(path="", problem=reason, remedy="leave the row out") for reason in reasons])
    return anchor(predictor, sample, numbers_of(sample.names))


def shifts(found: Anchored) -> Table:
    """Show every number before and after, with the spread that is left of it."""
    (name,) = found.names
    table = Table("number", "shipped", "anchored", "uncertain by a factor", title=name)
    rows = zip(NAMES, numbers_of(found.names)[0], found.numbers[0], found.left[0], strict=True)
    for number, before, after, left in rows:
        table.add_row(number, *(f"{value:.3g}" for value in np.exp([before, after, left])))
    return table


def anchored_file(found: Anchored, origin: str) -> str:
    """Write the framework as a file of its own."""
    (name,) = found.names
    text = (FITTED / f"{name}.yaml").read_text(encoding="utf-8")
    numbers = dict(zip(NAMES, np.exp(found.numbers[0]).tolist(), strict=True))
    left = ", ".join(f"{each} x/ {np.exp(sd):.2f}" for each, sd in zip(NAMES, found.left[0], strict=True))
    return rewritten(text, numbers, "anchor", f"{found.rows} rows of {origin}; uncertain by {left}")
