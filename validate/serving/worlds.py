"""The world and the pool of a measurement: names and modes of the file in moesim's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from moesim.files.frameworks import built_in_frameworks
from moesim.files.models import load, model_names
from moesim.files.profiles import load_profile
from moesim.ground.errors import Fault, PlanError, nearest
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Policy, Pool, misfits
from moesim.world.framework import Framework
from moesim.world.generators import skewed
from moesim.world.hardware import Hardware, Node, Offer
from moesim.world.model import Model
from moesim.world.routing import Routing
from moesim.world.scenario import Scenario
from moesim.world.workload import Arrivals, Lengths, Requests, Serving

from .measured import JITTER, Setup
from .runs import BUDGET, launch_of

NODES = {
    "a100_pcie": "pcie/a100-80gb-x8",
    "a100_sxm": "nvidia/hgx-a100",
    "b200_sxm": "nvidia/hgx-b200",
    "b300_sxm": "nvidia/hgx-b300",
    "gb200": "nvidia/gb200-nvl72",
    "gb200_nvl72": "nvidia/gb200-nvl72",
    "gb200_sxm": "nvidia/gb200-nvl72",
    "gb300": "nvidia/gb300-nvl72",
    "gb300_nvl72": "nvidia/gb300-nvl72",
    "gb300_sxm": "nvidia/gb300-nvl72",
    "h100_pcie": "pcie/h100-x8",
    "h100_sxm": "nvidia/hgx-h100",
    "h200_sxm": "nvidia/hgx-h200",
    "h800_sxm": "nvidia/hgx-h800",
    "l40s": "pcie/l40s-x8",
    "mi300x": "amd/mi300x-x8",
    "mi325x": "amd/mi325x-x8",
    "mi355x": "amd/mi355x-x8",
    "rtx_pro_6000": "pcie/rtx-pro-6000-x8",
}
FRAMEWORKS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm", "tensorrt_llm": "tensorrt_llm"}
FILLED = 0.95
"""Share of memory that benchmarks let every framework fill, vLLM more than its default of 0.9.

Of 0.90, 0.93, 0.95, 0.97 and 0.98, errors of TTFT barely fall above 0.95.
"""

FORMATS = {
    "": "bf16",
    "bf16": "bf16",
    "float16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "fp8_static": "fp8",
    "int4_wo": "int4",
    "int8_wo": "int8",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
    "w4afp8": "int4",
}
"""Storage formats of the quantization modes that such files name."""

CV = 0.25
"""Spread of expert popularity: what released models show on mixed text; not fitted here."""

FP8_CACHE = ("nvidia/hgx-b200", "nvidia/hgx-b300", "nvidia/gb200-nvl72", "nvidia/gb300-nvl72")
"""Nodes on which caches are kept in 8 bits, as TensorRT-LLM does everywhere; assumed, since files do not say it."""


def known_model(name: str) -> str:
    """Find a model of the zoo by its full name, or by its last part whoever packed it.

    Raises
    ------
    PlanError
        No model of the zoo is called so.
    """
    names = model_names()
    if name in names:
        return name
    last = name.rsplit("/", 1)[-1].lower()
    for suffix in ("", "-fp8", "-fp4", "-nvfp4", "-mxfp4", "-bf16", "-instruct", "-0528", "-0905", "-fp8-dynamic"):
        for candidate in names:
            if candidate.rsplit("/", 1)[-1].lower() in (last, last.removesuffix(suffix)):
                return candidate
    raise _refused("model", f"no model of the zoo is called `{name}`", nearest(name, names))


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
        raise _refused("model", f"`{name}` has no experts", "such rows are out of moesim's field")
    moe = model.moe(model.moe_layers[0])
    layers = len(model.moe_layers)
    return skewed(layers, moe.experts, moe.topk, cv=CV, seed=0, groups=moe.groups, group_topk=moe.group_topk)


@cache
def frameworks() -> Mapping[str, Framework]:
    """Load the built-in frameworks as published benchmarks run them."""
    known = {name: found for name, (found, _) in built_in_frameworks().items()}
    return known | {name: replace(known[name], utilization=FILLED) for name in {*FRAMEWORKS.values()}}


@cache
def _hardware(system: str) -> Hardware:
    node: Node = load_profile("node", NODES[system]).profile
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
    if setup.system not in NODES:
        raise _refused("system", f"`{setup.system}` is unknown", nearest(setup.system, NODES))
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
        The backend or a quantization mode is unknown, or the degrees do not agree.
    """
    if setup.backend not in FRAMEWORKS:
        raise _refused("backend", f"`{setup.backend}` is unknown", nearest(setup.backend, FRAMEWORKS))
    parallel = Parallel(pp=setup.pp, dp=setup.dp, tp=setup.tp, ep=setup.ep, etp=setup.etp)
    faults = [Fault(path=name, problem=problem, remedy=remedy) for name, problem, remedy in misfits(parallel)]
    if setup.gpus % parallel.gpus:
        faults.append(Fault(path="gpus", problem=f"{setup.gpus} is no multiple of the layout's {parallel.gpus}"))
    if faults:
        raise PlanError("row", faults)
    replicas = setup.gpus // parallel.gpus
    return Pool(
        role="all",
        node=NODES[setup.system],
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
    modes = FORMATS[setup.gemm], FORMATS[setup.moe]
    blocks = {"fp8": "fp8_block"} if "fp8_block" in (*modes, native["experts"]) else {}
    experts = "mxfp4" if native["experts"] == "mxfp4" else blocks.get(modes[1], modes[1])
    published = native["experts"] == "mxfp4" or setup.gemm == "int4_wo"  # these leave attention and dense layers alone
    dense = native["dense"] if published else blocks.get(modes[0], modes[0])
    small = NODES[setup.system] in FP8_CACHE or FRAMEWORKS[setup.backend] == "tensorrt_llm"
    return {"experts": experts, "attention": dense, "dense": dense, "kv": "fp8" if small else "bf16"}
