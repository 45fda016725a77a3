"""How many rows experts have room for: by the simulator's own rule, agreed upon where it follows the need."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moesim.plans.layout import NO_LIMIT
from moesim.policies.gating.static import Static

from .clock import Clock, part
from .lanes import Lanes
from .packing import Room
from .pieces import routing
from .reacting import Reacting
from .spec import LayerSpec
from .travel import Travel


@dataclass(slots=True, kw_only=True, eq=False)
class Capacity:
    """Room for rows on one rank.

    Attributes
    ----------
    rows : of each expert, as fixed beforehand or altered since; `NO_LIMIT` where nothing is dropped
    """

    spec: LayerSpec
    lanes: Lanes
    travel: Travel | None
    device: torch.device
    rows: Int[np.ndarray, "expert"] = field(init=False)
    _follows: bool = field(init=False)
    _room: Room = field(init=False)

    def __post_init__(self) -> None:
        """Apply the rule of static gating; dynamic gating has none."""
        spec = self.spec
        rule = Static(factor=spec.factor, fraction=spec.fraction or None, sparse=spec.gating == "sparse")
        limit = rule.capacity(spec.tokens, spec.experts, spec.topk) if spec.static else 0
        self._follows = spec.static and rule.follows
        self.rows = np.full(spec.experts, limit)
        self._room = self._of(np.zeros_like(self.rows) if limit == NO_LIMIT else self.rows)

    def room(self, experts: Tensor, clock: Clock) -> Room:
        """Say how much room lanes have for a batch's choices; the first that follows the need waits for all ranks."""
        if not self._follows:
            return self._room
        with part(clock, "sizes"):
            _, counts = routing.sort_rows(experts, self.spec.experts)
            most = counts.max()
            needed = self.travel.largest(most) if self.travel is not None else int(most)
        return self._of(np.minimum(self.rows, max(needed, 1)))

    def follow(self, reacting: Reacting) -> None:
        """Take over the capacities that policies have set."""
        self.rows = reacting.layout.capacity[0].astype(np.int64)
        self._room = self._of(self.rows)

    def _of(self, rows: Int[np.ndarray, "expert"]) -> Room:
        of_lane = np.ascontiguousarray(rows[self.lanes.expert_of_lane])
        return Room(rows=of_lane, on_device=torch.from_numpy(of_lane).to(self.device))
