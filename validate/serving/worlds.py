"""The world and the pool of a measurement: names and modes of the file in moesim's own words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from moesim.files.frameworks import built_in_frameworks
from moesim.files.models import load, model_names
from moesim.files.profiles import load_profile
from moesim.ground.errors import Fault, PlanError, nearest
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy, Pool, misfits
from moesim.world.framework import Framework
from moesim.world.generators import Balanced, skewed
from moesim.world.hardware import Hardware, Node, Offer
from moesim.world.model import Model
from moesim.world.routing import Routing
from moesim.world.scenario import Scenario
from moesim.world.workload import Arrivals, Lengths, Requests, Serving

from .measured import JITTER, Setup
from .names import FORMATS, FRAMEWORKS, NODES, model_named
from .runs import BUDGET, launch_of

CV = 0.25
"""Spread of expert popularity: what released models show on mixed text; not fitted here."""

FP8_CACHE = ("nvidia/hgx-b200", "nvidia/hgx-b300", "nvidia/gb200-nvl72", "nvidia/gb300-nvl72")
"""Nodes on which caches are kept in 8 bits, as TensorRT-LLM does everywhere; assumed, since files do not say it."""


def known_model(name: str) -> str:
    """Find a model of the zoo, or name the path of a configuration.

    Raises
    ------
    PlanError
        No model of the zoo is called so.
    """
    found = model_named(name)
    if not found:
        hint = nearest(name, model_names())
        others = "`moesim models` lists them; or name the path of a config.json"
        close = hint.startswith("did you mean")
        raise _refused("model", f"no model of the zoo is called `{name}`", hint if close else others)
    return found


def _refused(path: str, problem: str, remedy: str = "") -> PlanError:
    return PlanError("row", [Fault(path=path, problem=problem, remedy=remedy)])


@cache
def model_of(name: str) -> Model:
    """Load the model that a measurement names."""
    return load(known_model(name))


@cache
def _routing(name: str) -> Routing:
    model = model_of(name)
    if not model.moe_layers:
        return Balanced(layers=0, experts=1, topk=1)
    moe = model.moe(model.moe_layers[0])
    layers = len(model.moe_layers)
    return skewed(layers, moe.experts, moe.topk, cv=CV, seed=0, groups=moe.groups, group_topk=moe.group_topk)


@cache
def frameworks() -> Mapping[str, Framework]:
    """Load the built-in frameworks."""
    return {name: found for name, (found, _) in built_in_frameworks().items()}


def node_of(system: str) -> str:
    """Name the node of a system.

    Raises
    ------
    PlanError
        The system is unknown.
    """
    if system not in NODES:
        raise _refused("system", f"`{system}` is unknown", nearest(system, NODES))
    return NODES[system]


@cache
def _hardware(system: str) -> Hardware:
    node: Node = load_profile("node", node_of(system)).profile
    return Hardware(
        offers=(Offer(node=node, max_nodes=8),), fabric=load_profile("fabric", "infiniband/rail-400g").profile.tiers
    )


def world(setup: Setup, *, isl: float, osl: float) -> Scenario:
    """Build the world of a measurement, its requests `isl` and `osl` tokens long by name.

    Raises
    ------
    InputError
        The model or the system is unknown.
    """
    half = 0.1 / 0.9 / 3**0.5  # uniform over 0.8 to 1.0 of the nominal length
    return Scenario(
        name="measured",
        model=model_of(setup.model),
        hardware=_hardware(setup.system),
        workload=Serving(
            requests=Requests(
                arrivals=Arrivals(generator="closed", concurrency=setup.concurrency),
                input=Lengths(generator="uniform", mean=JITTER * isl, cv=half),
                output=Lengths(generator="uniform", mean=JITTER * osl, cv=half),
            ),
            horizon=RUN * setup.concurrency,
            warm_up=0,
        ),
        routing=_routing(setup.model),
        frameworks=frameworks(),
    )


RUN = 10
"""Requests of a run over its concurrency, as published benchmarks take them; the burst at its start is part of it."""


def pool(setup: Setup) -> Pool:
    """Write the layout of a measurement as a pool.

    Raises
    ------
    PlanError
        The system, the backend or a quantization mode is unknown, or the degrees do not agree.
    """
    if setup.backend not in FRAMEWORKS:
        raise _refused("backend", f"`{setup.backend}` is unknown", nearest(setup.backend, FRAMEWORKS))
    whole = setup.tp * setup.dp
    ep, etp = (setup.ep, setup.etp) if model_of(setup.model).moe_layers else (1, whole)
    parallel = Parallel(pp=setup.pp, dp=setup.dp, tp=setup.tp, ep=ep, etp=etp)
    faults = [Fault(path=name, problem=problem, remedy=remedy) for name, problem, remedy in misfits(parallel)]
    if setup.gpus % parallel.gpus:
        faults.append(Fault(path="gpus", problem=f"{setup.gpus} is no multiple of the layout's {parallel.gpus}"))
    if faults:
        raise PlanError("row", faults)
    replicas = setup.gpus // parallel.gpus
    return Pool(
        role="all",
        node=node_of(setup.system),
        replicas=replicas,
        parallel=parallel,
        framework=FRAMEWORKS[setup.backend],
        precision=_precision(setup),
        policies={
            **DEFAULT_POLICIES,
            "alltoall": Policy(name="reduce" if parallel.dp == 1 else "gathered"),
            "batching": batching(max(-(-setup.concurrency // (parallel.dp * replicas)), 1), launch_of(setup).budget),
        },
    )


def batching(most: int, budget: int = BUDGET) -> Policy:
    """Chunked prefill of up to so many sequences in each dp group."""
    return Policy(name="chunked", settings={"max_batch": most, "budget": max(budget, most)})


def _precision(setup: Setup) -> Mapping[str, str]:
    """Storage formats by tensor class; a model published in fewer bits keeps its experts so.

    That weights have scales by blocks is a property of a checkpoint, of which files often say fp8 alone: where the
    model is published so, or where either column says it, all fp8 is in blocks.
    """
    for name, mode in (("gemm_quant_mode", setup.gemm), ("moe_quant_mode", setup.moe)):
        if mode not in FORMATS:
            raise _refused(name, f"`{mode}` is unknown", nearest(mode, FORMATS))
    native = model_of(setup.model).dtype_of
    modes = (
        native["dense"] if setup.gemm == "native" else FORMATS[setup.gemm],
        native["experts"] if setup.moe == "native" else FORMATS[setup.moe],
    )
    blocks = {"fp8": "fp8_block"} if "fp8_block" in (*modes, native["experts"]) else {}
    experts = "mxfp4" if native["experts"] == "mxfp4" else blocks.get(modes[1], modes[1])
    published = native["experts"] == "mxfp4" or setup.gemm == "int4_wo"  # these leave attention and dense layers alone
    dense = native["dense"] if published else blocks.get(modes[0], modes[0])
    small = node_of(setup.system) in FP8_CACHE or FRAMEWORKS[setup.backend] == "tensorrt_llm"
    return {"experts": experts, "attention": dense, "dense": dense, "kv": "fp8" if small else "bf16"}
