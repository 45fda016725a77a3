"""What a form leaves over: interpolated among its points, nothing beyond them, never below the floor, kept in files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from costs_strategies import FABRIC, H200, with_fits
from hypothesis import given, settings
from hypothesis import strategies as st
from moesim.calibrate.cases import Cases
from moesim.calibrate.fit import Bench, fit_cases, predict
from moesim.calibrate.profile import as_yaml
from moesim.calibrate.residual import FEWEST, MOST, places_of, with_residual
from worlds import uncalibrated

from moesim.files.residuals import read_residual, residual_tree
from moesim.files.trees import read
from moesim.ground.errors import InputError, MoesimError
from moesim.schedules.costs.fits import fit_of, fit_of_tier, machine_of
from moesim.schedules.costs.forms import floor, form_of
from moesim.schedules.costs.residuals import inside, shift
from moesim.schedules.ops import AllToAll, Attend, Gemm, Reduce
from moesim.world.attention import Gqa
from moesim.world.hardware import Fit, Residual

BENCH = Bench(device=uncalibrated("nvidia/hgx-h100").device)


def products(number: int, seed: int) -> Cases:
    rng = np.random.default_rng(seed)
    sizes = {name: np.round(2 ** rng.uniform(6, 12, number)) for name in ("m", "n", "k")}
    return Cases(
        operation="gemm",
        dtype="bf16",
        kind="",
        kernel="a",
        inputs=sizes,
        seconds=np.ones(number),
        family=np.arange(number),
    )


def habit(cases: Cases) -> np.ndarray:
    """A kernel's habit that no form knows: a wave along the columns of a product."""
    return 0.15 * np.sin(np.log2(cases.inputs["n"]) * 1.5)


def timed(cases: Cases) -> Cases:
    return replace(cases, seconds=predict(cases, BENCH, BENCH.prior(cases)) * np.exp(habit(cases)))


def known() -> Fit:
    cases = timed(products(MOST, 0))
    return with_residual(fit_cases(cases, BENCH), cases, BENCH)


def off(fit: Fit, cases: Cases) -> float:
    return float(np.abs(np.log(predict(cases, BENCH, fit) / cases.seconds)).mean())


def test_a_habit_of_a_kernel_is_learned_between_the_points_and_ignored_beyond_them() -> None:
    fit = known()
    alone = replace(fit, residual=None)
    unseen = timed(products(400, 1))
    within = unseen.take(inside(places_of(unseen), fit.residual))
    assert off(fit, within) < off(alone, within) / 2
    large = timed(replace(products(50, 2), inputs={name: np.full(50, 2.0**13) for name in "mnk"}))
    assert predict(large, BENCH, fit) == pytest.approx(predict(large, BENCH, alone), rel=1e-12)


def test_at_its_points_a_residual_is_nearly_what_they_leave_over() -> None:
    cases = timed(products(MOST, 0))
    fit = with_residual(fit_cases(cases, BENCH), cases, BENCH)
    left = np.log(cases.seconds / predict(cases, BENCH, replace(fit, residual=None)))
    assert np.abs(shift(places_of(cases), fit.residual) - left).mean() < 0.4 * np.abs(left).mean()


def test_a_spike_says_nothing_of_its_neighbors() -> None:
    cases = timed(products(MOST, 0))
    spiked = replace(cases, seconds=cases.seconds * np.where(np.arange(MOST) == 5, 8.0, 1.0))
    fit = with_residual(fit_cases(cases, BENCH), spiked, BENCH)
    assert len(fit.residual.weights) == MOST - 1
    assert off(fit, timed(products(200, 1))) < 0.06


def test_few_points_and_operations_without_sizes_for_it_have_no_residual() -> None:
    few = timed(products(FEWEST - 1, 0))
    assert with_residual(fit_cases(few, BENCH), few, BENCH).residual is None


@settings(max_examples=100)
@given(st.lists(st.integers(1, 2**13), min_size=3, max_size=3), st.floats(-3.0, 3.0))
def test_no_residual_takes_a_time_below_its_floor(sizes: list[int], weight: float) -> None:
    ends = (tuple(np.log([1.0] * 3)), tuple(np.log([2.0**13] * 3)))
    residual = Residual(inputs=("m", "n", "k"), lengths=(5.0,) * 3, places=ends, weights=(weight, weight))
    fit = replace(fit_of(H200.device, "gemm"), residual=residual)
    machine = machine_of(with_fits(H200, {"gemm": fit}), ())
    m, n, k = (np.array([float(size)]) for size in sizes)
    op = Gemm(m=m, n=n, k=k, dtype="bf16")
    assert form_of(op).price(op, machine)[0] >= floor(op, machine)


def test_chunks_of_a_prompt_are_beyond_points_that_were_whole_prompts() -> None:
    fit = replace(
        fit_of(H200.device, "attention_prefill"),
        residual=Residual(inputs=("reused",), lengths=(1e6,), places=((0.0,), (0.0,)), weights=(0.1, 0.0)),
    )
    machine = machine_of(with_fits(H200, {"attention_prefill": fit}), ())
    bare = machine_of(with_fits(H200, {}), ())
    one = np.array([1.0])
    whole = Attend(kind=Gqa(heads=8, kv_heads=8, head_dim=128, value_dim=128), heads=8 * one, phase="prefill",
                   tokens=64 * one, prompts=one, pairs=2080 * one, keys=64 * one, dtype="bf16")  # fmt: skip
    chunk = replace(whole, keys=128 * one, pairs=64 * 96 * one)
    ratio = [form_of(op).price(op, machine)[0] / form_of(op).price(op, bare)[0] for op in (whole, chunk)]
    assert ratio == [pytest.approx(np.exp(0.1)), 1.0]


def test_a_residual_of_an_all_to_all_counts_where_one_tier_is_crossed_and_one_of_a_reduction_anywhere() -> None:
    """What 8 gpus move at 1 MiB takes a tenth more than the form says, in the mean of logarithms."""
    here = tuple(np.log([2.0**20, 7.0]))
    residual = Residual(inputs=("moved", "messages"), lengths=(1.0, 1.0), places=(here, here), weights=(0.1, 0.0))
    reduced = replace(residual, inputs=("size", "ranks"), places=(tuple(np.log([2.0**20, 8.0])),) * 2)
    tier = next(tier for tier in H200.tiers if tier.name == "nvlink")
    fits = {
        "all_to_all/nvlink": replace(fit_of_tier(H200.device, "all_to_all", tier), residual=residual),
        "reduce/nvlink": replace(fit_of_tier(H200.device, "reduce", tier), residual=reduced),
    }
    with_them, bare = (machine_of(with_fits(H200, each), FABRIC) for each in (fits, {}))
    sent, peers = np.array([[2.0**20], [0.0]]), np.array([[7.0], [0.0]])
    ops = (
        AllToAll(tiers=("nvlink",), sent=sent[:1], received=sent[:1] / 2, messages=peers[:1]),
        AllToAll(tiers=("nvlink",), sent=sent[:1] * 2, received=sent[:1], messages=peers[:1]),
        AllToAll(tiers=("nvlink", "rail"), sent=sent, received=sent, messages=peers),
        Reduce(size=np.array([2.0**20]), ranks=np.array([8.0]), form="all_reduce", tier="nvlink"),
    )
    ratio = [(form_of(op).price(op, with_them)[0] / form_of(op).price(op, bare)[0]).item() for op in ops]
    assert ratio == pytest.approx([np.exp(0.1), 1.0, 1.0, np.exp(0.1)])


def test_a_residual_by_sizes_that_an_op_lacks_is_refused() -> None:
    residual = Residual(inputs=("heads",), lengths=(1.0,), places=((0.0,),), weights=(0.1,))
    machine = machine_of(with_fits(H200, {"gemm": replace(fit_of(H200.device, "gemm"), residual=residual)}), ())
    one = np.array([1.0])
    with pytest.raises(MoesimError, match="`heads`"):
        form_of(op := Gemm(m=one, n=one, k=one, dtype="bf16")).price(op, machine)


def test_a_profile_gives_back_the_residual_it_was_written_with(tmp_path) -> None:
    fit = known()
    (tmp_path / "a.yaml").write_text(as_yaml({"gemm/bf16": fit}), encoding="utf-8")
    tree = read(tmp_path / "a.yaml")["fits"]["gemm/bf16"]["residual"]
    back = read_residual(tree, "a.yaml")
    places = places_of(timed(products(100, 3)))
    assert shift(places, back) == pytest.approx(shift(places, fit.residual), abs=2e-3)  # a thousandth of the time
    assert residual_tree(back) == residual_tree(read_residual(yaml.safe_load(yaml.safe_dump(residual_tree(back))), ""))


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {"inputs": ["m"], "lengths": [1.0]},
        {"inputs": ["m"], "lengths": [1.0], "points": "0.1 2 3"},
        {"inputs": ["m"], "lengths": [1.0], "points": "0.1 2\n0.1"},
        {"inputs": ["m"], "lengths": [0.0], "points": "0.1 2"},
        {"inputs": ["m"], "lengths": [1.0], "points": "0.1 inf"},
        {"inputs": ["m"], "lengths": [1.0], "points": "0.1 many"},
        {"inputs": [], "lengths": [], "points": ""},
    ],
)
def test_residuals_that_make_no_sense_are_refused_with_a_remedy(tree) -> None:
    with pytest.raises(InputError, match="residual"):
        read_residual(tree, "a.yaml")
