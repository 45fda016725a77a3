"""Fitting cost forms to timed points: recovery, robustness, honest intervals, bad input, and what ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moesim.calibrate.cases import Cases, family_of
from moesim.calibrate.choose import split
from moesim.calibrate.fastest import Fitted, by_key
from moesim.calibrate.fit import Bench, fit_cases, predict
from moesim.calibrate.fitting import fit_samples
from moesim.calibrate.profile import write_profile
from moesim.calibrate.raw import Sample
from moesim.calibrate.routed import GROUPS, balanced, busiest, dealt, filled, in_groups, power_law
from moesim.calibrate.spread import fit_with_spread, residuals, with_spread
from worlds import uncalibrated

from moesim.files.fits import load_fits
from moesim.ground.errors import MoesimError
from moesim.world.hardware import Fit

NODE = uncalibrated("nvidia/hgx-h100")
BENCH = Bench(device=NODE.device)


def products(number: int, seed: int = 0) -> Cases:
    """Shapes of dense products, log-uniform, not timed yet."""
    rng = np.random.default_rng(seed)
    sizes = {name: np.round(2 ** rng.uniform(low, 13, number)) for name, low in (("m", 0), ("n", 6), ("k", 6))}
    family = family_of(np.arange(number) % 20.0)
    return Cases(
        operation="gemm", dtype="bf16", kind="", kernel="a", inputs=sizes, seconds=np.ones(number), family=family
    )


def truth(cases: Cases, **factors: float) -> Fit:
    """A device whose parameters differ from the datasheet's by known factors."""
    prior = BENCH.prior(cases)
    return replace(prior, params={name: value * factors.get(name, 1.0) for name, value in prior.params.items()})


def timed(cases: Cases, fit: Fit, noise: float = 0.0, seed: int = 1) -> Cases:
    rng = np.random.default_rng(seed)
    return replace(cases, seconds=predict(cases, BENCH, fit) * np.exp(noise * rng.standard_normal(len(cases))))


def error(cases: Cases, fit: Fit) -> float:
    return float(np.abs(residuals(cases, BENCH, fit)).mean())


@settings(max_examples=5)
@given(st.floats(0.8, 1.1), st.floats(0.8, 1.1), st.floats(0.5, 4.0))
def test_a_device_is_recovered_from_points_without_noise(peak: float, bandwidth: float, launch: float) -> None:
    fit = truth(products(1), peak=peak, bandwidth=bandwidth, launch=launch)
    found = fit_cases(timed(products(64), fit), BENCH)
    assert error(timed(products(300, seed=5), fit), found) < 0.03


def test_sixteen_noisy_points_beat_the_datasheet_and_bad_rows_hardly_matter() -> None:
    fit = truth(products(1), peak=0.85, bandwidth=0.9, launch=3.0, overhead=2.0)
    unseen = timed(products(400, seed=5), fit)
    points = timed(products(16), fit, noise=0.03)
    spoiled = replace(points, seconds=points.seconds * np.where(np.arange(16) == 7, 6.0, 1.0))
    assert error(unseen, fit_cases(points, BENCH)) < 0.06 < error(unseen, BENCH.prior(points))
    assert error(unseen, fit_cases(spoiled, BENCH)) < 0.08


def test_the_box_is_the_range_of_the_points_and_a_norm_stays_one() -> None:
    points = timed(products(32), truth(products(1)))
    found = fit_cases(points, BENCH)
    assert found.box["m"] == (points.inputs["m"].min(), points.inputs["m"].max())
    assert found.params["p"] >= 1.0
    assert found.source.kind == "fitted"


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_intervals_hold_what_they_say(noise: float) -> None:
    fit = truth(products(1), peak=0.9)
    found = fit_with_spread(timed(products(200), fit, noise=noise), BENCH, title="made up")
    left = residuals(timed(products(2000, seed=9), fit, noise=noise, seed=3), BENCH, found)
    inside = (np.abs(left) < 1.2816 * np.hypot(found.shared, found.point)).mean()
    assert inside == pytest.approx(0.8, abs=4 * (0.16 / 200) ** 0.5)  # the interval is known from 200 points


def test_what_a_family_shares_is_told_from_what_each_point_has() -> None:
    rng = np.random.default_rng(0)
    family = np.repeat(np.arange(400), 10)
    left = 0.06 * rng.standard_normal(400)[family] + 0.08 * rng.standard_normal(4000)
    found = with_spread(truth(products(1)), left, family)
    assert (found.shared, found.point) == (pytest.approx(0.06, abs=0.01), pytest.approx(0.08, abs=0.005))


def test_points_are_split_in_three_without_overlap_and_the_same_each_time() -> None:
    cases = timed(products(500), truth(products(1)))
    first, again = (split(cases, 64, seed="a") for _ in range(2))
    parts = (first.fitted, first.spread, first.scored)
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == 500
    assert (first.fitted == again.fitted).all()
    held = split(cases, 64, seed="a", families=5)
    assert not set(cases.family[held.fitted]) & set(cases.family[held.scored])
    assert not set(cases.family[held.spread]) & set(cases.family[held.scored])


@given(
    st.integers(1, 600),
    st.sampled_from([(8, 2), (64, 8), (256, 8)]),
    st.sampled_from([1.01, 1.2]),
    st.sampled_from([1, 4]),
)
def test_spread_tokens_add_up(tokens: int, shape: tuple[int, int], alpha: float, ep: int) -> None:
    experts, topk = shape
    drawn = power_law(tokens, experts, topk, alpha, np.random.default_rng(tokens), ep=ep)
    for rows in (drawn, balanced(tokens, experts, topk)):
        assert rows.sum() == tokens * topk
        assert 0 <= rows.min() <= rows.max() <= tokens
    assert busiest(drawn, 4).sum() >= tokens * topk / 4


@pytest.mark.parametrize(("tokens", "least"), [(4, 32), (8, 58), (16, 80)])
def test_few_tokens_reach_about_as_many_experts_as_they_choose(tokens: int, least: int) -> None:
    """What rounding leaves over goes to experts that have none; given to the fullest, 20 of 32 had any."""
    for seed in range(20):
        assert np.count_nonzero(power_law(tokens, 256, 8, 1.01, np.random.default_rng(seed))) >= least


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 60))
def test_rows_are_added_where_there_are_least(rows: list[int], number: int) -> None:
    """As one at a time would: to the first of the emptiest, as long as one has room."""
    slow = np.array(rows)
    for _ in range(number):
        if slow.min() < 9:
            slow[slow.argmin()] += 1
    assert sorted(filled(np.array(rows), number, 9)) == sorted(slow)


@given(st.integers(1, 300), st.sampled_from([1.01, 1.2]))
def test_a_router_that_keeps_groups_chooses_as_many_experts_from_fewer(tokens: int, alpha: float) -> None:
    wanted = dealt(power_law(tokens, 256, 8, alpha, np.random.default_rng(tokens)), 8)
    assert all(len(set(row)) == 8 for row in wanted.tolist())
    one, most = in_groups(wanted[:1], 256, 4), in_groups(wanted, 256, 4)
    assert len(set(np.flatnonzero(one) // (256 // GROUPS))) <= 4
    assert most.sum() == 8 * tokens
    assert most.max() <= tokens


def test_the_fastest_kernel_is_the_default_and_the_others_keep_their_names() -> None:
    cases = timed(products(64), truth(products(1)))
    slow, quick = (Fitted(cases=replace(cases, kernel=name), bench=BENCH, fit=truth(cases, launch=times))
                   for name, times in (("slow", 9.0), ("quick", 1.0)))  # fmt: skip
    fits = by_key([slow, quick])
    assert fits["gemm/bf16"] == quick.fit
    assert fits["gemm/bf16/slow"] == slow.fit


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_refused(wrong: float) -> None:
    cases = replace(products(13), seconds=np.where(np.arange(13) == 3, wrong, 1e-3))
    with pytest.raises(
        MoesimError, match=r"gemm/bf16: seconds of point 3 is .*, no positive time, .* remove those points"
    ):
        fit_cases(cases, BENCH)


def test_an_input_that_is_none_is_refused() -> None:
    cases = products(16)
    spoiled = replace(cases, inputs={**cases.inputs, "n": np.where(np.arange(16) == 5, np.nan, 64.0)})
    with pytest.raises(MoesimError, match=r"gemm/bf16: n of point 5 is nan"):
        fit_cases(spoiled, BENCH)


def test_too_few_points_are_refused_and_the_others_still_fitted() -> None:
    with pytest.raises(MoesimError, match="gemm/bf16: 12 points; a fit needs at least 13: measure more"):
        fit_cases(products(12), BENCH)
    moved = [
        sample("elementwise", {"traffic": 2.0**power}, 3e-6 + 2.0**power / 2e12, "norm") for power in range(10, 34)
    ]
    outcome = fit_samples([*moved, sample("gemm", {"m": 1.0, "n": 64.0, "k": 64.0}, 1e-5)], NODE)
    assert outcome.fits["elementwise"].params["bandwidth"] == pytest.approx(2e12, rel=0.05)
    assert outcome.left_out == ("gemm/bf16: 1 points; a fit needs at least 13: measure more",)
    with pytest.raises(MoesimError, match="nothing could be fitted; it has no samples"):
        fit_samples([], NODE)


def sample(operation: str, inputs: dict[str, float], seconds: float, kernel: str = "", ranks: int = 1) -> Sample:
    times = (seconds,) * 3
    return Sample(
        operation=operation, dtype="bf16", kernel=kernel, inputs=inputs, seconds=times, device="h100", ranks=ranks
    )


def test_every_kind_of_raw_sample_finds_its_key() -> None:
    heads = {"heads": 8.0, "kv_heads": 2.0, "key_dim": 64.0, "value_dim": 64.0}
    seen = {"tokens": 8.0, "prompts": 8.0, "pairs": 800.0, "keys": 800.0}
    kinds = [
        ("gemm", "", {"m": 8.0, "n": 64.0, "k": 64.0}),
        ("grouped_gemm", "grouped", {"rows": 8.0, "slots": 4.0, "skew": 0.5, "n": 64.0, "k": 64.0, "active": 4.0}),
        ("attention_decode", "gqa", {**heads, **seen, "batch": 8.0}),
        ("attention_decode", "mla", {**heads, **seen}),
        ("host", "read back", {"numbers": 1.0, "calls": 1.0}),
        ("copy", "host pinned", {"size": 4096.0}),
        ("copy", "disk", {"size": 4096.0}),
        ("all_reduce", "", {"size": 4096.0, "ranks": 4.0}),
        ("all_to_all", "uneven", {"size": 4096.0, "sent": 99.0, "received": 50.0, "messages": 3.0, "ranks": 4.0}),
        ("send", "", {"size": 4096.0}),
        ("interference", "gemm beside disk", {"m": 8.0}),
    ]
    samples = [sample(name, {**inputs, "twist": float(turn)}, 1e-4 * turn, kernel, 4)
               for name, kernel, inputs in kinds for turn in range(1, 14)]  # fmt: skip
    outcome = fit_samples(samples, NODE)
    assert outcome.left_out == ()
    assert set(outcome.fits) == {
        "gemm/bf16", "grouped_gemm/bf16", "attention_decode/bf16/gqa", "attention_decode/bf16/mla", "host",
        "copy/host", "copy/disk", "all_reduce/nvlink", "all_to_all/nvlink", "send/nvlink",
    }  # fmt: skip


def test_a_profile_reads_back_as_it_was_written(tmp_path: Path) -> None:
    fits = {"gemm/bf16": fit_cases(timed(products(16), truth(products(1))), BENCH, title="sixteen: points")}
    write_profile(tmp_path / "deep" / "mine.yaml", fits, head="mine\nand yours")
    back = load_fits(tmp_path / "deep" / "mine.yaml", "mine")["gemm/bf16"]
    assert dict(back.params) == pytest.approx(dict(fits["gemm/bf16"].params), rel=1e-3)
    assert back.source == fits["gemm/bf16"].source
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mine.yaml"]


def test_the_table_of_what_is_fitted_is_what_ships():
    """Three columns of hardware_profiles/README.md: collectives, DeepEP's kernels inside a node and between nodes."""
    folder = Path(__file__).parents[1] / "hardware_profiles"
    text = (folder / "README.md").read_text().partition("### What is fitted")[2].partition("## Reading one")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "][1:]
    told = {name: tuple(cell == "fitted" for cell in cells) for names, *cells in rows for name in names.split(", ")}

    def ships(path: Path) -> tuple[bool, ...]:
        keys = {key.partition("@")[0] for key in load_fits(path, path.name)}
        inside = {"pcie" if {"all_reduce/pcie"} & keys else "nvlink"}
        groups = (
            (("all_reduce", "all_gather", "reduce_scatter", "all_to_all"), inside),
            (DEEPEP, inside),
            (DEEPEP, {"rail"}),
        )
        return tuple(all(f"{way}/{link}" in keys for way in ways for link in links) for ways, links in groups)

    def name(path: Path) -> str:
        return path.stem.removesuffix("-sxm").removesuffix("-80gb").replace("-", " ").upper()

    assert {name(path): ships(path) for path in (folder / "fits").rglob("*.yaml")} == told


DEEPEP = ("dispatch", "combine")
