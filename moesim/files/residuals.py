"""Residuals as files keep them: a line of numbers a point, as text, which is read much faster than lists are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from moesim.files.checked import refuse
from moesim.files.trees import Tree
from moesim.world.hardware import Residual

DIGITS = 4
"""Significant digits of a weight, and decimals of a logarithm: a ten-thousandth of a size."""


SHAPE: Tree = {
    "type": "object",
    "description": "What a form leaves over near the points it was fitted to.",
    "additionalProperties": False,
    "required": ["inputs", "lengths", "points"],
    "properties": {
        "inputs": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "lengths": {"type": "array", "minItems": 1, "items": {"type": "number", "exclusiveMinimum": 0}},
        "points": {"type": "string", "description": "a line each: weight, then the logarithm of each input"},
    },
}
"""The JSON Schema of what `read_residual` reads."""


def read_residual(tree: Tree, file: str) -> Residual:
    """Read a residual: its ``inputs``, their ``lengths``, and a line for each of its ``points``.

    A line holds the point's weight and the logarithm of each of its inputs.

    Raises
    ------
    InputError
        A part is missing or unknown, or the numbers do not agree in number, or are none.

    Examples
    --------
    >>> read_residual({"inputs": ["m"], "lengths": [1.5], "points": "0.05 2"}, "a.yaml").places
    ((2.0,),)
    """
    parts = ("inputs", "lengths", "points")
    if not isinstance(tree, Mapping) or set(tree) != set(parts):
        raise refuse(file, "a residual is not understood", f"give it {', '.join(parts)} and nothing else")
    inputs = tuple(map(str, tree["inputs"] if isinstance(tree["inputs"], list) else ()))
    try:
        lengths = np.array(tree["lengths"], dtype=float)
        points = np.array([line.split() for line in str(tree["points"]).splitlines()], dtype=float)
    except ValueError:
        raise refuse(file, "a residual has lines of unequal length, or with no numbers", _REMEDY) from None
    whole = points.ndim == 2 and points.shape[1] == len(inputs) + 1 and lengths.shape == (len(inputs),)
    if not inputs or not whole or not np.isfinite(points).all() or not (lengths > 0).all():
        raise refuse(file, "a residual has numbers that are missing, infinite or not positive", _REMEDY)
    return Residual(
        inputs=inputs,
        lengths=tuple(lengths.tolist()),
        places=tuple(map(tuple, points[:, 1:].tolist())),
        weights=tuple(points[:, 0].tolist()),
    )


_REMEDY = "give a positive length for each input, and in each line a weight and a logarithm for each input"


def residual_tree(residual: Residual) -> dict[str, Tree]:
    """Write a residual as `read_residual` reads it, to the last bit."""
    points = zip(residual.weights, residual.places, strict=True)
    return {
        "inputs": list(residual.inputs),
        "lengths": list(residual.lengths),
        "points": "\n".join(" ".join(map(repr, (weight, *places))) for weight, places in points),
    }


def rounded(residual: Residual) -> Residual:
    """Round a residual to as many digits as it is known to."""
    return replace(
        residual,
        lengths=tuple(float(f"{length:.{DIGITS}g}") for length in residual.lengths),
        weights=tuple(float(f"{weight:.{DIGITS}g}") for weight in residual.weights),
        places=tuple(tuple(round(place, DIGITS) for place in places) for places in residual.places),
    )
