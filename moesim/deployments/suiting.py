"""Which reacting policies go with the rest of a pool."""

from __future__ import annotations

from collections.abc import Iterator

from moesim.ground.errors import PolicyError
from moesim.plans.layout import NO_LIMIT
from moesim.plans.plan import Pool
from moesim.policies.finding import make
from moesim.policies.parallelism import ALGORITHMS, check_r
from moesim.policies.protocols import Gating
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


def degree_fault(pool: Pool, scenario: Scenario) -> str:
    """Say why knobs cannot be turned from a pool's degrees, of which r is ``etp``; "" where they can."""
    if not turns(pool) or not scenario.model.moe_layers:
        return ""
    try:
        check_r(pool.parallel.etp, pool.parallel.ranks, scenario.model.moe(scenario.model.moe_layers[0]).experts)
    except PolicyError as flaw:
        return str(flaw)
    return ""
