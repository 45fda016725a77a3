"""Rank classes: a few rows that stand for many ranks whose drawn loads differ.

Every rank of a stage meets all others in each MoE layer, so what a pass takes depends on the heaviest rank and on how
busy the others keep the shared links. Classes are real ranks, never averages of ranks: a mean over ranks would keep
every expert active and cost more weight traffic than any rank has.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Shaped

CLASSES = 4
"""Rows that a folded schedule keeps: the heaviest rank, the one with most active experts, two middle ones."""


@lru_cache(maxsize=1024)
def class_counts(ranks: int, number: int = CLASSES) -> Float[np.ndarray, "class"]:
    """How many ranks each class stands for; they add up to `ranks`.

    Examples
    --------
    >>> class_counts(3).tolist(), class_counts(64).tolist()
    ([1.0, 1.0, 1.0], [1.0, 1.0, 31.0, 31.0])
    """
    if ranks <= number:
        counts = np.ones(ranks)
    else:
        bounds = np.linspace(0, ranks - 2, number - 1).astype(int)
        counts = np.concatenate([[1.0, 1.0], np.diff(bounds)])
    counts.flags.writeable = False
    return counts


def classes(rows: Shaped[np.ndarray, "slot draw rank"], number: int = CLASSES) -> Int[np.ndarray, "draw class"]:
    """Choose the ranks that stand for all.

    Parameters
    ----------
    rows : rows of each local slot, per draw and rank
    number : classes at most, 3 or more; all ranks where there are no more

    Returns
    -------
    array
        Rank numbers per draw: first the rank with most rows, then the one with most active experts, then the middle
        ranks of equal parts of the rest, ordered by rows.

    Examples
    --------
    >>> classes(np.array([[[5, 1, 9, 3, 2, 4]]]), 3).tolist()
    [[2, 0, 4]]
    """
    ranks = rows.shape[-1]
    total = rows.sum(axis=0)
    if ranks <= number:
        return np.tile(np.arange(ranks), (len(total), 1))
    heavy = np.argsort(-total, axis=-1, kind="stable")
    first, rest = heavy[:, :1], heavy[:, 1:]
    active = np.take_along_axis((rows > 0).sum(axis=0), rest, axis=-1)
    second = np.argmax(active, axis=-1)[:, None]
    others = rest[np.arange(ranks - 1) != second].reshape(len(rest), ranks - 2)
    bounds = np.linspace(0, ranks - 2, number - 1).astype(int)
    middles = (bounds[:-1] + bounds[1:]) // 2
    return np.concatenate([first, np.take_along_axis(rest, second, axis=-1), others[:, middles]], axis=-1)


def fold(size: Shaped[np.ndarray, "... #draw _"], chosen: Int[np.ndarray, "#draw class"]) -> Shaped[np.ndarray, "..."]:
    """Keep the chosen ranks of a size; a size-1 rank axis stays as it is.

    Examples
    --------
    >>> fold(np.array([[10, 20, 30]]), np.array([[2, 0]])).tolist()
    [[30, 10]]
    """
    if size.shape[-1] == 1:
        return size
    lead = size.shape[:-2]
    whole = np.broadcast_to(size, (*lead, chosen.shape[0], size.shape[-1]))
    return np.take_along_axis(whole, np.broadcast_to(chosen, (*lead, *chosen.shape)), -1)
