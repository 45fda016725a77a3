"""Published results: single steps of a layout, or a simulated run, from set-ups written in case files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moesim.deployments.arrangements import arrangements
from moesim.deployments.deployed import of_role_all
from moesim.deployments.pools import estimator_of
from moesim.deployments.simulation import simulate
from moesim.deployments.summary import summarize
from moesim.deployments.tabulation import Pass, pass_times
from moesim.files.checked import check
from moesim.files.plans import read_plan
from moesim.files.studies import read_study
from moesim.files.trees import Tree
from moesim.passes.table import table_of
from moesim.plans.plan import Plan, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching
from moesim.world.scenario import Scenario

from .prediction import DRAWS

CASES = Path(__file__).parents[1] / "cases" / "serving" / "published"
HEAD = """# Published results of serving and training, reproduced

Written by `moesim validate published`; do not edit. Every check is a file in `validate/cases/serving/published/`: its
set-up, what was published, and an expression over steps that are priced or runs that are simulated from the set-up.
Nothing was fitted to these numbers. *Medium* and *weak* checks are reported as they come out, misses as misses.

Not among them: KAITO's DeepSeek-V4-Flash on two H100 (kaito-project/kaito issue 2305), whose lengths and load are not
stated, and InferSim's runs of Qwen3-30B-A3B on H20, whose cached lengths are not stated.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What ran.

    Attributes
    ----------
    phase : one step of prompts or of decodes, a whole run, or a training step
    nodes : how many nodes there are
    pool : a pool as plans write it, without role and node
    size : new tokens on each gpu in a step of prompts, sequences on each gpu in one of decodes
    length : tokens of a prompt, or those that a decoded one attends to
    workload : of a whole run or of training, as scenarios write it
    """

    phase: Literal["prompts", "decodes", "run", "training"]
    model: str
    node: str
    fabric: str
    nodes: int
    routing: Mapping[str, Any]
    pool: Mapping[str, Any]
    size: float = 0.0
    length: float = 0.0
    workload: Mapping[str, Any] | None = None


Served = Mapping[str, float]
"""What is predicted: `per_node` and `per_gpu` in tokens per second (new ones in, or answers out), the `step`'s time; of
a run its metrics, points written as underscores. Of training the metrics of an estimate, too, and `gpu_hours` for 10^12
tokens, whether or not memory is said to suffice (`memory` is the share of it that is taken)."""


def served(tree: Tree, label: str, folder: Path) -> Served:
    """Work out one set-up of a case.

    Raises
    ------
    InputError
        The set-up has faults.
    """
    kept = {(Setup, name): _kept for name in ("routing", "pool", "workload")}
    setup = check(Setup, tree, label, readers=kept)
    scenario = read_study(_scenario(setup), label, folder).scenario
    plan = read_plan({"pools": [{"role": "all", "node": setup.node, "replicas": 1, **setup.pool}]}, label, scenario)
    if setup.phase == "training":
        return _training(scenario, plan.pools[0])
    return _run(scenario, plan) if setup.phase == "run" else _step(setup, scenario, plan.pools[0])


def _kept(value: Tree) -> Any:
    return value


def _scenario(setup: Setup) -> Tree:
    """Write a set-up as a scenario; a single step has a workload for form's sake."""
    alone = {
        "kind": "serving",
        "requests": {
            "arrivals": {"generator": "closed", "concurrency": 1},
            "input": {"generator": "constant", "mean": f"{setup.length:g} tokens"},
            "output": {"generator": "constant", "mean": "100 tokens"},
        },
    }
    return {
        "name": "published",
        "model": setup.model,
        "hardware": {"offers": [{"node": setup.node, "max_nodes": setup.nodes}], "fabric": setup.fabric},
        "workload": dict(setup.workload or alone),
        "routing": dict(setup.routing),
    }


def _step(setup: Setup, scenario: Scenario, pool: Pool) -> Served:
    """Price one step, with what the framework adds to it on the host."""
    drawn = arrangements(scenario, seed=0, draws=DRAWS)
    batching: Batching = make("batching", pool.policy("batching"))
    prompts = setup.phase == "prompts"
    one = _prompts(setup, pool) if prompts else _decodes(setup, batching.speculated)
    seconds = float(pass_times(drawn.scenario, pool, drawn, [one])[0][0])
    sequences = 0.0 if prompts else setup.size * pool.parallel.ranks / pool.parallel.dp
    framework = scenario.frameworks[pool.framework]
    seconds = framework.pace * (seconds + framework.overhead(len(scenario.model.layers), sequences))
    per_gpu = setup.size * (1.0 if prompts else batching.emitted) / seconds
    gpus = scenario.hardware.offer(pool.node).node.gpus
    return {"per_node": per_gpu * gpus, "per_gpu": per_gpu, "step": seconds}


def _training(scenario: Scenario, pool: Pool) -> Served:
    """Time a training step by formula."""
    table = table_of([pool])
    estimator = estimator_of(scenario, table)
    estimator.estimate(np.array([0]))
    whole = of_role_all(table, np.array([0]), np.array([1]))
    metrics = {name: float(value[0]) for name, value in summarize(scenario, whole, estimator.estimates).metrics.items()}
    taken = float(estimator.memory.total[0] / estimator.memory.capacity[0])
    gpu_hours = 1e12 / metrics["throughput_per_gpu"] / 3600.0
    return {**metrics, "per_gpu": metrics["throughput_per_gpu"], "gpu_hours": gpu_hours, "memory": taken}


def _prompts(setup: Setup, pool: Pool) -> Pass:
    """Whole prompts of one length, dealt evenly; a rank's share of its group's work."""
    group = pool.parallel.tp * pool.parallel.cp
    count = setup.size * group / setup.length
    return Pass(
        prefill=setup.size,
        prompts=count / group,
        pairs=setup.size * setup.length / 2,
        keys=max(count, 1.0) * setup.length / group,
        decode=0.0,
        context=0.0,
        home=setup.size,
    )


def _decodes(setup: Setup, speculated: int) -> Pass:
    tokens = setup.size * (1 + speculated)
    return Pass(prefill=0.0, prompts=0.0, pairs=0.0, keys=0.0, decode=tokens, context=setup.length, home=tokens)


def _run(scenario: Scenario, plan: Plan) -> Served:
    """Simulate a run and name its metrics."""
    summary = simulate(scenario, plan).summary
    metrics = {name.replace(".", "_"): value.mid for name, value in summary.items()}
    node = scenario.hardware.offer(plan.pools[0].node).node
    gpus = plan.pools[0].replicas * plan.pools[0].parallel.gpus
    rate = metrics["throughput"]
    return {**metrics, "per_node": rate * node.gpus / gpus, "per_gpu": rate / gpus}
