"""The commands of the wing: measure a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from .settings import MODULE

app = App(name="calibrate", help="Measure a machine.")
app.command(
    "moesim.validate.serving.commands:frameworks",
    name="frameworks",
    help="Fit what frameworks add beyond kernels to serving measurements.",
)
app.command(
    "moesim.validate.serving.commands:anchor",
    name="anchor",
    help="Shift a framework's numbers by a few measurements of your own.",
)


@app.default
def measure(
    *,
    device: Literal["cpu", "cuda"] | None = None,
    out: Path | None = None,
    budget: str = "5 min",
    only: str = "",
    ranks: str = "",
    points: int = 64,
    longest: str = "",
) -> int:
    """Measure this machine with torch and keep the raw samples; stopped or killed, it goes on when run again.

    Parameters
    ----------
    device
        What to measure; a gpu where torch sees one, else the CPU.
    out
        The file of raw samples, JSON lines; DEVICE.jsonl here if not given.
    budget
        Time for everything, shared by the groups: 5 min, 90 s.
    only
        Groups or operations, with commas: gemm,attention_decode or kernels,collectives.
    ranks
        Numbers of processes between which collectives are measured, with commas; 2,4 on a CPU.
    points
        Points per operation, about.
    longest
        Time of the largest point, about: 50 ms on a CPU, 10 ms on a gpu if not given.
    """
    words = ["--budget", budget, "--points", str(points)]
    given = {"--device": device, "--out": out, "--only": only, "--ranks": ranks, "--longest": longest}
    words += [word for name, value in given.items() if value for word in (name, str(value))]
    # In a process of its own, which may start itself anew when a gpu is lost to it.
    return subprocess.run([sys.executable, "-m", MODULE, *words], check=False).returncode
