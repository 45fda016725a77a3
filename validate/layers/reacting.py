"""Policies that react between steps, the simulator's own: what they see is counted here, what they change is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moesim.plans.layout import Layout
from moesim.plans.plan import Policy
from moesim.policies.finding import make
from moesim.policies.protocols import Adaptation, Seen, Sizes
from moesim.policies.scores import agreement

from .pieces import collectives
from .spec import LayerSpec


@dataclass(slots=True, kw_only=True, eq=False)
class Reacting:
    """The layout in force, and the policies that may change it before a step, by what the step before it was.

    Attributes
    ----------
    group : all ranks, which have to see the same
    capacity : rows of each expert on each rank to begin with
    changes : so far
    """

    spec: LayerSpec
    group: Any
    capacity: Int[np.ndarray, "expert"]
    layout: Layout = field(init=False)
    changes: int = 0
    _policies: Sequence[Adaptation] = field(init=False)
    _states: list[Any] = field(init=False)
    _seen: Callable[[Layout], Seen] | None = field(init=False)
    _assignments: dict[int, Tensor] = field(init=False)
    _step: int = field(init=False)

    def __post_init__(self) -> None:
        """Make the policies."""
        named = [Policy(name=each.name, settings=dict(each.settings)) for each in self.spec.reactions]
        self._policies = [make("adaptation", policy) for policy in named]
        self.restart()

    def restart(self) -> None:
        """Forget what was seen."""
        spec = self.spec
        self.layout = _layout(spec, self.capacity)
        sizes = Sizes(tokens=spec.tokens, topk=spec.topk, gpus=spec.ranks, nodes=1, expert=0.0)
        self._states = [policy.start(self.layout, sizes) for policy in self._policies]
        self._seen, self._assignments, self._step, self.changes = None, {}, 0, 0

    def before(self) -> bool:
        """Let policies react to the step before; tell whether something is to be built anew."""
        rebuilt, seen = 0, self._seen
        for number, policy in enumerate(self._policies if seen is not None else ()):
            assert seen is not None
            self._states[number], change = policy(self._states[number], seen(self.layout), np.random.default_rng(0))
            if change is not None:
                self.layout, rebuilt = change.layout, rebuilt + change.rebuilt
                self.changes += 1
        return rebuilt > 0

    def cached(self, batch: int) -> Tensor | None:
        """Return the assignments a batch had last, where these are to be used."""
        return self._assignments.get(batch) if self.layout.cached else None

    def after(self, routing: Tensor, batch: int) -> None:
        """Count what a step chose, over all ranks, and keep its assignments."""
        counts = np.bincount(routing.flatten().cpu().numpy(), minlength=self.spec.experts)
        known = self._assignments.get(batch)
        agreed = 0.0
        if known is not None and known.shape == routing.shape and len(routing):
            agreed = agreement(known.cpu().numpy(), routing.cpu().numpy()) * len(routing)
        told = torch.tensor([*counts, agreed, len(routing)], dtype=torch.float64, device=routing.device)
        if self.spec.ranks > 1:
            collectives.all_reduce(told, self.group)
        *total, agreed, tokens = told.tolist()
        self._assignments[batch] = routing
        self._seen = _seeing(self._step, np.array(total).astype(np.int64), agreed / max(tokens, 1.0))
        self._step += 1


def _seeing(step: int, counts: Int[np.ndarray, "expert"], agreed: float) -> Callable[[Layout], Seen]:
    """Say what a step was under the layout that is in force when it is asked for."""

    def seen(layout: Layout) -> Seen:
        return Seen(
            step=step,
            layout=layout,
            counts=counts[None],
            most=counts[None].max(axis=1),  # over all ranks: none of the policies here asks for one rank's
            agreement=agreed,
            cost_of=_unknown,
        )

    return seen


def _unknown(layout: Layout) -> Any:
    raise NotImplementedError("no policy that is run here asks what other layouts would cost")


def _layout(spec: LayerSpec, capacity: Int[np.ndarray, "expert"]) -> Layout:
    slots = np.array(spec.placement)
    one = np.ones(1, int)
    return Layout(
        expert_of_slot=slots[None],
        rank_of_slot=np.arange(len(slots)) // (len(slots) // spec.ep),
        capacity=capacity[None],
        resident=np.ones((1, len(slots)), bool),
        r=one,
        degree=one * spec.degree,
        alltoall=(spec.alltoall,),
    )
