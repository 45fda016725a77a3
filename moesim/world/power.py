"""What gpus and the boxes around them draw, as shares of their rated power: at rest, at decodes, at prompts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Shares of rated power; by default all is drawn all the time, which no machine exceeds.

    Attributes
    ----------
    idle : of a gpu that waits, its memory full
    decode : of a gpu in steps that only decode, which wait for memory
    prompts : of a gpu in steps with prompt tokens, which multiply
    box : of what a node draws besides its gpus
    """

    idle: float = 1.0
    decode: float = 1.0
    prompts: float = 1.0
    box: float = 1.0
