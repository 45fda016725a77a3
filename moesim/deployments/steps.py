"""Step times of a replica, whatever is in its batch: linear between knots, in whole ticks.

A step that only decodes is linear in the tokens its sequences have cached, with whole intercept and slope between
knots, so that n such steps in a row have a closed form that equals their sum to the bit. `tabulation` makes the tables.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from moesim.ground.units import SourceKind
from moesim.plans.layout import NO_LIMIT

GRAIN = 8
"""Parts of a token that cached context is counted in, as speculation adds broken numbers of tokens to a sequence."""

Row = tuple[tuple[int, int, int], ...]
"""Pieces (edge, intercept, slope): below `edge` a step takes intercept + slope x context ticks, context in grains."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTable:
    """Step times of one replica in ticks.

    Attributes
    ----------
    tokens : knots of the tokens in a step, over the whole replica and all its pipeline stages
    contexts : knots of the mean cached tokens of decoding sequences
    decode : ticks of a step that only decodes, by tokens and context
    prompts : a step of prompts only, by tokens and spread, as (near, far): ticks where prompt tokens attend to `near`
        others, and what is added for each that they attend to beyond
    spreads : knots of how unevenly prompts are dealt to the dp groups, from 0 (evenly) to 1 (all to one of them); one
        knot where there is one group
    near : tokens attended to
    groups : dp groups
    width : tokens a decoding sequence brings to a step, drafts included
    buckets : decoding sequences of a dp group that a compiled graph exists for; empty: any number runs as it is
    source : the weakest kind of source the times rest on
    outside : inputs that left the range their cost form was calibrated on
    """

    tokens: tuple[float, ...]
    contexts: tuple[float, ...]
    decode: tuple[tuple[float, ...], ...]
    prompts: tuple[tuple[tuple[float, float], ...], ...]
    spreads: tuple[float, ...]
    near: float
    groups: int
    width: int = 1
    buckets: tuple[int, ...] = ()
    source: SourceKind = "assumed"
    outside: tuple[str, ...] = ()
    _rows: dict[int, Row] = field(default_factory=dict)

    def row(self, sequences: int) -> Row:
        """Steps that decode so many sequences and nothing else; kept once made."""
        row = self._rows.get(sequences)
        if row is None:
            row = self._rows[sequences] = self._made(sequences)
        return row

    def _made(self, sequences: int) -> Row:
        place, share = self._place(self.padded(sequences) * self.width)
        values = [a + share * (b - a) for a, b in zip(*self.decode[place - 1 : place + 1], strict=True)]
        reach = [context * sequences * GRAIN for context in self.contexts]
        pieces = []
        for place in range(len(reach) - 1):
            (low, high), (first, last) = reach[place : place + 2], values[place : place + 2]
            slope = max(round((last - first) / (high - low)), 0)
            intercept = max(round((first + last - slope * (low + high)) / 2), 1)
            pieces.append((ceil(high), intercept, slope))
        return (*pieces[:-1], (NO_LIMIT, *pieces[-1][1:]))

    def padded(self, sequences: int) -> int:
        """Sequences of a step once every dp group is padded to a compiled graph's size.

        Examples
        --------
        >>> table = StepTable(
        ...     tokens=(1, 2), contexts=(0, 1), decode=(), prompts=(), spreads=(), near=0, groups=2, buckets=(1, 4)
        ... )
        >>> table.padded(2), table.padded(3), table.padded(9)
        (2, 8, 9)
        """
        each = -(-sequences // self.groups)
        if not self.buckets or each > self.buckets[-1]:
            return sequences
        return self.buckets[bisect_left(self.buckets, each)] * self.groups

    def decoding(self, sequences: int, context: int) -> int:
        """Ticks of a step that only decodes; `context` is what its sequences have cached in all, grains."""
        _, intercept, slope = self.piece(sequences, context)
        return intercept + slope * context

    def piece(self, sequences: int, context: int) -> tuple[int, int, int]:
        """The piece of a row that holds at this context: its edge, intercept and slope."""
        row = self._rows.get(sequences) or self.row(sequences)
        for piece in row:
            if context < piece[0]:
                break
        return piece

    def mixed(self, sequences: int, context: int, prompt: int, pairs: float, fullest: float) -> int:
        """Ticks of a step that carries prompt tokens.

        Attention of decodes and of prompts grows with the tokens of each, and the rest with all of them; so a step
        lies between one of decodes and one of prompts with as many tokens.

        Parameters
        ----------
        sequences : decoding sequences
        context : their cached context in all, grains
        prompt : prompt tokens
        pairs : pairs of a prompt token and one it attends to
        fullest : prompt tokens of the dp group with most of them
        """
        decoded = sequences * self.width
        place, share = self._place(decoded + prompt)
        beyond, below, above = pairs / prompt - self.near, self.prompts[place - 1], self.prompts[place]
        if self.groups > 1:
            spread = (fullest * self.groups / prompt - 1) / (self.groups - 1)
            (near, far), (nearer, farther) = self._spread(below, spread), self._spread(above, spread)
        else:
            (near, far), (nearer, farther) = below[0], above[0]
        low, high = near + far * beyond, nearer + farther * beyond
        ticks = low + share * (high - low)
        if decoded:
            low, high = self._decodes(place, context / (sequences * GRAIN))
            ticks = ((low + share * (high - low)) * decoded + ticks * prompt) / (decoded + prompt)
        return round(ticks) or 1

    def _decodes(self, place: int, mean: float) -> tuple[float, float]:
        """Ticks of a step of decodes at the token knots below and above, on with the last slope on either side."""
        knots = self.contexts
        at = bisect_left(knots, mean, 1, len(knots) - 1)
        share = (mean - knots[at - 1]) / (knots[at] - knots[at - 1])
        below, above = self.decode[place - 1], self.decode[place]
        return (
            below[at - 1] + share * (below[at] - below[at - 1]),
            above[at - 1] + share * (above[at] - above[at - 1]),
        )

    def _spread(self, rows: Sequence[tuple[float, float]], spread: float) -> tuple[float, float]:
        """A step of prompts at a token knot, as unevenly dealt as this: near and far ticks."""
        spreads = self.spreads
        place = 1 if spread < spreads[1] else 2
        (near, far), (nearer, farther) = rows[place - 1 : place + 1]
        share = (spread - spreads[place - 1]) / (spreads[place] - spreads[place - 1])
        return near + share * (nearer - near), far + share * (farther - far)

    def _place(self, tokens: float) -> tuple[int, float]:
        """The token knot above, and how far it is there from the one below.

        Below the first knot, at the first; beyond the last, on with the last slope.
        """
        knots = self.tokens
        place = bisect_left(knots, tokens, 1, len(knots) - 1)
        low = knots[place - 1]
        share = (tokens - low) / (knots[place] - low)
        return place, share if share > 0.0 else 0.0
