"""All that a machine can tell at one go, with torch and NumPy alone: `python -m validate.run.bare`, or `make gpu`.

First its kernels are measured, then plans are run whose predictions were made elsewhere and lie in the checkout, a
folder for each machine. What comes out lies beside them. Stopped at any moment, it goes on where it was when run again.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.ground.errors import MoesimError
from moesim.ground.units import parse

from . import wing
from .bundle import BUNDLE, CHOICES, PREDICTIONS, RESULTS, read_bundle
from .execute import EXECUTE

CASES = Path(__file__).parents[1] / "cases" / "measured"
"""Where predictions are committed, in a folder for each machine."""
PARTS = ("calibrate", "execute")
SHARE = 0.5
"""Of the time, that calibrating gets where both parts are done."""
GRACE = 20.0
"""Seconds that a bundle which ran out of time is given to end its ranks."""
SAMPLES, TABLE, PROFILE = "raw.jsonl", "accuracy.md", "profile.yaml"
FAILED, BAD_INPUT, STOPPED = 1, 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be done.

    Attributes
    ----------
    device : cuda or cpu
    folder : of this machine, where everything is left
    cases : of this machine, where predictions are
    parts : of `PARTS`
    budget : s, for all of it
    measuring : further words for `calibrate.measure`
    """

    device: str
    folder: Path
    cases: Path
    parts: tuple[str, ...]
    budget: float
    measuring: tuple[str, ...] = ()


def main(words: Sequence[str] | None = None) -> int:
    """Do what is asked, and return the exit code: 0, 1 where something failed or is left, 2 for a wrong input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        asked = _asked(words)
        begun = time.monotonic()
        code = _calibrated(asked) if PARTS[0] in asked.parts else 0
        if code not in (0, FAILED):
            return code
        if PARTS[1] in asked.parts:
            code = max(code, _executed(asked, begun + asked.budget))
        _say(f"results are in {asked.folder}")
    except MoesimError as fault:
        _say(str(fault))
        return BAD_INPUT
    except KeyboardInterrupt:
        _say("stopped; what is finished is kept. Run the same command again: it goes on from there")
        return STOPPED
    return code


def _asked(words: Sequence[str] | None) -> Asked:
    """Read the command line, and find out which machine this is."""
    parser = argparse.ArgumentParser(prog="python -m validate.run.bare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("measured"), help="a folder for each machine is made in it")
    parser.add_argument("--cases", type=Path, default=CASES, help="predictions, in a folder for each machine")
    parser.add_argument("--part", choices=PARTS, help="do one part alone")
    parser.add_argument("--budget", default="8 min", help="time for everything (default: 8 min)")
    parser.add_argument("--only", default="", help="groups or operations to calibrate, with commas")
    parser.add_argument("--points", default="", help="points of an operation, about")
    parser.add_argument("--longest", default="", help="time of the largest point, about")
    given = parser.parse_args(words)
    name = wing.raw.slug(_device_name(given.device))
    further = [(option, getattr(given, option)) for option in ("only", "points", "longest")]
    return Asked(
        device=given.device,
        folder=given.out / name,
        cases=given.cases / name,
        parts=(given.part,) if given.part else PARTS,
        budget=parse(given.budget, "s"),
        measuring=tuple(word for option, value in further if value for word in (f"--{option}", value)),
    )


def _device_name(device: str) -> str:
    """Name the device, as its maker does.

    Raises
    ------
    MoesimError
        There is no torch, or no such device.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise MoesimError("this needs torch; name an interpreter that has it, as in GPU_PYTHON=python3.12") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise MoesimError("torch sees no gpu here; the CPU is measured with --device cpu")
    return str(wing.machine.device_name(torch.device(device)))


def _calibrated(asked: Asked) -> int:
    """Measure kernels in a process of its own, which may start anew when a gpu is lost to it; then fit."""
    samples = asked.folder / SAMPLES
    share = SHARE if len(asked.parts) > 1 else 1.0
    words = ["--device", asked.device, "--out", str(samples), "--budget", f"{share * asked.budget} s"]
    code = subprocess.run(
        [sys.executable, "-m", wing.settings.MODULE, *words, *asked.measuring], check=False
    ).returncode
    if code not in (0, FAILED) or not samples.exists():
        return code
    held = wing.raw.read(samples)
    some = _bench(asked.device)
    operations = wing.suite.everything(some, wing.machine.Speed(**held.header["speed"]))
    (asked.folder / TABLE).write_text(wing.plain.page(held, operations, SAMPLES), encoding="utf-8")
    _fitted(samples, asked.folder / PROFILE)
    return code


def _fitted(samples: Path, profile: Path) -> None:
    """Fit moesim's own cost forms, where everything is at hand that this takes; else say how it is done elsewhere."""
    try:
        fitting, nodes = wing.measured, wing.nodes
    except ModuleNotFoundError as missing:
        _say(f"no {missing.name} here; where moesim is installed, `moesim calibrate fit {samples}` writes the profile")
        return
    held = wing.raw.read(samples)
    try:
        nodes.write_node(profile, fitting.profile_of(held, title=samples.name), held.header, samples.name)
    except MoesimError as fault:  # too little was measured
        _say(f"no profile: {fault}")


def _bench(device: str) -> Any:
    import torch

    where = torch.device(device)
    return wing.bench.Bench(device=where, pool=wing.bench.Pool(device=where, size=1), scratch=Path())


def _executed(asked: Asked, until: float) -> int:
    """Run the bundles predicted for this machine, one after another, until the time is up.

    Raises
    ------
    MoesimError
        Nothing was predicted for it.
    """
    found = sorted((path.parent for path in asked.cases.glob(f"*/{PREDICTIONS}")), key=_last)
    if not found:
        raise MoesimError(
            f"nothing was predicted for this machine; where moesim is installed, `moesim validate run "
            f"validate/cases/measured/gpu.yaml --device cuda --profile NODE --predict-only --out {asked.cases}` does it"
        )
    code, left = 0, []
    for case in found:
        folder = asked.folder / case.name
        _copied(case, folder)
        if (folder / RESULTS).exists():
            _say(f"{folder}: measured already")
        elif (seconds := until - time.monotonic()) <= 0 or (ended := _run(folder, seconds)) is None:
            left.append(case.name)
        else:
            code = max(code, ended)
    if left:
        _say(f"time is up; left: {', '.join(left)}. Run the same command again: it goes on with these")
    return max(code, FAILED) if left else code


def _last(case: Path) -> tuple[bool, str]:
    """Order bundles: courses, whose layers are compiled many times, come after all that is quick."""
    return read_bundle(case).course, case.name


def _copied(case: Path, folder: Path) -> None:
    """Put a bundle where its results will be, unless it is there; its predictions last, which make it whole."""
    if (folder / PREDICTIONS).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in (BUNDLE, CHOICES, PREDICTIONS):
        shutil.copyfile(case / name, folder / name)


def _run(folder: Path, seconds: float) -> int | None:
    """Run one bundle in a process of its own, and return its exit code; None: it was ended when its time was up."""
    running = subprocess.Popen([sys.executable, "-m", EXECUTE, str(folder)])
    try:
        return running.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(running)


def _end(running: subprocess.Popen[bytes]) -> None:
    """Ask a run to end its ranks and itself, and see to it; ranks end when it is gone."""
    if running.poll() is not None:
        return
    running.terminate()
    try:
        running.wait(GRACE)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def _say(text: str) -> None:
    sys.stderr.write(f"moesim: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
