"""What is known of every request while it is served: columns that all replicas write into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.ticks import NEVER


@dataclass(slots=True, eq=False)
class Book:
    """One list per fact, by request; ticks are `NEVER` until they happen.

    Attributes
    ----------
    held : tokens cached once the prompt is done; grows by what a preempted request had given
    left : decode steps left after the prompt's own token
    last : tokens cached when the last token is out
    shared : first tokens of the prompt that may be cached already
    session : whose cached prefix they are; -1: nobody's, they are cached for certain
    ready : whether the cache is there, and waits for a place only
    cached : tokens that were found cached when it was admitted
    arrived, admitted, first, done : ticks
    preempted : how often its cache was taken away
    replica : who served it last
    refused : whether its cache can never fit
    stalled : requests that have given tokens and are in no batch, and when they last gave one
    """

    held: list[int]
    left: list[int]
    last: list[int]
    shared: list[int]
    session: list[int]
    ready: list[bool]
    cached: list[int]
    arrived: list[int]
    admitted: list[int]
    first: list[int]
    done: list[int]
    preempted: list[int]
    replica: list[int]
    refused: list[bool]
    stalled: dict[int, int] = field(default_factory=dict)


def open_book(asked: Asked, steps: Sequence[int]) -> Book:
    """Start a book of requests that need `steps` decode steps each."""
    number = len(asked.prompt)
    return Book(
        held=asked.prompt.tolist(),
        left=list(steps),
        last=(asked.prompt + asked.output - 1).tolist(),
        shared=asked.shared.tolist(),
        session=asked.session.tolist(),
        ready=[False] * number,
        cached=[0] * number,
        arrived=asked.arrival.tolist(),
        admitted=[NEVER] * number,
        first=[NEVER] * number,
        done=[NEVER] * number,
        preempted=[0] * number,
        replica=[-1] * number,
        refused=[False] * number,
    )
