"""`moesim launch`: the commands that start a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from moesim.cli.codes import MET

if TYPE_CHECKING:
    from moesim.plans.plan import Plan
    from moesim.world.scenario import Scenario


def launch(
    source: Path,
    chosen: Path | None = None,
    /,
    *,
    plan: int | Literal["purchase"] = 1,
    framework: str = "",
    json: bool = False,
) -> int:
    """Print the commands that start a plan: one for each node, with every flag that the plan decides.

    Parameters
    ----------
    source
        A run folder, or a scenario file.
    chosen
        A plan file, where a scenario is given.
    plan
        Which plan of the run folder, by its rank; or what is bought, `purchase`.
    framework
        vllm, sglang, tensorrt_llm, dynamo or megatron; the plan's own where not given.
    json
        Print JSON for a pipe instead of a script.
    """
    from moesim.deployments.launching.commands import launch as words
    from moesim.deployments.launching.fitting import refuse_unfit
    from moesim.files.launching import dialect_for
    from moesim.views.launch import launch_json, launch_script
    from moesim.world.workload import Training

    world, picked = _plan(source, chosen, plan)
    training = isinstance(world.workload, Training)
    found = words(world, picked, dialect_for(framework, picked.pools[0].framework, training=training))
    if not training:
        refuse_unfit(world, picked)
    print(launch_json(found) if json else launch_script(found), end="\n" if json else "")
    return MET


def _plan(source: Path, chosen: Path | None, number: int | str) -> tuple[Scenario, Plan]:
    """Load a plan from a run folder by its rank, or from its own file."""
    from moesim.files.runs import load_run
    from moesim.files.yaml import load_plan, load_scenario
    from moesim.ground.errors import Fault, PlanError

    if chosen is not None:
        world = load_scenario(source)
        return world, load_plan(chosen, world)
    run = load_run(source)
    plans = run.answer.plans
    if number == "purchase":
        if run.answer.bought is None:
            raise PlanError("--plan", [Fault(path="", problem="the run buys nothing", remedy="give a rank, such as 1")])
        return run.study.scenario, run.answer.bought
    assert isinstance(number, int)
    if not 1 <= number <= len(plans):
        problem = f"there is no plan {number}: the run keeps {len(plans)}"
        raise PlanError("--plan", [Fault(path="", problem=problem, remedy=f"give 1 to {len(plans)}")])
    return run.study.scenario, plans[number - 1]
