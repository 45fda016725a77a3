"""Searches that go on where they were stopped: what was timed is kept outside, and read instead of timed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from jaxtyping import Int

from moesim.deployments.pools import Estimates, Estimator
from moesim.ground.units import SOURCE_KINDS

Arrays = Mapping[str, np.ndarray]


class Journal(Protocol):
    """Chunks of named arrays that outlive the process, as `files.journal` keeps them."""

    def append(self, arrays: Arrays, /) -> None:
        """Keep one more chunk."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Journaled(Estimator):
    """An estimator that keeps every turn in a journal, and reads the turns that are there already.

    A search asks for the same turns in the same order every time, so a stopped one is followed to the bit. A turn is
    kept whole, because plans that are estimated together share their rounding.

    Attributes
    ----------
    journal : where turns are kept
    kept : turns of an earlier search that are still to be read, the next one last
    """

    journal: Journal
    kept: list[Arrays]

    def estimate(
        self, rows: Int[np.ndarray, "row"], progress: Callable[[float], None] = lambda share: None
    ) -> Estimates:
        """Read or time some pools."""
        if self.kept and np.array_equal(self.kept[-1]["rows"], rows):
            _restore(self.estimates, self.kept.pop())
            progress(1.0)
            return self.estimates
        self.kept.clear()
        found = Estimator.estimate(self, rows, progress)
        self.journal.append(_turn(found, rows))
        return found


def journaled(estimator: Estimator, journal: Journal, kept: Sequence[Arrays]) -> Journaled:
    """Make an estimator keep what it times, and follow what an earlier search has kept."""
    parts = {field.name: getattr(estimator, field.name) for field in fields(estimator)}
    return Journaled(**parts, journal=journal, kept=list(reversed(kept)))


def _turn(found: Estimates, rows: Int[np.ndarray, "row"]) -> Arrays:
    """Write down all that timing some pools has told."""
    refused = [row for row in rows.tolist() if row in found.refused]
    return {
        "rows": rows,
        "step": found.step[rows],
        "carrying": found.carrying[rows],
        "source": np.array([SOURCE_KINDS.index(found.source[row]) for row in rows.tolist()], np.int8),
        "refused": np.array(refused, np.int64),
        "why": np.array([found.refused[row] for row in refused], str),
        "outside": np.array(sorted(found.outside), str),
    }


def _restore(found: Estimates, turn: Arrays) -> None:
    """Take what a turn has told as if it had just been timed."""
    rows = turn["rows"]
    found.step[rows], found.carrying[rows] = turn["step"], turn["carrying"]
    for row, kind in zip(rows.tolist(), turn["source"].tolist(), strict=True):
        found.source[row] = SOURCE_KINDS[kind]
    found.refused.update(zip(turn["refused"].tolist(), turn["why"].tolist(), strict=True))
    found.outside.update(turn["outside"].tolist())
