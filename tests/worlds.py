"""Small real worlds for tests: shipped models on shipped machines, with a plain serving workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from moesim.files.models import load
from moesim.files.profiles import load_profile
from moesim.ground.streams import stream
from moesim.ground.units import Source
from moesim.passes.exchanges import Routed
from moesim.passes.lowering import arrange, distinct_blocks, lower, sampled_layers
from moesim.passes.presence import home_tokens, mixture_kinds
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy, Pool
from moesim.schedules.schedule import Schedule
from moesim.world.framework import Framework
from moesim.world.generators import Balanced, skewed
from moesim.world.hardware import Hardware, Node, Offer, reach
from moesim.world.model import Model
from moesim.world.scenario import Scenario
from moesim.world.workload import Arrivals, Batch, Lengths, Requests, Serving, Target, Training

MODELS = (
    "deepseek-ai/DeepSeek-V3",
    "mistralai/Mixtral-8x7B-v0.1",
    "openai/gpt-oss-120b",
    "Qwen/Qwen3.5-397B-A17B",
    "microsoft/SwinV2-MoE-S",
    "facebook/nllb-moe-54b",
    "Qwen/Qwen3-32B",
)

SERVING = Serving(
    requests=Requests(
        arrivals=Arrivals(generator="poisson", rate=12.0),
        input=Lengths(generator="fixed", mean=2000.0),
        output=Lengths(generator="fixed", mean=300.0),
    ),
    targets=(Target(metric="tpot.p99", limit=0.05),),
)
TRAINING = Training(sequence=4096, sequences=256, tokens=1e9)
PLAIN = Framework(
    name="plain",
    version="1",
    reserve=3.5e9,
    utilization=0.9,
    step=0.0,
    block=16,
    workspace=20.0,
    source=Source(kind="assumed", title="tests"),
)


@cache
def model(name: str) -> Model:
    """Load a shipped model once."""
    return load(name)


@cache
def brief(name: str) -> Model:
    """Cut a shipped model down to one layer of each kind, in order, and one more like the last."""
    whole = model(name)
    return replace(whole, layers=(*dict.fromkeys(whole.layers), whole.layers[-1]))


@cache
def offer(name: str = "nvidia/hgx-h200", max_nodes: int = 8) -> Offer:
    """Put a shipped node type on offer."""
    return Offer(node=uncalibrated(name), max_nodes=max_nodes, rent=3.5 / 3600)


def uncalibrated(name: str) -> Node:
    """A shipped node without what was fitted for it: what these tests claim holds on a datasheet alone."""
    node = load_profile("node", name).profile
    return replace(node, device=replace(node.device, fits={}))


def scenario(
    name: str = "deepseek-ai/DeepSeek-V3",
    *,
    offers: Sequence[Offer] = (),
    cv: float = 0.0,
    workload: Serving | Training = SERVING,
    seed: int = 0,
    short: bool = False,
) -> Scenario:
    """Build a world around a shipped model, whole or `brief`; cv 0 is balanced routing."""
    chosen = brief(name) if short else model(name)
    layers = len(chosen.moe_layers)
    moe = chosen.moe(chosen.moe_layers[0]) if layers else None
    sizes = (
        {"experts": moe.experts, "topk": moe.topk, "groups": moe.groups, "group_topk": moe.group_topk}
        if moe
        else {"experts": 1, "topk": 1}
    )
    routing = skewed(layers, **sizes, cv=cv, seed=seed) if cv else Balanced(layers=max(layers, 1), **sizes)
    return Scenario(
        name="test",
        model=chosen,
        hardware=Hardware(
            offers=tuple(offers) or (offer(),), fabric=load_profile("fabric", "infiniband/rail-400g").profile.tiers
        ),
        workload=workload,
        routing=routing,
        frameworks={"plain": PLAIN},
    )


def pool(
    parallel: Parallel,
    *,
    node: str = "nvidia/hgx-h200",
    replicas: int = 1,
    microbatch: int = 1,
    precision: Mapping[str, str] = MappingProxyType({}),
    **policies: Policy | str,
) -> Pool:
    """Build a pool, policies by kind."""
    named = {kind: Policy(name=policy) if isinstance(policy, str) else policy for kind, policy in policies.items()}
    return Pool(
        role="all",
        node=node,
        replicas=replicas,
        parallel=parallel,
        microbatch=microbatch,
        precision=precision,
        policies={**DEFAULT_POLICIES, **named},
    )


def distinct(
    world: Scenario, chosen: Pool, layer_of: Int[np.ndarray, "draw layer"]
) -> Mapping[int, Float[np.ndarray, "draw layer"]]:
    """Mean number of blocks of ranks that a token's experts live in, for every size of block that a hop reaches."""
    if not world.model.moe_layers:
        return {}
    layout = arrange(world, chosen, tokens=1, seed=0)
    node = world.hardware.offer(chosen.node).node
    sizes = [size for _, size in reach(node, world.hardware.fabric)]
    touched = distinct_blocks(world.routing, layout, chosen.parallel.etp, sizes)
    return {size: each[layer_of] for size, each in touched.items()}


def one_layer_draws(
    world: Scenario, chosen: Pool, tokens: int, *, draws: int, seed: int = 0, folded: bool = False
) -> Routed:
    """Draw the counts of one MoE layer a pass, that of each draw from another depth, to stand for all its layers.

    Folded, one source rank is the mean of an expert block's ranks.
    """
    layers = sampled_layers(world.routing.layers, draws)
    p = chosen.parallel
    ranks = p.ep * p.etp if folded else p.ranks
    drawn = world.routing.only(layers.tolist()).draw(np.full(ranks, tokens), 0, stream(seed, "routing"))
    return Routed(
        counts=(drawn.mean(axis=1, keepdims=True) if folded else drawn)[:, None],
        layer_of=layers[:, None],
        distinct=distinct(world, chosen, layers[:, None]),
    )


def lowered(
    world: Scenario, chosen: Pool, batch: Batch, drawn: Sequence[Routed], *, stage: int = 0, seed: int = 0
) -> tuple[Schedule, ...]:
    """Lower a stage's pass on given draws, one for each part of the batch: all alternatives."""
    layout = arrange(world, chosen, tokens=int(batch.tokens.max()), seed=seed)
    parts = [[each] for each in drawn]
    return lower(world, [chosen], stage, [layout], [batch] * len(parts), parts).schedules()


def unfolded_draws(world: Scenario, chosen: Pool, batch: Batch, *, draws: int = 1, seed: int = 0) -> Routed:
    """Draw whole counts for every rank and every MoE layer, at the tokens that layer sees."""
    rng = stream(seed, "routing")
    seen = {}
    for kind in mixture_kinds(world.model):
        tokens = home_tokens(kind, world.model, batch).max()
        assert tokens == int(tokens)
        per_rank = np.full(chosen.parallel.ranks, int(tokens))
        seen[kind.part, kind.tokens] = np.stack([world.routing.draw(per_rank, turn, rng) for turn in range(draws)])
    layers = [world.model.layers[number] for number in world.model.moe_layers]
    none = np.zeros((draws, 1, chosen.parallel.ranks, 1), int)
    counts = np.stack([seen[layer.part, layer.tokens][:, i] for i, layer in enumerate(layers)], 1) if layers else none
    layers = np.tile(np.arange(counts.shape[1]), (draws, 1))
    return Routed(counts=counts, layer_of=layers, distinct=distinct(world, chosen, layers))


def unfolded(
    world: Scenario, chosen: Pool, batch: Batch, *, stage: int = 0, draws: int = 1, seed: int = 0
) -> tuple[Schedule, Routed]:
    """Lower one pass with every rank a row and every layer its own draw; home tokens must be whole."""
    drawn = unfolded_draws(world, chosen, batch, draws=draws, seed=seed)
    return lowered(world, chosen, batch, [drawn], stage=stage, seed=seed)[0], drawn
