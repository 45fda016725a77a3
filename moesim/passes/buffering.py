"""Expert buffering in a pass: how often an expert that is used is not on the gpu, and the copies that bring it in."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from moesim.ground.errors import PolicyError
from moesim.ground.streams import stream
from moesim.passes.attention import ACTIVATION
from moesim.passes.chain import Chain
from moesim.passes.columns import Columns, Sizes
from moesim.passes.exchanges import Mixture
from moesim.passes.rows import slot_totals
from moesim.passes.shortcut import thin
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.caches import run_caches
from moesim.policies.finding import make
from moesim.policies.protocols import Buffering, Prefetch
from moesim.schedules.ops import Copy, Hosted, Op
from moesim.schedules.schedule import Task
from moesim.world.formats import bytes_of
from moesim.world.hardware import Node, computes
from moesim.world.model import Moe, expert_parameters
from moesim.world.routing import Routing

Rows = Int[np.ndarray, "slot plan draw rank"]

STEPS = 48
"""Passes a cache is run for; the first half fills it and is not counted."""

LAYERS = 4
"""MoE layers whose caches stand for all."""


def missing_share(routing: Routing, pool: Pool, layout: Layout, tokens: int, seed: int, kept: float = 1.0) -> float:
    """How many of the experts a rank uses in a pass are not on the gpu, in the mean once caches have filled.

    The buffering policy is run over drawn passes of `tokens` home tokens per rank, every rank's experts of a layer one
    cache; a share of the choices is `kept` where a shortcut leaves tokens fewer.

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
    counts = counts if kept == 1.0 else thin(counts, kept)
    placed = layout.expert_of_slot[np.minimum(layers, len(layout.expert_of_slot) - 1)]
    rows = [slot_totals(counts[:, [i]], np.tile(placed[i], (STEPS, 1)))[:, :, 0].T for i in range(len(layers))]
    accessed = np.stack(rows, axis=1).reshape(STEPS, -1, slots) > 0
    run = run_caches(policy, accessed, resident)
    late = slice(STEPS // 2, None)
    return float(run.missed[late].sum() / max(int(accessed[late].sum()), 1))


def buffered(pool: Pool) -> bool:
    """Whether a pool keeps only some of its experts on the gpu."""
    return pool.policy("buffering").name != "resident"


def popular(routing: Routing, pool: Pool, layout: Layout, node: Node) -> Bool[np.ndarray, "layer slot"]:
    """Say which slots stay on the gpu where the host computes the others: on every rank those used most.

    Raises
    ------
    PolicyError
        All slots are to be resident, or the node doesn't say what its host can compute.
    """
    if not computes(node):
        raise PolicyError(
            f"`{pool.policy('buffering').name}` computes experts on the host, but `{node.name}` does not say what its"
            " CPUs can do; give `host_bandwidth` and `host_flop_rate` in its profile, or fetch experts (`lifo`)"
        )
    buffering: Buffering = make("buffering", pool.policy("buffering"))
    resident = buffering.resident_of(layout.slots_per_rank)
    shares, placed = routing.shares(0), layout.expert_of_slot
    copies = np.stack([np.bincount(each, minlength=shares.shape[1]) for each in placed])
    load = np.take_along_axis(shares / copies, placed, axis=1).reshape(len(placed), -1, layout.slots_per_rank)
    place = np.argsort(np.argsort(-load, axis=-1, kind="stable"), axis=-1)
    return (place < resident).reshape(placed.shape)


def rows_on_host(pool: Pool, sized: Mixture) -> Rows | None:
    """Rows that the host computes: of experts that are kept off the gpu and have few rows; None: there are none."""
    buffering: Buffering = make("buffering", pool.policy("buffering"))
    if sized.away is None:
        return None
    return np.where((sized.away > 0) & (sized.rows <= buffering.hosted), sized.rows, 0)


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
    copied = prefetch(_fetched(sized, missing, buffering.hosted) * size)
    chosen, waits = chain.tail, []
    for name, bytes_in, after in (("prefetch", copied.early + copied.wasted, ()), ("fetch", copied.late, chosen)):
        op = Copy(size=bytes_in, source=buffering.tier, target="device")
        if np.any(bytes_in > 0) or (name == "fetch" and sized.away is None):
            waits.append(_beside(chain, name, op, "h2d", after))
    return tuple(waits)


def _fetched(sized: Mixture, missing: Sizes, hosted: int) -> Sizes:
    """How many experts each rank has to copy in."""
    if sized.away is None:
        return np.asarray((sized.rows > 0).sum(axis=0) * missing)
    return np.asarray(((sized.away > 0) & (sized.rows > hosted)).sum(axis=0))


def add_hosted(chain: Chain, moe: Moe, cols: Columns, rows: Rows) -> int:
    """Write what the host computes, beside what the gpu does: rows to it, its experts, their results back.

    Returns
    -------
    the last of these tasks
    """
    size = rows.sum(axis=0) * moe.input_dim * ACTIVATION
    experts = Hosted(rows=rows, weights=expert_parameters(moe) / cols.etp, dtype=cols.formats["experts"])
    there = _beside(chain, "rows_out", Copy(size=size, source="device", target="host"), "d2h", chain.tail)
    done = _beside(chain, "host_experts", experts, "host", (there,))
    return _beside(chain, "rows_in", Copy(size=size, source="host", target="device"), "h2d", (done,))


def _beside(chain: Chain, name: str, op: Op, stream: str, after: tuple[int, ...]) -> int:
    """Append a task that the chain does not wait for, and return its index."""
    chain.tasks.append(Task(name=name, stream=stream, op=op, after=after, layer=chain.layer))
    return len(chain.tasks) - 1
