"""Huang et al.: NLLB-MoE with experts in host memory, and with dynamic gating; where each wins, and where it loses.

A small box needs the buffers and a large one doesn't; dynamic gating wins over room for every token at every expert,
and loses to a capacity near the mean, which drops what is over.
"""

from itertools import product

import pandas as pd

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
    dynamic = Policy(name="dynamic")
    high = Policy(name="static", settings={"fraction": 1.0})
    low = Policy(name="static", settings={"factor": 1.0, "sparse": True})
    found = {}
    for node in ("pcie/a30x8", "nvidia/hgx-a100"):
        for slots, batch in product((16, 10), (12, 240)):
            result = moesim.estimate(scenario, plan(node, slots, dynamic, batch))
            found[f"{node}, {slots} slots, batch {batch}"] = {
                "fits": float(result.verdict.fits),
                "step": float(result.summary["step"]),
            }
    for name, gating in (("dynamic", dynamic), ("static", high), ("low static", low)):
        result = moesim.estimate(scenario, plan("nvidia/hgx-a100", 16, gating, 240))
        found[f"nvidia/hgx-a100, {name} gating"] = {"step": float(result.summary["step"])}
    return found


def table(found: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Say where Huang et al.'s choice is faster than the other one, or the only one that fits."""
    rows = []
    for node, batch in product(("pcie/a30x8", "nvidia/hgx-a100"), (12, 240)):
        whole, kept = (found[f"{node}, {slots} slots, batch {batch}"] for slots in (16, 10))
        gain = whole["step"] / kept["step"] if whole["fits"] else float("inf")
        rows.append(("10 of 16 experts on the gpu", f"{node}, batch {batch}", gain))
    steps = {name: found[f"nvidia/hgx-a100, {name} gating"]["step"] for name in ("dynamic", "static", "low static")}
    for name, where in (("static", "room for every token"), ("low static", "capacity factor 1")):
        rows.append(("dynamic gating", f"nvidia/hgx-a100, batch 240, against {where}", steps[name] / steps["dynamic"]))
    drawn = pd.DataFrame(rows, columns=["choice", "where", "gain"])
    return drawn.assign(outcome=drawn["gain"].map(lambda gain: "wins" if gain > 1 else "loses"))


if __name__ == "__main__":
    print(table(main()).to_string(index=False, formatters={"gain": "{:.2f} x".format}))
