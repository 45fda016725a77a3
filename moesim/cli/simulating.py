"""The simulating command: load, call one library function, show."""

from __future__ import annotations

from pathlib import Path

from moesim.cli.codes import MET, MISSED


def simulate(scenario: Path, plan: Path, /, *, seed: int = 0, replications: int = 1, json: bool = False) -> int:
    """Simulate one plan under its requests: percentiles, queues, goodput.

    Parameters
    ----------
    scenario
        A scenario file with a serving workload.
    plan
        A plan file.
    seed
        Seed of arrivals, lengths and routing draws.
    replications
        Independent repetitions to average over.
    json
        Print JSON for a pipe instead of tables.
    """
    from moesim.deployments.simulation import simulate as run
    from moesim.files.yaml import load_plan, load_scenario
    from moesim.views.progress import bar
    from moesim.views.serving import show_simulation, simulation_json

    world = load_scenario(scenario)
    chosen = load_plan(plan, world)
    with bar("simulating") as progress:
        result = run(world, chosen, seed=seed, replications=replications, progress=progress)
    if json:
        print(simulation_json(result))
    else:
        show_simulation(result)
    return MET if result.verdict.good else MISSED
