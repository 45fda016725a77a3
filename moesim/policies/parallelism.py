"""Tutel's family of parallelism: what each r communicates, which r is best, and what finding the best costs in trials.

W gpus share E experts. r = 0 gathers all experts everywhere (data parallel, ZeRO-3); r = 1..W/E repeats tokens r times,
splits each expert over r gpus, and gathers its weights in the groups of W / E / r that hold the same slice. All of them
keep experts stored in the same slices, so switching moves nothing (Hwang et al., "Tutel", MLSys 2023, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.ground.errors import PolicyError
from moesim.ground.units import Bytes

CAPACITY_STEP = 128
"""Rows of capacity per key of Tutel's dictionary (R in floor(c / R))."""

DEGREES = (1, 2, 4, 8)
ALGORITHMS = ("linear", "two_dh")


def family(gpus: int, experts: int) -> tuple[int, ...]:
    """List the r that exist: 0, and 1 to W / E.

    Examples
    --------
    >>> family(64, 16), family(16, 32)
    ((0, 1, 2, 3, 4), (0, 1))
    """
    return tuple(range(max(1, gpus // experts) + 1))


def check_r(r: int, gpus: int, experts: int) -> None:
    """Refuse an r outside the family.

    Raises
    ------
    PolicyError
        There is no such r; the message lists those there are.
    """
    known = family(gpus, experts)
    if r not in known:
        raise PolicyError(f"r = {r} of {gpus} gpus and {experts} experts; give one of {', '.join(map(str, known))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """Elements one gpu communicates in a MoE layer: `rows` in each all-to-all, `weights` in each gather."""

    rows: float
    weights: float


def volume(r: int, *, gpus: int, experts: int, rows: float, parameters: float) -> Volume:
    """What r communicates: O(Cg r + P / E / r), O(Cg W / E) at r = W / E, and O(P) at r = 0 (Tutel, Table 4).

    Parameters
    ----------
    rows : elements one gpu dispatches, Cg in Table 4
    parameters : of all experts of the layer, P

    Raises
    ------
    PolicyError
        r is not in the family.

    Examples
    --------
    >>> volume(2, gpus=64, experts=16, rows=100.0, parameters=3200.0)
    Volume(rows=200.0, weights=100.0)
    >>> volume(4, gpus=64, experts=16, rows=100.0, parameters=3200.0)  # one expert on 4 gpus: nothing to gather
    Volume(rows=400.0, weights=0.0)
    >>> volume(0, gpus=64, experts=16, rows=100.0, parameters=3200.0)
    Volume(rows=0.0, weights=3200.0)
    """
    check_r(r, gpus, experts)
    if r == 0:
        return Volume(rows=0.0, weights=parameters)
    shards = max(1, gpus // experts)
    return Volume(rows=rows * r, weights=parameters / experts / r if r < shards else 0.0)


def best_r(
    *, gpus: int, experts: int, rows: float, parameters: float, exchanges: float = 4.0, gathers: float = 2.0
) -> float:
    """The r at which exchange and gather cost the same: sqrt(w P / E / (a S)), held to 1..W / E.

    From the derivative of a S r + w P / E / r, a all-to-alls and w gathers per pass (4 and 2 in a training step).

    Examples
    --------
    >>> best_r(gpus=64, experts=16, rows=100.0, parameters=12800.0)
    2.0
    """
    free = math.sqrt(gathers * parameters / experts / (exchanges * rows))
    return min(max(free, 1.0), max(1.0, gpus / experts))


def slices_win(dispatched: float, shards: int, expert_parameters: float) -> bool:
    """Whether to slice experts rather than gather them, as Tutel's code decides.

    2 x dispatched elements x (shards - 1) < elements of the expert weights.

    Examples
    --------
    >>> slices_win(1000.0, 4, 8000.0), slices_win(2000.0, 4, 8000.0)
    (True, False)
    """
    return 2 * dispatched * (shards - 1) < expert_parameters


def trials(shards: int) -> int:
    """Passes it takes to fill one key: (log_1.5(ceil(W / E)) + 2) values of r x 4 degrees x 2 algorithms, rounded.

    The r's are those a ternary search looks at (Tutel, section 3.3).

    Examples
    --------
    >>> trials(4), trials(16), trials(64)
    (43, 71, 98)
    """
    searched = math.log(shards, 1.5) + 2
    return round(searched * len(DEGREES) * len(ALGORITHMS))


def least(rs: Sequence[int], cost: Callable[[int], float]) -> int:
    """Find the r of least cost, looking at few of them where cost falls and then rises: r = 0, then ever fewer others.

    The interval of r >= 1 is cut at Fibonacci numbers, which needs one trial a cut, where thirds need two; so no more
    are looked at than Tutel counts (`trials`).

    Parameters
    ----------
    rs : the family, ascending

    Examples
    --------
    >>> looked = []
    >>> least(range(17), lambda r: looked.append(r) or (r - 11) ** 2), sorted(set(looked))
    (11, [0, 8, 10, 11, 12, 13, 16])
    """
    inside = [r for r in rs if r > 0]

    def at(place: int) -> float:
        return cost(inside[place - 1]) if place <= len(inside) else math.inf

    small, middle, size = 1, 1, 2  # places low + 1 to low + size - 1 are left
    while size <= len(inside):
        small, middle, size = middle, size, middle + size
    low = 0
    while size > 2:
        if at(low + small) > at(low + middle):
            low += small
        small, middle, size = middle - small, small, middle
    return min((r for r in rs if r == 0 or (inside and r == inside[low])), key=cost)


def key(capacity: int, step: int = CAPACITY_STEP) -> int:
    """Key of the dictionary for a capacity: floor(c / R).

    Examples
    --------
    >>> key(127), key(128), key(300)
    (0, 1, 2)
    """
    return capacity // step


def migration(parameters: float, element: Bytes, gpus: int) -> Bytes:
    """Bytes one gpu copies in when experts are *not* stored in one layout: its share of the weights, cut anew.

    What a conventional switch between expert + data parallel and expert + model parallel pays, and Tutel does not. What
    the gpu held before goes out the other way meanwhile.

    Examples
    --------
    >>> migration(3200.0, 4.0, 64)
    200.0
    """
    return parameters * element / gpus
