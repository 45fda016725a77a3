"""The commands of run folders: keep a run, draw its report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moesim.cli.codes import MET

if TYPE_CHECKING:
    from moesim.files.journal import Journal
    from moesim.search.purchasing import Purchase
    from moesim.search.ranking import Ranking
    from moesim.search.study import Study

RUNS = Path("runs")
"""Where run folders go that nobody named."""


def run_folder(study: Study, out: Path | None) -> Path:
    """Say where a study's run goes, if it may go there."""
    from moesim.files.runs import check_free, slug

    folder = out or RUNS / slug(study.scenario.name)
    folder = folder if folder.name else folder.resolve()
    check_free(folder)
    return folder


def journal_of(folder: Path, study: Study, seed: int) -> Journal:
    """Open the journal of a search whose answer goes into a folder: a hidden file beside it."""
    from moesim.files.journal import Journal, question_key

    return Journal(folder.with_name(f".{folder.name}.journal"), question_key(study, seed))


def keep(study: Study, ranking: Ranking, seed: int, folder: Path, purchase: Purchase | None = None) -> None:
    """Write a run folder."""
    import moesim
    from moesim.files.runs import Run, write_run
    from moesim.search.answer import answer
    from moesim.views.report import report as drawn
    from moesim.views.trace import task_trace

    found = answer(study, ranking, seed=seed, purchase=purchase)
    views = {"report.html": drawn(found), "trace.json": task_trace(found.tables["tasks"])}
    write_run(folder, Run(study=study, answer=found, version=moesim.__version__), views)


def report(run: Path, /, *, out: Path | None = None, json: bool = False) -> int:
    """Draw the report of a run folder again.

    Parameters
    ----------
    run
        A folder that `moesim optimize` has written.
    out
        The HTML file to write; without it the folder's own report is replaced.
    json
        Print the kept answer as JSON for a pipe.
    """
    from moesim.files.runs import load_run, write_run
    from moesim.views.ranking import answer_json
    from moesim.views.report import report as drawn
    from moesim.views.trace import task_trace

    found = load_run(run)
    page = drawn(found.answer)
    if out is None:
        write_run(run, found, {"report.html": page, "trace.json": task_trace(found.answer.tables["tasks"])})
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    print(answer_json(found.answer) if json else f"Drawn in {out or run / 'report.html'}")
    return MET
