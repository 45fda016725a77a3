"""Speed of the search: bounds, estimates, all of it. Targets stand beside; `make bench` measures in CPU time."""

from pathlib import Path

import numpy as np
import pytest

from moesim.deployments.floors import floor_estimates
from moesim.deployments.pools import estimator_of
from moesim.files.yaml import load_study
from moesim.plans.plan import Policy, Space
from moesim.search.optimization import optimize
from moesim.search.space import enumerate_pools

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study():
    return load_study(ROOT / "examples/deepseek_v3_serving.yaml")


def estimator(study, **axes):
    named = {path.replace("parallel_", "parallel."): values for path, values in axes.items()}
    space = Space(axes={**study.space.axes, "pools": ("all",), "node": ("nvidia/hgx-h200",), **named})
    table = enumerate_pools(study.scenario, space).table
    return estimator_of(study.scenario, table)


def test_memory_and_bound_of_every_layout(benchmark, study):
    """Distinct plans per CPU second: reach 1,000,000, record 10,000,000. Draws, which estimates share, apart."""
    found = estimator(study)
    rows = np.flatnonzero(found.memory.fits)
    floor_estimates(found, rows)  # the draws

    def bounded():
        again = estimator_of(study.scenario, found.table)
        again.run.arrangements._counts.update(found.run.arrangements._counts)
        return floor_estimates(again, rows)

    lower = benchmark(bounded)
    benchmark.extra_info["plans"] = len(found.table)
    assert np.isfinite(lower.step[rows]).all()
    assert len(found.table) == 7180


def test_estimates_of_one_structure(benchmark, study):
    """Plans fully estimated per CPU second: reach 5,000, record 50,000. 8 draws, 4 rank classes; drawing apart."""
    one = {
        "parallel_tp": (1,),
        "parallel_pp": (1,),
        "parallel_dp": (32,),
        "parallel_etp": (1,),
        "alltoall": (Policy(name="deduplicated"),),
        "overlap": (Policy(name="none"),),
        "placement": (Policy(name="contiguous"),),
        "max_batch": tuple(range(1, 129)),
    }
    found = estimator(study, **one)
    rows = np.flatnonzero(found.memory.fits)
    found.estimate(rows)  # the draws
    estimates = benchmark(found.estimate, rows)
    assert len(found.structures(rows)) == 1
    assert np.isfinite(estimates.step[rows]).sum() == len(rows) == 128


def test_the_example_search(benchmark, study):
    """All of `make plan` is to take 3 s of CPU, record 1.5 s; this is the search alone."""
    ranking = benchmark.pedantic(optimize, (study.scenario, study.space), {"goal": study.goal}, rounds=1)
    found = ranking.certificate
    assert found.estimated < found.considered / 1000
    assert found.gap == 0
