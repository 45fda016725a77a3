"""Huang et al.: NLLB-MoE with experts in host memory, on a small box that needs it and on a large one that doesn't."""

from itertools import product

import moesim
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Plan, Policy, Pool

FP16 = dict.fromkeys(("experts", "attention", "dense", "embedding", "kv", "dispatch", "combine"), "fp16")


def plan(node: str, slots: int, gating: Policy, batch: int) -> Plan:
    """Keep so many of the 16 experts a gpu has per layer; 16 is all of them."""
    buffering = Policy(name="lifo", settings={"resident": slots}) if slots < 16 else Policy(name="resident")
    batching = Policy(name="continuous", settings={"max_batch": batch})
    policies = {**DEFAULT_POLICIES, "buffering": buffering, "gating": gating, "batching": batching}
    pool = Pool(role="all", node=node, replicas=1, parallel=Parallel(dp=8, ep=8), precision=FP16, policies=policies)
    return Plan(pools=(pool,))


def main() -> dict[str, dict[str, float]]:
    scenario = moesim.load_scenario("examples/nllb_translation.yaml")
    dynamic, static = Policy(name="dynamic"), Policy(name="static", settings={"fraction": 1.0})
    found = {}
    for node in ("pcie/a30x8", "nvidia/hgx-a100"):
        for slots, batch in product((16, 10), (12, 240)):
            result = moesim.estimate(scenario, plan(node, slots, dynamic, batch))
            found[f"{node}, {slots} slots, batch {batch}"] = {
                "fits": float(result.verdict.fits),
                "step": float(result.summary["step"]),
            }
    for name, gating in (("dynamic", dynamic), ("static", static)):
        result = moesim.estimate(scenario, plan("nvidia/hgx-a100", 16, gating, 12))
        found[f"nvidia/hgx-a100, {name} gating"] = {"step": float(result.summary["step"])}
    return found


if __name__ == "__main__":
    for name, numbers in main().items():
        print(name, ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
