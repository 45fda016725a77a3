"""ScMoE: SwinV2-MoE-S with a shortcut, on eight A30 over PCIe and on eight A100 over NVLink."""

from dataclasses import replace

import pandas as pd

import moesim
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Plan, Policy, Pool
from moesim.world.scenario import Scenario

GATING = Policy(name="static", settings={"factor": 1.25, "sparse": True})
VARIANTS = {
    "top-2": Policy(name="none"),
    "shared expert": Policy(name="shared"),
    "top-1": Policy(name="fewer"),
    **{f"position {at}": Policy(name="scmoe", settings={"position": at}) for at in (1, 3)},
}


def steps(scenario: Scenario, node: str) -> dict[str, float]:
    """Estimate a training step of every variant; all but the first are other models, so they are asked for by name."""
    pool = Pool(
        role="all",
        node=node,
        replicas=1,
        parallel=Parallel(dp=8, ep=8),
        microbatch=16,
        policies={**DEFAULT_POLICIES, "gating": GATING},
    )
    plans = {
        name: Plan(pools=(replace(pool, policies={**pool.policies, "shortcut": policy}),))
        for name, policy in VARIANTS.items()
    }
    return {name: float(moesim.estimate(scenario, plan).summary["step"]) for name, plan in plans.items()}


def main() -> dict[str, dict[str, float]]:
    scenario = moesim.load_scenario("examples/swin_training.yaml")
    return {node: steps(scenario, node) for node in ("pcie/a30x8", "nvidia/hgx-a100")}


def table(found: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Set every variant's speed beside plain top-1's, which costs as little to exchange and needs no shortcut."""
    rows = [
        (name, node, steps["top-2"] / steps[name], steps["top-1"] / steps[name])
        for node, steps in found.items()
        for name in steps
        if name != "top-1"
    ]
    drawn = pd.DataFrame(rows, columns=["variant", "where", "over top-2", "over top-1"])
    return drawn.assign(outcome=drawn["over top-1"].map(lambda gain: "wins" if gain > 1 else "loses"))


if __name__ == "__main__":
    times = "{:.2f} x".format
    print(table(main()).to_string(index=False, formatters={"over top-2": times, "over top-1": times}))
