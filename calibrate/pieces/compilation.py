"""What compiling costs: the first time, again for another shape, from the cache, and at each call by its guards."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .bench import Args, Bench, Case, Inputs, turns

WIDTH = 64
"""Elements of the compiled layers, small: compiling does not depend on sizes, and running should not be timed."""
_widths = count(WIDTH + 8, 8)


def stack(rows: Tensor, weights: list[Tensor]) -> Tensor:
    """Run a plain stack of layers, whose number is the size of the graph."""
    for weight in weights:
        rows = functional.gelu(functional.linear(rows, weight)) + rows
    return rows


def first_compile(rows: Tensor, weights: list[Tensor]) -> Tensor:
    """Compile a stack from nothing in memory and run it once."""
    torch.compiler.reset()
    return compiled()(rows, weights)


def compiled() -> Callable[..., Tensor]:
    """Return the stack through torch.compile, one graph for each shape."""
    made: Callable[..., Tensor] = torch.compile(stack, dynamic=False)
    return made


def first_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a stack ready that no cache has seen: its width differs each time."""
    load_compiler(bench.device)
    return Case(call=first_compile, args=lambda: _stack(inputs, bench, next(_widths)), warm=0, most=1, on_host=True)


def cached_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the same stack ready again and again, which the compiler's cache on disk knows after the first time."""
    load_compiler(bench.device)
    args = _stack(inputs, bench, WIDTH)
    return Case(call=first_compile, args=lambda: args, warm=1, most=2, on_host=True)


def again_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a stack ready that is compiled already, for rows of a number it has not seen."""
    rows, weights = _stack(inputs, bench, next(_widths))
    torch.compiler.reset()
    run = compiled()
    run(rows, weights)
    seen = count(rows.shape[0] + 1)
    return Case(call=run, args=lambda: (_rows(bench, next(seen), rows.shape[1]), weights), warm=0, most=1, on_host=True)


def guards_case(inputs: Inputs, dtype: str, bench: Bench, *, fail: bool) -> Case:
    """Make a stack of two compiled shapes ready; by turns, the guards of the one used last fail at every call."""
    rows, weights = _stack(inputs, bench, WIDTH)
    other = _rows(bench, rows.shape[0] + 1, WIDTH)
    torch.compiler.reset()
    run = compiled()
    choices: list[Args] = [(rows, weights), (other, weights)]
    for choice in choices:
        run(*choice)
    return Case(call=run, args=turns(*choices) if fail else turns(choices[0]), warm=4, on_host=True)


def eager_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the same stack ready without compiling, to set the others against."""
    args = _stack(inputs, bench, WIDTH)
    return Case(call=stack, args=lambda: args, on_host=True)


def warmed(work: Callable[[], object]) -> None:
    """Run once on a stream of its own, as capturing asks for: libraries set themselves up for each stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()


def capture(work: Callable[[], object]) -> Any:
    """Capture what a function launches as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def capture_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a stack ready to be captured."""
    args = _stack(inputs, bench, WIDTH)
    warmed(lambda: stack(*args))
    return Case(call=capture, args=lambda: (lambda: stack(*args),), on_host=True, warm=1, most=10)


def replay_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a captured stack ready to be replayed."""
    args = _stack(inputs, bench, WIDTH)
    warmed(lambda: stack(*args))
    graph = capture(lambda: stack(*args))
    return Case(call=lambda held: held.replay(), args=lambda: (graph,))


@cache
def load_compiler(device: torch.device) -> None:
    """Compile something once: the compiler's own modules, and what it asks of the machine, are no graph's cost."""
    torch.compile(torch.neg)(torch.ones(1, device=device))


def _stack(inputs: Inputs, bench: Bench, width: int) -> Args:
    weights = [bench.pool.cut("fp32", width, width) / width**0.5 for _ in range(int(inputs["layers"]))]
    return _rows(bench, 16, width), weights


def _rows(bench: Bench, number: int, width: int) -> Tensor:
    return bench.pool.cut("fp32", number, width)
