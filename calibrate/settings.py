"""What `measure` was asked for, read from its command line."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from moesim.ground.errors import MoesimError
from moesim.ground.units import parse

GROUPS = {"kernels": 0.62, "collectives": 0.20, "memory": 0.05, "interference": 0.03, "compilation": 0.10}
"""What is measured, in this order, and the share of the budget that each gets when all are."""
MODULE = f"{__package__}.measure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for.

    Attributes
    ----------
    device : cpu or cuda
    out : the raw file
    budget : s, shared by the groups
    only : groups or operations; empty for all
    ranks : numbers of processes for collectives; empty for as many as the machine suggests
    points : per operation that asks for 64
    longest : s, of the largest point; None for what suits the device
    """

    device: str
    out: Path
    budget: float
    only: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    points: int = 64
    longest: float | None = None

    @property
    def sharers(self) -> int:
        """How many ranks share a CPU's cores and run their kernels side by side; a gpu is not shared."""
        return min(self.ranks, default=min(2, cores())) if self.device == "cpu" else 1

    def arguments(self) -> list[str]:
        """Return them as words of a command line."""
        words = ["--device", self.device, "--out", str(self.out), "--budget", f"{self.budget} s"]
        words += ["--points", str(self.points)] + (["--longest", f"{self.longest} s"] if self.longest else [])
        words += ["--ranks", ",".join(map(str, self.ranks))] if self.ranks else []
        return words + (["--only", ",".join(self.only)] if self.only else [])


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(ranks: int) -> int:
    """Return the threads of each of so many ranks that share the cores."""
    return max(cores() // ranks, 1)


def settings_of(words: Sequence[str] | None) -> Settings:
    """Read the command line.

    Raises
    ------
    MoesimError
        torch is missing, there is no such device, or a value is none.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="Measure this machine; write raw samples.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, help="raw samples, JSON lines; default: DEVICE.jsonl")
    parser.add_argument("--budget", default="5 min", help="time for everything (default: 5 min)")
    parser.add_argument("--only", default="", help=f"groups ({', '.join(GROUPS)}) or operations, with commas")
    parser.add_argument("--ranks", default="", help="numbers of processes for collectives, with commas")
    parser.add_argument("--points", type=int, default=64, help="points per operation, about (default: 64)")
    parser.add_argument("--longest", help="time of the largest point, about (default: 50 ms on a CPU, 10 ms on a gpu)")
    given = parser.parse_args(words)
    budget = _seconds("--budget", given.budget)
    longest = _seconds("--longest", given.longest) if given.longest else None
    ranks = tuple(_whole(number) for number in given.ranks.split(",") if number)
    points = _points(given.points)
    if find_spec("torch") is None:
        raise MoesimError("measuring needs torch; install it with `pip install 'moesim[torch]'`")
    device = given.device or _default_device()
    return Settings(
        device=device,
        out=given.out or Path(f"{device}.jsonl"),
        budget=budget,
        only=tuple(name for name in given.only.split(",") if name),
        ranks=ranks,
        points=points,
        longest=longest,
    )


def _seconds(option: str, text: str) -> float:
    try:
        seconds = parse(text, "s")
    except MoesimError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise MoesimError(f"{option}: `{text}` is no time; write a positive number with a unit, as in {option} 90s")
    return seconds


def _points(number: int) -> int:
    if number < 1:
        raise MoesimError(f"--points: {number} is no number of points; name one or more, as in --points 64")
    return number


def _whole(number: str) -> int:
    if not number.isdigit() or int(number) < 2:
        raise MoesimError(f"--ranks: `{number}` is not a number of processes; name two or more, as in --ranks 2,4")
    return int(number)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
