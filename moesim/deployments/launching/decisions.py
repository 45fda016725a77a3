"""What a plan decides, as flat names and texts, and the facts that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from moesim.deployments.capacity import capacity
from moesim.plans.plan import DEFAULT_POLICIES, TRAINING_POLICIES, Plan, Policy, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Placement
from moesim.world.framework import Framework
from moesim.world.model import Model
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Training

WEIGHTS = ("expert weights", "attention weights", "dense weights", "vocabulary")
"""Items of memory that are there before the first request."""


def text(value: object) -> str:
    """Write a setting.

    Examples
    --------
    >>> text(True), text((1, 2)), text(0.95), text(8)
    ('true', '1 2', '0.95', '8')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def decided(pool: Pool, *, training: bool) -> dict[str, str]:
    """Name all that a pool decides: degrees, formats, and each policy with every setting, its defaults too."""
    degrees = {f"parallel.{field.name}": text(getattr(pool.parallel, field.name)) for field in fields(pool.parallel)}
    named = {"role": pool.role, "node": pool.node, "replicas": text(pool.replicas), "framework": pool.framework}
    if training:
        named["microbatch"] = text(pool.microbatch)
    for tensor, dtype in sorted(pool.precision.items()):
        named[f"precision.{tensor}"] = dtype
    usual = {**DEFAULT_POLICIES, **(TRAINING_POLICIES if training else {})}
    for kind, policy in sorted({**usual, **pool.policies}.items()):
        named |= _policy(f"policies.{kind}", kind, policy)
    for policy in pool.adaptation:
        named |= _policy(f"adaptation.{policy.name}", "adaptation", policy)
    return {**degrees, **named}


def _policy(name: str, kind: str, policy: Policy) -> dict[str, str]:
    """Name a policy and its settings, but those that are left open."""
    made = make(kind, policy)
    known = {field.name: getattr(made, field.name) for field in fields(made)} if is_dataclass(made) else {}
    return {name: policy.name, **{f"{name}.{key}": text(value) for key, value in known.items() if value is not None}}


def decided_by_plan(plan: Plan) -> dict[str, str]:
    """Name all that a plan decides beside its pools."""
    return {**_policy("router", "router", plan.router), "spare_nodes": text(plan.spare_nodes)}


def facts_of(scenario: Scenario, plan: Plan, pool: Pool, engine: str) -> dict[str, str]:
    """Collect what rules may ask about a pool: its decisions, and what follows from them.

    Parameters
    ----------
    engine : name of the framework that runs the model, whose share of memory holds
    """
    training = isinstance(scenario.workload, Training)
    node = scenario.hardware.offer(pool.node).node
    parallel = pool.parallel
    group = parallel.tp * parallel.cp * parallel.pp
    nodes = -(-parallel.gpus // node.gpus)
    found = {
        **decided(pool, training=training),
        **decided_by_plan(plan),
        "framework.same": text(pool.framework in (engine, "plain")),
        "servers": text(sum(each.replicas for each in plan.pools)),
        "model": scenario.model.name,
        "speculates": text(scenario.model.mtp > 0),
        "disaggregated": text(len(plan.pools) > 1),
        "ranks": text(parallel.ranks),
        "groups": text(parallel.dp * parallel.tp),
        "gpus": text(parallel.gpus),
        "nodes": text(nodes),
        "node.gpus": text(node.gpus),
        "group.nodes": text(-(-group // node.gpus)),
        "edp": text(parallel.edp),
        "copies.by_cp": text(parallel.edp == parallel.cp),
        "experts.form": _form(pool),
        **_formats(scenario.model, pool),
        **dict(_slots(scenario.model, pool)),
    }
    if isinstance(scenario.workload, Training):
        found |= {
            "workload.sequence": text(scenario.workload.sequence),
            "workload.sequences": text(scenario.workload.sequences),
        }
    else:
        found |= dict(_batches(pool)) | _memory(scenario, pool, engine)
    return found


def _form(pool: Pool) -> str:
    """Say how the experts of a layer are split: by width, by number, by both, or in whole copies."""
    parallel = pool.parallel
    if parallel.edp > 1:
        return "copies"
    if parallel.ep == 1:
        return "width"
    return "number" if parallel.etp == 1 else "both"


def _formats(model: Model, pool: Pool) -> dict[str, str]:
    """Say of each overridden format whether the checkpoint has it so, and whether all weights share one."""
    weights = {pool.precision.get(tensor, model.dtype_of[tensor]) for tensor in ("experts", "attention", "dense")}
    return {
        **{f"precision.{name}.native": text(model.dtype_of.get(name) == kept) for name, kept in pool.precision.items()},
        "precision.one": text(len(weights) == 1),
        "experts.dtype": pool.precision.get("experts", model.dtype_of["experts"]),
    }


def _slots(model: Model, pool: Pool) -> Iterator[tuple[str, str]]:
    """Count experts, slots and copies of a layer."""
    if model.moe_layers:
        experts = model.moe(model.moe_layers[0]).experts
        placement: Placement = make("placement", pool.policy("placement"))
        slots = placement.slots(experts, pool.parallel.ep)
        yield from (("experts", text(experts)), ("slots", text(slots)), ("redundant", text(slots - experts)))
    else:
        yield from (("experts", "0"), ("slots", "0"), ("redundant", "0"))


def _batches(pool: Pool) -> Iterator[tuple[str, str]]:
    """Count sequences and tokens over all dp groups, as engines that are told totals want them."""
    batching = make("batching", pool.policy("batching"))
    yield "batch.all", text(batching.max_batch * pool.parallel.dp)
    yield "budget.all", text(batching.budget * pool.parallel.dp)
    yield "drafts.checked", text(batching.speculated + 1)
    yield "buckets.list", ", ".join(map(text, batching.buckets))


def _memory(scenario: Scenario, pool: Pool, engine: str) -> dict[str, str]:
    """Shares of a device's memory, in the three ways that engines ask for them.

    ``memory.share`` is all that is used, ``memory.static`` weights and cache, ``memory.free`` the cache's share of what
    everything else leaves.
    """
    assert isinstance(scenario.workload, Serving)
    habits: Framework = scenario.frameworks.get(engine, scenario.frameworks[pool.framework])
    found = capacity(scenario, [pool])
    device = scenario.hardware.offer(pool.node).node.device.memory
    items = {name: float(size[0]) for name, size in found.memory.items.items()}
    room, weights = max(found.room[0], 0.0), sum(items[name] for name in WEIGHTS)
    free = device - sum(size for name, size in items.items() if name != "kv cache")
    return {
        "memory.share": f"{habits.utilization:.2f}",
        "memory.static": f"{(weights + room) / device:.2f}",
        "memory.free": f"{room / free:.2f}" if free > 0 else "0.00",
    }
