"""What a serving framework adds to the model's own work, as data with a version and a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from moesim.ground.units import Bytes, Seconds, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A serving or training framework's fixed habits.

    `reserve` is device memory it keeps for its runtime, `workspace` bytes of activation per token and unit of width,
    `utilization` the share of memory it is willing to fill, `step` host time per step outside kernels, `block`
    tokens per KV block. `kernels` maps an operation to the name of the kernel used, which picks the `Fit`.
    """

    name: str
    version: str
    reserve: Bytes
    utilization: float
    step: Seconds
    block: int
    workspace: float
    source: Source
    kernels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
