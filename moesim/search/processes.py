"""One function of many things, in as many processes as there are cores: the same answers in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed

PAYS_FROM = 4
"""Things for which a second process pays for its start of a second or two."""

Thing = TypeVar("Thing")
Found = TypeVar("Found")


def started(work: Callable[[], object]) -> Iterator[object]:
    """Start the processes in the background, each with `work`, which imports what later work needs; to be drained."""
    found: Iterator[object] = Parallel(n_jobs=cpu_count(), return_as="generator")(
        delayed(work)() for _ in range(cpu_count())
    )
    return found


def in_parallel(
    work: Callable[[Thing], Found], things: Sequence[Thing], progress: Callable[[float], None] = lambda share: None
) -> list[Found]:
    """Work on each thing, and tell the share done as answers come in their order.

    Parameters
    ----------
    work : a function of one thing alone, which can be sent to another process, as can things and answers

    Returns
    -------
    list
        What came of each thing, in their order, whatever the number of processes.
    """
    jobs = cpu_count() if len(things) >= PAYS_FROM else 1
    found: list[Found] = []
    for answer in Parallel(n_jobs=jobs, return_as="generator")(delayed(work)(thing) for thing in things):
        found.append(answer)
        progress(len(found) / len(things))
    return found
