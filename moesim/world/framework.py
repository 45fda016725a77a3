"""What a serving framework adds to the model's own work, as data with a version and a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from moesim.ground.units import Bytes, Seconds, Source

Numbers = TypeVar("Numbers", float, np.ndarray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A serving or training framework's fixed habits.

    `reserve` is device memory it keeps for its runtime, `workspace` bytes of activation per token and unit of width,
    `utilization` the share of memory it is willing to fill, `step` host time per step outside kernels, `block`
    tokens per KV block.

    Beyond kernels and `step`, a step costs `layer` for each layer (small kernels that are not itemized) and
    `sequence` for each sequence in flight. `recompile` is what it takes to drain, compile and capture a step's
    graph anew, for policies that change it while a pool runs, and `graph` the device memory that a graph keeps for
    each layer. All steps that serve take `pace` times as long, which one measurement of a deployment tells of all
    its others. The rest is read by `simulate`: `prompts` are mixed into steps that decode, or go first while
    decodes wait, and take `prompt` times their kernels' time; `cache` is taken as needed or set aside for a whole
    request; `poll` is the decode steps between two looks at the queue. A client sees a first token
    `latency` later than the scheduler, and `crowd` more for each request in flight, which measurements are held
    against. From nothing to serving the engine takes `start` beside loading weights, and each rebalancing of experts
    `rebalance` beside moving them, while the ranks wait. Which kernels it runs is said by a device's fits.
    """

    name: str
    version: str
    reserve: Bytes
    utilization: float
    step: Seconds
    block: int
    workspace: float
    source: Source
    prompts: Literal["mixed", "first"] = "mixed"
    cache: Literal["as_needed", "whole"] = "as_needed"
    poll: int = 1
    layer: Seconds = 0.0
    sequence: Seconds = 0.0
    recompile: Seconds = 0.0
    graph: Bytes = 0.0
    prompt: float = 1.0
    pace: float = 1.0
    latency: Seconds = 0.0
    crowd: Seconds = 0.0
    start: Seconds = 0.0
    rebalance: Seconds = 0.0

    def overhead(self, layers: int, sequences: Numbers) -> Numbers:
        """Seconds that a step costs beyond kernels, in a model of so many layers, with so many sequences decoding."""
        return self.step + self.layer * layers + self.sequence * sequences
