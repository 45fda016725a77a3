"""What a case is, and where its inputs come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, float]
Args = tuple[Any, ...]

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int64": torch.int64,
    "bytes": torch.uint8,
}
ALIGNED = 256
"""Elements to which every cut of the pool is aligned, so that no kernel falls back to unaligned loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point made ready to be timed.

    Attributes
    ----------
    call : what is timed
    args : makes the arguments of the next call, untimed; weights come from memory that no cache holds
    warm : calls before the first timed one, at least
    most : timed calls at most, for what is slow by nature or differs at each call
    on_host : whether the host's clock times it although a gpu works, because the call waits for the device
    beside : starts other work and ends it, for times with and without
    joint : whether ranks take part in one call together; else each makes its own, side by side
    """

    call: Callable[..., object]
    args: Callable[[], Args] = tuple
    warm: int = 2
    most: int = 1000
    on_host: bool = False
    beside: Callable[[], AbstractContextManager[object]] | None = None
    joint: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Pool:
    """Random numbers in memory, larger than every cache, from which inputs are cut: normal, or whole for whole dtypes.

    They are drawn once, since drawing takes longer than multiplying; and successive cuts lie apart, so that what is cut
    anew for each call is cold. Zeros would not do: a gpu's power, hence its clock, depends on the data.

    Attributes
    ----------
    device : where
    size : bytes at first; the pool of a dtype grows when one input is larger
    """

    device: torch.device
    size: int
    _held: dict[torch.dtype, Tensor] = field(default_factory=dict)
    _next: dict[torch.dtype, int] = field(default_factory=dict)

    def cut(self, dtype: str, *shape: float) -> Tensor:
        """Return a tensor of random numbers that the last cuts did not touch."""
        kind, dims = DTYPES[dtype], [int(dim) for dim in shape]
        number = math.prod(dims)
        held = self._of(kind, number)
        start = self._next.get(kind, 0)
        if start + number > held.numel():
            start = 0
        self._next[kind] = -(-(start + number) // ALIGNED) * ALIGNED
        return held[start : start + number].view(dims)

    def _of(self, kind: torch.dtype, number: int) -> Tensor:
        held = self._held.get(kind)
        if held is None or held.numel() < number:
            self._held.pop(kind, None)  # before the larger one is made: both may not fit
            held = self._held[kind] = self._drawn(kind, max(self.size // kind.itemsize, number))
        return held

    def _drawn(self, kind: torch.dtype, number: int) -> Tensor:
        """Draw in pieces, so that the numbers in fp32 never take much memory beside the pool."""
        drawn = torch.empty(number, dtype=kind, device=self.device)
        generator = torch.Generator(device=self.device).manual_seed(0)
        for piece in drawn.split(1 << 24):
            if kind.is_floating_point:
                piece.copy_(torch.randn(piece.numel(), device=self.device, generator=generator))
            else:
                piece.random_(0, 256, generator=generator)
        return drawn

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()
        self._next.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where cases are set up.

    Attributes
    ----------
    device : cpu or cuda
    pool : inputs
    scratch : a folder on the disk that is measured
    rank, ranks : of the processes that measure together
    one_host : whether they share a host, hence a clock
    talk : the group over which they agree on what to do, on the CPU
    """

    device: torch.device
    pool: Pool
    scratch: Path
    rank: int = 0
    ranks: int = 1
    one_host: bool = True
    talk: Any = None


def turns(*choices: Args) -> Callable[[], Args]:
    """Return a function that gives each of the choices in turn.

    Examples
    --------
    >>> args = turns((1,), (2,))
    >>> args(), args(), args()
    ((1,), (2,), (1,))
    """

    def forever() -> Iterator[Args]:
        while True:
            yield from choices

    following = forever()
    return lambda: next(following)
