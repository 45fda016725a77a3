"""Kernels of eager PyTorch in 2021 and 2022, on which the papers' baselines and their systems ran.

Priors describe libraries and fused kernels of today. Two things were different then, and both are taken from outside
the rows they explain: how much of the tensor cores' peak products reached (one published unit test, see `PRODUCTS`),
and that attention wrote its scores to memory (counted, see `SCORES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from moesim.ground.units import Source
from moesim.schedules.costs.priors import MEMORY, compute_dtype
from moesim.world.hardware import Device, Fit

PRODUCTS = 58.07 / 125
"""Share of the tensor cores' peak that products reach: microsoft/tutel's own test of a layer on one V100 in fp16, 0.825
TFLOP in 14.2 ms, of 125 TFLOP/s (check T11). Table 2 of Tutel, 71 of 156 TFLOP/s on A100, is 0.455."""

SCORES = 20.0
"""Bytes of memory traffic per head, query and key: the product writes 2; the mask reads and writes 2; the softmax in
fp32 reads 2 and writes 4, which are read again and written as 2; the second product reads 2, dropout left out."""

BACK = 2.0
"""Backward over forward: gradients of scores pass through memory about twice as often."""

_WORK_BACK = 2.5
"""Backward over forward work, by which the cost form multiplies."""

_MASKED = 2.0
"""Pairs computed over those that a causal mask leaves: all are, and then masked."""


def eager(device: Device, dtype: str, head: int, *, masked: bool = True) -> Device:
    """Give a device the kernels of eager PyTorch.

    Parameters
    ----------
    dtype : format of the products
    head : width of the heads; 0: no attention
    masked : whether attention is causal
    """
    multiplied = compute_dtype(device, dtype)
    peak = PRODUCTS * device.flop_rate[multiplied]
    fits = {"gemm": _fit("gemm", {"peak": peak}), "grouped_gemm": _fit("grouped_gemm", {"peak": peak})}
    if head:
        scores = 4 * head * MEMORY * device.bandwidth / (SCORES * (_MASKED if masked else 1.0))
        for phase, rate in (("prefill", scores), ("backward", scores * _WORK_BACK / BACK)):
            form = f"attention_{phase}"
            fits[form] = _fit(form, {"peak": rate, "half_width": 0.0, "diagonal": 0.0})
    return replace(device, fits=MappingProxyType({**device.fits, **fits}))


def _fit(form: str, params: Mapping[str, float]) -> Fit:
    source = Source(
        kind="derived", title="eager PyTorch of 2021 and 2022: Tutel's unit test, and passes over scores counted"
    )
    return Fit(form=form, params=MappingProxyType(dict(params)), shared=0.0, point=0.0, box={}, source=source)
