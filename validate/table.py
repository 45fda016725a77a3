"""The table that a terminal shows of published results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .papers import Checked, Outcome
from .report import shown


def table(checked: Sequence[Checked]) -> Table:
    """Lay the rows out: paper value, our value, error, grade, and whether it passes."""
    drawn = Table(title="published results")
    for column in ("paper", "check", "row"):
        drawn.add_column(column, overflow="fold")
    for column in ("published", "moesim", "error"):
        drawn.add_column(column, justify="right")
    drawn.add_column("grade")
    drawn.add_column("")
    for each in checked:
        for outcome in each.outcomes:
            drawn.add_row(*_cells(outcome))
    return drawn


def _cells(row: Outcome) -> tuple[str, ...]:
    result = {True: "passes", False: "MISSES", None: "no paper value"}[row.passed]
    expected = "" if row.expected is None else shown(row.expected)
    error = "" if row.error is None else f"{row.error:.1%}"
    return row.paper, row.check, row.row, expected, shown(row.predicted), error, row.grade, result
