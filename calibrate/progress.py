"""How far a measurement is, on the error stream: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .operation import Operation
from .settings import GROUPS

SAID_EVERY = 20.0
"""Seconds between lines of progress where there is no terminal."""
RELAYED_EVERY = 1.0
"""Seconds between lines that a rank says to the process that started it."""
SHOWN_EVERY = 0.2
"""Seconds between changes of the line on a terminal."""
WIPED = "\r\x1b[K"
"""What clears a terminal's line."""

Write = Callable[[str], object]


def _to_errors(text: str) -> object:
    return sys.stderr.write(text) and sys.stderr.flush()


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a group is.

    Attributes
    ----------
    total : steps
    budget : s
    before : s, spent by earlier runs on this file
    shown : whether to say anything
    relayed : whether a process that started this one passes it on
    """

    total: int
    budget: float
    before: float
    shown: bool
    relayed: bool = False
    write: Write = _to_errors
    _begun: float = field(default_factory=time.monotonic)
    _said: float = float("-inf")

    @property
    def spent(self) -> float:
        """Seconds spent so far."""
        return self.before + time.monotonic() - self._begun

    def show(self, operation: Operation, number: int) -> None:
        """Say which operation is being measured, and how far the group is."""
        terminal = sys.stderr.isatty()
        every = SHOWN_EVERY if terminal else RELAYED_EVERY if self.relayed else SAID_EVERY
        if not self.shown or time.monotonic() - self._said < every:
            return
        self._said = time.monotonic()
        what = " ".join(part for part in (operation.name, operation.dtype, operation.kernel) if part)
        text = f"{operation.group:<13}{number:>5}/{self.total}  {self.spent:4.0f} s of {self.budget:.0f} s  {what}"
        self.write(f"{WIPED}{text}" if terminal else f"{text}\n")

    def end(self) -> None:
        """Clear the line."""
        if self.shown and sys.stderr.isatty():
            self.write(WIPED)


@dataclass(slots=True, kw_only=True)
class Relay:
    """Shows the progress of ranks that this process started."""

    write: Write = _to_errors
    _said: float = float("-inf")

    def __call__(self, line: str) -> bool:
        """Tell whether a line was progress; then it has been shown, or left out for being too soon after another."""
        if not line.startswith(tuple(f"{group} " for group in GROUPS)):
            return False
        if sys.stderr.isatty():
            self.write(f"{WIPED}{line.rstrip()}")
        elif time.monotonic() - self._said >= SAID_EVERY:
            self._said = time.monotonic()
            self.write(line)
        return True

    def end(self) -> None:
        """Clear the line."""
        if sys.stderr.isatty():
            self.write(WIPED)
