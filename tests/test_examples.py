"""The studies of the four systems: each wins where its paper says it wins, and loses where it should."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch):
    """Run an example's `main` from the source tree's root, as a reader would."""
    monkeypatch.chdir(ROOT)
    return lambda name: runpy.run_path(f"examples/{name}.py")["main"]()


def test_tutel_gains_under_drift_at_scale_only(run):
    found = run("study_tutel")
    assert found["64 gpus, drifting"]["gain"] > 1.2
    assert found["64 gpus, drifting"]["regret"] < 0.01
    assert found["64 gpus, steady"]["gain"] == pytest.approx(1, abs=0.01)
    assert 1 <= found["8 gpus, drifting"]["gain"] < found["64 gpus, drifting"]["gain"]


def test_dynamoe_gains_when_the_load_settles_and_loses_when_it_swings(run):
    found = run("study_dynamoe")
    assert found["capacity, steady load"] > 1.1
    assert found["capacity and caching, steady load"] > found["capacity, steady load"]
    assert found["caching, assignments change"] == 1
    assert found["hasty capacity, swinging load"] < 1
    assert found["break-even steps"] < 4000 - found["step of the cut"]


def test_scmoe_gains_over_pcie_and_less_than_top_1_over_nvlink(run):
    found = run("study_scmoe")
    pcie, nvlink = found["pcie/a30x8"], found["nvidia/hgx-a100"]
    order = ["top-2", "shared expert", "top-1", "position 1", "position 3"]
    assert [pcie[name] for name in order] == sorted(pcie.values(), reverse=True)
    assert nvlink["top-1"] < nvlink["position 3"] < nvlink["shared expert"] < nvlink["top-2"]


def test_buffering_makes_room_on_a_small_box_and_only_costs_on_a_large_one(run):
    found = run("study_huang")
    assert not found["pcie/a30x8, 16 slots, batch 240"]["fits"]
    assert found["pcie/a30x8, 10 slots, batch 240"]["fits"]
    large = [found[f"nvidia/hgx-a100, {slots} slots, batch 240"] for slots in (16, 10)]
    assert all(each["fits"] for each in large)
    assert large[0]["step"] < large[1]["step"]
    assert found["nvidia/hgx-a100, dynamic gating"]["step"] < found["nvidia/hgx-a100, static gating"]["step"] / 2


def test_the_policies_combine(run):
    found = run("study_combined")
    best = next(iter(found))
    alone = found["dynamic", "in series", "top-8"]
    assert best == ("dynamic", "degree 2 or 4", "shortcut")
    assert (
        found[best] < min(found["dynamic", "degree 2 or 4", "top-8"], found["dynamic", "in series", "shortcut"]) < alone
    )


@pytest.mark.parametrize("name", ["combined_training", "drifting_serving", "nllb_translation", "swin_training"])
def test_the_scenarios_of_the_studies_load(name):
    import moesim

    assert moesim.load_study(str(ROOT / f"examples/{name}.yaml")).scenario.model.moe_layers
