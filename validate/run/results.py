"""What a run of a bundle measured, read back. Standard library only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.ground.errors import Fault, InputError

from .bundle import RESULTS, digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One trial as it was run.

    Attributes
    ----------
    rounds : mean seconds of a step over the draws, by number of the round
    steps : seconds of the step of each draw, by number of the round
    parts : seconds of each part of a step, of the busiest rank
    memory : bytes at the highest, of the largest rank
    compiled : seconds that its first step was held up by compiling
    failed : why it was not run to its end; "" where it was
    """

    rounds: Mapping[int, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    memory: float = 0.0
    compiled: float = 0.0
    steps: Mapping[int, Sequence[float]] = field(default_factory=dict)
    failed: str = ""

    @property
    def seconds(self) -> float:
        """Median over the rounds, s."""
        return statistics.median(self.rounds.values())

    @property
    def typical(self) -> float:
        """Median over the rounds draw by draw, mean over draws, s: one slow step of a few rounds does not tell."""
        return statistics.fmean(map(statistics.median, zip(*self.steps.values(), strict=True)))

    @property
    def spread(self) -> float:
        """Median distance of the rounds from their median, relative: half of all rounds lie nearer."""
        return statistics.median(abs(each / self.seconds - 1) for each in self.rounds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A run: where and when, and every trial by name."""

    header: Mapping[str, Any]
    trials: Mapping[str, Measured]


def read_results(folder: Path) -> Results:
    """Read what was measured of a bundle.

    Raises
    ------
    InputError
        Nothing was; the file is damaged; or the predictions are not those that were there when it was measured.
    """
    path = folder / RESULTS
    try:
        found = [json.loads(line) for line in _whole_lines(path)]
    except OSError:
        raise _refusal(path, "is missing", f"run it with `python -m validate.run.execute {folder}`") from None
    except ValueError as fault:
        raise _refusal(path, f"is damaged ({fault})", "remove it and run the bundle again") from None
    if not found:
        raise _refusal(path, "holds no whole line: it was cut off", "remove it and run the bundle again")
    header, *lines = found
    if header.get("predictions") != digest(folder):
        raise _refusal(
            path, "was measured against other predictions", "they may not be changed afterwards; make a new bundle"
        )
    return Results(header=header, trials=_by_trial(lines))


def _whole_lines(path: Path) -> Sequence[str]:
    """Return the lines of a file; a torn last one, of a run that was killed, is left out."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _by_trial(lines: Iterable[Mapping[str, Any]]) -> Mapping[str, Measured]:
    """Gather lines by trial. A round that was run again, because another trial failed in it, counts as run last."""
    held: dict[str, dict[str, Any]] = {}
    for line in lines:
        trial = held.setdefault(line["trial"], {"rounds": {}, "steps": {}})
        if "seconds" in line:
            trial["rounds"][line["round"]] = statistics.fmean(line["seconds"])
            trial["steps"][line["round"]] = line["seconds"]
            trial["memory"] = max(trial.get("memory", 0), line["memory"])
        trial.update({name: line[name] for name in ("parts", "failed") if name in line})
        trial.update({"compiled": line["compile"]} if "compile" in line else {})
    return {name: Measured(**each) for name, each in held.items()}


def _refusal(path: Path, problem: str, remedy: str) -> InputError:
    return InputError(str(path), [Fault(path="", problem=problem, remedy=remedy)])
