"""What is known of every request while it is served: columns that all replicas write into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.ticks import NEVER


@dataclass(slots=True, eq=False)
class Book:
    """One list per fact, by request; ticks are `NEVER` until they happen.

    Attributes
    ----------
    new : prompt tokens still to be worked on at the next admission; grows by what preemption threw away
    held : tokens cached once the prompt is done
    left : decode steps left after the prompt's own token
    last : tokens cached when the last token is out
    arrived, admitted, first, done : ticks
    preempted : how often its cache was taken away
    replica : who serves it
    refused : whether its cache can never fit
    """

    new: list[int]
    held: list[int]
    left: list[int]
    last: list[int]
    arrived: list[int]
    admitted: list[int]
    first: list[int]
    done: list[int]
    preempted: list[int]
    replica: list[int]
    refused: list[bool]


def open_book(asked: Asked, steps: Sequence[int]) -> Book:
    """Start a book of requests that need `steps` decode steps each."""
    number = len(asked.prompt)
    return Book(
        new=(asked.prompt - asked.cached).tolist(),
        held=asked.prompt.tolist(),
        left=list(steps),
        last=(asked.prompt + asked.output - 1).tolist(),
        arrived=asked.arrival.tolist(),
        admitted=[NEVER] * number,
        first=[NEVER] * number,
        done=[NEVER] * number,
        preempted=[0] * number,
        replica=[-1] * number,
        refused=[False] * number,
    )
