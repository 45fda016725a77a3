"""The space of a search as columns: every valid layout on the offers, within the alternatives a scenario lists."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from moesim.deployments.following import horizon
from moesim.deployments.suiting import chunk_fault, turns, unsuited
from moesim.deployments.training import unpiped
from moesim.ground.errors import Fault, PlanError, PolicyError, nearest
from moesim.passes.table import COUNTED, DEGREES, PoolTable
from moesim.plans.plan import DEFAULT_POLICIES, TRAINING_POLICIES, Parallel, Policy, Pool, Space
from moesim.policies.finding import make
from moesim.policies.protocols import AllToAllPolicy, Buffering, Placement
from moesim.search.degrees import Degrees, degrees_of
from moesim.search.reacting import offered
from moesim.world.hardware import Node
from moesim.world.model import Model
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Training

SERVING_AXES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "pools": ("all", "prefill+decode"),
        "alltoall": tuple(Policy(name=name) for name in ("reduce", "linear", "two_dh", "deduplicated")),
        "overlap": (Policy(name="none"), Policy(name="two_batch")),
        "placement": (Policy(name="contiguous"), Policy(name="eplb", settings={"redundant": 32})),
        "max_batch": (16, 32, 64, 128, 256),
        "graphs": (0,),
        "microbatch": (1,),
        "parallel.pp": (1, 2),
        "parallel.cp": (1,),
    }
)
"""Alternatives tried where a serving scenario lists none; other axes are open to every value that divides."""

TRAINING_AXES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        **SERVING_AXES,
        "pools": ("all",),
        "placement": (Policy(name="contiguous"),),
        "max_batch": (256,),
        "microbatch": (1, 2, 4),
        "parallel.pp": (1, 2, 4, 8),
        "pipeline": (Policy(name="one_f_one_b"), Policy(name="interleaved")),
        "sharding": (Policy(name="zero"),),
        "recompute": (Policy(name="none"), Policy(name="selective"), Policy(name="full")),
    }
)
"""The same for training, where a batch is a microbatch of whole sequences and slots hold no second copies."""

PREFILL_BUDGETS = (8192, 16384, 32768)
"""Prompt tokens a step of a pool that only prefills may hold."""

POLICY_AXES = ("placement", "gating", "alltoall", "shortcut", "overlap", "buffering", "prefetch")
PRECISION = "precision."
OTHER_AXES = ("pools", "node", "framework", "max_batch", "microbatch", "adaptation", "graphs")
DEGREE_AXES = tuple(f"parallel.{degree}" for degree in DEGREES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enumerated:
    """Valid pools of one replica each, and how many combinations were not valid, by reason."""

    table: PoolTable
    invalid: Mapping[str, int]


def enumerate_pools(scenario: Scenario, space: Space) -> Enumerated:
    """List every valid pool of one replica on the scenario's offers.

    Raises
    ------
    PlanError
        The space names an axis that this search does not vary.
    """
    _check_axes(space, scenario.workload)
    space = with_defaults(space, scenario.workload)
    refused: Counter[str] = Counter()
    variants: list[Pool] = []
    columns: list[Int[np.ndarray, "column plan"]] = []
    for offer in scenario.hardware.offers:
        if not allowed(space, "node", offer.node.name):
            continue
        degrees = degrees_of(scenario.model, offer, space, copies=isinstance(scenario.workload, Training))
        for like, batches in _variants(scenario, space, offer.node, refused):
            valid = _valid(like, degrees, offer.node, scenario, refused, len(batches))
            rows = degrees.rows[:, valid]
            if rows.size and len(batches):
                crossed = _stepping(scenario, like, _crossed(len(variants), rows, batches), refused)
                columns.append(_cut(scenario, like, crossed, refused))
                variants.append(like)
    table = np.concatenate(columns, axis=1) if columns else np.zeros((1 + len(COUNTED), 0), np.int64)
    counts = MappingProxyType(dict(zip(COUNTED, table[1:], strict=True)))
    found = PoolTable(variants=tuple(variants), variant=table[0], counts=counts)
    return Enumerated(table=found, invalid=MappingProxyType(dict(refused)))


def policy_axes(workload: Serving | Training) -> tuple[str, ...]:
    """List the kinds of policy a search varies."""
    return (*POLICY_AXES, *TRAINING_POLICIES) if isinstance(workload, Training) else POLICY_AXES


def _check_axes(space: Space, workload: Serving | Training) -> None:
    """Refuse axes that would be ignored; number of replicas and nodes are always varied."""
    known = (*policy_axes(workload), *OTHER_AXES, *DEGREE_AXES)
    faults = [
        Fault(path=name, problem="this search does not vary it", remedy=nearest(name, known))
        for name in space.axes
        if name not in known and not name.startswith(PRECISION)
    ]
    if faults:
        raise PlanError("space", faults)


def with_defaults(space: Space, workload: Serving | Training) -> Space:
    """Fill in the alternatives of axes that a space leaves out."""
    defaults = TRAINING_AXES if isinstance(workload, Training) else SERVING_AXES
    return Space(axes=MappingProxyType({**defaults, **space.axes}))


def axis(space: Space, name: str) -> tuple[Any, ...]:
    """Return a space's alternatives of an axis; none means that it is open."""
    return space.axes.get(name, ())


def allowed(space: Space, name: str, value: int | str) -> bool:
    """Whether an axis is open to a value."""
    listed = axis(space, name)
    return not listed or value in listed


Batches = Sequence[tuple[int, int]]


def _variants(scenario: Scenario, space: Space, node: Node, refused: Counter[str]) -> Iterator[tuple[Pool, Batches]]:
    """Combine what has a name: role, framework, precision and policies; with each, (batch, microbatch) to try."""
    kinds = policy_axes(scenario.workload)
    policies = [axis(space, kind) or (DEFAULT_POLICIES[kind],) for kind in kinds]
    frameworks = axis(space, "framework") or (next(iter(scenario.frameworks)),)
    reacting = axis(space, "adaptation") or offered(scenario.routing, axis(space, "gating")) or ((),)
    sizes = list(itertools.product(axis(space, "max_batch"), axis(space, "microbatch")))
    roles = dict.fromkeys(role for named in axis(space, "pools") for role in named.split("+"))
    for role, framework, precision in itertools.product(roles, frameworks, _precisions(space)):
        for batching, adaptation, *chosen in itertools.product(_batchings(role, space), reacting, *policies):
            like = Pool(
                role=role,
                node=node.name,
                replicas=1,
                parallel=Parallel(),
                framework=framework,
                precision=precision,
                policies=MappingProxyType(dict(zip(kinds, chosen, strict=True)) | {"batching": batching}),
                adaptation=adaptation,
            )
            tried = sizes if role != "prefill" else [(max(sizes)[0], 1)]
            yield like, [size for size in tried if _has_room(like, size[0], refused)]


def _batchings(role: str, space: Space) -> Sequence[Policy]:
    """Batching policies of a role: chunked prefill, whole prompts by budget, or decodes alone, with so many graphs."""
    if role == "prefill":
        return [Policy(name="chunked", settings={"budget": budget}) for budget in PREFILL_BUDGETS]
    name = "chunked" if role == "all" else "continuous"
    return [Policy(name=name, settings={"graphs": graphs} if graphs else {}) for graphs in axis(space, "graphs")]


def _has_room(like: Pool, batch: int, refused: Counter[str]) -> bool:
    """Whether a batching policy takes so large a batch."""
    policy = like.policy("batching")
    try:
        make("batching", Policy(name=policy.name, settings={**policy.settings, "max_batch": batch}))
    except PolicyError as refusal:
        refused[str(refusal)] += 1
        return False
    return True


def _precisions(space: Space) -> list[Mapping[str, str]]:
    """Combine the storage formats to try; the model's own where none are listed."""
    named = {name.removeprefix(PRECISION): values for name, values in space.axes.items() if name.startswith(PRECISION)}
    return [dict(zip(named, map(str, values), strict=True)) for values in itertools.product(*named.values())]


def _valid(
    like: Pool, degrees: Degrees, node: Node, scenario: Scenario, refused: Counter[str], batches: int
) -> Bool[np.ndarray, "degree"]:
    """Leave out degrees that make no sense under a variant's policies, and count them by reason."""
    policy: AllToAllPolicy = make("alltoall", like.policy("alltoall"))
    number = degrees.rows.shape[1]
    good = np.ones(number, bool)
    for reason, bad in _senseless(like, policy, degrees, node, scenario):
        found = good & bad
        if found.any():
            refused[reason] += int(found.sum()) * batches
        good &= ~bad
    return good


def _senseless(
    like: Pool, policy: AllToAllPolicy, degrees: Degrees, node: Node, scenario: Scenario
) -> Iterator[tuple[str, Bool[np.ndarray, "degree"]]]:
    """List reasons to leave a combination out, and where each holds."""
    block, experts = degrees["ep"] * degrees["etp"], _experts(scenario.model)
    for problem in _unsuited(like, scenario):
        yield problem, np.full(block.shape, True)
    if not experts:
        yield "a dense model exchanges nothing", np.full(block.shape, not policy.replicated)
        return
    if turns(like):
        ranks = degrees["dp"] * degrees["tp"] * degrees["cp"]
        most = np.maximum(ranks // experts, 1)
        problem = f"`parallel.etp` is r, of which {experts} experts have 0 and 1 to ranks / {experts}"
        yield f"{problem}: give at most {most.max(initial=1)}", degrees["etp"] > most
    alone = any(policy.name == "rebalance" for policy in like.adaptation)
    yield "one rank has all experts, and nothing to rebalance", (degrees["ep"] == 1) & alone
    yield _too_many_resident(like, degrees["ep"], experts), _overfull(like, degrees["ep"], experts)
    idle = like.policy("prefetch").name != "none" and like.policy("buffering").name == "resident"
    yield "nothing to prefetch where all experts are resident", np.full(block.shape, idle)
    if policy.replicated:
        yield "`reduce` needs tokens replicated: dp = cp = 1", (degrees["dp"] > 1) | (degrees["cp"] > 1)
        return
    yield "one rank exchanges nothing", block == 1
    name = like.policy("alltoall").name
    if policy.everywhere:
        yield f"`{name}` needs experts in a node or over whole ones", (block > node.gpus) & (block % node.gpus > 0)
    elif name != "linear":
        yield f"`{name}` needs experts over several whole nodes", (block <= node.gpus) | (block % node.gpus > 0)


def _unsuited(like: Pool, scenario: Scenario) -> Iterator[str]:
    """Say what is wrong with a pool's reacting policies, whatever its degrees."""
    yield from (problem for problem, _ in unsuited(like, scenario))
    idle = not horizon(scenario.routing.period)
    if idle and any(policy.name != "none" for policy in like.adaptation):
        yield "the routing is stationary, so nothing reacts"


def _experts(model: Model) -> int:
    """Count the experts of a model's mixtures; 0 where it has none."""
    return model.moe(model.moe_layers[0]).experts if model.moe_layers else 0


def _too_many_resident(like: Pool, ep: Int[np.ndarray, "degree"], experts: int) -> str:
    """Say that a buffering policy wants more slots resident than ranks have, and how many they have."""
    placement: Placement = make("placement", like.policy("placement"))
    most = max((placement.slots(experts, ranks) // ranks for ranks in np.unique(ep).tolist()), default=1)
    policy = like.policy("buffering")
    wanted = policy.settings.get("resident", 1)
    return f"`buffering: {policy.name}` keeps {wanted} slots resident, more than a rank has: give at most {most}"


def _overfull(like: Pool, ep: Int[np.ndarray, "degree"], experts: int) -> Bool[np.ndarray, "degree"]:
    """Say under which degrees a buffering policy wants more slots resident than ranks have."""
    placement: Placement = make("placement", like.policy("placement"))
    buffering: Buffering = make("buffering", like.policy("buffering"))

    def refuses(ranks: int) -> bool:
        try:
            buffering.resident_of(placement.slots(experts, ranks) // ranks)
        except PolicyError:
            return True
        return False

    known = {ranks: refuses(ranks) for ranks in np.unique(ep).tolist()}
    return np.array([known[ranks] for ranks in ep.tolist()], bool)


def _crossed(variant: int, rows: Int[np.ndarray, "degree row"], batches: Batches) -> Int[np.ndarray, "column plan"]:
    """Combine degrees with batch sizes: one column of the table's counts per pool, its variant first."""
    number = rows.shape[1]
    repeated = np.repeat(rows, len(batches), axis=1)
    sizes = np.tile(np.array(batches, np.int64).T, number)
    return np.concatenate([np.full((1, repeated.shape[1]), variant), repeated, sizes])


def _stepping(
    scenario: Scenario, like: Pool, rows: Int[np.ndarray, "column plan"], refused: Counter[str]
) -> Int[np.ndarray, "column plan"]:
    """Leave out plans whose microbatches do not make up a training step, or do not suit their pipeline."""
    if not isinstance(scenario.workload, Training):
        return rows
    table = _alone(like, rows)

    def wrong(pool: Pool, pp: int, dp: int, microbatch: int) -> float:
        sized = replace(pool, parallel=Parallel(pp=pp, dp=dp), microbatch=microbatch)
        return bool(unpiped(scenario, sized))

    bad = table.each(wrong, "pp", "dp", "microbatch") > 0
    if bad.any():
        refused["microbatches do not divide a step's sequences, or do not suit the pipeline"] += int(bad.sum())
    return np.asarray(rows[:, ~bad])


def _cut(
    scenario: Scenario, like: Pool, rows: Int[np.ndarray, "column plan"], refused: Counter[str]
) -> Int[np.ndarray, "column plan"]:
    """Leave out plans whose smallest pass has too few rows for the chunks that they are cut into."""
    if like.policy("overlap").name != "pipeline" or like.policy("gating").name == "dynamic":
        return rows
    table = _alone(like, rows)
    faults = [chunk_fault(pool, scenario) for pool in table.pools()]
    refused.update(f"`overlap: pipeline` {fault}" for fault in faults if fault)
    return np.asarray(rows[:, [not fault for fault in faults]])


def _alone(like: Pool, rows: Int[np.ndarray, "column plan"]) -> PoolTable:
    """Make a table of one variant's rows."""
    counts = MappingProxyType(dict(zip(COUNTED, rows[1:], strict=True)))
    return PoolTable(variants=(like,), variant=np.zeros(rows.shape[1], np.int64), counts=counts)


def roles_wanted(space: Space, workload: Serving | Training) -> tuple[str, ...]:
    """List the combinations of pools a space asks for."""
    return tuple(map(str, axis(with_defaults(space, workload), "pools")))
