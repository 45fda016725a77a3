"""All that is measured, in groups that share the budget."""

from __future__ import annotations

from .attentions import attentions
from .compiling import compiling
from .gates import gates
from .kernels import compiled_experts, dense, experts
from .machine import Speed
from .operation import Operation
from .pieces.bench import Bench
from .transfers import between_ranks, elementwise, interference, memory

BETWEEN = {"cpu": 30.0, "cuda": 1.0}
"""A device's bandwidth over that between its ranks, at a guess: gloo moves about 1 GB/s over loopback."""


def everything(bench: Bench, speed: Speed) -> tuple[Operation, ...]:
    """Return what can be measured on a device in all, collectives between 2 and 4 standing for any number of ranks."""
    slow = BETWEEN[bench.device.type]
    return (*suite(bench, speed), *between_ranks(2, slow), *between_ranks(4, slow))


def suite(bench: Bench, speed: Speed) -> tuple[Operation, ...]:
    """Return what one process measures on a device, or what several measure together."""
    kind = bench.device.type
    if bench.ranks > 1:
        return tuple(between_ranks(bench.ranks, BETWEEN[kind]))
    cuda = kind == "cuda"
    main = ("bf16",) if cuda else ("fp32", "bf16")
    return (
        *dense(bench, speed),
        *experts(bench, main, speed),
        *gates(main[0]),
        *attentions(main, cuda),
        *elementwise(main[0]),
        *memory(cuda),
        *interference(cuda),
        *compiling(cuda),
        compiled_experts(main[0], speed),
    )
