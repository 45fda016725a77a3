"""What `moesim calibrate anchor` reads and writes: rows of one framework, its shifted numbers, its new file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from moesim.files.frameworks import FRAMEWORKS
from moesim.files.trees import packaged
from moesim.ground.errors import Fault, InputError

from .anchoring import SHIFTED, Anchored, anchor
from .fitting import sample_of
from .measured import Measured
from .prediction import Predictor
from .worlds import frameworks
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
    return anchor(predictor, sample, frameworks())


def shifts(found: Anchored) -> Table:
    """Show every number before and after, with the spread that is left of it."""
    table = Table("number", "shipped", "anchored", "uncertain by a factor", title=found.framework.name)
    for name, left in zip(SHIFTED, np.exp(found.left).tolist(), strict=True):
        numbers = getattr(found.before, name), getattr(found.framework, name), left
        table.add_row(name, *(f"{number:.3g}" for number in numbers))
    return table


def anchored_file(found: Anchored, origin: str) -> str:
    """Write the framework as a file of its own."""
    text = packaged(f"{FRAMEWORKS}/{found.framework.name}.yaml").read_text(encoding="utf-8")
    numbers = {name: getattr(found.framework, name) for name in SHIFTED}
    left = ", ".join(f"{name} x/ {np.exp(sd):.2f}" for name, sd in zip(SHIFTED, found.left, strict=True))
    return rewritten(text, numbers, "anchor", f"{found.rows} rows of {origin}; uncertain by {left}")
