"""What one step of a plan works on: tokens of each rank, the experts they use, and what that is to moesim."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.streams import stream
from moesim.passes.exchanges import Routed
from moesim.passes.lowering import distinct_blocks
from moesim.passes.shortcut import changed_model
from moesim.passes.table import batching_of
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Shortcut
from moesim.world.hardware import reach
from moesim.world.scenario import Scenario
from moesim.world.workload import Batch, Serving, decoding, prompts

Chosen = Int[np.ndarray, "draw rank token topk"]


def tokens_of(scenario: Scenario, pool: Pool) -> int:
    """Return the tokens of each rank in a step: a microbatch, a batch of prompts, or one token of every sequence.

    In serving a pool works on prompts where they are longer than what is written, else on decodes.
    """
    workload = scenario.workload
    if not isinstance(workload, Serving):
        return pool.microbatch * workload.sequence
    sequences = batching_of(pool).max_batch
    return sequences * _prompt(workload) if _prompt(workload) > 1 else sequences


def _prompt(workload: Serving) -> int:
    """Return the tokens of a prompt, or 1 where decoding is what takes the time."""
    requests = workload.requests
    return round(requests.input.mean) if requests.input.mean > requests.output.mean else 1


def batch_of(scenario: Scenario, tokens: int) -> Batch:
    """Return a step's batch, alike on all ranks."""
    workload, one = scenario.workload, np.ones((1, 1, 1))
    if not isinstance(workload, Serving):
        return prompts(one * (tokens / workload.sequence), one * workload.sequence, backward=True)
    if (length := _prompt(workload)) > 1:
        return prompts(one * (tokens / length), one * length)
    return decoding(one * tokens, one * workload.requests.output.mean)


def choices(scenario: Scenario, tokens: int, ranks: int, draws: int, seed: int) -> Chosen:
    """Draw the experts that tokens use, step after step of the routing."""
    number = np.full(ranks, tokens)
    drawn = [
        scenario.routing.assign(number, step, stream(seed, f"choices {step}"))[0].reshape(ranks, tokens, -1)
        for step in range(draws)
    ]
    return np.stack(drawn).astype(np.int64)


def used(scenario: Scenario, pool: Pool, chosen: Chosen) -> Chosen:
    """Return the choices that a plan makes use of: the first ones where its shortcut routes to fewer experts."""
    shortcut: Shortcut = make("shortcut", pool.policy("shortcut"))
    model = changed_model(scenario.model, shortcut)
    return chosen[..., : model.moe(model.moe_layers[0]).topk]


def counts_of(chosen: Chosen, experts: int) -> Int[np.ndarray, "draw rank expert"]:
    """Count how many tokens of each rank use each expert.

    Examples
    --------
    >>> counts_of(np.array([[[[0, 2], [0, 1]]]]), 4).tolist()
    [[[2, 1, 1, 0]]]
    """
    draws, ranks = chosen.shape[:2]
    cells = np.arange(draws * ranks)[:, None] * experts + chosen.reshape(draws * ranks, -1)
    return np.bincount(cells.ravel(), minlength=draws * ranks * experts).reshape(draws, ranks, experts)


def routed(scenario: Scenario, pool: Pool, layout: Layout, counts: Float[np.ndarray, "rank expert"]) -> Routed:
    """Return one step's counts as a pass takes them; they are those of the plan, which thins the model's own."""
    shortcut: Shortcut = make("shortcut", pool.policy("shortcut"))
    first = scenario.model.moe_layers[0]
    fewer = changed_model(scenario.model, shortcut).moe(first).topk / scenario.model.moe(first).topk
    sizes = [size for _, size in reach(scenario.hardware.offers[0].node, scenario.hardware.fabric)]
    touched = distinct_blocks(scenario.routing.only([0]), layout, pool.parallel.etp, sizes, [0])
    return Routed(
        counts=(counts if fewer == 1 else counts / fewer)[None, None],
        layer_of=np.zeros((1, 1), int),
        distinct={size: each[:, None] for size, each in touched.items()},
    )
