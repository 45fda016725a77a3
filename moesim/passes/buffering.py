"""Expert buffering in a pass: how often an expert that is used is not on the gpu, and the copies that bring it in."""

from __future__ import annotations

import numpy as np

from moesim.ground.streams import stream
from moesim.passes.chain import Chain
from moesim.passes.columns import Columns, Sizes
from moesim.passes.exchanges import Mixture
from moesim.passes.rows import slot_totals
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.caches import run_caches
from moesim.policies.finding import make
from moesim.policies.protocols import Buffering, Prefetch
from moesim.schedules.ops import Copy
from moesim.schedules.schedule import Task
from moesim.world.formats import bytes_of
from moesim.world.model import Moe, expert_parameters
from moesim.world.routing import Routing

STEPS = 48
"""Passes a cache is run for; the first half fills it and is not counted."""

LAYERS = 4
"""MoE layers whose caches stand for all."""


def missing_share(routing: Routing, pool: Pool, layout: Layout, tokens: int, seed: int) -> float:
    """How many of the experts a rank uses in a pass are not on the gpu, in the mean once caches have filled.

    The buffering policy is run over drawn passes of `tokens` home tokens per rank, every rank's experts of a layer one
    cache.

    Raises
    ------
    PolicyError
        More slots are to be resident than a rank has.
    """
    policy: Buffering = make("buffering", pool.policy("buffering"))
    slots = layout.slots_per_rank
    resident = policy.resident_of(slots)
    if resident == slots:
        return 0.0
    layers = np.unique(np.linspace(0, routing.layers - 1, LAYERS).astype(int))
    sample, rng = routing.only(layers.tolist()), stream(seed, "buffering")
    total = np.array([max(1, tokens) * pool.parallel.ep * pool.parallel.etp])
    counts = np.stack([sample.draw(total, step, rng)[:, 0] for step in range(STEPS)])
    placed = layout.expert_of_slot[np.minimum(layers, len(layout.expert_of_slot) - 1)]
    rows = [slot_totals(counts[:, [i]], np.tile(placed[i], (STEPS, 1)))[:, :, 0].T for i in range(len(layers))]
    accessed = np.stack(rows, axis=1).reshape(STEPS, -1, slots) > 0
    run = run_caches(policy, accessed, resident)
    late = slice(STEPS // 2, None)
    return float(run.missed[late].sum() / max(int(accessed[late].sum()), 1))


def buffered(pool: Pool) -> bool:
    """Whether a pool keeps only some of its experts on the gpu."""
    return pool.policy("buffering").name != "resident"


def add_fetches(chain: Chain, moe: Moe, cols: Columns, sized: Mixture, missing: Sizes) -> tuple[int, ...]:
    """Write the copies of missing experts: predicted ones from the block's start, the others once the gate has spoken.

    They share the link to the host with all that is on it, and run beside the exchange (Huang et al., arXiv
    2303.06182). Several experts travel as one copy, so every expert waits for all of them.

    Parameters
    ----------
    missing : share of a plan's used experts that are not on the gpu, one per plan

    Returns
    -------
    tasks that the experts wait for
    """
    buffering: Buffering = make("buffering", cols.first.policy("buffering"))
    prefetch: Prefetch = make("prefetch", cols.first.policy("prefetch"))
    size = expert_parameters(moe) * bytes_of(cols.formats["experts"]) / cols.etp
    copied = prefetch((sized.rows > 0).sum(axis=0) * missing * size)
    chosen, waits = chain.tail, []
    for name, bytes_in, after in (("prefetch", copied.early + copied.wasted, ()), ("fetch", copied.late, chosen)):
        op = Copy(size=bytes_in, source=buffering.tier, target="device")
        if name == "fetch" or np.any(bytes_in > 0):
            chain.tasks.append(Task(name=name, stream="h2d", op=op, after=after, layer=chain.layer))
            waits.append(len(chain.tasks) - 1)
    return tuple(waits)
