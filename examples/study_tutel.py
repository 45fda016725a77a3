"""Tutel: parallelism, degree and all-to-all chosen anew in every step, on 64 A100; when does that pay?

Prices come from moesim's own pricing of one layer under every choice; the trace is how many rows an expert needs.
"""

from itertools import product

import numpy as np
import pandas as pd

from moesim.deployments.adaptation import Switched, Trace, at_best_fixed, clairvoyant, regret, walk
from moesim.files.profiles import load_profile
from moesim.passes.parallelisms import layer_seconds
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import Policy
from moesim.policies.finding import make
from moesim.policies.parallelism import ALGORITHMS, DEGREES, family
from moesim.policies.protocols import Sizes
from moesim.world.model import Moe

EXPERTS, LAYERS, STEPS, BUCKET = 16, 4, 300, 512


def prices(gpus: int, buckets: int) -> tuple[tuple[tuple[int, int, str], ...], np.ndarray]:
    """Time one layer under every choice at every capacity."""
    node, fabric = (
        load_profile("node", "nvidia/hgx-a100").profile,
        load_profile("fabric", "infiniband/hdr-200g").profile.tiers,
    )
    moe = Moe(experts=EXPERTS, topk=1, width=2048, input_dim=2048, gated=False)
    algorithms = ALGORITHMS if gpus > node.gpus else ALGORITHMS[:1]
    choices = tuple((r, d, a) for r in family(gpus, EXPERTS) for d in DEGREES for a in algorithms)
    rows = [BUCKET * (bucket + 1) for bucket in range(buckets)]
    return choices, np.array(
        [[layer_seconds(moe, node, fabric, gpus, each, choice) for each in rows] for choice in choices]
    )


def study(gpus: int, capacity: np.ndarray) -> dict[str, float]:
    """Set the adaptive choice beside the best fixed one and beside somebody who knows the trace."""
    bucket = capacity // BUCKET
    choices, seconds = prices(gpus, int(bucket.max()) + 1)
    table = Switched(configurations=choices, seconds=seconds, bucket=bucket)
    trace = Trace(counts=np.ones((STEPS, LAYERS, EXPERTS), int), most=capacity, agreement=np.zeros(STEPS))
    layout = Layout(
        expert_of_slot=np.tile(np.arange(EXPERTS), (LAYERS, 1)),
        rank_of_slot=np.arange(EXPERTS),
        capacity=np.full((LAYERS, EXPERTS), NO_LIMIT),
        resident=np.ones((LAYERS, EXPERTS), bool),
        r=np.ones(LAYERS, int),
        degree=np.ones(LAYERS, int),
        alltoall=("linear",) * LAYERS,
    )
    sizes = Sizes(tokens=4096, topk=1, gpus=gpus, nodes=max(1, gpus // 8), expert=67e6)
    tutel = make("adaptation", Policy(name="tutel", settings={"step": BUCKET}))
    adaptive = walk([tutel], layout, sizes, trace, table).total
    fixed, _ = at_best_fixed(table.by_configuration())
    free = np.zeros((len(choices), len(choices)))
    knowing = sum(clairvoyant(seconds[:, layer].T, free)[0] for layer in bucket.T)
    return {"adaptive": adaptive, "fixed": fixed, "gain": fixed / adaptive, "regret": regret(adaptive, knowing)}


def main() -> dict[str, dict[str, float]]:
    step = np.arange(STEPS)[:, None] + 10 * np.arange(LAYERS)
    drifting = (256 * 32 ** (0.5 - 0.5 * np.cos(step / 48))).astype(int)  # needs 32 times as much at its height
    steady = np.full((STEPS, LAYERS), 1000)
    return {
        "64 gpus, drifting": study(64, drifting),
        "64 gpus, steady": study(64, steady),
        "8 gpus, drifting": study(8, drifting),
    }


def data_parallel() -> dict[str, float]:
    """How much faster r = 0, all experts gathered everywhere, is than r = 1 at low and at high capacity."""
    gains = {}
    for gpus, bucket in product((64, 8), (0, 15)):
        choices, seconds = prices(gpus, bucket + 1)
        best = [min(seconds[i, bucket] for i, (own, _, _) in enumerate(choices) if own == r) for r in (0, 1)]
        gains[f"{gpus} gpus, {BUCKET * (bucket + 1)} rows per expert"] = float(best[1] / best[0])
    return gains


def table(found: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Say where adapting is faster than the best choice that is never changed, and where data parallelism pays."""
    rows = [("adapting every step", where, each["gain"]) for where, each in found.items()]
    rows += [("r = 0 over r = 1", where, gain) for where, gain in data_parallel().items()]
    drawn = pd.DataFrame(rows, columns=["choice", "where", "gain"])
    return drawn.assign(outcome=drawn["gain"].map(outcome))


def outcome(gain: float) -> str:
    """Name a gain; one of less than 5% is little, and trying every choice costs a tenth of a percent."""
    if gain < 0.995:
        return "loses"
    return "wins" if gain > 1.05 else "gains little" if gain > 1.005 else "gains nothing"


if __name__ == "__main__":
    print(table(main()).to_string(index=False, formatters={"gain": "{:.3f} x".format}))
