"""Which policies go with the rest of a pool: reacting ones, and chunks of a capacity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moesim.deployments.operation import Passes, operation
from moesim.ground.errors import PolicyError
from moesim.passes.table import table_of
from moesim.plans.layout import NO_LIMIT
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.overlap.pipeline import Pipeline
from moesim.policies.parallelism import ALGORITHMS, check_r
from moesim.policies.protocols import Gating, Shortcut
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

TURNING = ("tutel", "conventional")
"""Reacting policies that turn Tutel's knobs."""

FREE = {**dict.fromkeys(TURNING, ("overlap", "shortcut")), "caching": ("shortcut",)}
"""Kinds of policy that some reacting ones decide themselves, and that therefore have to be `none`."""


def turns(pool: Pool) -> bool:
    """Whether a pool's reacting policies turn knobs."""
    return any(policy.name in TURNING for policy in pool.adaptation)


def unsuited(pool: Pool, scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Name what keeps a pool's reacting policies from working: (problem, remedy)."""
    names = [policy.name for policy in pool.adaptation]
    if not scenario.model.moe_layers and any(name != "none" for name in names):
        yield f"reacts to routing, and {scenario.model.name} has no experts", "leave it out"
        return
    for name in dict.fromkeys(names):
        for kind in FREE.get(name, ()):
            if pool.policy(kind).name != "none":
                other = pool.policy(kind).name
                yield f"`{name}` needs {kind} for itself, and that is `{other}`", f"use `{kind}: none`"
        yield from _unmet(name, pool, scenario)


def _unmet(name: str, pool: Pool, scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Name what one policy lacks."""
    gating: Gating = make("gating", pool.policy("gating"))
    if name in TURNING:
        if pool.policy("gating").name == "dynamic":
            problem = f"`{name}` follows a capacity, and `dynamic` gating has none"
            yield problem, "use `gating: {name: static, factor: 0}`"
        if pool.policy("alltoall").name not in ALGORITHMS:
            yield f"`{name}` switches between {' and '.join(ALGORITHMS)}", f"use `alltoall: {ALGORITHMS[0]}`"
    if name == "dynamoe" and gating.capacity(1024, 8, 1) == NO_LIMIT:
        yield "`dynamoe` cuts capacities, and this gating has none", "use `gating: {name: static, factor: 4}`"
    if name == "caching" and not isinstance(scenario.workload, Training):
        yield "`caching` reads the assignments of an epoch before, and serving has no epochs", "use it in training"


def chunk_fault(pool: Pool, scenario: Scenario) -> str:
    """Say why a pool's smallest pass has too few rows for its chunks, and a remedy; "" where it has enough."""
    overlap = make("overlap", pool.policy("overlap"))
    if not isinstance(overlap, Pipeline) or not scenario.model.moe_layers or pool.parallel.ranks < 1:
        return ""
    table = table_of([pool])
    point = operation(scenario.workload, table)
    kinds = [kind for kind, share in ((True, point.carrying[0]), (False, 1 - point.carrying[0])) if share > 0]
    passes = [Passes(table=table, point=point, carrying=np.array([kind])) for kind in kinds]
    tokens = min(float(each.batch(scenario.workload, 1.0).tokens.flat[0]) for each in passes)
    return overlap.fault(_capacity(pool, scenario, max(1, round(tokens))))


def _capacity(pool: Pool, scenario: Scenario, tokens: int) -> int:
    """Rows of an expert on a source rank, in the layer that has most of them."""
    model = scenario.model
    gating: Gating = make("gating", pool.policy("gating"))
    shortcut: Shortcut = make("shortcut", pool.policy("shortcut"))
    moe = shortcut.mixture(model.moe(model.moe_layers[0]))
    seen = {model.layers[layer].tokens for layer in model.moe_layers}
    return max(gating.capacity(max(1, round(tokens * share)), moe.experts, moe.topk) for share in seen)


def degree_fault(pool: Pool, scenario: Scenario) -> str:
    """Say why knobs cannot be turned from a pool's degrees, of which r is ``etp``; "" where they can."""
    if not turns(pool) or not scenario.model.moe_layers:
        return ""
    try:
        check_r(pool.parallel.etp, pool.parallel.ranks, scenario.model.moe(scenario.model.moe_layers[0]).experts)
    except PolicyError as flaw:
        return str(flaw)
    return ""
