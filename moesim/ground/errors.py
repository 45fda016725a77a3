"""Every exception moesim raises on purpose.

    MoesimError
    ├── UnitError        a number whose unit is missing, unknown or of another quantity
    ├── InputError       a file with faults; carries all of them, each with its dotted path
    │   ├── ProfileError     a hardware file
    │   ├── ModelError       a model configuration
    │   ├── WorkloadError    a workload, a routing or a trace
    │   └── PlanError        a plan or a search space
    └── PolicyError      a policy that does not exist, or was asked for what it cannot do

A plan that is valid but does not fit in memory, or misses a target, is no exception: it is a verdict in the result.
Only to launch what does not fit is a PlanError.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class MoesimError(Exception):
    """Base of all errors that are the input's fault; the command line prints them without a traceback."""


class UnitError(MoesimError, ValueError):
    """A quantity without a unit, with an unknown one, or with one of another dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with an input: where (dotted path), what, and what to do about it."""

    path: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        """Write the fault on one line."""
        where = f"{self.path}: " if self.path else ""
        return f"{where}{self.problem}" + (f"; {self.remedy}" if self.remedy else "")


class InputError(MoesimError):
    """An input file with one or more faults, all reported at once."""

    def __init__(self, file: str, faults: Sequence[Fault]) -> None:
        """Store the file's name and its faults."""
        self.file = file
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{file}: {fault}" for fault in self.faults))

    def within(self, file: str) -> InputError:
        """Return the same faults as those of a file of which this input is a section."""
        return type(self)(f"{file}: {self.file}", self.faults)


class ProfileError(InputError):
    """A hardware file with faults."""


class ModelError(InputError):
    """A model configuration with faults."""


class WorkloadError(InputError):
    """A workload, routing or trace with faults."""


class PlanError(InputError):
    """A plan or a search space with faults."""


class PolicyError(MoesimError):
    """A policy that was not found, or that refuses what it was asked to do and names what to use instead."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word closest to a misspelt one, or list what is known.

    Examples
    --------
    >>> nearest("dynamc", ["dynamic", "static"])
    'did you mean `dynamic`?'
    >>> nearest("zzz", ["dynamic", "static"])
    'known: dynamic, static'
    """
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(choices)}"
