"""What `moesim validate run` and `moesim validate report` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree

from moesim import load_plan, load_study
from moesim.cli.codes import BAD_INPUT, MET
from moesim.ground.errors import Fault, InputError, MoesimError
from moesim.plans.plan import Pool

from . import links
from .bundle import PREDICTIONS, RESULTS, digest
from .choosing import MOST
from .execute import EXECUTE, Tell
from .figure import figure
from .machines import AS_PROFILED, run_bundles
from .page import page
from .planning import Asked, measure, plan, write
from .scores import Compared, compare, real, scored
from .suite import Run, emulated, runs_of
from .waiting import waiting_in

HERE = Path(__file__).parents[1] / "cases" / "measured"
"""Where results are committed: a folder for each machine, in it a folder for each bundle."""
MACHINE = "machine"
"""Folder of the layers that the machine was measured with, inside that of a bundle."""


def planned(scenario: Path, asked: Asked, folder: Path, *, measured: bool) -> str:
    """Choose and predict what a scenario's bundle holds, write it, and return the hash of its predictions.

    What an earlier run had predicted stands; a machine that it had not measured to the end is measured anew.

    Parameters
    ----------
    measured : whether the machine is first measured, with layers of the scenario's shape; else it is as profiled

    Raises
    ------
    InputError
        A file has faults.
    """
    if (folder / PREDICTIONS).exists():
        return digest(folder)
    rmtree(folder / MACHINE, ignore_errors=True)
    study = load_study(scenario)
    machines = measure(study, asked, folder / MACHINE) if measured else AS_PROFILED
    return write(folder, plan(study, asked, machines), asked.profile, machines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `moesim validate run` was asked for besides a scenario.

    Attributes
    ----------
    like : how a scenario that is no part of a suite is run
    device : cpu or cuda
    plans : files of plans to run in place of the search's
    profile : the machine as calibrated; "": it is measured first, with layers of each scenario's shape
    most, seed : plans of a scenario at most, and the seed of everything drawn
    predict_only : whether nothing is run
    """

    like: Run
    device: str
    plans: Sequence[Path] = ()
    profile: str = ""
    most: int = MOST
    seed: int = 0
    predict_only: bool = False

    def asked(self, file: Path, one: Run) -> Asked:
        """Say what is asked of one run of a suite."""
        setting = one.setting(self.device)
        if setting.link == "kernel" and not self.predict_only and links.available():
            setting = emulated(setting)
        return Asked(
            setting=setting,
            profile=self.profile or "generic/cpu",
            pools=pools_in(self.plans, file),
            most=self.most,
            rounds=one.rounds,
            changes=one.changes,
            batch=one.batch,
            course=one.course,
            seed=self.seed,
        )


def executed(scenario: Path, wanted: Wanted, out: Path, *, tell: Tell, warn: Tell) -> int:
    """Predict and run a scenario, or all of a suite, and return the exit code; what fails keeps no other from its turn.

    Parameters
    ----------
    out : a folder, in which each bundle gets one
    tell, warn : called with what was done, and with what could not be

    Raises
    ------
    MoesimError
        torch is missing, and there is something to measure.
    """
    if find_spec("torch") is None and not (wanted.predict_only and wanted.profile):
        raise MoesimError(
            "running layers needs torch: `pip install 'moesim[torch]'`; or predict only: --profile NODE --predict-only"
        )
    code = MET
    for file, name, one in runs_of(scenario, wanted.like):
        folder = out / name
        if (folder / RESULTS).exists():
            tell(f"{folder}: measured already")
            continue
        try:
            told = planned(file, wanted.asked(file, one), folder, measured=not wanted.profile)
        except MoesimError as fault:
            warn(f"moesim: {name}: {fault}")
            code = BAD_INPUT
            continue
        tell(f"{folder}: predicted, {told[:12]}")
        if not wanted.predict_only:
            code = max(code, run_bundles(folder))
    return code


def pools_in(files: Sequence[Path], scenario: Path) -> tuple[Pool, ...]:
    """Read the pools of plan files: each is run by itself, as one replica over all ranks."""
    world = load_study(scenario).scenario if files else None
    return tuple(pool for file in files if world is not None for pool in load_plan(file, world).pools)


def _refusal(where: str, problem: str, remedy: str) -> InputError:
    return InputError(where, [Fault(path="", problem=problem, remedy=remedy)])


def bundles_in(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """List the folders of bundles that were run, by machine; those committed where none is given.

    Raises
    ------
    InputError
        A folder holds none.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders or ([HERE] if HERE.is_dir() else []):
        results = sorted(path for path in folder.rglob(RESULTS) if MACHINE not in path.relative_to(folder).parts)
        if not results and folders:
            raise _refusal(str(folder), "holds no results", f"run it with `python -m {EXECUTE} {folder}`")
        for path in results:
            found.setdefault(path.parent.parent.name, []).append(path.parent)
    return found


def compared_in(folders: Sequence[Path]) -> list[tuple[str, list[Compared]]]:
    """Compare the bundles of some folders, by machine."""
    return [(machine, [compare(each) for each in some]) for machine, some in bundles_in(folders).items()]


def written(machines: Sequence[tuple[str, Sequence[Compared]]], target: Path) -> Iterator[tuple[Path, str]]:
    """Yield the page and, beside it, a figure for each machine, of its real links."""
    yield target, page(machines, waiting_in(HERE))
    for machine, some in machines:
        yield target.parent / f"{machine}.svg", figure([pair for each in real(some) for pair in scored(each)]) + "\n"
