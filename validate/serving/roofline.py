"""The second rival: a roofline with four constants, fitted to the same rows by the same metrics, and nothing else.

A step reads the weights that its tokens touch and the cache they attend to, and multiplies; the slower of the two
counts, and a constant for each layer is added. Prompts of requests that replace each other are spread over the steps
between. A first token waits for its prompt's own work, and a constant for each request in flight. Routing is even,
exchanges and queues are not there, and one set of constants serves all frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import least_squares

from moesim.files.profiles import load_profile
from moesim.ground.errors import MoesimError
from moesim.world.attention import attention_parameters, kv_bytes, kv_share, kv_tokens
from moesim.world.formats import COMPUTE_OF, bytes_of
from moesim.world.hardware import Device
from moesim.world.model import Model, active_parameters, embedding_parameters, expert_parameters

from .fitting import NOISE, WEIGHTS, Sample
from .measured import JITTER, Setup, throughput
from .prediction import Predicted
from .worlds import model_of, node_of, pool

START = np.log([0.5, 0.7, 30e-6, 1e-3])
"""Where fits start: share of the arithmetic peak, of the bandwidth, time per layer, wait per request in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one decode step of a setup's full load takes on a gpu, and what a prompt token adds."""

    bytes: float
    flops: float
    prompt: float
    layers: int
    peak: float
    bandwidth: float


def rival(sample: Sample, key: Callable[[Setup], str]) -> Iterator[tuple[Setup, Predicted]]:
    """Predict every setup by constants fitted without its group; what has no formula is refused with its reason."""
    works = [_work(setup) for setup in sample.setups]
    groups = np.array([key(setup) for setup in sample.setups])
    known = np.array([isinstance(work, Work) for work in works])
    for group in sorted(set(groups.tolist())):
        constants = _fitted(sample, works, known & sample.trusted & (groups != group))
        for place in np.flatnonzero(groups == group).tolist():
            setup, work = sample.setups[place], works[place]
            yield setup, _predicted(setup, work, constants) if isinstance(work, Work) else Predicted(reason=work)


def _fitted(sample: Sample, works: list[Work | str], kept: Bool[np.ndarray, "row"]) -> Float[np.ndarray, "constant"]:
    rows = [(sample.setups[row], works[row], sample.logs[row]) for row in np.flatnonzero(kept).tolist()]

    def errors(constants: Float[np.ndarray, "constant"]) -> Float[np.ndarray, "error"]:
        found = [np.log(_times(setup, work, constants)) - logs for setup, work, logs in rows if isinstance(work, Work)]
        return np.asarray((np.array(found) * WEIGHTS / NOISE).ravel())

    return np.asarray(least_squares(errors, START, loss="soft_l1").x)


def _predicted(setup: Setup, work: Work, constants: Float[np.ndarray, "constant"]) -> Predicted:
    ttft, tpot = _times(setup, work, constants)
    return Predicted(ttft=ttft, tpot=tpot, throughput=throughput(setup, ttft, tpot))


def _times(setup: Setup, work: Work, constants: Float[np.ndarray, "constant"]) -> tuple[float, float]:
    """TTFT and TPOT under the logarithms of the four constants."""
    arithmetic, memory, layer, wait = np.exp(constants).tolist()
    rate = work.peak * arithmetic
    step = max(work.flops / rate, work.bytes / (work.bandwidth * memory)) + layer * work.layers
    prompt = work.prompt / rate
    shared = setup.concurrency * setup.isl / setup.osl  # prompt tokens that come with each step of all requests
    ttft = JITTER * setup.isl * prompt + step + wait * setup.concurrency
    return float(ttft), float(step + shared * prompt)


@cache
def _work(setup: Setup) -> Work | str:
    """Count a setup's work, or say why it cannot be counted."""
    try:
        return _counted(setup, model_of(setup.model), load_profile("node", node_of(setup.system)).profile.device)
    except (MoesimError, KeyError, ValueError) as refusal:
        return str(refusal).replace("\n", "; ")


def _counted(setup: Setup, model: Model, device: Device) -> Work:
    precision = pool(setup).precision
    replicas = setup.gpus // (setup.tp * setup.dp * setup.pp)
    load = setup.concurrency / replicas
    attended = JITTER * (setup.isl + setup.osl / 2)
    moes = [model.moe(layer) for layer in model.moe_layers]
    touched = [1 - (1 - moe.topk / moe.experts) ** load for moe in moes]
    experts = sum(moe.experts * share * expert_parameters(moe) for moe, share in zip(moes, touched, strict=True))
    routed = sum(moe.topk * expert_parameters(moe) for moe in moes)
    attention = sum(attention_parameters(one.attention, one.dim) for one in model.layers if one.attention is not None)
    rest = active_parameters(model) - routed - attention
    gpus = setup.tp * setup.dp * setup.pp
    cached = sum(
        kv_bytes(one.attention, precision["kv"])
        * kv_tokens(one.attention, attended)
        * float(kv_share(one.attention, np.array([float(setup.tp)]))[0])
        for one in model.layers
    )
    weights = experts * bytes_of(precision["experts"]) / gpus
    weights += (attention * bytes_of(precision["attention"]) + rest * bytes_of(precision["dense"])) / setup.tp
    flops = 2.0 * active_parameters(model) / gpus
    return Work(
        bytes=(weights + cached * load / setup.dp) / setup.pp,
        flops=flops * load,
        prompt=flops - 2.0 * embedding_parameters(model) / gpus,
        layers=len(model.layers),
        peak=_peak(device, precision["experts"]),
        bandwidth=device.bandwidth,
    )


def _peak(device: Device, dtype: str) -> float:
    """Arithmetic peak for weights of a format: that of the first format the device multiplies them in."""
    return next(device.flop_rate[name] for name in COMPUTE_OF[dtype] if name in device.flop_rate)
