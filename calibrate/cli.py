"""The commands of the wing: measure a machine, fit what was measured here or published, tell how wrong it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from moesim.ground.errors import MoesimError

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
    """Measure this machine with torch: a profile that scenarios name, and raw samples beside it.

    Stopped or killed, it goes on when run again.

    Parameters
    ----------
    device
        What to measure; a gpu where torch sees one, else the CPU.
    out
        The profile; raw samples, JSON lines, lie beside it with the ending .jsonl. machine.yaml here if not given.
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
    profile = out if out is not None else Path("machine.yaml")
    if profile.is_dir():
        raise MoesimError(f"--out: {profile} is a folder; name a file in it, as in --out {profile / 'machine.yaml'}")
    raw = profile.with_suffix(".jsonl")
    given = {"--device": device, "--only": only, "--ranks": ranks, "--longest": longest}
    words = [f"--out={raw}", f"--budget={budget}", f"--points={points}"]  # with =, so that -5s is no option
    words += [f"{name}={value}" for name, value in given.items() if value]
    # In a process of its own, which may start itself anew when a gpu is lost to it.
    code = _waited([sys.executable, "-m", MODULE, *words])
    if code == 0 and not only and profile != raw:
        _write(raw, profile, None)
    elif code == 1:
        print(f"no profile is written; of what there is, `moesim calibrate fit {raw}` makes one", file=sys.stderr)
    return code


GRACE = 10.0
"""Seconds that a measuring run which is stopped has to end its ranks, say so and clean up."""


def _waited(words: list[str]) -> int:
    """Run a program and return its exit code; stopped by the keyboard, it was told as well and ends by itself."""
    with subprocess.Popen(words) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:
            try:
                return running.wait(GRACE)
            except subprocess.TimeoutExpired:  # only this process was told
                running.terminate()
                raise KeyboardInterrupt from None


@app.command
def fit(raw: Path, *, out: Path | None = None, ranks: int | None = None) -> None:
    """Fit a profile to raw samples of a machine, this one or another.

    Parameters
    ----------
    raw
        The file of raw samples, which may be compressed (.gz).
    out
        Where to write the profile; RAW with the ending .yaml if not given.
    ranks
        How many ranks share the machine; as many as were measured side by side if not given.
    """
    if ranks is not None and ranks < 1:
        raise MoesimError(f"--ranks: {ranks} is no number of ranks; name one or more")
    _write(raw, out if out is not None else raw.parent / f"{raw.name.partition('.')[0]}.yaml", ranks)


def _write(raw: Path, profile: Path, ranks: int | None) -> None:
    """Fit raw samples and write the profile."""
    from .measured import profile_of
    from .nodes import write_node
    from .profile import shown
    from .raw import read

    samples = read(raw)
    found = profile_of(samples, ranks=ranks, title=raw.name)
    write_node(profile, found, samples.header, raw.name)
    said = [*shown(found.node.device.fits), *(f"left out: {why}" for why in found.left_out)]
    print("\n".join([*said, f"written to {profile}; a scenario names it as `node: {profile}`"]))


@app.command
def from_tables(*, system: str, data: Path | None = None, out: Path | None = None) -> None:
    """Fit a profile to the published tables of a system.

    Parameters
    ----------
    system
        a100_sxm, h100_sxm, h200_sxm, b200_sxm, b300_sxm, gb200, gb300, l40s or rtx_pro_6000_server; or `all`.
    data
        Folder with one folder of tables per system; those of the package aiconfigurator-core if not given.
    out
        Where to write the fits; SYSTEM.yaml if not given. With `all` the folder of files by device, fits if not given.
    """
    from .tables import DEVICES

    if system != "all":
        _from_tables(system, data, out if out is not None else Path(f"{system}.yaml"))
        return
    for name, device in DEVICES.items():
        _from_tables(name, data, (out if out is not None else Path("fits")) / f"{device}.yaml")


def _from_tables(system: str, data: Path | None, target: Path) -> None:
    """Fit what is published of one system and write it."""
    from .from_tables import profile_of
    from .profile import shown, write_profile
    from .tables import NOTICE

    fits = profile_of(system, data, told=lambda one: print(f"{one.cases.key}: {one.cases.kernel}", file=sys.stderr))
    write_profile(target, fits, head=NOTICE)
    print("\n".join([*shown(fits), f"written to {target}"]))


@app.command
def accuracy(*, data: Path | None = None, page: Path = Path("docs/accuracy/operations.md"), json: bool = False) -> None:
    """Fit published tables from few points and score the rest: how wrong a prediction of a shape never measured is.

    Parameters
    ----------
    data
        Folder with one folder of tables per system; those of the package aiconfigurator-core if not given.
    page
        Where to write the page; its section on the CPU is kept.
    json
        Print JSON and write no page.
    """
    from json import dumps

    from . import accuracy as scoring
    from .accuracy_page import as_json, written

    lines = []
    for line in scoring.lines(data):
        print(f"{line.name}, {line.system}: {100 * line.score.mean:.1f} %, {line.verdict}", file=sys.stderr)
        lines.append(line)
    if json:
        print(dumps(as_json(lines), indent=1))
        return
    written(page, lines)
    print(f"wrote {page}")


@app.command
def check(raw: Path, again: Path) -> None:
    """Tell how wrong fits to a machine's samples are on points they have not seen: a table, in Markdown.

    Parameters
    ----------
    raw
        The file of raw samples; two thirds of each operation's points are fitted, the others scored.
    again
        Another run of the same points at another time: how well the machine repeats itself.
    """
    from .own_accuracy import page, rows
    from .raw import read

    print(page(rows(read(raw), read(again))), end="")
