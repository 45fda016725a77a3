"""Where the time of a step went, part by part, under the names that moesim's own breakdown uses.

A part's forward and backward are told apart; what a part starts and leaves running counts where it is waited for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

PARTS = (
    "norm",
    "attention",
    "mlp",
    "gate",
    "shared",
    "pack",
    "sizes",
    "gather",
    "dispatch",
    "fetch",
    "regroup",
    "experts",
    "combine",
    "unpack",
    "compile",
)
"""Names of parts. moesim has no `gather` (Tutel's weights), `regroup` (rows by slot, not by source) and `compile`."""


class Clock(Protocol):
    """Records the parts of a step."""

    @property
    def on(self) -> bool:
        """Whether it records; where not, a backward pass is not marked either."""
        ...

    def begin(self, name: str, *, backward: bool = False) -> None:
        """Start a stretch of a part."""
        ...

    def end(self, name: str, *, backward: bool = False) -> None:
        """End it."""
        ...


class Silent:
    """Records nothing."""

    on = False

    def begin(self, name: str, *, backward: bool = False) -> None:
        """Do nothing."""

    def end(self, name: str, *, backward: bool = False) -> None:
        """Do nothing."""


SILENT = Silent()


@dataclass(slots=True, kw_only=True, eq=False)
class Recorder:
    """Records parts by the host's clock, or on a gpu by events in the stream that works.

    Attributes
    ----------
    device : what computes
    on : whether it records
    """

    device: torch.device
    on: bool = True
    _open: dict[tuple[str, bool], Any] = field(default_factory=dict)
    _spans: list[tuple[str, bool, Any, Any]] = field(default_factory=list)

    def begin(self, name: str, *, backward: bool = False) -> None:
        """Start a stretch of a part."""
        self._open[name, backward] = self._now()

    def end(self, name: str, *, backward: bool = False) -> None:
        """End it."""
        begun = self._open.pop((name, backward), None)
        if begun is not None:  # a part without gradients ends without having begun
            self._spans.append((name, backward, begun, self._now()))

    def seconds(self) -> dict[str, float]:
        """Return the time of every part since the last call, forward and backward together, and forget it.

        A gpu is waited for.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent: defaultdict[str, float] = defaultdict(float)
        for name, _, begun, ended in self._spans:
            spent[name] += self._between(begun, ended)
        self._spans.clear()
        self._open.clear()
        return dict(spent)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begun: Any, ended: Any) -> float:
        return ended - begun if self.device.type != "cuda" else float(begun.elapsed_time(ended)) / 1e3


@contextmanager
def part(clock: Clock, name: str) -> Iterator[None]:
    """Record what is done inside as a part, without its backward."""
    clock.begin(name)
    try:
        yield
    finally:
        clock.end(name)


def timed(clock: Clock, name: str, call: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Call a function of rows as a part; where it has a backward pass, that is recorded under the same name."""
    if not clock.on:
        return call(*rows)
    marked = torch.is_grad_enabled() and any(each.requires_grad for each in rows)
    entered: tuple[Tensor, ...] = _Mark.apply(clock, name, True, *rows) if marked else rows
    with part(clock, name):
        out = call(*entered)
    left: Tensor = _Mark.apply(clock, name, False, out)[0] if marked and out.requires_grad else out
    return left


class _Mark(torch.autograd.Function):  # type: ignore[misc]  # torch has no types for mypy here
    """Hands rows on; in the backward pass it starts or ends a part: what is entered last is left first."""

    @staticmethod
    def forward(ctx: Any, clock: Clock, name: str, entering: bool, *rows: Tensor) -> tuple[Tensor, ...]:
        ctx.clock, ctx.name, ctx.entering = clock, name, entering
        return tuple(each.view_as(each) for each in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (ctx.clock.end if ctx.entering else ctx.clock.begin)(ctx.name, backward=True)
        return (None, None, None, *gradients)
