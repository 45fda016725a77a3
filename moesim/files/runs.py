"""Run folders: a question, its answer and all they rest on, written whole or not at all.

A folder holds ``scenario.yaml`` (everything in full), ``plans/NN.yaml``, ``purchase.yaml`` where something is bought,
``tables/*.parquet``, ``answer.json``, ``report.html``, ``trace.json`` and, written last, ``manifest.json`` with the
hash of each. Nothing in it tells the time, so the manifest's command, run in the folder, gives the same bytes again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

import moesim
from moesim.files.trees import Tree, read
from moesim.files.yaml import dump_plan, dump_study, load_plan, load_study
from moesim.ground.errors import Fault, InputError
from moesim.search.answer import Answer
from moesim.search.ranking import Certificate, Comparison
from moesim.search.study import Study

FORMAT = 2
"""Changes whenever a folder of one version could be misread by another."""

MANIFEST = "manifest.json"
PURCHASE = "purchase.yaml"
AGAIN = "run it again: `moesim optimize {folder}/scenario.yaml`"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A run folder's content: the study in full, its answer, and the version of moesim that gave it."""

    study: Study
    answer: Answer
    version: str


def slug(name: str) -> str:
    """Make a folder's name of a scenario's.

    Examples
    --------
    >>> slug("DeepSeek-V3 chat, 2 nodes")
    'deepseek-v3-chat-2-nodes'
    """
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return "-".join(words) or "run"


def write_run(folder: Path, run: Run, views: Mapping[str, str]) -> None:
    """Write a run folder whole; one that is there is replaced, and anything else that is there is left alone.

    Parameters
    ----------
    folder : Path
        Where.
    run : Run
        What.
    views : mapping from file name to text
        What was drawn of it: ``report.html``, ``trace.json``.

    Raises
    ------
    InputError
        Something else has that name.
    """
    check_free(folder)
    with _whole(folder) as partial:
        hashes = {name: _put(partial / name, content) for name, content in sorted(_contents(run, views).items())}
        manifest = {
            "format": FORMAT,
            "moesim": run.version,
            "seed": run.answer.seed,
            "command": f"moesim optimize scenario.yaml --seed {run.answer.seed}",
            "files": hashes,
        }
        _put(partial / MANIFEST, _json(manifest))


def check_free(folder: Path) -> None:
    """Refuse a name that something else has, and a place that nothing can be written to.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    place = next(path for path in folder.absolute().parents if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise _fault(folder, f"cannot be written: {place} is no folder that may be written to", "name another folder")
    if folder.exists() and not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        remedy = "name another folder with --out, or move this away"
        raise _fault(folder, "exists and is no run folder", remedy)


def _contents(run: Run, views: Mapping[str, str]) -> dict[str, bytes]:
    """Make the content of every file but the manifest."""
    answer = run.answer
    facts = {
        "name": answer.name,
        "seed": answer.seed,
        "goal": answer.goal,
        "frontier": list(answer.frontier),
        "headline": list(answer.headline),
        "certificate": _tree(answer.certificate),
        "comparison": asdict(answer.comparison) if answer.comparison else None,
    }
    texts = {"scenario.yaml": dump_study(run.study), **views}
    texts |= {f"plans/{number:02}.yaml": dump_plan(plan) for number, plan in enumerate(answer.plans, 1)}
    texts |= {PURCHASE: dump_plan(answer.bought)} if answer.bought is not None else {}
    tables = {f"tables/{name}.parquet": _parquet(table) for name, table in answer.tables.items()}
    return {name: text.encode() for name, text in texts.items()} | {"answer.json": _json(facts)} | tables


def _tree(certificate: Certificate) -> Tree:
    values = {field.name: getattr(certificate, field.name) for field in fields(certificate)}
    return values | {"invalid": dict(certificate.invalid)}


def _json(tree: Tree) -> bytes:
    return (json.dumps(tree, indent=2, allow_nan=False) + "\n").encode()


def _parquet(table: pd.DataFrame) -> bytes:
    """Write a table with its units; no index, and nothing that names a version of pandas."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {str(name): pa.array(table[name].tolist()) for name in table.columns}
    units = json.dumps(table.attrs.get("units", {})).encode()
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns).replace_schema_metadata({"units": units}), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a hidden sibling to fill, which takes the folder's name when all of it is on disk, or vanishes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        partial.mkdir()
        yield partial
        for directory in (*(path for path in partial.rglob("*") if path.is_dir()), partial):
            _sync(directory)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove what killed processes left half done; what they were about to replace gets its name back."""
    ended = re.compile(re.escape(f".{folder.name}.") + r"(\d+)\.(partial|old)")
    for path in sorted(folder.parent.iterdir()):
        match = ended.fullmatch(path.name)
        if match and not _runs(int(match[1])):
            if match[2] == "old" and not folder.exists():
                path.rename(folder)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether a process is alive, whoever owns it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _put(path: Path, content: bytes) -> str:
    """Write a file to disk and return its hash."""
    path.parent.mkdir(exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return sha256(content).hexdigest()


def _sync(folder: Path) -> None:
    """Bring a folder's list of names to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_run(folder: str | Path) -> Run:
    """Load a run folder.

    Raises
    ------
    InputError
        It is no run folder, of another format, incomplete, or changed since it was written.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    faults = [fault for name, digest in manifest["files"].items() for fault in _damage(folder, name, digest)]
    if faults:
        raise InputError(str(folder), faults)
    study = load_study(folder / "scenario.yaml")
    facts = read(folder / "answer.json")
    names = sorted(name for name in manifest["files"] if name.startswith(("plans/", "tables/")))
    tables = {Path(name).stem: _table(folder / name) for name in names if name.startswith("tables/")}
    plans = tuple(load_plan(folder / name, study.scenario) for name in names if name.startswith("plans/"))
    answer = Answer(
        name=facts["name"],
        seed=facts["seed"],
        goal=facts["goal"],
        frontier=tuple(facts["frontier"]),
        headline=tuple(facts["headline"]),
        certificate=Certificate(**facts["certificate"]),
        comparison=Comparison(**facts["comparison"]) if facts["comparison"] else None,
        tables=tables,
        plans=plans,
        bought=load_plan(folder / PURCHASE, study.scenario) if PURCHASE in manifest["files"] else None,
    )
    return Run(study=study, answer=answer, version=manifest["moesim"])


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and see that it is of this format."""
    if not (folder / MANIFEST).is_file():
        problem = "is no run folder: it has no manifest.json" if folder.is_dir() else "there is no such folder"
        raise _fault(folder, problem, "name a folder that `moesim optimize` has written")
    manifest = read(folder / MANIFEST)
    found = manifest.get("format")
    if found != FORMAT:
        problem = f"has format {found}, of moesim {manifest.get('moesim')}; this is moesim {moesim.__version__}"
        remedy = f"which reads format {FORMAT}; {AGAIN.format(folder=folder)}"
        raise _fault(folder, problem, remedy)
    return manifest


def _damage(folder: Path, name: str, digest: str) -> Iterator[Fault]:
    """Find out whether a file is what the manifest says."""
    remedy = AGAIN.format(folder=folder)
    if not (folder / name).is_file():
        yield Fault(path=name, problem="is missing", remedy=remedy)
    elif sha256((folder / name).read_bytes()).hexdigest() != digest:
        yield Fault(path=name, problem="is not what was written", remedy=remedy)


def _table(path: Path) -> pd.DataFrame:
    from pyarrow import parquet

    found = parquet.read_table(path)
    table: pd.DataFrame = found.to_pandas()
    table.attrs["units"] = json.loads((found.schema.metadata or {}).get(b"units", b"{}"))
    return table


def _fault(folder: Path, problem: str, remedy: str) -> InputError:
    return InputError(str(folder), [Fault(path="", problem=problem, remedy=remedy)])
