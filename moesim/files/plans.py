"""Plans: read and checked against a scenario, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from types import MappingProxyType

from moesim.deployments.suiting import chunk_fault, degree_fault, unsuited
from moesim.deployments.training import unpiped
from moesim.files.checked import Readers, Rules, check, count, gather, refuse, shown
from moesim.files.policies import policy_tree, read_policy
from moesim.files.spaces import ROLES
from moesim.files.trees import Tree
from moesim.ground.errors import PlanError, PolicyError, nearest
from moesim.passes.columns import TENSORS
from moesim.plans.plan import DEFAULT_POLICIES, TRAINING_POLICIES, Parallel, Plan, Policy, Pool, divisors, misfits
from moesim.policies.finding import kinds, make
from moesim.policies.protocols import Batching, Buffering, Placement
from moesim.world.attention import Linear
from moesim.world.formats import BITS
from moesim.world.model import Dense, Model
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

Findings = Iterator[tuple[str, str, str]]


def read_plan(tree: Tree, file: str, scenario: Scenario) -> Plan:
    """Read a plan and check it against the scenario it is for.

    Raises
    ------
    PlanError
        With every fault: unknown names, degrees that do not divide, pools that do not go together.
    """
    nodes = [offer.node.name for offer in scenario.hardware.offers]
    readers: Readers = {
        (Pool, "role"): lambda value: _named(value, "role", ROLES, file),
        (Pool, "node"): lambda value: _named(value, "node on offer", nodes, file),
        (Pool, "framework"): lambda value: _named(value, "framework", tuple(scenario.frameworks), file),
        (Pool, "replicas"): lambda value: count(value, file),
        (Pool, "microbatch"): lambda value: count(value, file),
        (Pool, "precision"): lambda value: _precision(value, file),
        (Pool, "policies"): lambda value: _policies(value, file),
        (Pool, "adaptation"): lambda value: _adaptation(value, file),
        (Plan, "router"): lambda value: _router(value, file),
    }
    rules: Rules = {
        Parallel: lambda parallel: _degree_faults(parallel, scenario.model),
        Pool: lambda pool: _pool_faults(pool, scenario),
        Plan: lambda plan: _plan_faults(plan, scenario),
    }
    return check(Plan, tree, file, error=PlanError, readers=readers, rules=rules)


def _named(value: Tree, what: str, names: tuple[str, ...] | list[str], file: str) -> str:
    if not isinstance(value, str) or value not in names:
        raise refuse(file, f"no {what} is called `{value}`", nearest(str(value), names))
    return value


def _precision(tree: Tree, file: str) -> Mapping[str, str]:
    def one(tensor: str, dtype: Tree) -> str:
        if tensor not in TENSORS:
            raise refuse(file, "unknown class of tensors", nearest(tensor, TENSORS))
        return _named(dtype, "storage format", tuple(BITS), file)

    return MappingProxyType(gather(file, _section(tree, file), one))


def _policies(tree: Tree, file: str) -> Mapping[str, Policy]:
    def one(kind: str, policy: Tree) -> Policy:
        if kind not in kinds():
            raise refuse(file, "unknown kind of policy", nearest(kind, kinds()))
        return read_policy(kind, policy, file)

    return MappingProxyType({**DEFAULT_POLICIES, **gather(file, _section(tree, file), one)})


def _section(tree: Tree, file: str) -> list[tuple[str, Tree]]:
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "write its fields below it as `name: value` lines")
    return [(str(name), value) for name, value in tree.items()]


def _adaptation(tree: Tree, file: str) -> tuple[Policy, ...]:
    """Read the reacting policies, asked in this order."""
    listed = tree if isinstance(tree, list) else [tree]
    return tuple(gather(file, enumerate(listed), lambda _, policy: read_policy("adaptation", policy, file)).values())


def _router(tree: Tree, file: str) -> Policy:
    if tree == DEFAULT_ROUTER.name:
        return DEFAULT_ROUTER
    return read_policy("router", tree, file)


DEFAULT_ROUTER = Policy(name="round_robin")
"""What a plan that names no router has."""


def _degree_faults(parallel: Parallel, model: Model) -> Findings:
    """Find degrees that do not divide what they must."""
    impossible = list(misfits(parallel))
    yield from impossible
    if any(getattr(parallel, degree.name) < 1 for degree in fields(parallel)):
        return
    if parallel.pp > len(model.layers):
        yield "pp", f"{parallel.pp} stages for {len(model.layers)} layers", f"give at most {len(model.layers)}"
    yield from _head_faults(parallel.tp, model)
    yield from _expert_faults(parallel, model)


def _head_faults(tp: int, model: Model) -> Findings:
    for what, whole in sorted(_heads(model)):
        if whole % tp:
            yield "tp", f"{tp} does not divide {whole} {what}", f"try {_near(tp, whole)}"


def _heads(model: Model) -> set[tuple[str, int]]:
    """What tensor parallelism must divide, by name."""
    found: set[tuple[str, int]] = set()
    for layer in set(model.layers):
        if layer.attention is not None:
            found.add(("attention heads", layer.attention.heads))
        if isinstance(layer.attention, Linear):
            found.add(("linear-attention key heads", layer.attention.key_heads))
        if isinstance(layer.ffn, Dense):
            found.add(("columns of the feed-forward network", layer.ffn.width))
    return found


def _near(number: int, whole: int) -> str:
    """Name the divisors of `whole` on either side of a number.

    Examples
    --------
    >>> _near(6, 128)
    '4 or 8'
    """
    lower = [divisor for divisor in divisors(whole) if divisor < number][-1:]
    upper = [divisor for divisor in divisors(whole) if divisor > number][:1]
    return " or ".join(map(str, lower + upper))


def _expert_faults(parallel: Parallel, model: Model) -> Findings:
    for moe in {model.moe(layer) for layer in model.moe_layers}:
        if parallel.ep > moe.experts:
            yield "ep", f"{parallel.ep} ranks for {moe.experts} experts", f"give at most {moe.experts}"
        if moe.width % parallel.etp:
            problem = f"{parallel.etp} does not divide an expert's width of {moe.width}"
            yield "etp", problem, f"try {_near(parallel.etp, moe.width)}"
    if not model.moe_layers and parallel.ep > 1:
        yield "ep", f"{parallel.ep}, but the model has no experts", "give 1"


def _pool_faults(pool: Pool, scenario: Scenario) -> Findings:
    policy = make("alltoall", pool.policy("alltoall"))
    parallel = pool.parallel
    if policy.replicated and scenario.model.moe_layers and parallel.dp * parallel.cp > 1:
        name = pool.policy("alltoall").name
        problem = f"`{name}` keeps tokens in place, so it needs dp = cp = 1, not {parallel.dp} and {parallel.cp}"
        yield "policies.alltoall", problem, "use `linear`, or tp in place of dp and cp"
    yield from _slot_faults(pool, scenario.model)
    batching: Batching = make("batching", pool.policy("batching"))
    if batching.speculated and not scenario.model.mtp:
        problem = f"speculates {batching.speculated} tokens, but {scenario.model.name} has no drafting modules (mtp)"
        yield "policies.batching", problem, "set speculated to 0"
    yield from (("adaptation", *flaw) for flaw in unsuited(pool, scenario))
    for path, wrong in (
        ("parallel.etp", degree_fault(pool, scenario)),
        ("policies.overlap", chunk_fault(pool, scenario)),
    ):
        problem, _, remedy = wrong.partition("; ")
        if problem:
            yield path, problem, remedy
    yield from (_training_faults if isinstance(scenario.workload, Training) else _serving_faults)(pool, scenario)


def _training_faults(pool: Pool, scenario: Scenario) -> Findings:
    """Find what is wrong with a pool that trains."""
    if pool.role != "all":
        yield "role", f"`{pool.role}` has no meaning in training", "give `all`"
    if pool.replicas > 1:
        remedy = f"give 1, and parallel.dp {pool.replicas} times as large: copies train together"
        yield "replicas", f"{pool.replicas} replicas would train {pool.replicas} models", remedy
    problem, _, remedy = unpiped(scenario, pool).partition("; ")
    if problem:
        yield "microbatch", problem, remedy


def _serving_faults(pool: Pool, scenario: Scenario) -> Findings:
    """Find policies in a pool that serves which only training has."""
    for kind in TRAINING_POLICIES:
        if kind in pool.policies:
            yield f"policies.{kind}", "has no meaning in serving", "leave it out"


def _slot_faults(pool: Pool, model: Model) -> Findings:
    """Find a buffer with room for more experts than a rank has."""
    if not model.moe_layers or pool.parallel.ep < 1:
        return
    placement: Placement = make("placement", pool.policy("placement"))
    buffering: Buffering = make("buffering", pool.policy("buffering"))
    experts = model.moe(model.moe_layers[0]).experts
    try:
        buffering.resident_of(placement.slots(experts, pool.parallel.ep) // pool.parallel.ep)
    except PolicyError as flaw:
        problem, _, remedy = str(flaw).partition("; ")
        yield "policies.buffering", problem, remedy


def _plan_faults(plan: Plan, scenario: Scenario) -> Findings:
    if not plan.pools:
        yield "pools", "is empty", "give at least one pool"
    roles = sorted(pool.role for pool in plan.pools)
    if roles not in ([], ["all"], ["decode", "prefill"]):
        remedy = "give one pool for `all`, or one for `prefill` and one for `decode`"
        yield "pools", f"do not make a deployment together (roles: {', '.join(roles)})", remedy
    yield from _node_faults(plan, scenario)


def _node_faults(plan: Plan, scenario: Scenario) -> Findings:
    """Find node types of which the plan needs more than are on offer; spares are of the first pool's type."""
    needed: Counter[str] = Counter()
    for pool in plan.pools:
        gpus = scenario.hardware.offer(pool.node).node.gpus
        needed[pool.node] += -(-pool.replicas * pool.parallel.gpus // gpus)
    if plan.pools:
        needed[plan.pools[0].node] += plan.spare_nodes
    for node, nodes in needed.items():
        offered = scenario.hardware.offer(node).max_nodes
        if nodes > offered:
            problem = f"need {nodes} nodes of {node}, spares included, and {offered} are on offer"
            yield "pools", problem, "use fewer replicas or smaller degrees, or offer more nodes"


def plan_tree(plan: Plan) -> Tree:
    """Write a plan as a plain tree that reads back equal."""
    tree: dict[str, Tree] = {"pools": [_pool_tree(pool) for pool in plan.pools]}
    if plan.router != DEFAULT_ROUTER:
        tree["router"] = policy_tree(plan.router)
    return {**tree, "spare_nodes": plan.spare_nodes}


def _pool_tree(pool: Pool) -> Tree:
    tree: dict[str, Tree] = {
        "role": pool.role,
        "node": pool.node,
        "replicas": pool.replicas,
        "parallel": asdict(pool.parallel),
        "framework": pool.framework,
        "microbatch": pool.microbatch,
        "precision": dict(pool.precision),
        "policies": {kind: policy_tree(policy) for kind, policy in sorted(pool.policies.items())},
    }
    if pool.adaptation:
        tree["adaptation"] = [policy_tree(policy) for policy in pool.adaptation]
    return tree
