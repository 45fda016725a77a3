"""The studies of the four systems: each wins where its paper says it wins, and loses where it should."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch):
    """Run an example from the source tree's root, as a reader would; give what it found, and its table's rows."""
    monkeypatch.chdir(ROOT)

    def found(name):
        example = runpy.run_path(f"examples/{name}.py")
        numbers = example["main"]()
        return numbers, [*example["table"](numbers).itertuples(index=False, name=None)]

    return found


def told(rows):
    """What a table says of each of its choices."""
    return {row[:-2]: row[-1] for row in rows}


def test_tutel_gains_under_drift_at_scale_and_gathers_experts_at_high_capacity(run):
    found, rows = run("study_tutel")
    assert told(rows) == {
        ("adapting every step", "64 gpus, drifting"): "wins",
        ("adapting every step", "64 gpus, steady"): "gains nothing",
        ("adapting every step", "8 gpus, drifting"): "gains little",
        ("r = 0 over r = 1", "64 gpus, 512 rows per expert"): "loses",
        ("r = 0 over r = 1", "64 gpus, 8192 rows per expert"): "wins",
        ("r = 0 over r = 1", "8 gpus, 512 rows per expert"): "loses",
        ("r = 0 over r = 1", "8 gpus, 8192 rows per expert"): "gains nothing",
    }
    assert found["64 gpus, drifting"]["gain"] > 1.15
    assert found["64 gpus, drifting"]["regret"] < 0.01
    assert found["64 gpus, steady"]["gain"] == pytest.approx(1, abs=0.01)
    assert 1 <= found["8 gpus, drifting"]["gain"] < found["64 gpus, drifting"]["gain"]


def test_dynamoe_gains_when_the_load_settles_and_loses_when_it_swings(run):
    found, rows = run("study_dynamoe")
    assert [row[-1] for row in rows] == ["wins", "wins", "changes nothing", "loses"]
    assert found["capacity, steady load"] > 1.1
    assert found["capacity and caching, steady load"] > found["capacity, steady load"]
    assert found["caching, assignments change"] == 1
    assert found["hasty capacity, swinging load"] < 1
    assert found["break-even steps"] < 4000 - found["step of the cut"]


def test_scmoe_gains_over_pcie_and_less_than_top_1_over_nvlink(run):
    found, rows = run("study_scmoe")
    assert {(row[0], row[1]) for row in rows if row[-1] == "wins"} == {
        ("position 1", "pcie/a30x8"),
        ("position 3", "pcie/a30x8"),
    }
    pcie, nvlink = found["pcie/a30x8"], found["nvidia/hgx-a100"]
    order = ["top-2", "shared expert", "top-1", "position 1", "position 3"]
    assert [pcie[name] for name in order] == sorted(pcie.values(), reverse=True)
    assert nvlink["top-1"] < nvlink["position 3"] < nvlink["shared expert"] < nvlink["top-2"]


def test_buffering_makes_room_on_a_small_box_and_only_costs_on_a_large_one(run):
    found, rows = run("study_huang")
    assert told(rows) == {
        ("10 of 16 experts on the gpu", "pcie/a30x8, batch 12"): "loses",
        ("10 of 16 experts on the gpu", "pcie/a30x8, batch 240"): "wins",
        ("10 of 16 experts on the gpu", "nvidia/hgx-a100, batch 12"): "loses",
        ("10 of 16 experts on the gpu", "nvidia/hgx-a100, batch 240"): "loses",
        ("dynamic gating", "nvidia/hgx-a100, batch 240, against room for every token"): "wins",
        ("dynamic gating", "nvidia/hgx-a100, batch 240, against capacity factor 1"): "loses",
    }
    assert not found["pcie/a30x8, 16 slots, batch 240"]["fits"]
    assert found["pcie/a30x8, 10 slots, batch 240"]["fits"]
    large = [found[f"nvidia/hgx-a100, {slots} slots, batch 240"] for slots in (16, 10)]
    assert all(each["fits"] for each in large)
    assert large[0]["step"] < large[1]["step"]
    assert found["nvidia/hgx-a100, dynamic gating"]["step"] < found["nvidia/hgx-a100, static gating"]["step"] / 2


def test_the_policies_combine(run):
    found, rows = run("study_combined")
    assert {row[2] for row in rows if row[-1] == "changed"} == {"shortcut"}
    best = next(iter(found))
    alone = found["dynamic", "in series", "top-8"]
    assert best == ("dynamic", "degree 2 or 4", "shortcut")
    assert (
        found[best] < min(found["dynamic", "degree 2 or 4", "top-8"], found["dynamic", "in series", "shortcut"]) < alone
    )


@pytest.mark.parametrize(
    "name",
    [
        "adaptive_training",
        "combined_training",
        "drifting_serving",
        "graph_buckets",
        "nllb_translation",
        "scmoe_offloading",
        "swin_training",
    ],
)
def test_the_scenarios_of_the_studies_load(name):
    import moesim

    assert moesim.load_study(str(ROOT / f"examples/{name}.yaml")).scenario.model.moe_layers
