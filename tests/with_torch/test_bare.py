"""A machine with torch, NumPy and little else: all of it measured, executed and kept, from a checkout."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moesim.calibrate.machine import Speed, device_name
from moesim.calibrate.pieces.bench import Bench, Pool
from moesim.calibrate.plain import nearest, rows
from moesim.calibrate.raw import Raw, read, slug
from moesim.calibrate.suite import everything
from moesim.validate.layers.spec import CacheSpec, LayerSpec, Reaction
from moesim.validate.run.bundle import Bundle, Pair, Predicted, Setting, Trial, write_bundle
from moesim.validate.run.scores import compare

ROOT = Path(__file__).parents[2]
MISSING = ("scipy", "pydantic", "pydantic_core", "simpy", "cyclopts", "jaxtyping", "pyarrow", "joblib")
WITHOUT = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {MISSING!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
ONE = LayerSpec(hidden=64, intermediate=128, experts=8, topk=2, tokens=32)
HERE = slug(device_name(torch.device("cpu")))


def predicted(folder: Path, specs: dict[str, LayerSpec], *, course: bool = False, rounds: int = 2) -> None:
    """Predict a bundle for one rank of this CPU; what a gpu is given has the same parts."""
    first = next(iter(specs))
    trials = [Trial(name=name, spec=spec.json(), choices="t", plan={}) for name, spec in specs.items()]
    chosen = np.argsort(np.random.default_rng(0).random((3, 1, 32, 8)), axis=-1)[..., :2]
    made = Bundle(
        scenario="tiny",
        setting=Setting(device="cpu", ranks=1),
        trials=(*trials, replace(trials[0], name="again")),
        pairs=tuple(Pair(first=first, second=name, axis="gating") for name in specs if name != first),
        pick=first,
        repeated="again",
        rounds=rounds,
        course=course,
        choices={"t": chosen},
    )
    told = {name: Predicted(seconds=1e-3, low=1e-3, high=1e-3, parts={}) for name in specs}
    write_bundle(folder, made, told, {})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a bare machine has: the code, and an interpreter that lacks most packages."""
    for wing in ("moesim", "calibrate", "validate"):
        shutil.copytree(ROOT / wing, tmp_path / wing, ignore=shutil.ignore_patterns("__pycache__", "cases", "data"))
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    cases = tmp_path / "cases" / HERE
    sparse = replace(ONE, gating="sparse", factor=2.0)
    reacting = Reaction(name="dynamoe", settings={"memory": 1.0, "threshold": 0.6, "room": 1.2})
    layers = {"grouped": replace(ONE, gating="grouped"), "static": replace(sparse, gating="static")}
    layers |= {rule: replace(ONE, cache=CacheSpec(resident=3, eviction=rule)) for rule in ("lru", "belady")}
    predicted(cases / "layers", layers)
    changing = {"padded": replace(sparse, factor=4.0), "altered": replace(sparse, factor=4.0, reactions=(reacting,))}
    predicted(cases / "drifting", changing, course=True)
    return tmp_path


def bare(checkout: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "validate.run.bare", "--device", "cpu", "--cases", str(checkout / "cases"), *words]


def environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout)}


def test_a_bare_machine_measures_executes_and_keeps_everything(checkout: Path) -> None:
    words = bare(checkout, "--budget", "150 s", "--only", "launch")
    ran = subprocess.run(
        words, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    there = checkout / "measured" / HERE
    raw: Raw = read(there / "raw.jsonl")
    assert raw.samples
    assert not raw.failures
    assert "| operation | fitted | scored |" in (there / "accuracy.md").read_text()
    assert "moesim calibrate fit" in ran.stderr  # no scipy: fitting is done elsewhere
    for name in ("layers", "drifting"):
        compared = compare(there / name)  # against the predictions that were copied with it
        assert not compared.failed
        assert compared.finished
        assert (there / name / "predictions.json").read_bytes() == (
            checkout / "cases" / HERE / name / "predictions.json"
        ).read_bytes()
    again = subprocess.run(
        [*words, "--part", "execute"],
        cwd=checkout,
        env=environment(checkout),
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0
    assert again.stderr.count("measured already") == 2


def test_what_there_is_no_time_for_is_named_kept_for_the_next_run_and_leaves_no_process(checkout: Path) -> None:
    shutil.rmtree(checkout / "cases")
    predicted(checkout / "cases" / HERE / "long", {"one": ONE, "two": ONE}, rounds=100_000)
    there = checkout / "measured" / HERE / "long"
    words = [*bare(checkout, "--part", "execute"), "--budget", "11 s"]
    ran = subprocess.run(
        words, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert "time is up; left: long" in ran.stderr
    assert (there / "results.partial.jsonl").exists()
    assert not (there / "results.jsonl").exists()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(checkout) not in left


def test_a_machine_that_nothing_was_predicted_for_says_how_it_is_done(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "moesim.validate.run.bare", "--device", "cpu", "--part", "execute"]
    ran = subprocess.run(
        [*words, "--cases", str(tmp_path), "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "nothing was predicted for this machine" in ran.stderr
    assert "--predict-only" in ran.stderr


def test_a_wrong_word_stops_all_of_it(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "moesim.validate.run.bare",
        "--device",
        "cpu",
        "--only",
        "gem",
        "--out",
        str(tmp_path),
    ]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "did you mean `gemm`?" in ran.stderr
    assert "results are in" not in ran.stderr


def test_committed_bundles_are_those_of_the_suite_and_whole() -> None:
    """A gpu's bundles ask for one rank of a gpu, and every layer among them can be built from its description."""
    from moesim.validate.layers.spec import from_json
    from moesim.validate.run.bundle import read_bundle, read_predictions

    folders = [path.parent for path in ROOT.glob("validate/cases/measured/nvidia-*/*/bundle.json")]
    assert folders
    for folder in folders:
        held, told = read_bundle(folder), read_predictions(folder)
        assert held.setting.device == "cuda"
        assert held.setting.ranks == 1
        specs = {trial.name: from_json(trial.spec) for trial in held.trials}
        assert {*told} == {*specs} - {held.repeated}
        if held.setting.graphed:
            assert all(each.graphed for each in specs.values() if each.static)
    assert any(json.loads((folder / "bundle.json").read_text())["setting"]["graphed"] for folder in folders)


def test_the_first_table_scores_what_was_measured_often_enough() -> None:
    raw = read(ROOT / "validate" / "cases" / "measured" / "amd-epyc" / "raw.jsonl.gz")
    cpu = torch.device("cpu")
    here = Bench(device=cpu, pool=Pool(device=cpu, size=1), scratch=Path())
    found = {row.name: row for row in rows(raw, everything(here, Speed(**raw.header["speed"])))}
    assert (found["gemm/bf16/2 ranks"].fitted, found["gemm/bf16/2 ranks"].scored) == (43, 21)
    assert {"copy/bytes/disk", "all_to_all/bytes/hierarchical 2x2/4 ranks", "attention_decode/bf16/mla/2 ranks"} <= {
        *found
    }
    assert not any(name.startswith(("compile", "interference", "launch")) for name in found)  # no work, or one point
    assert all(row.scored == (row.fitted + row.scored) // 3 and row.mean > 0 for row in found.values())


def test_prices_below_zero_are_left_out() -> None:
    """Twice the bytes in less time: bytes cost nothing, and the mean over relative errors is the start's price."""
    terms = np.array([[1.0, 1.0], [1.0, 2.0]])
    found = nearest(terms, np.array([2.0, 1.0]))
    assert found[1] == 0.0
    assert found[0] == pytest.approx((1 / 2 + 1) / (1 / 4 + 1))  # of (p / 2 - 1)^2 + (p - 1)^2
