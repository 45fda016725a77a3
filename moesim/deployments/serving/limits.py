"""What a replica may hold, and the habits its framework schedules by."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.deployments.steps import GRAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one replica over all its dp groups, to which sequences are dealt evenly.

    Attributes
    ----------
    sequences : most sequences admitted
    budget : most new tokens of one dp group in one step
    blocks : blocks of cache
    block : tokens in a block
    largest : most tokens that one sequence may have cached: a sequence lives in one dp group
    whole : cache is set aside to a request's end when it is admitted; otherwise it is taken as needed, and where none
        is left the youngest sequence loses its own
    growth : grains a sequence's cache grows by in a step
    swap : ticks to copy a token's cache to the host or back, while the replica waits; 0: caches are not copied, a
        sequence that loses its own works on its prompt again
    prompts_first : a step with prompts leaves decoding sequences where they are
    poll : decode steps between two looks at the queue
    hands_over : requests leave with their prompt's token
    prefixes : tokens of earlier requests that are kept for later ones of the same session
    """

    sequences: int
    budget: int
    blocks: int
    block: int
    largest: int
    whole: bool = False
    growth: int = GRAIN
    swap: int = 0
    prompts_first: bool = False
    poll: int = 1
    hands_over: bool = False
    prefixes: int = 0
