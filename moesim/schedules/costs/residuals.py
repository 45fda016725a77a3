"""What a form leaves over of points like those it was fitted to: interpolated among them, and nowhere else.

Kernels have habits that no form of a dozen parameters knows: a tiling for one width, a heuristic that switches. Where
points are near, their own residuals say most of it. Outside the range of the points the form stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from moesim.ground.errors import MoesimError, nearest
from moesim.schedules.costs.attention import needs_of
from moesim.schedules.costs.kernels import Size, Time
from moesim.schedules.ops import AllToAll, Attend, Gemm, Reduce
from moesim.world.hardware import Residual

EDGE = 1e-4
"""Logarithm by which a size may lie outside the range of the points, as files round them."""
AT_ONCE = 2**15
"""Numbers that are worked on together, so that they stay in the cache: eight times as many take ten times as long."""

Places = Float[np.ndarray, "shape input"]
Corrected = Gemm | Attend | Reduce | AllToAll
"""Ops whose fits may hold a residual."""


def corrected(time: Time, op: Corrected, residual: Residual | None, floor: Callable[[], Time]) -> Time:
    """Multiply a form's time by what points nearby took over what the form says of them; never below the floor.

    Parameters
    ----------
    time : of the form, s
    op : what takes it
    residual : of the fit; None: the form stands alone
    floor : gives the seconds that the op takes at least

    Examples
    --------
    >>> one = Residual(inputs=("m",), lengths=(1.0,), places=((0.0,), (1.0,)), weights=(0.5, 0.0))
    >>> op = Gemm(m=np.array([1.0, 8.0]), n=np.array([64.0]), k=np.array([64.0]), dtype="bf16")
    >>> corrected(np.array([2.0, 2.0]), op, one, lambda: np.zeros(1)).round(3)  # 2 x exp(0.5), and 8 rows are outside
    array([3.297, 2.   ])
    """
    if residual is None:
        return time
    sizes = measures(op)
    unknown = [name for name in residual.inputs if name not in sizes]
    if unknown:
        raise MoesimError(f"a residual by `{unknown[0]}`, which such an op has not; {nearest(unknown[0], sizes)}")
    rows = np.broadcast_arrays(*(sizes[name] for name in residual.inputs))
    places = np.stack([np.log(np.maximum(row, np.finfo(float).tiny)).reshape(-1) for row in rows], axis=-1)
    shifts = np.exp(shift(places, residual)).reshape(rows[0].shape)
    return np.asarray(np.maximum(time * shifts, floor()))


def measures(op: Corrected) -> Mapping[str, Size]:
    """Return the sizes by which residuals are told apart.

    Of attention these are the heads, how many share keys, their mean width, the sequences, the tokens that each reads,
    that each of its tokens sees, and that it reads for each new one: one in a prompt that is read from its beginning.
    Of an all-to-all they are those of its innermost tier.
    """
    if isinstance(op, Gemm):
        return {"m": op.m, "n": op.n, "k": op.k}
    if isinstance(op, Reduce):
        return {"size": op.size, "ranks": op.ranks}
    if isinstance(op, AllToAll):
        return {"moved": np.maximum(op.sent[0], op.received[0]), "messages": op.messages[0]}
    needs = needs_of(op)
    prompts = np.maximum(op.prompts, 1)
    return {
        "heads": op.heads,
        "group": needs.group,
        "width": np.full(1, needs.width),
        "prompts": op.prompts,
        "cached": op.keys / prompts,
        "seen": op.pairs / np.maximum(op.tokens, 1),
        "reused": op.keys / np.maximum(op.tokens, 1),
    }


def shift(places: Places, residual: Residual) -> Float[np.ndarray, " shape"]:
    """Interpolate the residual: sum of weight / (1 + distance^2 / 2) over the points; zero outside their range.

    A rational quadratic kernel (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equation 4.19,
    alpha 1), which costs neither a power nor an exponential.

    Examples
    --------
    >>> one = Residual(inputs=("m",), lengths=(2.0,), places=((0.0,), (4.0,)), weights=(0.3, 0.0))
    >>> shift(np.array([[0.0], [2.0], [5.0]]), one).tolist()
    [0.3, 0.19999999999999998, 0.0]
    """
    lengths, known, weights = _arrays(residual)
    scaled = known / lengths
    out = np.zeros(len(places))
    here = np.flatnonzero(inside(places, residual))
    step = max(AT_ONCE // len(weights), 1)
    for first in range(0, len(here), step):
        part = here[first : first + step]
        out[part] = kernel(places[part] / lengths, scaled) @ weights
    return out


def inside(places: Places, residual: Residual) -> Bool[np.ndarray, " shape"]:
    """Tell which shapes lie within the range of the points in every input."""
    _, known, _ = _arrays(residual)
    return np.asarray(((places >= known.min(axis=0) - EDGE) & (places <= known.max(axis=0) + EDGE)).all(axis=1))


@lru_cache(maxsize=256)
def _arrays(residual: Residual) -> tuple[Float[np.ndarray, " input"], Places, Float[np.ndarray, " point"]]:
    return np.array(residual.lengths), np.array(residual.places), np.array(residual.weights)


def kernel(one: Places, other: Places) -> Float[np.ndarray, "one other"]:
    """Return 1 / (1 + distance^2 / 2) between places measured in lengths."""
    squares = np.square(one).sum(axis=1)[:, None] + np.square(other).sum(axis=1) - 2 * (one @ other.T)
    return np.asarray(1 / (1 + np.maximum(squares, 0.0) / 2))
