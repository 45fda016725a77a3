"""What is measured before anything is predicted: layers of the scenario's shape, at other sizes than those compared.

Of every kind of gating the space holds, a few layers are run with fewer and more tokens than the plans will have, and
their parts are timed under the ranks and links of the run. `tuning` fits moesim's own cost forms to these parts. What a
plan adds to a layer of this kind (capacity, skew, placement, chunks, hierarchy, shortcut) is not measured here but
predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from moesim.passes.table import batching_of
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy, Pool, Space
from moesim.policies.finding import make
from moesim.policies.protocols import Buffering
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

from .specs import compiled

AWAY = (0.35, 0.7, 1.4, 2.8)
"""Tokens of the layers that are measured, over those of the plans that are compared; none has as many as these."""
NEAR = AWAY[1:3]
"""The same for layers that are compiled, since each takes as long to compile as all others to run."""
ROUNDS, DRAWS = 3, 2
"""How often each is run in a session, with how many batches."""
COLD_ROUNDS = 7
"""The same where a cold tier is read: a disk may stall for a tenth of a second in more than one round of three."""

ANEW = 2.25
"""Capacity that a layer is compiled anew for, over the even one."""
RECOMPILE = "recompile"
"""Kind of the layers that tell what this takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A layer to be measured: its name, the kind of gating that it tells about, and the plan that it carries out."""

    name: str
    kind: str
    pool: Pool


def kind_of(pool: Pool) -> str:
    """Name the way in which a plan brings rows to experts and multiplies them: layers of a kind run the same kernels.

    Examples
    --------
    >>> pool = Pool(role="all", node="n", replicas=1, parallel=Parallel())
    >>> kind_of(pool), kind_of(replace(pool, policies={"gating": Policy(name="static", settings={"sparse": True})}))
    ('dynamic', 'sparse')
    """
    gating = pool.policy("gating")
    kind = "sparse" if gating.settings.get("sparse") else gating.name
    return f"{kind} compiled" if compiled(pool) else kind


def gauges(scenario: Scenario, space: Space, ranks: int) -> list[Gauge]:
    """List the layers to be measured for a space: for each kind of gating several numbers of tokens, and the rest once.

    A two-phase exchange and a cold tier are measured where the space has one, in the middle of the range; so is
    compiling a layer anew for another capacity.
    """
    found = [
        Gauge(name=f"{kind} x{share:g}", kind=kind, pool=_sized(pool, scenario, space, share))
        for kind, pool in _kinds(space, ranks).items()
        for share in (NEAR if compiled(pool) else AWAY)
    ]
    first = next(iter(_kinds(space, ranks).values()))
    if any(isinstance(policy, Policy) and policy.name == "two_dh" for policy in space.axes.get("alltoall", ())):
        found += [
            Gauge(
                name=f"two_dh x{share:g}",
                kind="two_dh",
                pool=_sized(_with(first, "alltoall", "two_dh"), scenario, space, share),
            )
            for share in NEAR
        ]
    if (cache := _small_cache(space, scenario, ranks)) is not None:
        pool = _sized(replace(first, policies={**first.policies, "buffering": cache}), scenario, space, NEAR[0])
        found.append(Gauge(name="cold tier", kind="cache", pool=pool))
    fixed = [(kind, pool) for kind, pool in _kinds(space, ranks).items() if compiled(pool)]
    return found + [
        Gauge(name=f"{kind} anew", kind=RECOMPILE, pool=_sized(_of_factor(pool, ANEW), scenario, space, NEAR[0]))
        for kind, pool in fixed
    ]


def _of_factor(pool: Pool, factor: float) -> Pool:
    gating = pool.policy("gating")
    settings = MappingProxyType({**gating.settings, "factor": factor})
    return replace(pool, policies={**pool.policies, "gating": replace(gating, settings=settings)})


def _kinds(space: Space, ranks: int) -> Mapping[str, Pool]:
    """Return a plain plan for each kind of gating that a space holds; a capacity is the even one, that of f = 1."""
    shortcuts = {policy.name for policy in space.axes.get("shortcut", ()) if isinstance(policy, Policy)}
    policies = dict(DEFAULT_POLICIES)
    if shortcuts - {"none", "fewer"}:
        policies["shortcut"] = Policy(name="shared")  # the mixture that all of them make, with nothing reordered
    plain = Pool(
        role="all",
        node="",
        replicas=1,
        parallel=Parallel(dp=ranks, ep=ranks),
        policies=policies,
        adaptation=(Policy(name="none"),) if "adaptation" in space.axes else (),
    )
    pools: dict[str, Pool] = {}
    for policy in space.axes.get("gating", (DEFAULT_POLICIES["gating"],)):
        assert isinstance(policy, Policy)
        sparse = {"sparse": True} if policy.settings.get("sparse") else {}
        even = Policy(name=policy.name, settings=MappingProxyType(sparse))
        pool = replace(plain, policies={**plain.policies, "gating": even})
        pools.setdefault(kind_of(pool), pool)
    return pools


def _with(pool: Pool, kind: str, name: str) -> Pool:
    return replace(pool, policies={**pool.policies, kind: Policy(name=name)})


def _sized(pool: Pool, scenario: Scenario, space: Space, share: float) -> Pool:
    """Give a plan so many times the batch of the space, a whole sequence at least."""
    node = scenario.hardware.offers[0].node.name
    if not isinstance(scenario.workload, Serving):
        batch = max(1, round(share * _first(space, "microbatch", 1)))
        return replace(pool, node=node, microbatch=batch)
    batch = max(1, round(share * _first(space, "max_batch", batching_of(pool).max_batch)))
    batching = Policy(name="chunked", settings=MappingProxyType({"max_batch": batch}))
    return replace(pool, node=node, policies={**pool.policies, "batching": batching})


def _first(space: Space, axis: str, other: int) -> int:
    values: Sequence[object] = space.axes.get(axis, ())
    return int(str(values[0])) if values else other


def _small_cache(space: Space, scenario: Scenario, ranks: int) -> Policy | None:
    """Return a cache of a sixteenth of a rank's experts in the coldest tier that the space names; None: it has none."""
    for policy in space.axes.get("buffering", ()):
        assert isinstance(policy, Policy)
        if policy.name != "resident":
            made: Buffering = make("buffering", policy)
            slots = max(1, scenario.routing.experts // ranks // 16)
            return Policy(name="fifo", settings=MappingProxyType({"resident": slots, "tier": made.tier}))
    return None
