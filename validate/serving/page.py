"""What a comparison found, as tables for a terminal, a pipe and the page of results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.table import Table

from .compare import Compared
from .scores import METRICS, Errors, Ordering, Pair, by_group, errors, ordering

ORDER = ("tpot", "ttft", "throughput")
TITLES = {"ttft": "TTFT", "tpot": "TPOT", "throughput": "tokens/s/GPU"}


def groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Split rows every way that is reported: all, by framework, by system, by model, and by all three."""
    return {
        "all": list(pairs),
        **by_group(pairs, lambda setup: setup.backend),
        **by_group(pairs, lambda setup: setup.system),
        **by_group(pairs, lambda setup: _short(setup.model)),
        **by_group(pairs, lambda setup: f"{_short(setup.model)}, {setup.system}, {setup.backend}"),
    }


def _short(model: str) -> str:
    return model.rsplit("/", 1)[-1]


def summary(compared: Compared) -> dict[str, object]:
    """Sum up a comparison for a pipe."""
    pairs = compared.pairs
    return {
        "rows": len(compared.rows),
        "scored": len(pairs),
        "unpredicted": compared.reasons(),
        "errors": {
            name: {metric: _record(errors(part, metric)) for metric in METRICS} for name, part in groups(pairs).items()
        },
        "ordering": {metric: _share(ordering(pairs, metric)) for metric in ("tpot", "ttft")},
    }


def _record(found: Errors) -> dict[str, float | int | None]:
    return {
        "rows": found.rows,
        "median": found.median,
        "mean": found.mean,
        "median_se": None if math.isnan(found.median_error) else found.median_error,
        "mean_se": None if math.isnan(found.mean_error) else found.mean_error,
    }


def _share(found: Ordering) -> dict[str, float | int | None]:
    known = found.pairs > 0
    return {"pairs": found.pairs, "share": found.share if known else None, "se": found.error if known else None}


def tables(compared: Compared) -> Iterator[Table | str]:
    """Show a comparison: errors by group, orders of layouts, and what was not predicted."""
    if compared.pairs:
        table = Table("group", title="Errors, median / mean, %")
        for head in ("rows", *(TITLES[metric] for metric in ORDER)):
            table.add_column(head, justify="right")
        for name, part in groups(compared.pairs).items():
            table.add_row(name, str(len(part)), *(shown(errors(part, metric)) for metric in ORDER))
        yield table
        for metric in ("tpot", "ttft"):
            yield f"Layouts in the right order by {TITLES[metric]}: {ordered(ordering(compared.pairs, metric))}"
    yield f"{len(compared.rows)} rows, {len(compared.pairs)} scored"
    for reason, count in compared.reasons().items():
        yield f"{count} not predicted: {reason}"


def shown(found: Errors) -> str:
    """Write median / mean errors in percent.

    Examples
    --------
    >>> shown(Errors(rows=3, median=0.1, mean=0.2, median_error=0.01, mean_error=0.02))
    '10.0 ±1.0 / 20.0 ±2.0'
    """
    return f"{_percent(found.median, found.median_error)} / {_percent(found.mean, found.mean_error)}"


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f}" + ("" if math.isnan(error) else f" ±{100 * error:.1f}")


def ordered(found: Ordering) -> str:
    """Write a share of pairs in order.

    Examples
    --------
    >>> ordered(Ordering(pairs=4, right=3))
    '75 ± 22 % of 4 pairs'
    """
    if not found.pairs:
        return "no pairs"
    return f"{100 * found.share:.0f} ± {100 * found.error:.0f} % of {found.pairs} pairs"
