"""Continuous batching: whole prompts join the running batch between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from moesim.plans.layout import NO_LIMIT
from moesim.policies.batching._settings import check, emitted_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuous:
    """Let requests join and leave at every step, prompts uncut (Yu et al., "Orca", OSDI 2022, section 3).

    Attributes
    ----------
    max_batch : most sequences that decode together
    speculated : draft tokens verified per sequence and step
    acceptance : chance that a draft token is right, given that those before it were
    buckets : batch sizes with a compiled graph; empty: any size
    graphs : how many graphs may be compiled, where their sizes are still to be chosen; 0: those of `buckets` are
    preemption : what becomes of a sequence when the cache is full: worked on again, or copied to the host and back
    """

    budget: ClassVar[int] = NO_LIMIT

    max_batch: int = 256
    speculated: int = 0
    acceptance: float = 0.0
    buckets: tuple[int, ...] = ()
    graphs: int = 0
    preemption: Literal["recompute", "swap"] = "recompute"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self)

    @property
    def emitted(self) -> float:
        """Output tokens per sequence and step."""
        return emitted_tokens(self.speculated, self.acceptance)


policy = Continuous
