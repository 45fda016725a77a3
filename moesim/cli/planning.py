"""The planning commands: load, call one library function, show."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.cli.codes import MET, MISSED
from moesim.ground.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moesim.files.journal import Journal
    from moesim.search.resuming import Arrays
    from moesim.search.study import Study


def optimize(
    scenario: Path, /, *, out: Path | None = None, seed: int = 0, resume: bool = False, json: bool = False
) -> int:
    """Rank every plan of a scenario's space, show the best, and keep all of it in a run folder.

    Where the scenario has a section `buy`, find the cheapest purchase that meets its targets at peak, too.

    Parameters
    ----------
    scenario
        A scenario file.
    out
        The run folder; without it `runs/` and the scenario's name. A run folder that is there is replaced.
    seed
        Seed of the routing draws.
    resume
        Go on where a search of the same question into the same folder was stopped.
    json
        Print JSON for a pipe instead of tables.
    """
    from moesim.files.yaml import load_study

    study = load_study(scenario)
    with _sections_of(scenario):
        return _optimized(study, out, seed, resume, json)


@contextmanager
def _sections_of(scenario: Path) -> Iterator[None]:
    """Name the file whose section is at fault."""
    try:
        yield
    except PlanError as flaw:
        raise flaw.within(str(scenario)) from None


def _optimized(study: Study, out: Path | None, seed: int, resume: bool, json: bool) -> int:
    """Search, keep and show."""
    from moesim.cli.runs import journal_of, keep, run_folder
    from moesim.search.optimization import optimize as search
    from moesim.views.progress import bar
    from moesim.views.ranking import ranking_json, show_ranking

    folder = run_folder(study, out)
    journal = journal_of(folder, study, seed)
    kept = journal.read() if resume else []
    if kept:
        print(f"Going on from {sum(len(turn['rows']) for turn in kept):,} layouts timed before.", file=sys.stderr)
    if study.buy is not None:
        return _buy(study, folder, seed, json, journal, kept)
    with bar("searching") as progress:
        ranking = search(
            study.scenario,
            study.space,
            goal=study.goal,
            frontier=study.frontier,
            seed=seed,
            progress=progress,
            journal=journal,
            kept=kept,
        )
    keep(study, ranking, seed, folder)
    journal.drop()
    if json:
        print(ranking_json(ranking))
    else:
        show_ranking(study.scenario.name, ranking)
        print(f"Kept in {folder}: report.html, trace.json, scenario.yaml, plans, tables")
    return MET if ranking.good else MISSED


def _buy(study: Study, folder: Path, seed: int, json: bool, journal: Journal, kept: Sequence[Arrays]) -> int:
    """Find what to buy, show it with the search it rests on, and keep both."""
    from moesim.cli.runs import keep
    from moesim.search.purchasing import purchase
    from moesim.views.progress import bar
    from moesim.views.purchase import purchase_dict, show_purchase
    from moesim.views.ranking import ranking_json, show_ranking

    with bar("buying") as progress:
        found = purchase(study, seed=seed, progress=progress, journal=journal, kept=kept)
    keep(study, found.ranking, seed, folder, found)
    journal.drop()
    if json:
        print(ranking_json(found.ranking, {"purchase": purchase_dict(found)}))
    else:
        show_ranking(f"{study.scenario.name}, at peak", found.ranking)
        show_purchase(found)
        bought = "" if found.chosen is None else "purchase.yaml, "
        print(f"Kept in {folder}: report.html, trace.json, scenario.yaml, {bought}plans, tables")
        if bought:
            print(f"Start it: moesim launch {folder} --plan purchase")
    return MET if found.good else MISSED


def estimate(scenario: Path, plan: Path, /, *, seed: int = 0, json: bool = False) -> int:
    """Estimate one plan: its step by named parts, its memory, a verdict.

    Parameters
    ----------
    scenario
        A scenario file.
    plan
        A plan file.
    seed
        Seed of the routing draws.
    json
        Print JSON for a pipe instead of tables.
    """
    from moesim.deployments.estimation import estimate as run
    from moesim.files.yaml import load_plan, load_scenario
    from moesim.views.tables import result_json, show_result

    world = load_scenario(scenario)
    result = run(world, load_plan(plan, world), seed=seed)
    if json:
        print(result_json(result))
    else:
        show_result(result)
    return MET if result.verdict.good else MISSED
