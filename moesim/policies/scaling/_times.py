"""When autoscalers look and act."""

from __future__ import annotations


def check(every: float, lag: float, hold: float, lowest: int) -> None:
    """Refuse settings out of range.

    Raises
    ------
    ValueError
        Times that are negative, no time between looks, or no replica left.
    """
    if every <= 0:
        raise ValueError(f"every = {every}; give a time, such as 15 s")
    if min(lag, hold) < 0:
        raise ValueError(f"lag = {lag} and hold = {hold}; give 0 s or more")
    if lowest < 1:
        raise ValueError(f"lowest = {lowest}; give at least 1")
