"""Search: every plan of a space through memory and estimate, ranked; what was left out is counted and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from moesim.deployments.estimation import estimate
from moesim.deployments.metrics import METRICS
from moesim.deployments.pools import Estimates, estimate_pools
from moesim.deployments.result import Result
from moesim.deployments.summary import Deployments, Summary, estimated_metrics, misses, summarize
from moesim.deployments.tables import with_units
from moesim.ground.errors import Fault, PlanError, nearest
from moesim.ground.showing import Shown
from moesim.passes.footprint import Memory, describe
from moesim.plans.plan import Plan, Policy, Pool, Space
from moesim.policies.finding import make
from moesim.policies.protocols import Batching
from moesim.search.space import Enumerated, deployments, enumerate_pools, with_replicas
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Target, Training

SHOWN = 20
"""Plans the ranking keeps as full plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of every plan: combinations refused as senseless by reason, plans that do not fit, and the rest.

    A layout is a plan's pool without its number of replicas; `plans` counts layouts times replicas.
    """

    layouts: int
    plans: int
    invalid: Mapping[str, int]
    unfit: int
    refused: int
    estimated: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking(Shown):
    """Plans in order of the goal, the best with its details, and what was left out and why.

    `table` has one row per shown plan; units by column in ``.attrs["units"]``. `unfit` lists an example of a layout
    that does not fit for each node type, the one that misses by least.
    """

    table: pd.DataFrame
    plans: tuple[Plan, ...]
    best: Result | None
    unfit: pd.DataFrame
    counts: Counts
    meets: int


def optimize(
    scenario: Scenario,
    space: Space | None = None,
    *,
    goal: str = "price_per_token",
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Ranking:
    """Rank every plan of a space by a goal; plans that miss a target come after all that meet them.

    Parameters
    ----------
    scenario : Scenario
        The world.
    space : Space
        Alternatives by dotted path; none: every valid layout on the scenario's offers.
    goal : str
        A metric's name; ties are broken by throughput.
    seed : int
        Seed of the routing draws, equal for all plans.
    progress : callable
        Told the share of the search done, from 0 to 1, now and then.

    Returns
    -------
    Ranking

    Raises
    ------
    PlanError
        The goal is no metric, or the space holds no valid plan.
    """
    _check_goal(scenario, goal)
    found = enumerate_pools(scenario, space or Space(axes={}))
    if not found.pools:
        problem = f"no layout is valid; {sum(found.invalid.values())} combinations were senseless"
        raise PlanError("space", [Fault(path="space", problem=problem, remedy="; ".join(found.invalid) or "widen it")])
    estimates = estimate_pools(scenario, found.pools, seed=seed, progress=progress)
    deployed = _deployed(scenario, found.pools, np.isfinite(estimates.step))
    counts = _counts(scenario, found, estimates)
    unfit = unfit_table(scenario, found.pools, estimates.memory)
    if not len(deployed.pool):
        return Ranking(table=pd.DataFrame(), plans=(), best=None, unfit=unfit, counts=counts, meets=0)
    summary = summarize(scenario, deployed, estimates)
    miss = worst_miss(summary, _targets(scenario))
    order = ranked(summary, miss, goal)
    top = _best_of_each_layout(deployed, order)[:SHOWN]
    plans = tuple(_plan(deployed, index) for index in top)
    return Ranking(
        table=_table(scenario, deployed, summary, miss, top, estimates),
        plans=plans,
        best=estimate(scenario, plans[0], seed=seed),
        unfit=unfit,
        counts=counts,
        meets=int((miss <= 0).sum()),
    )


def _check_goal(scenario: Scenario, goal: str) -> None:
    """Refuse a goal that no estimate gives."""
    known = estimated_metrics(scenario.workload)
    if goal not in known:
        problem = f"`{goal}` isn't estimated here" if goal in METRICS else f"`{goal}` is no metric"
        raise PlanError("goal", [Fault(path="goal", problem=problem, remedy=nearest(goal, known))])


def _counts(scenario: Scenario, found: Enumerated, estimates: Estimates) -> Counts:
    """Count what became of every layout and plan."""
    return Counts(
        layouts=len(found.pools),
        plans=len(_all_deployments(scenario, found.pools)),
        invalid=found.invalid,
        unfit=int((~estimates.memory.fits).sum()),
        refused=sum(map(bool, estimates.refused)),
        estimated=int(np.isfinite(estimates.step).sum()),
    )


def _targets(scenario: Scenario) -> tuple[Target, ...]:
    return scenario.workload.targets if isinstance(scenario.workload, Serving) else ()


def _all_deployments(scenario: Scenario, pools: Sequence[Pool]) -> Sequence[tuple[int, int]]:
    return list(deployments(pools, {offer.node.name: offer for offer in scenario.hardware.offers}))


def _deployed(scenario: Scenario, pools: Sequence[Pool], runs: Bool[np.ndarray, "pool"]) -> Deployments:
    """Combine every pool that runs with every number of replicas that its offer holds."""
    pairs = [(pool, replicas) for pool, replicas in _all_deployments(scenario, pools) if runs[pool]]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Deployments(
        pools=pools, pool=table[:, 0], replicas=table[:, 1], spare_nodes=np.zeros(len(table), dtype=np.int64)
    )


def worst_miss(summary: Summary, targets: Sequence[Target]) -> Float[np.ndarray, "plan"]:
    """Largest relative miss of any target (load among them) by every plan; 0 or less where all are met."""
    found = list(misses(summary, targets).values())
    return np.max(found, axis=0) if found else np.zeros_like(summary.metrics["step"])


def ranked(summary: Summary, miss: Float[np.ndarray, "plan"], goal: str) -> Int[np.ndarray, "plan"]:
    """Order plans: those that meet every target by the goal, then the others by their largest miss."""
    sign = 1.0 if METRICS[goal].less_is_better else -1.0
    values = sign * summary.metrics[goal]
    missed = np.maximum(miss, 0.0)
    return np.lexsort((-summary.metrics["throughput"], values, missed))


def _best_of_each_layout(deployed: Deployments, order: Int[np.ndarray, "plan"]) -> list[int]:
    """Keep the best number of replicas of each layout, in order."""
    _, first = np.unique(deployed.pool[order], return_index=True)
    return [int(order[place]) for place in np.sort(first)]


def _plan(deployed: Deployments, index: int) -> Plan:
    pool = with_replicas(deployed.pools[deployed.pool[index]], int(deployed.replicas[index]))
    return Plan(pools=(pool,), spare_nodes=int(deployed.spare_nodes[index]))


COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "throughput": "tokens/s",
        "throughput_per_gpu": "tokens/s",
        "ttft": "s",
        "tpot": "s",
        "price_per_token": "USD/tokens",
        "memory_headroom": "B",
        "mfu": "",
    }
)
"""Metrics in the ranked table, with their units."""


def _table(
    scenario: Scenario,
    deployed: Deployments,
    summary: Summary,
    miss: Float[np.ndarray, "plan"],
    top: Sequence[int],
    estimates: Estimates,
) -> pd.DataFrame:
    """Write the ranked table: cluster, layout, headline numbers, source."""
    shown = [name for name in COLUMNS if name in summary.metrics]
    training = isinstance(scenario.workload, Training)
    rows = []
    for index in top:
        pool = deployed.pools[deployed.pool[index]]
        offer = scenario.hardware.offer(pool.node)
        nodes = int(summary.metrics["gpus"][index]) // offer.node.gpus
        row = {
            "cluster": f"{nodes} x {pool.node}",
            "replicas": int(deployed.replicas[index]),
            "layout": layout(pool, training=training),
        }
        row |= {name: float(summary.metrics[name][index]) for name in shown}
        rows.append(row | {"miss": max(float(miss[index]), 0.0), "source": estimates.source[deployed.pool[index]]})
    return with_units(pd.DataFrame(rows), {name: COLUMNS[name] for name in shown})


def layout(pool: Pool, *, training: bool = False) -> str:
    """Name a pool's layout in short: the degrees above one, then policies and batch.

    Examples
    --------
    >>> from moesim.plans.plan import Parallel
    >>> layout(Pool(role="all", node="n", replicas=1, parallel=Parallel(dp=8, ep=8)))
    'dp8 ep8 linear contiguous batch 256'
    """
    p = pool.parallel
    degrees = [f"{name}{getattr(p, name)}" for name in ("pp", "dp", "tp", "cp", "ep", "etp") if getattr(p, name) > 1]
    words = [*degrees, *(_in_short(pool.policy(kind)) for kind in ("alltoall", "placement", "overlap"))]
    batching: Batching = make("batching", pool.policy("batching"))
    return " ".join(
        [*filter(None, words), f"microbatch {pool.microbatch}" if training else f"batch {batching.max_batch}"]
    )


def _in_short(policy: Policy) -> str:
    """Name a policy with the values of its settings; doing nothing goes without saying."""
    values = ",".join(str(value) for value in policy.settings.values())
    return "" if policy.name == "none" else policy.name + (f":{values}" if values else "")


def unfit_table(scenario: Scenario, pools: Sequence[Pool], memory: Memory) -> pd.DataFrame:
    """For every node type, count the layouts that do not fit and show the one that misses by least."""
    rows = []
    training = isinstance(scenario.workload, Training)
    groups: dict[str, list[int]] = {}
    for index in map(int, np.flatnonzero(~memory.fits)):
        groups.setdefault(pools[index].node, []).append(index)
    numbers = Counter(pool.node for pool in pools)
    for node, indices in groups.items():
        nearest_fit = max(indices, key=lambda index: memory.headroom[index])
        device = scenario.hardware.offer(node).node.device.name
        why = describe(memory, nearest_fit, device)
        row = {
            "node": node,
            "unfit": len(indices),
            "of": numbers[node],
            "nearest": layout(pools[nearest_fit], training=training),
        }
        rows.append(row | {"why": why})
    return pd.DataFrame(rows, columns=["node", "unfit", "of", "nearest", "why"])
