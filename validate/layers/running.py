"""A built layer: its steps, forward and backward, with what happens between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .cache import CachedExperts
from .clock import SILENT, Clock, part
from .pieces import compilation
from .reacting import Reacting
from .routed import Routed
from .spec import LayerSpec

Body = Callable[[Tensor, Tensor, Clock, Tensor | None], Tensor]
"""A forward pass: tokens, experts, clock, and assignments to use instead, if any."""


@dataclass(slots=True, kw_only=True, eq=False)
class Built:
    """A layer on one rank; `layer.Layer` says what it answers.

    Attributes
    ----------
    body : the forward pass
    routed : its routed stream
    cache : of experts, if there is one
    reacting : policies between steps, if there are any
    altered : told the capacities in force after policies have reacted
    """

    spec: LayerSpec
    weights: Mapping[str, Tensor]
    body: Body
    routed: Routed
    cache: CachedExperts | None
    reacting: Reacting | None
    altered: Callable[[Reacting], None]
    _stale: bool = field(init=False)
    _graph: _Graph | None = field(default=None)

    def __post_init__(self) -> None:
        """Nothing is compiled yet."""
        self._stale = self.spec.compiled or self.spec.graphed

    def step(self, tokens: Tensor, routing: Tensor, clock: Clock = SILENT, *, batch: int = 0) -> Tensor:
        """Run the layer once; see `layer.Layer`."""
        cached = None
        if self.reacting is not None:
            if self.reacting.before():
                self._stale = self.spec.compiled
                self.altered(self.reacting)
            cached = self.reacting.cached(batch)
        if self._stale:
            with part(clock, "compile"):
                self._build(tokens, routing, cached)
            self._stale = False
        out = self._run(tokens, routing, clock, cached)
        if self.reacting is not None:
            self.reacting.after(routing, batch)
        return out

    def restart(self) -> None:
        """Forget what earlier steps left behind."""
        if self.cache is not None:
            self.cache.restart()
        if self.reacting is not None:
            self.reacting.restart()
            self.altered(self.reacting)
            self._stale = self.spec.compiled

    def close(self) -> None:
        """Let go of files and threads."""
        self.routed.close()
        if self.cache is not None:
            self.cache.tier.close()

    def _build(self, tokens: Tensor, routing: Tensor, cached: Tensor | None) -> None:
        """Compile by running once, unseen by the clock; capture where that is asked for."""
        held = tokens.grad
        self._run(tokens, routing, SILENT, cached)
        tokens.grad = held
        if self.spec.graphed:
            self._graph = _Graph.captured(self.body, tokens, routing)

    def _run(self, tokens: Tensor, routing: Tensor, clock: Clock, cached: Tensor | None) -> Tensor:
        if self._graph is not None:
            return self._graph.replayed(tokens, routing)
        if not self.spec.backward:
            with torch.no_grad():
                return self.body(tokens, routing, clock, cached)
        for weight in self.weights.values():
            weight.grad = None
        entered = tokens.detach().requires_grad_()
        out = self.body(entered, routing, clock, cached)
        out.backward(tokens.detach())
        tokens.grad = entered.grad if tokens.grad is None else tokens.grad + entered.grad
        return out.detach()


@dataclass(slots=True, kw_only=True, eq=False)
class _Graph:
    """A captured forward pass, with the tensors it reads and writes."""

    graph: Any
    tokens: Tensor
    routing: Tensor
    out: Tensor

    @classmethod
    def captured(cls, body: Body, tokens: Tensor, routing: Tensor) -> _Graph:
        """Capture a pass that has run before."""
        held, chosen, made = tokens.clone(), routing.clone(), []
        with torch.no_grad():
            compilation.warmed(lambda: body(held, chosen, SILENT, None))
            graph = compilation.capture(lambda: made.append(body(held, chosen, SILENT, None)))
        return cls(graph=graph, tokens=held, routing=chosen, out=made[0])

    def replayed(self, tokens: Tensor, routing: Tensor) -> Tensor:
        """Run it again on other tokens, as many."""
        self.tokens.copy_(tokens)
        self.routing.copy_(routing)
        self.graph.replay()
        return self.out.clone()
