"""What expressions in case files may call: moesim's own rules, and small set-ups of its policies and executors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from moesim.deployments.adaptation import Trace, clairvoyant, walk
from moesim.files.models import load
from moesim.passes.timeline import makespan
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import Policy
from moesim.policies.caches import run_caches
from moesim.policies.capacities import aligned_capacity, capacity, kept_in_order, local_capacities, waste
from moesim.policies.finding import make
from moesim.policies.gating.static import Static
from moesim.policies.parallelism import best_r, migration, trials, volume
from moesim.policies.protocols import Sizes
from moesim.policies.scores import caching_gain, trigger_step
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import AllToAll, Exchange, fixed
from moesim.schedules.schedule import Schedule, Task
from moesim.world.hardware import Device, Node
from moesim.world.model import expert_parameters, parameters

from .sweeps import best_parallelism, copied, device_share, miss_shares, parallelism_gap, share_at

GIB = 2.0**30


def messages(algorithm: str, gpus: int, node: int) -> list[float]:
    """Messages a gpu posts in each phase of an all-to-all, as the policy makes them."""
    return [float(op.messages.sum(axis=0).max()) for op in _phases(algorithm, gpus, node)]


def crossing(algorithm: str, gpus: int, node: int) -> float:
    """Bytes a gpu sends beyond its node, per byte it dispatches."""
    return sum(
        float(op.sent[i].max())
        for op in _phases(algorithm, gpus, node)
        for i, name in enumerate(op.tiers)
        if name == "rail"
    )


def _phases(algorithm: str, gpus: int, node: int) -> list[AllToAll]:
    """Make the phases of an even exchange in which every gpu dispatches one byte in all."""
    slots = np.arange(gpus)[:, None]
    even = Exchange(
        rows=np.full((gpus, 1, 1), 1.0 / gpus),
        ranks_of_slot=slots,
        ranks=gpus,
        row=1.0,
        reverse=False,
        tokens=np.ones((1, 1)),
    )
    policy = make("alltoall", Policy(name=algorithm))
    phases = policy(even, (("nvlink", node), ("rail", max(gpus, node))))
    return [phase.op for phase in phases if isinstance(phase.op, AllToAll)]


def cache_misses(name: str, slots: int, experts: int, batches: Sequence[Sequence[int]]) -> int:
    """Misses of one cache over batches, each a list of the experts it uses."""
    return int(_run(name, slots, experts, batches).misses)


def cache_ends(name: str, slots: int, experts: int, batches: Sequence[Sequence[int]]) -> list[int]:
    """Experts that are resident after the batches: those that one more batch would find."""
    runs = {expert: _run(name, slots, experts, [*batches, [expert]]) for expert in range(experts)}
    return [expert for expert, run in runs.items() if not run.missed[-1, 0, expert]]


def _run(name: str, slots: int, experts: int, batches: Sequence[Sequence[int]]) -> Any:
    accessed = np.zeros((len(batches), 1, experts), bool)
    for step, used in enumerate(batches):
        accessed[step, 0, list(used)] = True
    return run_caches(make("buffering", Policy(name=name)), accessed, slots)


def order_of_misses(slots: int, experts: int, active: float, steps: int) -> list[int]:
    """Misses of Belady, LIFO and FIFO caches over random batches of so many active experts."""
    rng = np.random.default_rng(0)
    popularity = rng.dirichlet(np.ones(experts), size=64) * active
    accessed = rng.random((steps, 64, experts)) < np.minimum(popularity, 1)
    return [
        run_caches(make("buffering", Policy(name=name)), accessed, slots).misses for name in ("belady", "lifo", "fifo")
    ]


def drops(choices: Sequence[Sequence[int]], room: Sequence[int]) -> list[list[bool]]:
    """Which assignments find room, in order of arrival."""
    kept: list[list[bool]] = kept_in_order(np.array(choices), np.array(room)).tolist()
    return kept


def local(alphas: Sequence[float], topk: int, tokens: int) -> list[int]:
    """Capacities of experts with alphas of their own."""
    rows: list[int] = local_capacities(np.array(alphas), topk, tokens).tolist()
    return rows


def mask(fraction: float, tokens: int, experts: int, topk: int) -> float:
    """Elements of the dispatch mask that static gating builds on one gpu."""
    static = Static(fraction=fraction)
    room = np.full(experts, static.capacity(tokens, experts, topk))
    return float(static(np.zeros((1, experts)), room, np.array([tokens])).mask[0])


_NODE = Node(
    name="given",
    device=Device(name="given", memory=1, bandwidth=1, power=1, processors=1, cache=0, flop_rate={"bf16": 1.0}),
    gpus=1,
    tiers=(),
    host_memory=0.0,
    power=0.0,
)
_LAYOUT = Layout(
    expert_of_slot=np.zeros((1, 1), int),
    rank_of_slot=np.zeros(1, int),
    capacity=np.full((1, 1), NO_LIMIT),
    resident=np.ones((1, 1), bool),
    r=np.ones(1, int),
    degree=np.ones(1, int),
    alltoall=("linear",),
)


def pair(
    position: int,
    *,
    attention: float,
    mlp: float,
    shared: float = 0.0,
    experts: float = 0.0,
    dispatch: float = 0.0,
    combine: float = 0.0,
    degree: int = 1,
) -> float:
    """Length of a block pair of given durations under moesim's shortcut policy and timeline; position 0: in series.

    With a degree above 1 the exchange is pipelined besides.
    """
    names = [(0, "attention", attention), (0, "mlp", mlp), (1, "attention", attention), (1, "shared", shared)]
    names += [(1, "dispatch", dispatch), (1, "experts", experts), (1, "combine", combine)]
    tasks = tuple(
        Task(
            name=name,
            layer=layer,
            stream="comm" if name in ("dispatch", "combine") else "compute",
            op=fixed(seconds),
            after=(i - 1,) if i else (),
        )
        for i, (layer, name, seconds) in enumerate(names)
    )
    block = Schedule(tasks=tasks, out=(len(tasks) - 1,))
    shortcut = make(
        "shortcut", Policy(name="scmoe", settings={"position": position}) if position else Policy(name="none")
    )
    overlap = make("overlap", Policy(name="pipeline", settings={"degree": degree}))
    ways = [cut for way in shortcut(block, _LAYOUT) for cut in overlap.block(way, _LAYOUT)]
    return min(float(makespan(price(way, _NODE, ())).max()) for way in ways)


def pays_from(position: int, attention: float, mlp: float, shared: float, experts: float) -> float:
    """Share of communication in top-1's mixture from which a shortcut with a shared expert beats top-1."""
    before = _exchanging(position, attention, mlp, shared, experts)
    return share_at(lambda exchange: 2 * attention + mlp + experts + exchange - before(exchange), experts)


def hides_to(position: int, attention: float, mlp: float, shared: float, experts: float) -> float:
    """Share of communication in a mixture up to which a shortcut hides all of it."""
    length, computing = _exchanging(position, attention, mlp, shared, experts), 2 * attention + mlp + shared + experts
    return share_at(lambda exchange: length(exchange) - computing * (1 + 1e-9), experts)


def _exchanging(position: int, attention: float, mlp: float, shared: float, experts: float) -> Callable[[float], float]:
    """Length of a block pair by what it exchanges, half of it on either side of the experts."""

    def length(exchange: float) -> float:
        half = exchange / 2
        return pair(position, attention=attention, mlp=mlp, shared=shared, experts=experts, dispatch=half, combine=half)

    return length


def caching_switches(pieces: Sequence[Sequence[float]], cool_down: int) -> list[int]:
    """Steps before which assignment caching is switched, for a series of (agreement, steps)."""
    agreement = np.concatenate([np.full(int(steps), value) for value, steps in pieces])
    steps = len(agreement)
    trace = Trace(counts=np.ones((steps, 1, 1), int), most=np.ones((steps, 1), int), agreement=agreement)
    policy = make("adaptation", Policy(name="caching", settings={"cool_down": cool_down}))
    sizes = Sizes(tokens=1, topk=1, gpus=1, nodes=1, expert=0.0)
    found = walk([policy], _LAYOUT, sizes, trace, lambda layout, step: np.zeros(1))
    return [step for step, _ in found.changes]


def zero_cost(seconds: Sequence[Sequence[float]]) -> float:
    """Cheapest way through steps (rows) and configurations where switching is free."""
    table = np.array(seconds)
    return clairvoyant(table, np.zeros((table.shape[1],) * 2))[0]


def paying(seconds: Sequence[Sequence[float]], cost: float) -> float:
    """Cheapest way where every switch costs the same."""
    table = np.array(seconds)
    return clairvoyant(table, cost * (1 - np.eye(table.shape[1])))[0]


def offloaded(migration_time: float, window: float) -> float:
    """What a determinate migration adds to a block whose window hides part of it."""
    return max(0.0, migration_time - window)


def model_parameters(name: str) -> float:
    """Weights of a shipped model."""
    return float(parameters(load(name)))


def expert_size(name: str) -> float:
    """Weights of one expert of a shipped model's first mixture."""
    model = load(name)
    return float(expert_parameters(model.moe(model.moe_layers[0])))


def volumes(r: int, gpus: int, experts: int, rows: float, weights: float) -> list[float]:
    """Elements of rows and of weights that Tutel's r communicates."""
    moved = volume(r, gpus=gpus, experts=experts, rows=rows, parameters=weights)
    return [moved.rows, moved.weights]


def least(*values: Any) -> Any:
    """Smallest of several numbers or columns, point by point."""
    return np.minimum.reduce(values)


def falls(*values: float) -> bool:
    """Whether numbers fall, each below the one before."""
    return all(later < earlier for earlier, later in pairwise(values))


def rises(values: Sequence[float]) -> bool:
    """Whether numbers rise, each above the one before."""
    return falls(*reversed(values))


def smallest(*values: float) -> int:
    """Which number is the smallest, counted from 1."""
    return int(np.argmin(values)) + 1


RULES: Mapping[str, Callable[..., Any] | float] = MappingProxyType(
    {
        "GiB": GIB,
        "abs": abs,
        "ceil": math.ceil,
        "falls": falls,
        "int": int,
        "least": least,
        "max": max,
        "mean": lambda values: float(np.mean(values)),
        "min": min,
        "most": lambda values: float(np.max(values)),
        "rises": rises,
        "round": round,
        "smallest": smallest,
        "aligned_capacity": aligned_capacity,
        "best_r": best_r,
        "cache_ends": cache_ends,
        "cache_misses": cache_misses,
        "caching_gain": caching_gain,
        "caching_switches": caching_switches,
        "paying": paying,
        "zero_cost": zero_cost,
        "capacity": capacity,
        "crossing": crossing,
        "best_parallelism": best_parallelism,
        "copied": copied,
        "device_share": device_share,
        "drops": drops,
        "expert_size": expert_size,
        "hides_to": hides_to,
        "local": local,
        "mask": mask,
        "messages": messages,
        "migration": migration,
        "miss_shares": miss_shares,
        "model_parameters": model_parameters,
        "offloaded": offloaded,
        "order_of_misses": order_of_misses,
        "pair": pair,
        "parallelism_gap": parallelism_gap,
        "pays_from": pays_from,
        "trials": trials,
        "trigger_step": trigger_step,
        "volumes": volumes,
        "waste": waste,
    }
)
"""Functions and constants by the name that case files use."""
