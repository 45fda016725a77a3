"""A layer's forward pass: the routed stream beside what goes on without it, in the order that a plan says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .backbone import Network, added, norm
from .clock import Clock, timed
from .kernels import Kernels
from .routed import Routed, Underway

Operator = Callable[[Tensor, Clock], Tensor]
"""One step of the backbone: adds what it computes to the state."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gate:
    """Shares of given experts; a choice is made all the same.

    Attributes
    ----------
    weights : [expert, hidden]
    """

    kernels: Kernels
    weights: Tensor
    topk: int

    def __call__(self, rows: Tensor, experts: Tensor, clock: Clock) -> Tensor:
        """Return shares, [token, topk]."""
        return timed(clock, "gate", lambda each: self.kernels.gate(each, self.weights, self.topk, experts)[0], rows)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """Gate and routed experts, and where they are cut.

    Attributes
    ----------
    weight : of the norm before the gate
    """

    weight: Tensor
    gate: Gate
    routed: Routed

    def begin(self, normed: Tensor, experts: Tensor, clock: Clock) -> Underway:
        """Start the exchange."""
        return self.routed.begin(normed, experts, self.gate(normed, experts, clock), clock)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plain:
    """A MoE layer by itself: tokens + shared expert + routed experts.

    Attributes
    ----------
    shared : the shared expert, if there is one
    shared_after : the phase of the routed stream that it is issued after: 0, the gate; 1, the dispatch; 2, the combine
    """

    stream: Stream
    shared: Network | None
    shared_after: int

    def __call__(self, tokens: Tensor, experts: Tensor, clock: Clock, cached: Tensor | None = None) -> Tensor:
        """Run it; with `cached` assignments the experts start on those, and the gate comes last."""
        routed = self.stream.routed
        normed = norm(tokens, self.stream.weight, clock)
        shares = self.stream.gate(normed, experts, clock) if cached is None else None
        aside = self._shared(0, normed, clock)
        under = routed.begin(normed, experts if cached is None else cached, shares, clock)
        aside = self._shared(1, normed, clock) if aside is None else aside
        routed.middle(under, clock)
        aside = self._shared(2, normed, clock) if aside is None else aside
        if cached is not None:
            shares = self.stream.gate(normed, cached, clock)
        out = routed.end(under, clock, shares)
        return added(tokens, out if aside is None else out + aside, clock)

    def _shared(self, phase: int, normed: Tensor, clock: Clock) -> Tensor | None:
        return self.shared(normed, clock) if self.shared is not None and phase == self.shared_after else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A dense layer and the MoE layer after it, the routed experts on an earlier state (ScMoE, arXiv 2404.05019).

    The routed stream starts after `tap` of the backbone's operators and computes its experts after `slot` of them; its
    result is added at the end. As streams go: communication in asynchronous handles, computing in this order.

    Attributes
    ----------
    operators : attention, dense network, attention; each adds to the state
    shared : the last operator, which reads what the gate reads where there is no shortcut
    slot : 0: all of the routed stream comes before the operator after the tap
    """

    stream: Stream
    operators: Sequence[Operator]
    shared: Network
    tap: int
    slot: int

    def __call__(self, tokens: Tensor, experts: Tensor, clock: Clock, cached: Tensor | None = None) -> Tensor:
        """Run it."""
        routed = self.stream.routed
        state = self._backbone(tokens, 0, self.tap, clock)
        normed = norm(state, self.stream.weight, clock)
        under, out = self.stream.begin(normed, experts, clock), None
        state = self._backbone(state, self.tap, self.slot, clock, normed)
        routed.middle(under, clock)
        if not self.slot:
            out = routed.end(under, clock)
        state = self._backbone(state, self.slot or self.tap, len(self.operators) + 1, clock, normed)
        return added(state, routed.end(under, clock) if out is None else out, clock)

    def _backbone(self, state: Tensor, first: int, last: int, clock: Clock, normed: Tensor | None = None) -> Tensor:
        """Run some operators; `normed` is the state at the tap."""
        for number in range(first, last):
            if number < len(self.operators):
                state = self.operators[number](state, clock)
                continue
            read = normed if self.tap == number and normed is not None else norm(state, self.stream.weight, clock)
            state = added(state, self.shared(read, clock), clock)
        return state
