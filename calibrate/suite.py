"""All that is measured, in groups that share the budget."""

from __future__ import annotations

from .attentions import attentions
from .compiling import compiling
from .gates import gates
from .kernels import compiled_experts, dense, experts
from .layers import exchanged_layer, local_layer
from .machine import Speed
from .operation import Operation
from .pieces.bench import Bench
from .transfers import between_ranks, calls, elementwise, interference, memory

BETWEEN = {"cpu": 30.0, "cuda": 1.0}
"""A device's bandwidth over that between its ranks, at a guess: gloo moves about 1 GB/s over loopback."""


def everything(bench: Bench, speed: Speed) -> tuple[Operation, ...]:
    """Return what can be measured on a device in all, collectives between 2 and 4 standing for any number of ranks."""
    slow = BETWEEN[bench.device.type]
    return (*suite(bench, speed), *between_ranks(2, slow), *between_ranks(4, slow), exchanged_layer(2))


def suite(bench: Bench, speed: Speed) -> tuple[Operation, ...]:
    """Return what one process measures on a device, or what several measure together.

    Ranks that share a CPU also share its memory, so they run their kernels side by side.
    """
    cuda = bench.device.type == "cuda"
    if bench.ranks > 1:
        together = (*between_ranks(bench.ranks, BETWEEN[bench.device.type]), exchanged_layer(bench.ranks))
        return together if cuda else (*_kernels(bench, speed), *together)
    main = _main(cuda)
    return (
        *_kernels(bench, speed),
        *memory(cuda),
        *interference(cuda),
        *compiling(cuda),
        compiled_experts(main[-1], bench, speed),
    )


def _kernels(bench: Bench, speed: Speed) -> tuple[Operation, ...]:
    """Return the kernels that one rank runs by itself."""
    cuda = bench.device.type == "cuda"
    main = _main(cuda)
    return (
        *dense(bench, speed),
        *experts(bench, main, speed),
        *gates(main),
        *attentions(main, cuda),
        *elementwise(main),
        *calls(),
        local_layer(),
    )


def _main(cuda: bool) -> tuple[str, ...]:
    """Return the dtypes in which everything is measured, not only products."""
    return ("bf16",) if cuda else ("fp32", "bf16")
