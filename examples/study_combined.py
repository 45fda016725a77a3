"""All four systems' policies together on a cluster none of the papers had: 16 H200 training Qwen3-30B-A3B.

`moesim optimize examples/combined_training.yaml` searches them all; here eight combinations are estimated one by one.
"""

from dataclasses import replace
from itertools import product

import pandas as pd

import moesim
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Plan, Policy, Pool

CHOICES = {
    "gating": {
        "dynamic": Policy(name="dynamic"),
        "static without drops": Policy(name="static", settings={"factor": 0.0, "sparse": True}),
    },
    "overlap": {
        "in series": Policy(name="none"),
        "degree 2 or 4": Policy(name="pipeline", settings={"degree": (2, 4)}),
    },
    "shortcut": {
        "top-8": Policy(name="none"),
        "shortcut": Policy(name="scmoe", settings={"position": 1, "routed": 7}),
    },
}


def main() -> dict[tuple[str, ...], float]:
    """Estimate a training step of every combination, the fastest first."""
    scenario = moesim.load_study("examples/combined_training.yaml").scenario
    pool = Pool(
        role="all", node="nvidia/hgx-h200", replicas=1, parallel=Parallel(dp=16, ep=16), policies=DEFAULT_POLICIES
    )
    found = {}
    for names in product(*CHOICES.values()):
        chosen = {kind: CHOICES[kind][name] for kind, name in zip(CHOICES, names, strict=True)}
        plan = Plan(pools=(replace(pool, policies={**DEFAULT_POLICIES, **chosen}),))
        found[names] = float(moesim.estimate(scenario, plan).summary["step"])
    return dict(sorted(found.items(), key=lambda item: item[1]))


def table(found: dict[tuple[str, ...], float]) -> pd.DataFrame:
    """List the combinations, the fastest first, beside the plain one."""
    plain = found["dynamic", "in series", "top-8"]
    rows = [(*names, 1e3 * step, plain / step) for names, step in found.items()]
    drawn = pd.DataFrame(rows, columns=[*CHOICES, "step, ms", "gain"])
    changed = drawn["shortcut"] != "top-8"
    return drawn.assign(model=changed.map({True: "changed", False: "same"}))


if __name__ == "__main__":
    formatters = {"step, ms": "{:.0f}".format, "gain": "{:.3f} x".format}
    print(table(main()).to_string(index=False, formatters=formatters))
