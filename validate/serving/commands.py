"""Commands that fit frameworks to measurements: `moesim calibrate frameworks` and `moesim calibrate anchor`."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path("moesim/data/frameworks")
PAGE = Path("docs/accuracy/serving.md")


def frameworks(file: Path, /, *, folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Fit what frameworks add beyond kernels to a file of serving measurements, and score it on groups left out.

    Parameters
    ----------
    file
        CSV as `moesim validate serving` reads it, with results.
    folder
        Files of the frameworks, which the numbers are written into.
    page
        Where to write the page of results.
    """
    from rich.console import Console

    from .fitted import fit_and_score
    from .measured import read_measured

    found = fit_and_score(read_measured(file), file.name)
    for path, text in found.files(folder, page).items():
        _written(path, text)
        Console().print(f"wrote {path}")


def anchor(file: Path, /, *, out: Path | None = None) -> None:
    """Shift a framework's numbers by one or a few serving measurements of your own deployment.

    Parameters
    ----------
    file
        CSV as `moesim validate serving` reads it: one row is enough, all of one framework.
    out
        Where to write the framework, as a file that a scenario may name.
    """
    from rich.console import Console

    from .anchored import anchor_rows, anchored_file, shifts
    from .measured import read_measured

    found = anchor_rows(read_measured(file), str(file))
    Console().print(shifts(found))
    if out is not None:
        _written(out, anchored_file(found, file.name))
        Console().print(f"wrote {out}")


def _written(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)
