"""A plan of moesim as the layer that is really run: all that a layer can carry out, and a refusal of anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from moesim.ground.errors import PolicyError
from moesim.passes.shortcut import changed_model
from moesim.plans.layout import Layout
from moesim.plans.plan import Policy, Pool
from moesim.policies.finding import make
from moesim.policies.gating.static import Static
from moesim.policies.protocols import Buffering, Gating, Shortcut
from moesim.policies.shortcut.scmoe import Scmoe
from moesim.world.attention import Gqa
from moesim.world.model import Dense, Model
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

from .bundle import Setting
from .wing import spec

RUN = ("dynamoe",)
"""Reacting policies that are run. Cached assignments need the same batches again, and no course has them."""


def spec_of(scenario: Scenario, pool: Pool, layout: Layout, tokens: int, way: int, setting: Setting) -> spec.LayerSpec:
    """Say which layer carries a plan out.

    Parameters
    ----------
    layout : the plan's own
    way : which alternative of structure was predicted to be the fastest
    setting : what it is run on: a gpu multiplies all experts in one kernel, and may replay what it has captured

    Raises
    ------
    PolicyError
        No layer carries out a policy of the plan.
    InputError
        The plan's sizes fit no layer.
    """
    shortcut: Shortcut = make("shortcut", pool.policy("shortcut"))
    model = changed_model(scenario.model, shortcut)
    number = model.moe_layers[0]
    moe, parallel = model.moe(number), pool.parallel
    if parallel.pp * parallel.tp * parallel.cp * parallel.etp > 1:
        raise PolicyError("layers are run with data and expert parallelism alone; leave the other degrees at 1")
    made = spec.LayerSpec(
        hidden=model.layers[number].dim,
        intermediate=moe.width,
        experts=moe.experts,
        topk=moe.topk,
        tokens=tokens,
        dtype=model.dtype_of["experts"],
        gated=moe.gated,
        shared=moe.shared_width,
        ranks=parallel.ranks,
        ep=parallel.ep,
        width=scenario.hardware.offers[0].node.gpus,
        expert_of_slot=tuple(layout.expert_of_slot[0].tolist()),
        cache=_cache(pool, layout),
        block=_block(model, pool, scenario, way),
        direction="forward+backward" if isinstance(scenario.workload, Training) else "forward",
        **_gating(pool.policy("gating")),
        **_alltoall(pool.policy("alltoall"), parallel.ep),
        **_overlap(pool.policy("overlap"), way),
        compiled=compiled(pool),
        reactions=tuple(_reactions(pool)),
    )
    return _on_gpu(made, setting) if setting.device == "cuda" else made


def _on_gpu(made: spec.LayerSpec, setting: Setting) -> spec.LayerSpec:
    """Let a layer use what only a gpu has: one kernel for all experts that stay and need no gradients."""
    if made.gating == "dynamic" and made.cache is None and not made.backward:
        made = replace(made, gating="grouped")
    return replace(made, graphed=True) if setting.graphed and fixed(made) else made


def fixed(made: spec.LayerSpec) -> bool:
    """Whether every step of a layer has the same shapes, whatever is routed."""
    return made.static and (made.fraction > 0 or made.factor > 0)


def compiled(pool: Pool) -> bool:
    """Whether a plan's layer goes through torch.compile: where it says what reacts, be it nothing, to fixed shapes.

    Examples
    --------
    >>> from moesim.plans.plan import Parallel
    >>> static = {"gating": Policy(name="static")}
    >>> pool = Pool(role="all", node="", replicas=1, parallel=Parallel(), adaptation=(Policy(name="none"),))
    >>> compiled(pool), compiled(replace(pool, policies=static))
    (False, True)
    """
    gating: Gating = make("gating", pool.policy("gating"))
    return bool(pool.adaptation) and isinstance(gating, Static) and not gating.follows


def _reactions(pool: Pool) -> Iterator[spec.Reaction]:
    for policy in pool.adaptation:
        if policy.name not in (*RUN, "none"):
            raise _refusal("adaptation", policy)
        if policy.name != "none":
            settings: Mapping[str, Any] = policy.settings
            yield spec.Reaction(name=policy.name, settings=dict(settings))


def _gating(policy: Policy) -> Mapping[str, Any]:
    if policy.name == "dynamic":
        return {"gating": "dynamic"}
    settings = dict(policy.settings)
    return {"gating": "sparse" if settings.pop("sparse", False) else "static", **settings}


def _alltoall(policy: Policy, ep: int) -> Mapping[str, Any]:
    if policy.name not in ("linear", "two_dh"):
        raise _refusal("alltoall", policy)
    return {"alltoall": policy.name if ep > 1 else "linear"}


def _overlap(policy: Policy, way: int) -> Mapping[str, Any]:
    if policy.name == "none":
        return {}
    if policy.name == "shared_expert":
        return {"overlap": policy.name}
    if policy.name != "pipeline":
        raise _refusal("overlap", policy)
    degree = policy.settings.get("degree", 2)
    if degree == "adaptive":
        degree = (1, 2, 4, 8)
    return {"degree": degree[way] if isinstance(degree, tuple) else degree}


def _cache(pool: Pool, layout: Layout) -> spec.CacheSpec | None:
    policy = pool.policy("buffering")
    if policy.name == "resident":
        return None
    if pool.policy("prefetch").name != "none":
        raise _refusal("prefetch", pool.policy("prefetch"))
    buffering: Buffering = make("buffering", policy)
    if buffering.hosted:
        raise _refusal("buffering", policy)
    return spec.CacheSpec(
        resident=buffering.resident_of(layout.slots_per_rank), eviction=policy.name, tier=buffering.tier
    )


def _block(model: Model, pool: Pool, scenario: Scenario, way: int) -> spec.BlockSpec | None:
    """Describe the dense layer before the mixture, where the model has one; a mixture alone is no block."""
    if len(model.layers) == 1:
        return None
    before = model.layers[model.moe_layers[0] - 1]
    if len(model.layers) > 2 or not isinstance(before.attention, Gqa) or not isinstance(before.ffn, Dense):
        raise PolicyError(
            "a scenario to be run has one mixture, with a layer of attention and a dense network before it"
        )
    workload = scenario.workload
    sequence = workload.sequence if isinstance(workload, Training) else round(workload.requests.input.mean)
    block = spec.BlockSpec(heads=before.attention.heads, sequence=sequence, dense=before.ffn.width)
    policy = pool.policy("shortcut")
    if policy.name != "scmoe":
        return block
    position = int(policy.settings.get("position", Scmoe().position))  # type: ignore[arg-type]  # a whole number
    placed = replace(block, position=position, slot=4)
    return replace(placed, slot=placed.tap + 1 + way)


def _refusal(kind: str, policy: Policy) -> PolicyError:
    return PolicyError(f"no layer carries out the {kind} policy `{policy.name}`; leave it out of the space")
