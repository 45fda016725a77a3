"""Storage formats: bits per element with their scales, and what they are multiplied in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from moesim.ground.units import Bytes

BITS: Mapping[str, float] = MappingProxyType(
    {
        "fp32": 32.0,
        "tf32": 32.0,  # stored as fp32, multiplied on tensor cores with 10 bits of mantissa
        "bf16": 16.0,
        "fp16": 16.0,
        "fp8": 8.0,
        "fp8_block": 8.0 + 32.0 / (128 * 128),  # one fp32 scale per 128 x 128 block
        "int8": 8.0,
        "int4": 4.0 + 16.0 / 32,  # one bf16 scale per group of 32
        "int4_128": 4.0 + (16.0 + 4.0) / 128,  # one fp16 scale and one int4 zero point per group of 128 (AWQ, GPTQ)
        "fp4": 4.0,
        "mxfp4": 4.0 + 8.0 / 32,  # one e8m0 scale per 32 (OCP Microscaling v1.0)
        "nvfp4": 4.0 + 8.0 / 16,  # one e4m3 scale per 16
    }
)
"""Bits per element of each storage format, scales included."""

COMPUTE_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fp32": ("fp32",),
        "tf32": ("tf32", "fp32"),
        "bf16": ("bf16", "fp16"),
        "fp16": ("fp16", "bf16"),
        "fp8": ("fp8", "bf16"),
        "fp8_block": ("fp8", "bf16"),
        "int8": ("int8", "bf16"),
        "int4": ("bf16",),  # weight-only: unpacked to bf16 before the product
        "int4_128": ("bf16",),
        "fp4": ("fp4", "fp8", "bf16"),
        "mxfp4": ("fp4", "bf16"),
        "nvfp4": ("fp4", "bf16"),
    }
)
"""Dtypes in which a storage format is multiplied, the preferred first; a device uses the first that it has."""

LIKE: Mapping[str, str] = MappingProxyType(
    {"fp8": "fp8_block", "fp8_block": "fp8", "int4": "int4_128", "int4_128": "int4"}
)
"""Formats of as many bits, multiplied alike: what was measured of one tells more of the other than a datasheet does."""

TENSORS = ("experts", "attention", "dense", "embedding", "kv")
"""Classes of tensors with a storage format of their own; `dense` are shared experts, dense layers and gates."""


def bytes_of(dtype: str) -> Bytes:
    """Bytes per element of a storage format, scales included.

    Examples
    --------
    >>> bytes_of("bf16"), bytes_of("mxfp4")
    (2.0, 0.53125)
    """
    return BITS[dtype] / 8
