"""Plans to be run: how they are chosen, predicted and kept, and how what was measured is scored against it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moesim.validate.layers.spec import from_json
from moesim.validate.run.batches import choices, counts_of, tokens_of, used
from moesim.validate.run.bundle import Bundle, Pair, Predicted, Setting, Trial, read_bundle, write_bundle
from moesim.validate.run.choosing import crossings, named, pairs_of, picks, rivals, spread
from moesim.validate.run.commands import Wanted, planned
from moesim.validate.run.course import Rebuild, walked
from moesim.validate.run.figure import figure
from moesim.validate.run.machine import CABLE, on_machine
from moesim.validate.run.page import page, parts_of
from moesim.validate.run.planning import Asked, Planned, plan, write
from moesim.validate.run.predicting import forecast, without
from moesim.validate.run.results import Measured, read_results
from moesim.validate.run.scores import compare, real, scored, summary
from moesim.validate.run.suite import Run, runs_of
from moesim.validate.run.waiting import waiting_in

from moesim import load_study
from moesim.ground.errors import InputError, PlanError
from moesim.plans.plan import Parallel, Policy, Pool
from moesim.schedules.ops import fixed
from moesim.schedules.schedule import Schedule, Task

SCENARIO = """
name: a mixture
model:
  name: a mixture
  vocab: 0
  dtype_of: {experts: bf16, dense: bf16, attention: bf16, embedding: bf16, kv: bf16}
  layers:
    - part: decoder
      dim: 64
      tokens: 1
      attention: none
      ffn: {kind: moe, experts: 8, topk: 2, width: 128, input_dim: 64, gated: true}
hardware: {offers: [{node: generic/cpu, max_nodes: 1}], fabric: none/ethernet}
workload:
  kind: serving
  requests:
    arrivals: {generator: closed, concurrency: 64}
    input: {generator: constant, mean: 1 tokens}
    output: {generator: constant, mean: 1000 tokens}
routing: {preset: balanced}
goal: tpot
space:
  pools: all
  parallel.ep: [1, 2]
  max_batch: 32
  gating: [dynamic, {name: static, factor: 2.0}]
  placement: [contiguous, greedy]
"""
TWO = Setting(ranks=2)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "mixture.yaml"
    file.write_text(SCENARIO)
    return file


def asked(setting: Setting = TWO, **more: object) -> Asked:
    return Asked(setting=setting, profile="generic/cpu", **more)


def test_the_search_picks_and_rivals_differ_from_its_pick_in_one_axis(scenario):
    study = load_study(scenario)
    world = on_machine(study.scenario, "generic/cpu", TWO)
    best = next(picks(study, world, 2, 0))
    others = rivals(best, study.space, 2, 0)
    assert best.parallel.ranks == 2
    assert {axis for axis, _ in others} == {"parallel.ep", "gating", "placement"}
    pools = [best, *(pool for _, pool in others)]
    pairs = pairs_of(named(pools), pools)
    assert {pair.axis for pair in pairs if pair.first == named(pools)[0]} == {"parallel.ep", "gating", "placement"}
    assert rivals(best, study.space, 2, 0) == others  # a seed chooses, not chance


def test_plans_that_differ_from_the_pick_in_two_axes_are_compared_with_its_rivals(scenario):
    study = load_study(scenario)
    best = pool_of(32)
    others = rivals(best, study.space, 2, 0)
    crossed = crossings(best, others, study.space, 2)
    assert len(others) == len(crossed) == 3  # two values on each of three axes
    names = ["best", *(f"rival {n}" for n in range(3)), *(f"crossed {n}" for n in range(3))]
    pairs = pairs_of(names, [best, *(pool for _, pool in others), *crossed])
    assert sum(pair.first == "best" for pair in pairs) == 3
    assert all(sum(pair.second == f"crossed {n}" for pair in pairs) == 2 for n in range(3))


def test_two_plans_that_differ_in_two_axes_are_no_pair():
    pool = Pool(role="all", node="n", replicas=1, parallel=Parallel(dp=2, ep=2))
    one = replace(pool, policies={"gating": Policy(name="static")})
    two = replace(one, policies={**one.policies, "placement": Policy(name="greedy")})
    names = ["plain", "one", "two"]
    assert [(pair.first, pair.second) for pair in pairs_of(names, [pool, one, two])] == [
        ("plain", "one"),
        ("one", "two"),
    ]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(0, 2**31))
def test_counts_are_those_of_the_choices(draws, ranks, tokens, seed):
    rng = np.random.default_rng(seed)
    chosen = rng.permuted(np.tile(np.arange(6), (draws, ranks, tokens, 1)), axis=-1)[..., :2]
    counts = counts_of(chosen, 6)
    assert counts.sum() == chosen.size
    assert counts[-1, -1, 3] == (chosen[-1, -1] == 3).sum()


def test_what_is_predicted_follows_the_very_routing_that_is_run(scenario):
    """All tokens of both ranks on one expert cost its rank more than the same number spread out."""
    world = on_machine(load_study(scenario).scenario, "generic/cpu", TWO)
    pool = Pool(role="all", node="generic/cpu", replicas=1, parallel=Parallel(dp=2, ep=2))
    even = np.arange(2 * 2 * 512 * 2).reshape(2, 2, 512, 2) % 8
    piled = np.broadcast_to(np.array([0, 1]), even.shape)
    spread_out, heavy = (forecast(world, pool, each, seed=0).predicted for each in (even, piled))
    assert heavy.parts["experts"] > 1.5 * spread_out.parts["experts"]
    assert spread_out.low <= spread_out.seconds <= spread_out.high


def test_only_the_layer_is_predicted_and_a_dropped_task_hands_its_waits_on(scenario):
    world = on_machine(load_study(scenario).scenario, "generic/cpu", TWO)
    pool = Pool(role="all", node="generic/cpu", replicas=1, parallel=Parallel(dp=2, ep=2))
    drawn = choices(world, tokens_of(world, pool_of(32)), 2, 2, 0)
    assert not {"embed", "head"} & set(forecast(world, pool, drawn, seed=0).predicted.parts)
    tasks = tuple(
        Task(name=name, stream="compute", op=fixed(1.0), after=after)
        for name, after in (("a", ()), ("b", (0,)), ("c", (1,)))
    )
    kept = without(Schedule(tasks=tasks, out=(2,)), [1])
    assert [(task.name, task.after) for task in kept.tasks] == [("a", ()), ("c", (0,))]
    assert kept.out == (1,)


def pool_of(sequences: int) -> Pool:
    batching = Policy(name="chunked", settings={"max_batch": sequences})
    return Pool(
        role="all", node="generic/cpu", replicas=1, parallel=Parallel(dp=2, ep=2), policies={"batching": batching}
    )


def test_a_shortcut_to_fewer_experts_uses_the_first_choices(scenario):
    world = on_machine(load_study(scenario).scenario, "generic/cpu", TWO)
    pool = replace(pool_of(16), policies={"shortcut": Policy(name="fewer", settings={"routed": 1})})
    drawn = choices(world, 16, 2, 1, 0)
    assert used(world, pool, drawn).tolist() == drawn[..., :1].tolist()
    halved = forecast(world, pool, drawn, seed=0).predicted.parts["dispatch"]
    assert halved < forecast(world, pool_of(16), drawn, seed=0).predicted.parts["dispatch"]


def test_ranks_of_a_node_share_the_cable_between_nodes(scenario):
    setting = Setting(ranks=4, nodes=2, rate=1e8, link="kernel")
    hardware = on_machine(load_study(scenario).scenario, "generic/cpu", setting).hardware
    (cable,) = hardware.fabric
    assert (cable.name, cable.ranks, cable.sharers, cable.bandwidth) == (CABLE, 4, 2, 1e8)
    assert hardware.offers[0].node.gpus == 2


def test_a_bundle_is_read_back_and_never_predicted_twice(scenario, tmp_path):
    made = plan(load_study(scenario), asked(most=3))
    digest = write(tmp_path / "bundle", made, "generic/cpu")
    read = read_bundle(tmp_path / "bundle")
    assert [replace(trial, spec={}) for trial in read.trials] == [
        replace(trial, spec={}) for trial in made.bundle.trials
    ]
    assert [from_json(trial.spec) for trial in read.trials] == [from_json(trial.spec) for trial in made.bundle.trials]
    assert replace(read, trials=(), choices={}) == replace(made.bundle, trials=(), choices={})
    assert all((read.choices[name] == drawn).all() for name, drawn in made.bundle.choices.items())
    assert len(digest) == 64
    with pytest.raises(InputError, match="was predicted already"):
        write(tmp_path / "bundle", made, "generic/cpu")


def test_what_was_predicted_stands_when_a_run_goes_on(scenario, tmp_path):
    first = planned(scenario, asked(most=2), tmp_path / "bundle", measured=False)
    assert planned(scenario, asked(most=3), tmp_path / "bundle", measured=False) == first


def test_a_space_of_one_plan_has_nothing_to_compare(scenario):
    text = scenario.read_text().replace("[1, 2]", "2").replace("gating: [dynamic, {name: static, factor: 2.0}]", "")
    scenario.write_text(text.replace("placement: [contiguous, greedy]", "placement: contiguous"))
    with pytest.raises(PlanError, match="no two plans to compare"):
        plan(load_study(scenario), asked())


def test_what_no_layer_carries_out_is_left_out_and_named(scenario):
    scenario.write_text(scenario.read_text() + "  alltoall: [linear, deduplicated]\n")
    made = plan(load_study(scenario), asked(most=20))
    assert any("deduplicated" in why for why in made.left_out.values())


# ---- courses -----------------------------------------------------------------------------------


def padded(scenario: Path, *adaptation: Policy) -> Pool:
    policies = {"gating": Policy(name="static", settings={"factor": 4.0, "sparse": True})}
    parallel = Parallel(dp=2, ep=2)
    return Pool(role="all", node="generic/cpu", replicas=1, parallel=parallel, policies=policies, adaptation=adaptation)


def test_a_course_costs_its_steps_under_the_capacities_in_force_and_its_recompiles(scenario):
    """All tokens on two experts for two steps, then even: with all its memory the score cuts the capacity to 1.5."""
    world = on_machine(load_study(scenario).scenario, "generic/cpu", TWO)
    tokens = np.arange(2 * 512 * 2).reshape(2, 512, 2)
    course = np.stack([tokens % 2] * 2 + [tokens % 8] * 8)
    dynamoe = Policy(name="dynamoe", settings={"memory": 1.0, "threshold": 0.6, "room": 1.5})
    price = Rebuild(seconds=3.0)
    kept, changed = (walked(world, padded(scenario, each), course, price, seed=0) for each in (NONE, dynamoe))
    assert kept.forecast.predicted.seconds == pytest.approx(kept.aside.seconds)
    assert changed.forecast.predicted.seconds - changed.aside.seconds == pytest.approx(1 * 3.0 / 10)
    assert changed.forecast.predicted.parts["compile"] == pytest.approx(0.3)
    small = Policy(name="static", settings={"factor": 1.5, "sparse": True})
    cut = walked(world, replace(padded(scenario, NONE), policies={"gating": small}), course, price, seed=0)
    assert changed.aside.seconds == pytest.approx(0.3 * kept.aside.seconds + 0.7 * cut.aside.seconds)
    assert changed.aside.low <= changed.aside.seconds <= changed.aside.high


NONE = Policy(name="none")


def test_a_space_with_reacting_policies_is_run_over_a_course_and_only_there(scenario):
    text = scenario.read_text().replace("[dynamic, {name: static, factor: 2.0}]", "{name: static, factor: 4.0}")
    text = text.replace("{preset: balanced}", "{preset: balanced, cv: {start: 1.2, end: 0.2, half_life: 5 steps}}")
    scenario.write_text(text + "  adaptation: [none, {name: dynamoe, memory: 1.0}]\n")
    study = load_study(scenario)
    made = plan(study, asked(course=6, most=8))
    assert made.bundle.course
    assert made.bundle.choices["t32"].shape[0] == 6
    (pair,) = [p for p in made.bundle.pairs if p.axis == "adaptation" and p.first == made.bundle.pick]
    steps = {trial.name: trial for trial in made.bundle.trials if trial.aside}
    assert any({other.first, other.second} <= set(steps) for other in made.bundle.pairs)
    assert all(steps[f"{name}, stalls aside"].aside == name for name in (pair.first, pair.second))
    specs = [from_json(trial.spec) for trial in made.bundle.trials]
    assert all(spec.compiled for spec in specs)
    assert {reaction.name for spec in specs for reaction in spec.reactions} == {"dynamoe"}
    assert read_bundle(written_to(scenario.parent / "course", made)).course
    refused = plan(study, asked(most=8))
    assert any("give --course" in why for why in refused.left_out.values())


def written_to(folder: Path, made: Planned) -> Path:
    write(folder, made, "generic/cpu")
    return folder


# ---- scoring, by hand --------------------------------------------------------------------------


def written(folder: Path, predicted: dict[str, float], measured: dict[str, list[float]], **more: object) -> Path:
    """Write a bundle of trials `a`, `b`, ... with their predictions, and what was measured of them."""
    trials = tuple(Trial(name=name, spec={}, choices="t", plan={}) for name in (*predicted, "a (again)"))
    names = list(predicted)
    bundle = Bundle(
        scenario="hand-made",
        setting=TWO,
        trials=trials,
        pairs=tuple(Pair(first=names[0], second=name, axis="gating") for name in names[1:]),
        pick="a",
        repeated="a (again)",
        choices={"t": np.zeros((1, 2, 1, 1), int)},
    )
    told = {
        name: Predicted(seconds=value, low=0.9 * value, high=1.1 * value, parts={"experts": value})
        for name, value in predicted.items()
    }
    digest = write_bundle(folder, bundle, told, {})
    header = {"predictions": digest, "device": "a cpu", "machine": {}, "started": "2026-01-01 00:00 UTC"}
    lines = [{**header, **more}]
    for name, times in measured.items():
        lines += [
            {"trial": name, "round": number, "seconds": [time], "memory": 10} for number, time in enumerate(times)
        ]
        lines.append({"trial": name, "parts": {"experts": times[0]}})
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_scores_by_hand(tmp_path):
    """`b` takes 2 x as long as `a` and 1.5 x was predicted; `c` takes 1.25 x and less was predicted."""
    folder = written(
        tmp_path / "b",
        {"a": 1.0, "b": 1.5, "c": 0.9},
        {"a": [1.0, 1.2, 1.0], "b": [2.0, 2.4, 2.0], "c": [1.25, 1.5, 1.25], "a (again)": [1.0, 1.26, 1.0]},
    )
    compared = compare(folder)
    b, c = scored(compared)
    assert compared.floor == pytest.approx(0.0)
    assert (b.slow, b.measured, b.predicted, b.right) == ("b", pytest.approx(2.0), pytest.approx(1.5), True)
    assert (c.slow, c.measured, c.predicted, c.right) == ("c", pytest.approx(1.25), pytest.approx(0.9), False)
    found = summary([compared])
    assert (found.pairs, found.telling, found.large, found.ordered_right) == (2, 2, 1, 0.5)
    assert found.speedup_median_error == pytest.approx((0.25 + 0.28) / 2)
    assert found.unmoved_median_error == pytest.approx((0.5 + 0.2) / 2)
    assert found.inside_interval == pytest.approx(1 / 3)  # `a` alone


def test_a_pair_within_twice_the_noise_tells_no_order(tmp_path):
    again = [1.0, 1.2, 1.2]
    folder = written(tmp_path / "b", {"a": 1.0, "b": 0.5}, {"a": [1.0] * 3, "b": [1.3] * 3, "a (again)": again})
    found = summary([compare(folder)])
    assert (found.floor, found.telling) == (pytest.approx(0.2), 0)


def test_a_trial_that_failed_is_told_and_not_scored(tmp_path):
    folder = written(tmp_path / "b", {"a": 1.0, "b": 2.0, "c": 1.0}, {"a": [1.0], "b": [2.0], "a (again)": [1.0]})
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"trial": "b", "failed": "rank 1 was ended by SIGKILL"}\n{"torn')
    compared = compare(folder)
    assert compared.failed == {"b": "rank 1 was ended by SIGKILL", "c": "was never run"}
    assert scored(compared) == []
    assert "rank 1 was ended by SIGKILL" in page([("here", [compared])])


def test_results_are_refused_where_the_prediction_was_changed_afterwards(tmp_path):
    folder = written(tmp_path / "b", {"a": 1.0, "b": 2.0}, {"a": [1.0], "b": [2.0], "a (again)": [1.0]})
    (folder / "predictions.json").write_text((folder / "predictions.json").read_text().replace("2.0", "1.9"))
    with pytest.raises(InputError, match="against other predictions"):
        read_results(folder)


def test_a_round_that_was_run_again_counts_as_run_last():
    assert Measured(rounds={0: 1.0, 1: 3.0, 2: 2.0}).seconds == 2.0
    assert Measured(rounds={0: 1.0, 1: 3.0, 2: 2.0}).spread == pytest.approx(0.5)


def test_one_slow_step_in_each_of_two_rounds_leaves_what_is_typical():
    """The mean of a round is dragged in two of three, the median of each draw is not."""
    steps = {0: [1.0, 3.0], 1: [9.0, 3.0], 2: [1.0, 90.0]}
    assert Measured(rounds={0: 2.0, 1: 6.0, 2: 45.5}, steps=steps).typical == 2.0


def test_a_course_tells_what_it_stood_still_for(tmp_path):
    folder = written(tmp_path / "b", {"a": 1.0, "b": 1.0}, {"a": [5.0], "b": [2.0], "a (again)": [5.0]})
    compared = compare(folder)
    trials = [replace(trial, aside="a") if trial.name == "b" else trial for trial in compared.bundle.trials]
    course = replace(compared, bundle=replace(compared.bundle, trials=tuple(trials)))
    assert parts_of(course, "a")["compile"] == (0.0, 3.0)
    assert "compile" not in parts_of(compared, "a")


def test_one_gpu_multiplies_all_experts_at_once_and_captures_what_is_fixed():
    """Where experts stay; those of a cache come one by one, and neither shape is fixed."""
    folder = Path(__file__).parents[1] / "validate" / "cases" / "measured" / "scenarios"
    asked = Asked(setting=Setting(device="cuda", graphed=True), profile="nvidia/hgx-h200", batch=64)
    specs = [from_json(trial.spec) for trial in plan(load_study(folder / "gpu-gating.yaml"), asked).bundle.trials]
    assert {each.gating for each in specs} == {"grouped", "sparse", "static"}
    assert all(each.graphed == each.static and each.ranks == 1 for each in specs)
    cached = [from_json(trial.spec) for trial in plan(load_study(folder / "gpu-caches.yaml"), asked).bundle.trials]
    assert all((each.gating == "dynamic") == (each.cache is not None) for each in cached)
    assert not any(each.graphed for each in cached)


def test_where_no_link_can_be_made_slow_it_is_emulated_unless_only_predicted(monkeypatch):
    monkeypatch.setattr("moesim.validate.run.links.available", lambda: "no namespace could be made")
    one = Run(scenario="x", ranks=2, nodes=2, link=1e8)
    wanted = Wanted(like=one, device="cpu")
    setting = wanted.asked(Path("x"), one).setting
    assert (setting.link, setting.rate) == ("emulated", 1e8)
    assert setting.latency > 0
    assert replace(wanted, predict_only=True).asked(Path("x"), one).setting.link == "kernel"
    assert wanted.asked(Path("x"), replace(one, emulated=True)).setting == setting
    assert wanted.asked(Path("x"), replace(one, nodes=1, link=0.0)).setting.link == "plain"


def test_emulated_links_are_scored_apart(tmp_path):
    folder = written(tmp_path / "b", {"a": 1.0, "b": 1.5}, {"a": [1.0] * 3, "b": [2.0] * 3, "a (again)": [1.0] * 3})
    compared = compare(folder)
    waited = replace(compared, bundle=replace(compared.bundle, setting=Setting(nodes=2, rate=1e8, link="emulated")))
    assert real([compared, waited]) == [compared]
    text = page([("here", [compared, waited])])
    assert "| link | all real links | plain | emulated |" in text
    assert "joined at 100 MB/s by waiting (emulated)" in text


def test_predictions_that_wait_for_a_machine_are_on_the_page(tmp_path):
    folder = written(tmp_path / "gpu" / "b", {"a": 1.0, "b": 1.5}, {"a": [1.0]})
    assert waiting_in(tmp_path) == {}
    (folder / "results.jsonl").unlink()
    text = page([], waiting_in(tmp_path))
    assert "## gpu" in text
    assert "| b | 2 | 1 | 1000 ms to 1500 ms |" in text


def test_results_cut_off_before_their_first_line_say_what_to_do(tmp_path):
    folder = written(tmp_path / "b", {"a": 1.0, "b": 2.0}, {"a": [1.0], "b": [2.0], "a (again)": [1.0]})
    (folder / "results.jsonl").write_text('{"format": "moesim res')
    with pytest.raises(InputError, match=r"holds no whole line: it was cut off; remove it and run the bundle again"):
        read_results(folder)


def test_the_page_and_the_figure_show_every_pair(tmp_path):
    folder = written(tmp_path / "b", {"a": 1.0, "b": 1.5}, {"a": [1.0] * 3, "b": [2.0] * 3, "a (again)": [1.0] * 3})
    compared = compare(folder)
    text = page([("here", [compared])])
    assert "| gating | b | a | 1.50 | 2.00 | 25.0% | right |" in text
    assert figure(scored(compared)).count("<circle") == 1


# ---- what is run in one go ---------------------------------------------------------------------


def test_a_suite_lists_runs_and_a_scenario_is_one(scenario):
    suite = scenario.with_name("suite.yaml")
    suite.write_text(
        "runs:\n  - {scenario: mixture.yaml, ranks: 4, nodes: 2, link: 100 MB/s, batch: 64}\n"
        "  - {scenario: mixture.yaml, name: skewed, changes: {routing.cv: 1.5}}\n"
    )
    (first, name, one), (_, other, two) = runs_of(suite, Run(scenario=""))
    assert (first, name, other) == (scenario, "mixture", "skewed")
    assert one.setting("cpu") == Setting(ranks=4, nodes=2, rate=1e8, link="kernel")
    assert dict(two.changes) == {"routing.cv": 1.5}
    assert [name for _, name, _ in runs_of(scenario, Run(scenario="mixture.yaml"))] == ["mixture"]


def test_two_runs_of_one_name_and_nodes_without_a_link_are_refused(scenario):
    suite = scenario.with_name("suite.yaml")
    suite.write_text("runs: [{scenario: mixture.yaml}, {scenario: mixture.yaml}]\n")
    with pytest.raises(InputError, match="two are called `mixture`"):
        list(runs_of(suite, Run(scenario="")))
    with pytest.raises(InputError, match="2 nodes and a link"):
        Run(scenario="", nodes=2).setting("cpu")


def test_replicas_become_blocks_of_experts_over_all_ranks():
    pool = Pool(role="all", node="n", replicas=2, parallel=Parallel(dp=1, ep=1))
    assert spread(pool, 1, 2).parallel == Parallel(dp=2, ep=1)
