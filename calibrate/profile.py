"""Fits as a file: what a device's profile reads them from, written whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from moesim.files.residuals import residual_tree, rounded
from moesim.ground.units import Source
from moesim.world.hardware import Fit

DIGITS = 4
"""Significant digits of a parameter: a thousandth of what it is known to."""


def write_profile(path: Path, fits: Mapping[str, Fit], *, head: str = "") -> None:
    """Write fits by key; the file appears when it is whole.

    Parameters
    ----------
    path : where to
    fits : by key "operation/dtype/kernel", or "operation/tier"
    head : comment lines for its beginning
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(as_yaml(fits, head=head), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def as_yaml(fits: Mapping[str, Fit], *, head: str = "") -> str:
    """Write fits as YAML, each source once."""
    titles = {source: f"t{number}" for number, source in enumerate(dict.fromkeys(fit.source for fit in fits.values()))}
    tree = {
        "fits": {key: _fit(fit, titles[fit.source]) for key, fit in sorted(fits.items())},
        "sources": {name: _source(source) for source, name in titles.items()},
    }
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    text: str = yaml.safe_dump(tree, sort_keys=False, width=120, default_flow_style=None)
    return comment + text


def _fit(fit: Fit, source: str) -> dict[str, Any]:
    left = {} if fit.residual is None else {"residual": residual_tree(rounded(fit.residual))}
    return {
        "form": fit.form,
        "params": {name: _short(value) for name, value in fit.params.items()},
        "shared": _short(fit.shared),
        "point": _short(fit.point),
        "box": {name: [_short(low), _short(high)] for name, (low, high) in fit.box.items()},
        "source": source,
        **left,
    }


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _source(source: Source) -> dict[str, str]:
    told = {"kind": str(source.kind), "title": source.title, "read": source.read, "raw": source.raw}
    return {name: value for name, value in told.items() if value}


def shown(fits: Mapping[str, Fit]) -> list[str]:
    """Say in a line for each fit that plans look up how wrong it is and whose kernel it is.

    Examples
    --------
    >>> source = Source(kind="fitted", title="64 points")
    >>> fit = Fit(form="gemm", params={}, shared=0.03, point=0.04, box={}, source=source)
    >>> shown({"gemm/bf16": fit, "gemm/bf16/a kernel": fit})
    ['gemm/bf16: within 7% in 8 of 10 cases; 64 points']
    """
    named = [key for key in fits if any(key.startswith(f"{other}/") for other in fits)]
    return [
        f"{key}: within {100 * math.expm1(1.2816 * math.hypot(fit.shared, fit.point)):.0f}% in 8 of 10 cases; "
        f"{fit.source.title}"
        for key, fit in sorted(fits.items())
        if key not in named
    ]
