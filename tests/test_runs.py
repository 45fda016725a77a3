"""Run folders: whole or not at all, the same bytes from the folder itself, and plain words for what is damaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim.deployments.tables import with_units
from moesim.files import runs
from moesim.files.journal import Journal, question_key
from moesim.files.runs import Run, load_run, slug, write_run
from moesim.files.yaml import load_study
from moesim.ground.errors import InputError
from moesim.plans.plan import Parallel, Plan
from moesim.search.answer import Answer, source_table
from moesim.search.ranking import Certificate, Comparison
from moesim.search.study import Study
from moesim.views.report import report

SERVING = Path(__file__).parents[1] / "examples" / "deepseek_v3_serving.yaml"


@cache
def run(name: str = "DeepSeek-V3 chat") -> Run:
    """An answer made by hand, for a real study."""
    study = load_study(SERVING)
    pool = replace(worlds.pool(Parallel(dp=8, ep=8)), framework="vllm")
    plans = pd.DataFrame({"cluster": ["1 x a", "2 x a"], "layout": ["dp8", "dp16"], "tpot": [0.02, 0.03], "miss": 0.0})
    answer = Answer(
        name=name,
        seed=3,
        goal="price_per_token",
        frontier=("tpot", ""),
        headline=("It works.",),
        certificate=Certificate(
            layouts=2,
            considered=2,
            invalid={"odd": 1},
            unfit=0,
            refused=0,
            bounded=0,
            estimated=2,
            simulated=0,
            gap=0.01,
        ),
        comparison=Comparison(metric="tpot", first=0.02, second=0.03, probability=0.9),
        tables={
            "plans": with_units(plans, {"tpot": "s"}),
            "frontier": pd.DataFrame(),
            "estimated": pd.DataFrame(),
            "simulated": pd.DataFrame(),
            "summary": pd.DataFrame(columns=["plan", "metric", "low", "mid", "high", "unit", "source"]),
            "breakdown": pd.DataFrame({"plan": []}),
            "memory": pd.DataFrame({"plan": []}),
            "tasks": pd.DataFrame(),
            "unfit": pd.DataFrame(),
            "sources": source_table(study.scenario),
        },
        plans=(Plan(pools=(pool,)), Plan(pools=(replace(pool, replicas=2),))),
    )
    return Run(study=study, answer=answer, version=moesim.__version__)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", run(), {"report.html": report(run().answer), "trace.json": "{}"})
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_all_there_is(folder: Path) -> None:
    names = set(contents(folder))
    assert names >= {"scenario.yaml", "plans/01.yaml", "plans/02.yaml", "tables/plans.parquet", "answer.json"}
    assert names >= {"report.html", "trace.json", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert (manifest["seed"], manifest["command"]) == (3, "moesim optimize scenario.yaml --seed 3")


def test_a_folder_reads_back_equal(folder: Path) -> None:
    found, written = load_run(folder), run()
    assert found.study == written.study
    assert found.answer.plans == written.answer.plans
    for field in ("name", "seed", "goal", "frontier", "headline", "certificate", "comparison"):
        assert getattr(found.answer, field) == getattr(written.answer, field)
    assert found.answer.tables["plans"].to_dict() == written.answer.tables["plans"].to_dict()
    assert found.answer.tables["plans"].attrs == written.answer.tables["plans"].attrs
    assert report(found.answer) == report(written.answer)


def test_what_was_loaded_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    found = load_run(folder)
    write_run(tmp_path / "again", found, {"report.html": report(found.answer), "trace.json": "{}"})
    assert contents(tmp_path / "again") == contents(folder)


def test_a_run_is_replaced_and_leaves_nothing_beside_it(folder: Path) -> None:
    write_run(folder, replace(run(), version="later"), {"report.html": "other"})
    assert (folder / "report.html").read_text() == "other"
    assert not (folder / "trace.json").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("dies", ["_parquet", "_put", "_sync", "_json"])
def test_a_killed_run_leaves_what_was_there(dies: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    calls = 0

    def die(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return original(*_)

    original = getattr(runs, dies)
    monkeypatch.setattr(runs, dies, die)
    with pytest.raises(KeyboardInterrupt):
        write_run(folder, replace(run(), version="later"), {"report.html": "other"})
    with pytest.raises(KeyboardInterrupt):
        write_run(folder.parent / "new", run(), {})
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_a_process_killed_outright_leaves_nothing_that_looks_finished(folder: Path) -> None:
    """What SIGKILL leaves is a hidden folder without a manifest: no run, and in nobody's way."""
    partial = folder.parent / ".new.123.partial"
    shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("manifest.json"))
    with pytest.raises(InputError, match="is no run folder: it has no manifest"):
        load_run(partial)
    write_run(folder.parent / "new", run(), {})
    assert load_run(folder.parent / "new").version == moesim.__version__


def test_something_else_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("dear")
    with pytest.raises(InputError, match=r"thesis: exists and is no run folder; name another folder with --out"):
        write_run(tmp_path / "thesis", run(), {})
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "empty", run(), {})
    assert (tmp_path / "empty" / "manifest.json").exists()


def test_another_format_is_refused_by_name(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99, "moesim": "9.0"}))
    with pytest.raises(
        InputError, match=r"has format 99, of moesim 9.0; this is moesim .*; which reads format 2; run it"
    ):
        load_run(folder)


def test_every_damage_is_told_at_once(folder: Path) -> None:
    (folder / "plans" / "01.yaml").unlink()
    with (folder / "answer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError) as refusal:
        load_run(folder)
    told = {fault.path: fault.problem for fault in refusal.value.faults}
    assert told == {"plans/01.yaml": "is missing", "answer.json": "is not what was written"}
    assert "moesim optimize" in str(refusal.value)


def test_no_folder_is_told_from_a_folder_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        load_run(tmp_path / "absent")
    with pytest.raises(InputError, match="is no run folder"):
        load_run(tmp_path)


@given(st.text(max_size=40))
def test_a_slug_is_a_plain_name(name: str) -> None:
    made = slug(name)
    assert made
    assert not set(made) & set("/\\. ")


ARRAYS = st.dictionaries(
    st.sampled_from(["step", "pool"]),
    st.lists(st.floats(allow_nan=False), max_size=4).map(np.array),
    min_size=1,
)


@settings(max_examples=30)
@given(st.lists(ARRAYS, max_size=4), st.integers(0, 400), st.lists(ARRAYS, min_size=1, max_size=2))
def test_a_journal_keeps_every_whole_chunk(tmp_path_factory: pytest.TempPathFactory, first, cut, then) -> None:
    """Cut anywhere, it reads as far as chunks are whole, and goes on from there."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path, "key")
    assert journal.read() == []
    for chunk in first:
        journal.append(chunk)
    if path.exists():
        whole = path.read_bytes()
        kept = whole[: max(len(whole) - cut, 0)]
        path.write_bytes(kept)
        left = max(kept.count(b"\n") - 1, 0)
    else:
        left = 0
    again = Journal(path, "key")
    found = again.read()
    same(found, first[:left])
    for chunk in then:
        again.append(chunk)
    same(Journal(path, "key").read(), [*first[:left], *then])


def same(found, wanted) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_a_journal_of_another_question_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j", "one").append({"step": np.zeros(2)})
    with pytest.raises(InputError, match="is the journal of another scenario, space, seed or version; delete it"):
        Journal(tmp_path / "j", "two").read()
    Journal(tmp_path / "j", "two").append({"step": np.ones(1)})  # a search that starts anew
    assert len(Journal(tmp_path / "j", "two").read()) == 1


def test_a_question_is_known_by_all_that_its_answer_depends_on() -> None:
    study = load_study(SERVING)
    assert isinstance(study, Study)
    key = question_key(study, 0)
    assert key == question_key(load_study(SERVING), 0)
    assert len({key, question_key(study, 1), question_key(replace(study, goal="throughput"), 0)}) == 3
    assert key != question_key(replace(study, space=None), 0)
