"""A routing said in a few numbers, as files say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Every so many steps, a share of each layer's experts trade places."""

    every: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fade:
    """A skew that approaches an end, by half of what is left every so many steps."""

    end: float
    half_life: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a routing is made from.

    Attributes
    ----------
    cv : deviation over mean of the experts' shares over all topics
    seed : decides which experts are popular where
    tilt : the same within one topic; 0 without topics
    topics, together, hold : how many topics, share of a step's tokens about the one that prevails, steps it does
    linked, first : chances that a token's thought decides a choice, and that it is the first, spread over the depth
    keep : chance that the next token keeps the thought
    drift, fade : changes with the step
    pareto : if above 0, in place of `cv`: exponent of the bounded Pareto density of popularity, from 1 to 3277
    zipf : if above 0, in place of `cv`: exponent of share by rank
    """

    cv: float = 0.0
    seed: int = 0
    tilt: float = 0.0
    topics: int = 1
    together: float = 0.0
    hold: int = 1
    linked: tuple[float, ...] = ()
    first: tuple[float, ...] = ()
    keep: float = 0.0
    drift: Drift | None = None
    fade: Fade | None = None
    pareto: float = 0.0
    zipf: float = 0.0
