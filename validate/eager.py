"""Kernels of eager PyTorch in 2021 and 2022, on which the papers' baselines and their systems ran.

Priors describe libraries and fused kernels of today. Three things were different then, and all are taken from outside
the rows they explain: how much of the tensor cores' peak products reached (one published unit test, see `PRODUCTS`);
that attention wrote its scores to memory (counted, see `SCORES`); and that nothing was fused, so that heads were laid
out anew, residuals added apart from norms, windows cut and joined, all in the format of the activations (counted, see
`unfused`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from moesim.ground.units import Source
from moesim.passes.attention import ACTIVATION, NORM_PASSES
from moesim.schedules.costs.priors import MEMORY, compute_dtype
from moesim.schedules.ops import Attend, Elementwise, Op
from moesim.schedules.schedule import Schedule, Task
from moesim.world.formats import bytes_of
from moesim.world.hardware import Device, Fit

PRODUCTS = 58.07 / 125
"""Share of the tensor cores' peak that products reach: microsoft/tutel's own test of a layer on one V100 in fp16, 0.825
TFLOP in 14.2 ms, of 125 TFLOP/s (check T11). Table 2 of Tutel, 71 of 156 TFLOP/s on A100, is 0.455."""

SCORES = 20.0
"""Bytes of memory traffic per head, query and key: the product writes 2; the mask reads and writes 2; the softmax in
fp32 reads 2 and writes 4, which are read again and written as 2; the second product reads 2, dropout left out."""

SCORES_WIDE = 24.0
"""The same in fp32: the product writes 4, the mask reads and writes 8, the softmax 8; the second product reads 4."""

SCORES_WINDOWED = 28.0
"""The same in fp32 in windows: the position's bias reads and writes 8, and every other block has a mask
(microsoft/Swin-Transformer, models/swin_transformer_moe.py)."""

COPIES = 10.0
"""Times an attention's input crosses memory besides: queries are scaled (2); queries, keys and values laid out by head
(6), and the result laid out by token (2)."""

WINDOWS = 6.0
"""The same for windows: cut and joined (4), and rolled there and back in every other block (4)."""

_NORM = 5.0
"""Times that a residual addition (3) and its norm (2) cross memory apart; `NORM_PASSES` where they are fused."""

BACK = 2.0
"""Backward over forward: gradients of scores pass through memory about twice as often."""

_WORK_BACK = 2.5
"""Backward over forward work, by which the cost form multiplies."""

_MASKED = 2.0
"""Pairs computed over those that a causal mask leaves: all are, and then masked."""


def eager(device: Device, dtype: str, head: int, *, masked: bool = True, windowed: bool = False) -> Device:
    """Give a device the kernels of eager PyTorch.

    Parameters
    ----------
    dtype : format of the products
    head : width of the heads; 0: no attention
    masked : whether attention is causal
    windowed : whether it looks at windows of an image
    """
    multiplied = compute_dtype(device, dtype)
    peak = PRODUCTS * device.flop_rate[multiplied]
    fits = {"gemm": _fit("gemm", {"peak": peak}), "grouped_gemm": _fit("grouped_gemm", {"peak": peak})}
    if head:
        wide = SCORES_WINDOWED if windowed else SCORES_WIDE
        a_score = (SCORES if bytes_of(dtype) <= ACTIVATION else wide) * (_MASKED if masked else 1.0)
        scores = 4 * head * MEMORY * device.bandwidth / a_score
        for phase, rate in (("prefill", scores), ("backward", scores * _WORK_BACK / BACK)):
            form = f"attention_{phase}"
            fits[form] = _fit(form, {"peak": rate, "half_width": 0.0, "diagonal": 0.0})
    return replace(device, fits=MappingProxyType({**device.fits, **fits}))


def unfused(schedule: Schedule, dtype: str, *, windowed: bool = False) -> Schedule:
    """Let what moves activations through memory do so as eager PyTorch did; masks and gates keep their own formats.

    A layer's norms carry what its attentions copy, backward as often as forward.
    """
    element = bytes_of(dtype) / ACTIVATION
    copied = _copied(schedule, COPIES + (WINDOWS if windowed else 0.0))
    made: dict[tuple[int, int], Op] = {}

    def eagerly(task: Task) -> Task:
        op = task.op
        if not isinstance(op, Elementwise) or op.kernel in ("mask", "gate"):
            return task
        layer = task.layer if task.name == "norm" else -1
        key = id(op), layer if layer in copied else -1
        if key not in made:
            traffic = op.traffic if key[1] < 0 else op.traffic * _NORM / NORM_PASSES + copied[layer]
            made[key] = replace(op, traffic=traffic * element)
        return replace(task, op=made[key])

    return replace(schedule, tasks=tuple(map(eagerly, schedule.tasks)))


def _copied(schedule: Schedule, passes: float) -> dict[int, Float[np.ndarray, "..."]]:
    """Traffic that each norm of a layer carries for the layer's attentions, from that of its first norm, a forward."""
    attends = Counter(task.layer for task in schedule.tasks if isinstance(task.op, Attend))
    norms = [
        (task.layer, task.op.traffic)
        for task in schedule.tasks
        if task.name == "norm" and isinstance(task.op, Elementwise) and task.layer in attends
    ]
    number = Counter(layer for layer, _ in norms)
    first = dict(reversed(norms))
    return {layer: first[layer] / NORM_PASSES * passes * attends[layer] / number[layer] for layer in number}


def _fit(form: str, params: Mapping[str, float]) -> Fit:
    source = Source(
        kind="derived", title="eager PyTorch of 2021 and 2022: Tutel's unit test, and passes over scores counted"
    )
    return Fit(form=form, params=MappingProxyType(dict(params)), shared=0.0, point=0.0, box={}, source=source)
