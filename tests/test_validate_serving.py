"""Serving measurements: every row keeps its place, errors are what they are, and what cannot be predicted says why."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moesim.validate.serving.anchored import anchor_rows, anchored_file
from moesim.validate.serving.anchoring import SHIFTED, WIDTHS, typical
from moesim.validate.serving.compare import compare, with_predictions
from moesim.validate.serving.fitting import NAMES, START, fit, habits, sample_of, slope_of, step
from moesim.validate.serving.measured import Measured, Setup, read_measured, throughput
from moesim.validate.serving.prediction import Predicted, Predictor
from moesim.validate.serving.rivals import FILE as RIVALS
from moesim.validate.serving.rivals import rivals, same_rows
from moesim.validate.serving.roofline import rival
from moesim.validate.serving.runs import Launch, Which, doubted, known_runs, launch_of
from moesim.validate.serving.scores import errors, ordering, scored
from moesim.validate.serving.spreads import shipped_spread
from moesim.validate.serving.worlds import frameworks, known_model

from moesim.cli import app
from moesim.cli.codes import MET
from moesim.files.frameworks import load_framework
from moesim.ground.errors import InputError, PlanError

EXCERPT = Path(__file__).parent / "data" / "serving_excerpt.csv"
ADDED = "predicted_ttft_ms", "predicted_tpot_ms", "predicted_tokens_per_s_per_gpu"


def small(**changes: object) -> Setup:
    """A setup that is quick to predict."""
    setup = next(row.setup for row in read_measured(EXCERPT) if "gpt-oss" in row.text["model"])
    assert setup is not None
    return replace(setup, isl=256, osl=64, concurrency=4, tp=1, etp=1, ep=1, gpus=1, **changes)


@pytest.fixture(scope="module")
def compared():
    return compare(EXCERPT)


@pytest.fixture(scope="module")
def predictor():
    return Predictor()


def test_every_row_keeps_its_place_and_its_columns(compared):
    given_rows = list(csv.DictReader(EXCERPT.read_text().splitlines()))
    rows = list(csv.DictReader(compared.text.splitlines()))
    assert [{name: row[name] for name in given_rows[0]} for row in rows] == given_rows
    for row in rows:
        assert row["reason"] == ""
        for name in ADDED:
            assert 0 < float(row[f"{name}_p10"]) < float(row[name]) < float(row[f"{name}_p90"])


def test_a_row_that_cannot_be_predicted_says_why(tmp_path):
    rows = list(csv.DictReader(EXCERPT.read_text().splitlines()))[:1] * 5
    changes = [
        {"model": "nobody/none"},
        {"system": "abacus"},
        {"isl": "many"},
        {"moe_quant_mode": "roman"},
        {"gpus": "7"},
    ]
    file = tmp_path / "odd.csv"
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **change} for row, change in zip(rows, changes, strict=True))
    found = list(csv.DictReader(compare(file).text.splitlines()))
    words = ["nobody/none", "abacus", "isl = `many`", "roman", "gpus"]
    for row, word in zip(found, words, strict=True):
        assert word in row["reason"]
        assert row["predicted_ttft_ms"] == ""


@pytest.mark.parametrize(("text", "word"), [("", "lacks"), ("model,system\n", "lacks"), (None, "cannot be read")])
def test_a_file_that_is_none_is_refused(tmp_path, text, word):
    file = tmp_path / "file.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=word):
        read_measured(file)


def test_a_file_without_rows_is_refused(tmp_path):
    file = tmp_path / "head.csv"
    file.write_text(EXCERPT.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="no rows"):
        read_measured(file)


def test_results_may_be_missing(tmp_path):
    row = next(csv.DictReader(EXCERPT.read_text().splitlines()))
    file = tmp_path / "blind.csv"
    names = [name for name in row if name not in ("ttft_ms", "tpot_ms")]
    file.write_text(",".join(names) + "\n" + ",".join(row[name] for name in names) + "\n")
    (blind,) = read_measured(file)
    assert blind.setup is not None
    assert math.isnan(blind.ttft)
    assert scored([blind], [Predicted(ttft=1.0, tpot=1.0, throughput=1.0)]) == []


@pytest.mark.parametrize(
    ("name", "zoo"),
    [
        ("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-V3"),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-ai/DeepSeek-R1"),
        ("someone/gpt-oss-20b", "openai/gpt-oss-20b"),
    ],
)
def test_models_are_known_by_their_last_name(name, zoo):
    assert known_model(name) == zoo


def test_an_unknown_model_is_refused():
    with pytest.raises(PlanError, match="no model of the zoo"):
        known_model("nobody/none")


def test_more_requests_take_longer_and_yield_more(predictor):
    light, heavy = predictor.predict([small(), replace(small(), concurrency=64)])
    assert light.tpot < heavy.tpot
    assert light.ttft < heavy.ttft
    assert light.throughput < heavy.throughput


def test_equal_setups_are_predicted_alike(predictor):
    one, other = predictor.predict([small(), small()])
    assert one == other
    assert Predictor().predict([small()]) == [one]


def made(ttft: float, tpot: float, tp: int = 1) -> tuple[Measured, Predicted]:
    """A measurement of 1 and 1, and a prediction."""
    measured = Measured(text={}, setup=replace(small(), tp=tp), ttft=1.0, tpot=1.0 * tp)
    return measured, Predicted(ttft=ttft, tpot=tpot, throughput=1.0)


@given(factor=st.floats(0.01, 100.0))
def test_an_error_is_relative(factor):
    found = errors([made(factor, factor)], "ttft")
    assert found.median == found.mean == pytest.approx(abs(factor - 1))
    assert math.isnan(found.mean_error)


def test_layouts_in_order_are_counted():
    assert ordering([made(1.0, 1.0), made(1.0, 2.0, tp=2)], "tpot").share == 1.0
    assert ordering([made(1.0, 2.0), made(1.0, 1.0, tp=2)], "tpot").share == 0.0
    assert ordering([made(1.0, 1.0), made(1.0, 1.0, tp=2)], "tpot").share == 0.5
    assert ordering([made(1.0, 1.0), made(2.0, 1.0, tp=2)], "ttft").pairs == 0


def test_rows_of_one_layout_count_once():
    twice = [made(1.0, 1.0), made(1.0, 1.2), made(1.0, 2.0, tp=2)]
    assert ordering(twice, "tpot").pairs == 1


def test_throughput_follows_from_little(predictor):
    (found,) = predictor.predict([small()])
    assert found.throughput == pytest.approx(throughput(small(), found.ttft, found.tpot))


def test_the_command_writes_a_file_and_says_what_it_found(tmp_path, capsys):
    one = tmp_path / "one.csv"
    one.write_text("\n".join(EXCERPT.read_text().splitlines()[:2]) + "\n")
    out = tmp_path / "out.csv"
    assert app(["validate", "serving", str(one), "--out", str(out), "--json"], result_action="return_value") in (
        None,
        MET,
    )
    found = json.loads(capsys.readouterr().out)
    assert found["scored"] == 1
    assert found["errors"]["all"]["tpot"]["rows"] == 1
    assert len(out.read_text().splitlines()) == 2
    assert list(tmp_path.glob("*.part")) == []


def test_text_of_no_predictions_is_whole(compared):
    nothing = [Predicted(reason="why not")] * len(compared.rows)
    text = with_predictions(list(compared.rows[0].text), compared.rows, nothing, shipped_spread())
    assert text.count("why not") == len(compared.rows)


PLANTED = {"layer": 2.0, "latency": 0.5}
"""Factors on the numbers that priors expect, which made-up measurements are made with."""


def planted(predictor: Predictor) -> list[Measured]:
    """Measurements that a framework of known numbers would give."""
    moved = START + np.log([[PLANTED.get(name, 1.0) for name in NAMES]])
    setups = [replace(small(), concurrency=load, isl=isl) for load in (1, 4, 16) for isl in (64, 1024)]
    found = predictor.predict(setups, habits(["tensorrt_llm"], moved))
    return [
        Measured(text={}, setup=setup, ttft=each.ttft, tpot=each.tpot)
        for setup, each in zip(setups, found, strict=True)
    ]


def misses(predictor: Predictor, rows: list[Measured], known: object) -> float:
    """Largest error of TPOT over rows, under these frameworks."""
    found = predictor.predict([row.setup for row in rows], known)
    return max(abs(each.tpot / row.tpot - 1) for each, row in zip(found, rows, strict=True))


def test_a_fit_finds_what_measurements_were_made_with(predictor):
    rows = planted(predictor)
    sample = sample_of([*rows, *rows])
    assert len(sample.setups) == len(rows)
    numbers, _ = fit(predictor, sample)
    assert misses(predictor, rows, habits(sample.names, numbers)) < 0.06  # priors hold a little back


def test_one_row_brings_the_others_nearer(predictor):
    rows = planted(predictor)
    found = anchor_rows(rows[2:3], "mine.csv")
    shifted = {**frameworks(), found.framework.name: found.framework}
    assert misses(predictor, rows, shifted) < misses(predictor, rows, None) / 2
    assert (found.left > 0).all()
    assert found.left[SHIFTED.index("pace")] < WIDTHS[SHIFTED.index("pace")] / 2


def test_an_anchored_framework_is_a_file_that_is_read(predictor, tmp_path):
    found = anchor_rows(planted(predictor)[2:3], "mine.csv")
    file = tmp_path / "mine.yaml"
    file.write_text(anchored_file(found, "mine.csv"))
    framework, sources = load_framework(file)
    assert framework.pace == pytest.approx(found.framework.pace, rel=5e-3)
    assert sources["pace"].kind == "fitted"


def test_anchors_of_two_frameworks_are_refused():
    with pytest.raises(InputError, match="one framework"):
        anchor_rows(read_measured(EXCERPT), "two.csv")


def test_a_roofline_is_fitted_without_the_group_that_it_predicts():
    rows = [row for row in read_measured(EXCERPT) if row.setup is not None and math.isfinite(row.tpot)]
    sample = sample_of(rows)
    once = dict(rival(sample, lambda setup: setup.model))
    assert once.keys() == set(sample.setups)
    left = sample.setups[0].model
    away = np.array([setup.model == left for setup in sample.setups])
    moved = sample.logs + np.where(away, 1.0, 0.0)[:, None]
    again = dict(rival(replace(sample, logs=moved), lambda setup: setup.model))
    mine = [setup for setup in sample.setups if setup.model == left and not once[setup].reason]
    others = [setup for setup in sample.setups if setup.model != left and not once[setup].reason]
    assert all(again[setup] == once[setup] for setup in mine), "what is left out has no say"
    assert not others or any(again[setup] != once[setup] for setup in others)


def test_rivals_are_compared_on_exactly_their_rows():
    with RIVALS.open(newline="") as lines:
        asked = list(csv.DictReader(lines))
    line = next(line for line in asked if line["estimate_tpot_ms"])
    row = Measured(text={}, setup=None, ttft=1.0, tpot=0.01)
    setup = small(model=line["model"])
    assert rivals([replace(row, setup=setup)])["aisimulate 0.13"] == []
    theirs = [(replace(row, setup=setup), Predicted(ttft=1.0, tpot=0.02))]
    assert same_rows([*theirs, (row, Predicted())], theirs) == theirs


def qwen(**changes: object) -> Setup:
    """A setup of SGLang's that launch scripts are known of."""
    columns = {"model": "Qwen/Qwen3.5-397B-A17B", "system": "b200_sxm", "backend": "sglang", "gemm": "fp8", "tp": 4}
    return replace(small(), **{**columns, "ep": 4, **changes})


def test_launch_scripts_say_how_often_the_queue_is_looked_at():
    assert launch_of(qwen(concurrency=8)).polls(qwen(concurrency=8), 1) == 10
    assert launch_of(qwen()).polls(qwen(concurrency=16), 1) == 30
    alone = qwen(system="b300_sxm", concurrency=64)
    assert launch_of(alone).polls(alone, 1) == 10
    assert launch_of(qwen(system="h100_sxm")) == Launch(backend="sglang")
    assert launch_of(qwen(system="h100_sxm")).polls(qwen(), 1) == 1
    assert launch_of(qwen()).budget > launch_of(qwen(backend="vllm")).budget


def test_rows_are_told_by_any_column_that_is_named():
    which = Which(backend="sglang", models=("Qwen3.5",), systems=("b200_sxm",), formats=("fp8",), tp=4, ep=4)
    assert which.fits(qwen())
    for change in ({"backend": "vllm"}, {"model": "a/b"}, {"system": "b300_sxm"}, {"gemm": ""}, {"tp": 8}, {"ep": 1}):
        assert not which.fits(qwen(**change)), change


def test_doubted_rows_are_scored_and_nothing_is_fitted_to_them(predictor):
    assert doubted(qwen(ep=1))
    assert not doubted(qwen())
    assert all(doubt.why and doubt.source for doubt in known_runs().doubtful)
    rows = planted(predictor)
    sample = sample_of(rows)
    assert sample.trusted.all()
    wrong = replace(sample, logs=sample.logs + np.where(np.arange(len(rows)) == 2, 3.0, 0.0)[:, None])
    slope = slope_of(predictor, wrong, np.tile(START, (1, 1)))
    everything = np.ones(len(rows), bool)
    apart = step(replace(wrong, trusted=everything & (np.arange(len(rows)) != 2)), slope, everything)
    np.testing.assert_allclose(apart, step(wrong, slope, np.arange(len(rows)) != 2))
    assert np.abs(apart - step(wrong, slope, everything)).max() > 0.01


def test_equal_setups_count_with_the_median():
    row = next(row for row in read_measured(EXCERPT) if math.isfinite(row.tpot))
    sample = sample_of([row, row, replace(row, tpot=10 * row.tpot, ttft=10 * row.ttft)])
    np.testing.assert_allclose(sample.logs, np.log([[row.ttft, row.tpot]]))


def test_the_row_to_give_is_typical_and_trusted():
    loads = [qwen(concurrency=load) for load in (4, 16, 64)]
    others = [qwen(tp=8, ep=1, concurrency=16), *(qwen(ep=1, concurrency=load) for load in (4, 8, 16, 32))]
    rows = [Measured(text={}, setup=setup) for setup in (*loads, *others)]
    assert typical(rows) == qwen(concurrency=16)
    assert typical(rows[4:]).concurrency in (8, 16)
