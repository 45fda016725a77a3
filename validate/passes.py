"""Passes that a case describes by numbers, lowered, priced and run by moesim itself, one for each point of a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from moesim.files.models import load
from moesim.files.policies import read_policy
from moesim.files.profiles import load_profile
from moesim.files.routings import load_preset
from moesim.ground.errors import MoesimError, nearest
from moesim.ground.streams import stream
from moesim.ground.units import Source
from moesim.passes.breakdown import breakdown
from moesim.passes.exchanges import Routed
from moesim.passes.lowering import arrange, distinct_blocks, lower, sampled_layers
from moesim.passes.presence import home_tokens, mixture_kinds
from moesim.passes.timeline import makespan, timeline
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy, Pool
from moesim.schedules.costs.pricing import price_together
from moesim.schedules.schedule import Priced
from moesim.world.attention import Gqa, Window
from moesim.world.generators import Balanced, skewed
from moesim.world.generators.choosing import Limits
from moesim.world.generators.making import made
from moesim.world.generators.skewed import with_shares
from moesim.world.hardware import Fit, Hardware, Node, Offer, Tier, reach
from moesim.world.model import Dense, Layer, Model, Moe
from moesim.world.routing import Routing
from moesim.world.scenario import Scenario
from moesim.world.workload import Batch, Training

from .eager import eager, unfused
from .issuing import issued

DRAWS = 4
"""Routing draws a pass with skewed routing is averaged over."""
MACHINE = {"node", "fabric", "fits", "interference"}
"""Fields of a pass that describe what it runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One pass by numbers: a plain transformer, or one layer of experts alone, on so many gpus.

    Attributes
    ----------
    dim, width, experts, topk, shared_width, vocab, gated : the model; `heads` = 0 leaves attention out
    model : a shipped model in place of the plain transformer, with `experts` and `topk`; 0 experts: its dense twin
    layers, every : how many layers, and of how many one is a mixture of experts (the last of each turn)
    tokens, context : tokens home to each gpu, and the length of the sequences they belong to
    gpus, ep, etp : parallel degrees; experts are spread over as many gpus as there are experts, or over all
    cv, zipf, preset : skew of the routing, popular experts anywhere, or the first ones by a Zipf law, or a shipped
        routing; 0 and none are balanced
    backward : whether the pass trains
    format : storage format of weights and of rows on their way
    launch : seconds the host takes to issue an eager operator; 0: nothing waits for it
    kernels : ``tuned`` as the machine's profile has them; ``eager``: those of PyTorch in 2021 and 2022 (`eager`)
    """

    dim: int
    width: int
    experts: int
    topk: int
    tokens: float
    gpus: int
    context: float = 1024.0
    layers: int = 1
    every: int = 1
    heads: int = 0
    shared_width: int = 0
    vocab: int = 0
    gated: bool = False
    ep: int = 0
    etp: int = 1
    cv: float = 0.0
    zipf: float = 0.0
    preset: str = ""
    backward: bool = False
    format: str = "fp16"
    model: str = ""
    launch: float = 0.0
    kernels: Literal["tuned", "eager"] = "tuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What a pass runs on."""

    node: Node
    fabric: tuple[Tier, ...]


def run_passes(tree: Mapping[str, Any], file: str, folder: Path) -> Mapping[str, Float[np.ndarray, "..."]]:
    """Time a pass at every point of its grid: fields with a list of values are multiplied out, in order.

    Parameters
    ----------
    tree : fields of `Setup`; `node`, `fabric`, `fits` and `interference` for the machine; `policies` by kind
    file : how messages name the case
    folder : what relative paths start from

    Returns
    -------
    Seconds by name, one number per point (a plain number where there is one point): ``total``, of the fastest
    alternative; ``way1``, ``way2`` and so on, of each; and the busy time of every named part of the fastest.
    """
    known = {field.name for field in fields(Setup)}
    numbers = {key: value for key, value in tree.items() if key in known}
    other = {key for key in tree if key not in known} - MACHINE - {"policies"}
    if other:
        raise MoesimError(f"{file}: a pass has no field `{min(other)}`; {nearest(min(other), known)}")
    machines = _machines(tree, folder)
    policies = {
        **DEFAULT_POLICIES,
        **{kind: read_policy(kind, policy, file) for kind, policy in tree.get("policies", {}).items()},
    }
    points = [_timed(setup, machines, policies) for setup in _grid(numbers, file)]
    names = dict.fromkeys(name for point in points for name in point)
    return MappingProxyType({name: _column([point.get(name, 0.0) for point in points]) for name in names})


def _column(values: Sequence[float]) -> Any:
    return values[0] if len(values) == 1 else np.array(values)


def _grid(numbers: Mapping[str, Any], file: str) -> Iterator[Setup]:
    """Multiply lists of values out."""
    choices = [value if isinstance(value, list) else [value] for value in numbers.values()]
    for chosen in product(*choices):
        try:
            yield Setup(**dict(zip(numbers, chosen, strict=True)))
        except TypeError as flaw:
            raise MoesimError(f"{file}: a pass lacks a field: {flaw}") from None


def _machines(tree: Mapping[str, Any], folder: Path) -> Machines:
    node: Node = load_profile("node", tree["node"], folder).profile
    fabric = load_profile("fabric", tree["fabric"], folder).profile.tiers if "fabric" in tree else ()
    fits = {key: _fit(key, params) for key, params in tree.get("fits", {}).items()}
    device = replace(
        node.device,
        fits=MappingProxyType({**node.device.fits, **fits}),
        interference=tree.get("interference", node.device.interference),
    )
    return Machines(node=replace(node, device=device), fabric=fabric)


def _fit(key: str, params: Mapping[str, float]) -> Fit:
    """Read constants that a case gives, whatever its own text says they rest on."""
    source = Source(kind="fitted", title="the case file")
    form = key.split("/")[0]
    return Fit(form=form, params=MappingProxyType(dict(params)), shared=0.0, point=0.0, box={}, source=source)


def _timed(setup: Setup, machines: Machines, policies: Mapping[str, Policy]) -> dict[str, float]:
    """Lower, price and run one pass."""
    if setup.kernels == "eager":
        first = _model(setup).layers[0]
        head = setup.dim // setup.heads if setup.heads else 0
        masked, windowed = first.part != "encoder", isinstance(first.attention, Window)
        device = eager(machines.node.device, setup.format, head, masked=masked, windowed=windowed)
        machines = replace(machines, node=replace(machines.node, device=device))
    ways = _priced(setup, machines, tuple(policies.items()))
    totals = [float(makespan(way).mean()) for way in ways]
    best = ways[int(np.argmin(totals))]
    parts = breakdown(best, timeline(best))
    return {
        "total": min(totals),
        **{f"way{number}": total for number, total in enumerate(totals, start=1)},
        **{name: busy for name, (busy, _) in parts.items()},
    }


def _priced(setup: Setup, machines: Machines, policies: tuple[tuple[str, Policy], ...]) -> tuple[Priced, ...]:
    scenario = _scenario(setup, machines)
    ep = setup.ep or min(setup.gpus // setup.etp, max(setup.experts, 1))
    pool = Pool(
        role="all",
        node=machines.node.name,
        replicas=1,
        parallel=Parallel(dp=setup.gpus, ep=ep, etp=setup.etp),
        precision={"dispatch": setup.format, "combine": setup.format},
        policies=dict(policies),
    )
    batch = _batch(setup)
    layout = arrange(scenario, pool, tokens=round(setup.tokens), seed=0)
    halves = 2 if pool.policy("overlap").name == "two_batch" else 1
    drawn = [_routed(scenario, pool, setup, batch, half) for half in range(halves)]
    lowering = lower(scenario, [pool], 0, [layout], [batch] * halves, [[each] for each in drawn])
    ways = lowering.schedules()
    if setup.kernels == "eager":
        windowed = isinstance(scenario.model.layers[0].attention, Window)
        ways = tuple(unfused(way, setup.format, windowed=windowed) for way in ways)
    if setup.launch:
        ways = tuple(issued(way, setup.launch) for way in ways)
    return price_together(ways, machines.node, machines.fabric)


def _batch(setup: Setup) -> Batch:
    tokens = np.full((1, 1, 1), float(setup.tokens))
    none = np.zeros((1, 1, 1))
    return Batch(
        prefill=tokens,
        prompts=tokens / setup.context,
        pairs=tokens * setup.context / 2,
        keys=tokens,
        decode=none,
        context=none,
        backward=setup.backward,
    )


def _scenario(setup: Setup, machines: Machines) -> Scenario:
    model = _model(setup)
    return Scenario(
        name="case",
        model=model,
        hardware=Hardware(offers=(Offer(node=machines.node, max_nodes=1),), fabric=machines.fabric),
        workload=Training(sequence=round(setup.context), sequences=1, tokens=1.0),
        routing=_routing(setup, len(model.moe_layers)),
    )


def _routing(setup: Setup, layers: int) -> Routing:
    if setup.cv:
        return skewed(layers, setup.experts, setup.topk, cv=setup.cv, seed=0)
    if setup.preset:
        limits = Limits(experts=setup.experts, topk=setup.topk, groups=1, group_topk=1)
        return made(load_preset(setup.preset).recipe, layers, limits)
    if setup.zipf:
        popularity = np.arange(1.0, setup.experts + 1) ** -setup.zipf
        return with_shares(np.tile(popularity, (layers, 1)), setup.topk)
    return Balanced(layers=layers, experts=max(setup.experts, 1), topk=setup.topk)


@lru_cache(maxsize=256)
def _model(setup: Setup) -> Model:
    formats = dict.fromkeys(("experts", "attention", "dense", "embedding", "kv"), setup.format)
    if setup.model:
        shipped = load(setup.model)
        return replace(shipped, layers=tuple(_with_experts(layer, setup) for layer in shipped.layers), dtype_of=formats)
    width = setup.dim // setup.heads if setup.heads else 0
    attention = Gqa(heads=setup.heads, kv_heads=setup.heads, head_dim=width, value_dim=width) if setup.heads else None
    dense = Layer(
        part="decoder",
        dim=setup.dim,
        tokens=1.0,
        attention=attention,
        ffn=Dense(width=setup.width, gated=setup.gated),
    )
    moe = Moe(
        experts=setup.experts,
        topk=setup.topk,
        width=setup.width,
        input_dim=setup.dim,
        gated=setup.gated,
        shared_width=setup.shared_width,
    )
    turn = (*[dense] * (setup.every - 1), replace(dense, ffn=moe))
    return Model(name="case", layers=turn * (setup.layers // setup.every), vocab=setup.vocab, dtype_of=formats)


def _with_experts(layer: Layer, setup: Setup) -> Layer:
    """Give a mixture the case's experts, or make it dense where there are none."""
    moe = layer.ffn
    if not isinstance(moe, Moe):
        return layer
    if not setup.experts:
        return replace(layer, ffn=Dense(width=moe.width, gated=moe.gated))
    return replace(layer, ffn=replace(moe, experts=setup.experts, topk=setup.topk))


def _routed(scenario: Scenario, pool: Pool, setup: Setup, batch: Batch, half: int) -> Routed:
    """Draw each kind of MoE layer's counts, the mean source rank standing for all."""
    block = pool.parallel.ep * pool.parallel.etp
    draws = DRAWS if setup.cv or setup.zipf or setup.preset else 1
    layers = sampled_layers(scenario.routing.layers, draws)
    rng = stream(0, f"routing {half}")
    sample = scenario.routing.only(layers.tolist())
    kinds = mixture_kinds(scenario.model)
    if not kinds:
        return Routed(counts=np.zeros((1, 1, 1, 1)), layer_of=np.zeros((1, 1), int), distinct={})
    totals = [round(float(home_tokens(kind, scenario.model, batch).max()) * block) for kind in kinds]
    counts = np.stack([sample.draw(np.array([total]), 0, rng) for total in totals], axis=1) / block
    node = scenario.hardware.offers[0].node
    sizes = [size for _, size in reach(node, scenario.hardware.fabric)]
    layout = arrange(scenario, pool, tokens=1, seed=0)
    touched = distinct_blocks(sample, layout, pool.parallel.etp, sizes, layers.tolist())
    return Routed(
        counts=counts,
        layer_of=np.repeat(layers[:, None], len(totals), axis=1),
        distinct={size: np.repeat(each[:, None], len(totals), axis=1) for size, each in touched.items()},
    )
