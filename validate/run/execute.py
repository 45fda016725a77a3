"""Run a bundle: `python -m validate.run.execute FOLDER`. What fails is told, and keeps no other trial from its turn.

torch, NumPy and the standard library are all it needs.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

from moesim.ground.errors import Fault, InputError, MoesimError

from .bundle import PARTIAL, RESULTS, Bundle, digest, read_bundle, read_predictions
from .group import GroupFailed, run_group
from .links import Place, places

FORMAT = "moesim results 1"
KEPT = "moesim-experts-"
"""How folders of experts on the disk begin."""
EXECUTE, MODULE = f"{__package__}.execute", f"{__package__}.turns"
"""This program, and that of a rank."""
SILENCE = 120.0
"""Seconds without a word after which ranks are taken to hang: the longest compile, and more."""
FAILED, BAD_INPUT, STOPPED = 1, 2, 130

Tell = Callable[[str], None]


def execute(
    folder: Path, *, silence: float = SILENCE, tell: Tell = lambda said: None, module: str = MODULE
) -> dict[str, str]:
    """Run every trial of a bundle and write what is measured to its results, which appear when all had their turn.

    What a run that was stopped had measured lies in `PARTIAL` until the bundle is run again, from its start.

    Parameters
    ----------
    silence : s without a word after which ranks are taken to hang
    tell : called with what fails
    module : the program of a rank

    Returns
    -------
    why each failed trial did, by name

    Raises
    ------
    InputError
        There is no bundle, nothing was predicted, or it was measured already.
    MoesimError
        The link that it asks for cannot be made here.
    """
    bundle = read_bundle(folder)
    read_predictions(folder)
    results = folder / RESULTS
    if results.exists():
        raise InputError(
            str(results), [Fault(path="", problem="was measured already", remedy="make a new bundle, or remove it")]
        )
    partial = folder / PARTIAL
    real = bundle.setting.link == "kernel"
    with places(bundle.setting.nodes if real else 1, bundle.setting.rate) as found:
        partial.unlink(missing_ok=True)
        _keep(partial, _header(folder, bundle))
        failed = _finished(folder, bundle, found, silence, tell, module)
    partial.replace(results)
    return failed


def _finished(
    folder: Path, bundle: Bundle, found: Sequence[Place], silence: float, tell: Tell, module: str
) -> dict[str, str]:
    """Run all trials; where the ranks die, tell the one under way off and go on with the others."""
    results, underway = folder / PARTIAL, folder / ".underway"
    left = [trial.name for trial in bundle.trials]
    words = [str(folder), str(results), str(underway)]
    while left:
        underway.unlink(missing_ok=True)
        try:
            run_group(
                module, [*words, *left], found, bundle.setting.ranks, lambda: _touched(results, underway), silence
            )
        except GroupFailed as fault:
            at_fault = underway.read_text() if underway.exists() else ""
            for name in [at_fault] if at_fault in left else left:
                _keep(results, {"trial": name, "failed": str(fault)})
                tell(f"{name}: {fault}")
            left = [name for name in left if at_fault in left and name not in _failed(results)]
        else:
            left = []
        finally:
            underway.unlink(missing_ok=True)
            for experts in folder.glob(f"{KEPT}*"):  # of ranks that were ended before they could
                rmtree(experts, ignore_errors=True)
    return _failed(results)


def _failed(results: Path) -> dict[str, str]:
    """Return why trials failed so far, by name."""
    lines = map(json.loads, results.read_text().splitlines())
    return {line["trial"]: line["failed"] for line in lines if "failed" in line}


def _touched(results: Path, underway: Path) -> float | None:
    """When either file last changed, by the monotonic clock; None before anything is under way."""
    if not underway.exists():
        return None
    last = max(path.stat().st_mtime for path in (results, underway))
    return time.monotonic() - (time.time() - last)


def _header(folder: Path, bundle: Bundle) -> dict[str, Any]:
    """Return the first line of the results: what ran where, and which predictions it is held against."""
    import torch

    from .wing import machine

    device = torch.device(bundle.setting.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MoesimError("torch sees no gpu; make a bundle for the CPU with --device cpu")
    return {
        "format": FORMAT,
        "predictions": digest(folder),
        "device": machine.device_name(device),
        "machine": machine.describe(device),
        "load": machine.load(),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _keep(results: Path, line: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run bundles, and return the exit code: 0, 1 where a trial failed, 2 for a wrong input, 130 when stopped."""
    asked = argparse.ArgumentParser(prog="python -m validate.run.execute", description=__doc__)
    asked.add_argument("bundles", nargs="+", type=Path, metavar="FOLDER")
    asked.add_argument("--silence", type=float, default=SILENCE, help="seconds until silent ranks are ended")
    given = asked.parse_args(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failures = 0
    try:
        for folder in given.bundles:
            failed = execute(folder, silence=given.silence, tell=_say)
            failures += len(failed)
            _say(f"{folder}: {len(read_bundle(folder).trials) - len(failed)} trials measured, {len(failed)} failed")
    except MoesimError as fault:
        _say(str(fault))
        return BAD_INPUT
    except KeyboardInterrupt:
        _say(f"stopped, and all ranks are ended; run again what has no {RESULTS}, from its start")
        return STOPPED
    return FAILED if failures else 0


def _say(text: str) -> None:
    sys.stderr.write(f"moesim: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
