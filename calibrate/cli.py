"""The commands of the wing: measure a machine, fit what was measured here or published, tell how wrong it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from .settings import MODULE

app = App(name="calibrate", help="Measure a machine, or read published measurements, and fit profiles to them.")
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


@app.command
def fit(raw: Path, *, node: str = "generic/cpu", out: Path | None = None) -> None:
    """Fit a profile to raw samples of one machine.

    Parameters
    ----------
    raw
        The file of raw samples.
    node
        The machine as its datasheet says, a name or a file: generic/cpu, nvidia/hgx-h100.
    out
        Where to write the fits; RAW with the ending .yaml if not given.
    """
    from moesim.files.profiles import load_profile

    from .fitting import fit_samples
    from .profile import shown, write_profile
    from .raw import read

    found = read(raw)
    outcome = fit_samples(found.samples, load_profile("node", node).profile, title=str(raw))
    target = out if out is not None else raw.with_suffix(".yaml")
    write_profile(target, outcome.fits, head=f"Fitted by `moesim calibrate fit {raw}` as a {node}.")
    print("\n".join([*shown(outcome.fits), *(f"left out: {why}" for why in outcome.left_out), f"written to {target}"]))


@app.command
def from_tables(*, system: str, data: Path | None = None, out: Path | None = None) -> None:
    """Fit a profile to the published tables of a system.

    Parameters
    ----------
    system
        a100_sxm, h100_sxm, h200_sxm, b200_sxm, b300_sxm, gb200, gb300, l40s or rtx_pro_6000_server.
    data
        Folder with one folder of tables per system; those of the package aiconfigurator-core if not given.
    out
        Where to write the fits; SYSTEM.yaml if not given.
    """
    from .from_tables import profile_of
    from .profile import shown, write_profile
    from .tables import NOTICE

    fits = profile_of(system, data, told=lambda one: print(f"{one.cases.key}: {one.cases.kernel}", file=sys.stderr))
    target = out if out is not None else Path(f"{system}.yaml")
    write_profile(target, fits, head=NOTICE)
    print("\n".join([*shown(fits), f"written to {target}"]))
