"""Chunked prefill: prompts are cut so that a step of decodes and prompt tokens stays within a token budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.policies.batching._settings import check, emitted_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunked:
    """Mix decodes with pieces of prompts (Agrawal et al., "Sarathi-Serve", OSDI 2024, section 4).

    Attributes
    ----------
    max_batch : most sequences that decode together
    budget : most new tokens in one step, decoded ones included
    speculated : draft tokens verified per sequence and step
    acceptance : chance that a draft token is right, given that those before it were
    buckets : batch sizes with a compiled graph; empty: any size
    graphs : how many graphs may be compiled, where their sizes are still to be chosen; 0: those of `buckets` are
    preemption : what becomes of a sequence when the cache is full: worked on again, or copied to the host and back
    """

    max_batch: int = 256
    budget: int = 8192
    speculated: int = 0
    acceptance: float = 0.0
    buckets: tuple[int, ...] = ()
    graphs: int = 0
    preemption: Literal["recompute", "swap"] = "recompute"

    def __post_init__(self) -> None:
        """Check that a step has room for every decode."""
        check(self)
        if self.budget < self.max_batch * (1 + self.speculated):
            needed = self.max_batch * (1 + self.speculated)
            raise ValueError(
                f"budget = {self.budget} has no room for {needed} decoded tokens a step; give at least that"
            )

    @property
    def emitted(self) -> float:
        """Output tokens per sequence and step."""
        return emitted_tokens(self.speculated, self.acceptance)


policy = Chunked
