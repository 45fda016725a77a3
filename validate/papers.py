"""Published results beside moesim's predictions: cases found by walking, each a file of set-up and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moesim.files.checked import check
from moesim.files.trees import Tree, read
from moesim.ground.errors import Fault, InputError, nearest

from .expressions import evaluate
from .passes import run_passes
from .rules import RULES

CASES = Path(__file__).parent / "cases" / "papers"

Grade = Literal["strong", "medium", "weak", "open"]
"""How much a check proves: strong ones must pass; open ones are predictions for numbers nobody has given us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of a paper.

    Attributes
    ----------
    predict : expression over the case's numbers, passes and moesim's rules
    expect : the paper's value: a number, true or false, or a list; left out, the row is a prediction alone
    tolerance : relative error up to which it passes; of the case where left out
    grade : of the case where left out
    """

    name: str
    predict: str
    expect: Any = None
    tolerance: float | None = None
    grade: Grade | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One check: what the paper did, what it reports, and how to predict it.

    Attributes
    ----------
    passes : passes to time, by name; see `passes.run_passes`
    fitted : constants that were fitted, and to how many rows; empty where there are none
    note : what a reader should know, such as why a miss is expected
    """

    title: str
    grade: Grade
    source: str
    rows: tuple[Row, ...]
    tolerance: float = 0.0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    passes: Mapping[str, Any] = field(default_factory=dict)
    fitted: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row with its prediction; `error` is relative, None where there is nothing to compare."""

    paper: str
    check: str
    row: str
    grade: str
    expected: Any
    predicted: Any
    error: float | None
    passed: bool | None
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A case and what came of it."""

    paper: str
    check: str
    case: Case
    outcomes: tuple[Outcome, ...]


def case_files(folder: Path = CASES) -> Iterator[tuple[str, str, Path]]:
    """List (paper, check, file) of every case below a folder, in order."""
    for file in sorted(folder.glob("*/*/case.yaml"), key=_order):
        yield file.parent.parent.name, file.parent.name, file


def _order(file: Path) -> tuple[str, str, int]:
    """Sort checks by letter and number: H2 before H10."""
    name = file.parent.name
    letters = name.rstrip("0123456789")
    return file.parent.parent.name, letters, int(name[len(letters) :] or 0)


Run = Callable[[Tree, str, Path], Any]
"""Works out one of a case's passes: its tree, the label of its file, the folder that paths are relative to."""


def validate_papers(chosen: Sequence[str] = (), folder: Path = CASES, run: Run = run_passes) -> tuple[Checked, ...]:
    """Run the checks of all papers, or of some papers or checks by name.

    Raises
    ------
    InputError
        A case file has faults, or nothing has a name that was given.
    """
    files = list(case_files(folder))
    known = {name for paper, check_name, _ in files for name in (paper, check_name)}
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise InputError(
            "validate papers",
            [Fault(path="", problem=f"no paper or check is called `{unknown[0]}`", remedy=nearest(unknown[0], known))],
        )
    return tuple(
        run_case(paper, name, file, run) for paper, name, file in files if not chosen or {paper, name} & set(chosen)
    )


def run_case(paper: str, name: str, file: Path, run: Run = run_passes) -> Checked:
    """Run one check."""
    label = f"{paper}/{name}/case.yaml"
    tree: Tree = read(file, label)
    case = check(Case, tree, label, readers={(Row, "expect"): _kept, (Case, "numbers"): _kept, (Case, "passes"): _kept})
    timed = {key: run(setup, label, file.parent) for key, setup in case.passes.items()}
    names = {**RULES, **case.numbers, **timed}
    return Checked(
        paper=paper, check=name, case=case, outcomes=tuple(_outcome(paper, name, case, row, names) for row in case.rows)
    )


def _kept(value: Tree) -> Any:
    return value


def _outcome(paper: str, name: str, case: Case, row: Row, names: Mapping[str, Any]) -> Outcome:
    predicted = _plain(evaluate(row.predict, names))
    tolerance = case.tolerance if row.tolerance is None else row.tolerance
    error = _error(row.expect, predicted)
    return Outcome(
        paper=paper,
        check=name,
        row=row.name,
        grade="open" if row.expect is None else row.grade or case.grade,
        expected=row.expect,
        predicted=predicted,
        error=error,
        passed=_passed(row.expect, predicted, error, tolerance),
        tolerance=tolerance,
    )


def _plain(value: Any) -> Any:
    """Turn what NumPy returns into Python's own numbers and lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _error(expected: Any, predicted: Any) -> float | None:
    if isinstance(expected, bool) or not isinstance(expected, int | float):
        return None
    apart = abs(float(predicted) - expected)
    return apart / abs(expected) if expected else apart


def _passed(expected: Any, predicted: Any, error: float | None, tolerance: float) -> bool | None:
    if expected is None:
        return None
    return bool(predicted == expected) if error is None else error <= tolerance + 1e-12


def failures(checked: Sequence[Checked]) -> tuple[Outcome, ...]:
    """List the strong rows that do not pass."""
    return tuple(
        outcome
        for each in checked
        for outcome in each.outcomes
        if outcome.grade == "strong" and outcome.passed is False
    )
