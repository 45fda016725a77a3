"""DynaMoE: capacities follow the load and assignments are cached, at the price of recompiling; when does that pay?"""

import numpy as np
import pandas as pd

from moesim.deployments.adaptation import Charges, Loaded, Trace, Walk, break_even, walk
from moesim.files.profiles import load_profile
from moesim.passes.parallelisms import layer_seconds
from moesim.plans.layout import Layout
from moesim.plans.plan import Policy
from moesim.policies.finding import make
from moesim.policies.protocols import Adaptation, Sizes
from moesim.policies.scores import caching_gain
from moesim.world.model import Moe

GPUS, EXPERTS, TOKENS, TOPK, STEPS = 8, 8, 4096, 2, 4000
RECOMPILE = 20.0  # seconds to drain, compile and capture anew; DynaMoE's own figure is not published


def timed() -> tuple[np.ndarray, np.ndarray]:
    """Time one layer by the rows of the busiest gpu, on eight A30 over PCIe."""
    node = load_profile("node", "pcie/a30x8").profile
    moe = Moe(experts=EXPERTS, topk=TOPK, width=4096, input_dim=1024, gated=False)
    per_gpu = np.array([64, 512, 1024, 2048, 4096, 8192])
    seconds = [layer_seconds(moe, node, (), GPUS, int(rows), (1, 1, "linear")) for rows in per_gpu]
    return per_gpu * GPUS * 1.0, np.array(seconds)


def run(load: np.ndarray, agreement: np.ndarray, policies: list[Adaptation]) -> Walk:
    """Walk one layer whose busiest expert gets `load` times the mean; capacity starts at four times the mean."""
    total = TOKENS * GPUS * TOPK
    counts = np.repeat(((1 - load / EXPERTS) / (EXPERTS - 1) * total)[:, None, None], EXPERTS, axis=2)
    counts[:, 0, 0] = load / EXPERTS * total
    rows, seconds = timed()
    start = Layout(
        expert_of_slot=np.arange(EXPERTS)[None],
        rank_of_slot=np.arange(EXPERTS),
        capacity=np.full((1, EXPERTS), 4 * TOPK * TOKENS // EXPERTS),
        resident=np.ones((1, EXPERTS), bool),
        r=np.ones(1, int),
        degree=np.ones(1, int),
        alltoall=("linear",),
    )
    prices = Loaded(rows=rows, seconds=seconds, counts=counts.astype(int), gpus=GPUS, cached=1 / caching_gain(0.5))
    trace = Trace(counts=counts.astype(int), most=np.ones((STEPS, 1), int), agreement=agreement)
    sizes = Sizes(tokens=TOKENS, topk=TOPK, gpus=GPUS, nodes=1, expert=16e6)
    return walk(policies, start, sizes, trace, prices, charges=Charges(rebuild=RECOMPILE))


def main() -> dict[str, float]:
    capacity = make("adaptation", Policy(name="dynamoe", settings={"memory": 0.01}))
    hasty = make("adaptation", Policy(name="dynamoe", settings={"memory": 0.2}))
    caching = make("adaptation", Policy(name="caching"))
    steady, agreed, not_agreed = np.full(STEPS, 1.3), np.full(STEPS, 0.99), np.full(STEPS, 0.5)
    swinging = 2.0 + 1.6 * np.sign(np.sin(np.arange(STEPS) / 30))
    still = run(steady, agreed, [])
    cut = run(steady, agreed, [capacity])
    ((first, _),) = cut.changes
    return {
        "capacity, steady load": still.total / cut.total,
        "capacity and caching, steady load": still.total / run(steady, agreed, [capacity, caching]).total,
        "caching, assignments change": still.total / run(steady, not_agreed, [caching]).total,
        "hasty capacity, swinging load": run(swinging, agreed, []).total / run(swinging, agreed, [hasty]).total,
        "break-even steps": break_even(RECOMPILE, float(cut.seconds[0] - cut.seconds[-1])),
        "step of the cut": float(first),
    }


def table(found: dict[str, float]) -> pd.DataFrame:
    """Say where recompiling is faster than leaving all as it was."""
    rows = [(where, gain) for where, gain in found.items() if where not in ("break-even steps", "step of the cut")]
    drawn = pd.DataFrame(rows, columns=["what, and where", "gain"])
    outcome = {1: "wins", 0: "changes nothing", -1: "loses"}
    return drawn.assign(outcome=drawn["gain"].map(lambda gain: outcome[int(np.sign(gain - 1))]))


if __name__ == "__main__":
    found = main()
    print(table(found).to_string(index=False, formatters={"gain": "{:.2f} x".format}))
    print(
        f"the cut comes at step {found['step of the cut']:.0f} and has paid after {found['break-even steps']:.0f} more"
    )
