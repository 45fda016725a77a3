"""The validation commands: run, show, and say by the exit code whether what must pass passed."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

from moesim.cli.codes import MET, MISSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .papers import Checked

PAGE = Path("docs/accuracy/papers.md")
MEASURED = Path("docs/accuracy/measured.md")
PUBLISHED = Path("docs/accuracy/published.md")

app = App(name="validate", help="Set predictions beside published and measured results.")
app.command(
    "moesim.validate.serving.frameworks:app",
    name="frameworks",
    help="Read benchmarks' logs back, or make a framework route as a trace says.",
)


@app.command
def papers(*chosen: str, json: bool = False, page: Path | None = None) -> int:
    """Reproduce the published results of the four systems; exits with 1 when a strong check fails.

    Parameters
    ----------
    chosen
        Papers or checks to run, such as `tutel` or `H5`; all where none is named.
    json
        Print JSON for a pipe instead of a table.
    page
        Where to write the page of results as Markdown; by default `docs/accuracy/papers.md` where there is that folder
        and all checks run.
    """
    from .papers import validate_papers
    from .report import report

    checked = validate_papers(chosen)
    if page is None and not chosen and PAGE.parent.is_dir():
        page = PAGE
    if page is not None:
        _written(page, report(checked))
    return _told(checked, json)


@app.command
def published(*chosen: str, json: bool = False, page: Path | None = None) -> int:
    """Reproduce published results of serving and of training; exits with 1 when a strong check fails.

    Parameters
    ----------
    chosen
        Sources or checks to run, such as `sglang` or `M1`; all where none is named.
    json
        Print JSON for a pipe instead of a table.
    page
        Where to write the page of results as Markdown; by default `docs/accuracy/published.md` where there is that
        folder and all checks run.
    """
    from .papers import validate_papers
    from .report import report
    from .serving.published import CASES, HEAD, served

    checked = validate_papers(chosen, CASES, served)
    if page is None and not chosen and PUBLISHED.parent.is_dir():
        page = PUBLISHED
    if page is not None:
        _written(page, report(checked, HEAD))
    return _told(checked, json)


def _told(checked: Sequence[Checked], json: bool) -> int:
    """Show checks, and say by the exit code whether the strong ones pass."""
    from json import dumps

    from rich.console import Console

    from .papers import failures
    from .table import table

    failed = failures(checked)
    if json:
        rows = [asdict(outcome) for each in checked for outcome in each.outcomes]
        print(dumps({"checks": rows, "failed": len(failed)}, indent=2))
    else:
        Console().print(table(checked))
        print(f"{len(failed)} strong rows miss" if failed else "all strong rows are within tolerance")
    return MISSED if failed else MET


@app.command
def serving(file: Path, /, *, out: Path | None = None, json: bool = False) -> None:
    """Predict TTFT, TPOT and tokens/s/GPU for every row of a file of closed-loop measurements, and score them.

    Parameters
    ----------
    file
        CSV with the columns model, system, backend, gemm_quant_mode, moe_quant_mode, isl, osl, concurrency, the degrees
        (tp_size and so on), gpus and, to be scored, ttft_ms and tpot_ms.
    out
        Where to write every row with its prediction, P10 and P90, or the reason why there is none.
    json
        Print JSON for a pipe instead of tables.
    """
    from json import dumps

    from rich.console import Console

    from .serving.compare import compare
    from .serving.page import summary, tables

    compared = compare(file)
    if out is not None:
        _written(out, compared.text)
    if json:
        print(dumps(summary(compared), indent=2))
        return
    for part in tables(compared):
        Console().print(part)


@app.command
def run(
    scenario: Path,
    /,
    *,
    plans: tuple[Path, ...] = (),
    device: Literal["cpu", "cuda"] = "cpu",
    ranks: int = 2,
    nodes: int = 1,
    link: str = "",
    batch: int = 0,
    course: int = 0,
    set: tuple[str, ...] = (),  # noqa: A002  # the option's name
    profile: str = "",
    out: Path = Path("measured"),
    rounds: int = 10,
    most: int = 8,
    seed: int = 0,
    predict_only: bool = False,
) -> int:
    """Run a scenario's best plan and its rivals here, beside what was predicted; exits with 1 when a plan fails.

    Parameters
    ----------
    scenario
        A scenario with a `space:`, or a file whose `runs:` lists several.
    plans
        Plan files, one after each --plans, whose pools are run in place of what the search picks.
    device
        Where layers are run.
    ranks, nodes, link
        Processes, the network namespaces they are spread over (1 or 2), and the rate between these, such as '100 MB/s'.
    batch
        Sequences of a step on each rank, in place of the space's.
    course
        Steps that plans are run for in order, while policies react to a routing that changes; 0: draws by themselves.
    set
        Changes of the scenario by dotted path: routing.cv=1.5.
    profile
        The machine as calibrated, the name or the file of a node. Without one, layers of the scenario's shape are
        measured first, at other sizes than those compared, and costs fitted to their parts.
    out
        Where bundles, predictions and results go, a folder each. What is there already is not made again, so that a run
        which was stopped can go on.
    rounds, most
        How often all plans are run by turns, and how many plans at most.
    seed
        Of everything drawn.
    predict_only
        Write what is predicted and stop: `python -m validate.run.execute` measures later, or elsewhere.
    """
    from moesim.ground.units import parse

    from .run.commands import Wanted, executed
    from .run.suite import Run, changes_of

    like = Run(
        scenario=scenario.name,
        ranks=ranks,
        nodes=nodes,
        link=parse(link, "B/s") if link else 0.0,
        batch=batch,
        course=course,
        rounds=rounds,
        changes=changes_of(set),
    )
    wanted = Wanted(
        like=like, device=device, plans=plans, profile=profile, most=most, seed=seed, predict_only=predict_only
    )
    code = executed(scenario, wanted, out, tell=print, warn=partial(print, file=sys.stderr))
    return code if predict_only or not any(out.rglob("results.jsonl")) else max(code, report(out))


@app.command
def report(*folders: Path, json: bool = False, page: Path | None = None) -> int:
    """Set predicted beside measured over folders of results; those committed where none is named.

    Parameters
    ----------
    folders
        Where results are.
    json
        Print JSON for a pipe instead of a table.
    page
        Where to write the page with its figures; docs/accuracy/measured.md where there is that folder and no other is
        named.
    """
    from json import dumps

    from rich.console import Console

    from .run.commands import compared_in, written
    from .run.page import lines
    from .run.scores import real, summary

    machines = compared_in(folders)
    everything = [compared for _, some in machines for compared in some]
    found, waited = summary(real(everything)), summary([each for each in everything if each.emulated])
    if json:
        print(dumps({**asdict(found), "emulated": asdict(waited)}, indent=2))
    else:
        apart = ["over emulated links:", *lines(waited)] if waited.times else []
        for line in [*lines(found), *apart]:
            Console().print(line, highlight=False)
    if page is None and not folders and MEASURED.parent.is_dir():
        page = MEASURED
    if page is not None:
        for file, text in written(machines, page):
            _written(file, text)
    return MISSED if found.failed + waited.failed else MET


def _written(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)
