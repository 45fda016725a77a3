"""How wrong fits are said to be: scores of numbers, sums over layers, devices carried over, and the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moesim.calibrate.accuracy import Line, published_exchange
from moesim.calibrate.accuracy_page import BEGIN, as_json, page, written
from moesim.calibrate.cases import Cases
from moesim.calibrate.fit import Bench, fit_cases, predict
from moesim.calibrate.layer_sums import Scored, summed
from moesim.calibrate.scores import score
from moesim.calibrate.spread import TENTH
from moesim.calibrate.transfer import carried, transferred
from worlds import uncalibrated

H100, H200 = (Bench(device=uncalibrated(f"nvidia/hgx-{name}").device) for name in ("h100", "h200"))


def products(number: int, seed: int) -> Cases:
    rng = np.random.default_rng(seed)
    sizes = {name: np.round(2 ** rng.uniform(low, 13, number)) for name, low in (("m", 0), ("n", 6), ("k", 6))}
    return Cases(
        operation="gemm",
        dtype="bf16",
        kind="",
        kernel="a",
        inputs=sizes,
        seconds=np.ones(number),
        family=np.arange(number),
    )


def timed(cases: Cases, bench: Bench, **factors: float) -> Cases:
    prior = bench.prior(cases)
    true = replace(prior, params={name: value * factors.get(name, 1.0) for name, value in prior.params.items()})
    return replace(cases, seconds=predict(cases, bench, true))


def test_what_lies_outside_costs_ten_times_as_much_as_width() -> None:
    found = score(np.array([1.0, 2.0]), np.ones(2), np.full(2, 0.5), np.full(2, 1.5))
    assert found.interval == pytest.approx(((1.0 + 0.0) / 1.0 + (1.0 + 10 * 0.5) / 2.0) / 2)
    assert (found.inside, found.width, found.mean) == (0.5, 1.0, 0.25)


def test_published_exchanges_move_what_leaves_the_node() -> None:
    """128 tokens to 8 experts in 7392 bytes each, 24 of 32 gpus elsewhere (DeepEP, docs/legacy.md)."""
    known = replace(products(4, 0), operation="dispatch", kind="rail")
    found = published_exchange(known)
    assert found.inputs["moved"][0] == pytest.approx(128 * 8 * 7392 * 0.75)
    assert (found.inputs["messages"][0], found.seconds[0], len(found)) == (24.0, 155e-6, 4)


def test_intervals_of_known_noise_are_honest_and_halved_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    measured = np.exp(0.1 * rng.standard_normal(3000))
    one = np.ones(3000)
    whole, half = (score(measured, one, one * np.exp(-width), one * np.exp(width))
                   for width in (0.1 * TENTH, 0.05 * TENTH))  # fmt: skip
    assert whole.honest
    assert not half.honest
    assert whole.interval < half.interval


def test_a_fit_is_carried_by_ratios_of_the_sheets_and_own_points_correct_it() -> None:
    factors = {"peak": 0.9, "bandwidth": 0.9, "launch": 3.0}
    known = fit_cases(timed(products(128, 0), H100, **factors), H100)
    unseen = timed(products(300, 1), H200, **factors)
    over = carried(known, unseen, H100, H200)
    assert over.source.kind == "derived"
    assert np.abs(np.log(predict(unseen, H200, over) / unseen.seconds)).mean() < 0.05
    other = timed(products(300, 2), H200, **{**factors, "launch": 9.0})
    own = transferred(known, timed(products(16, 3), H200, **{**factors, "launch": 9.0}), H100, H200)
    off = [np.abs(np.log(predict(other, H200, fit) / other.seconds)).mean() for fit in (over, own)]
    assert off[1] < off[0] / 2


def test_errors_of_parts_cancel_in_a_sum_unless_they_are_shared() -> None:
    rng = np.random.default_rng(0)
    cases = replace(products(400, 0), inputs={name: np.full(400, 8.0) for name in "mnk"})
    alone = replace(cases, seconds=np.exp(0.1 * rng.standard_normal(400)))
    apart = summed([(Scored(cases=alone, predicted=np.ones(400), shared=0.0, point=0.1), 9)])
    assert apart.mean == pytest.approx(0.1 / 3 * (2 / np.pi) ** 0.5, rel=0.15)
    assert apart.honest
    together = summed([(Scored(cases=replace(cases, seconds=np.full(400, 1.1)), predicted=np.ones(400), shared=0.1,
                               point=0.0), 9)])  # fmt: skip
    assert together.mean == pytest.approx(0.1 / 1.1)
    assert together.width > 2.5 * apart.width


LINE = Line(
    name="GEMM", system="h100_sxm", kernel="a", points=64, reach=0.07, record=0.05,
    score=score(np.full(9, 1.2), np.ones(9), np.ones(9), np.full(9, 1.3)),
)  # fmt: skip


def test_a_miss_is_told_as_one_and_the_cpu_keeps_its_section(tmp_path: Path) -> None:
    text = page([LINE])
    assert "| GEMM | h100_sxm | a | 64 | 9 | 16.7 | 16.7 | 16.7 | 7 | 5 | **missed** | 100 % |" in text
    assert "Copyright (c) 2025-2026 NVIDIA" in text
    path = tmp_path / "deep" / "operations.md"
    written(path, [LINE])
    path.write_text(path.read_text().replace(f"{BEGIN}\n", f"{BEGIN}\nmine\n"))
    written(path, [replace(LINE, reach=0.2)])
    assert "\nmine\n" in path.read_text()
    assert "| reached |" in path.read_text()
    assert as_json([LINE])[0]["verdict"] == "missed"
