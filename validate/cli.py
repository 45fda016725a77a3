"""The validation commands: run, show, and say by the exit code whether what must pass passed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cyclopts import App

from moesim.cli.codes import MET, MISSED

PAGE = Path("docs/accuracy/papers.md")

app = App(name="validate", help="Set predictions beside published and measured results.")


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
    from json import dumps

    from rich.console import Console

    from .papers import failures, validate_papers
    from .report import report
    from .table import table

    checked = validate_papers(chosen)
    failed = failures(checked)
    if json:
        rows = [asdict(outcome) for each in checked for outcome in each.outcomes]
        print(dumps({"checks": rows, "failed": len(failed)}, indent=2))
    else:
        Console().print(table(checked))
        print(f"{len(failed)} strong rows miss" if failed else "all strong rows are within tolerance")
    if page is None and not chosen and PAGE.parent.is_dir():
        page = PAGE
    if page is not None:
        _written(page, report(checked))
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


def _written(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)
