"""Layouts and routing draws that the plans of one call share: equal placements and sizes are made once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.passes.exchanges import Routed
from moesim.passes.lowering import arrange, distinct_blocks, draw_routing
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.world.hardware import reach
from moesim.world.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangements:
    """Makes layouts and draws for one scenario and seed, and keeps them."""

    scenario: Scenario
    seed: int
    draws: int
    _layouts: dict[Hashable, Layout] = field(default_factory=dict)
    _distinct: dict[Hashable, Mapping[int, float]] = field(default_factory=dict)
    _routed: dict[Hashable, Routed] = field(default_factory=dict)

    def layout(self, pool: Pool, tokens: float) -> Layout:
        """Arrange a pool's experts for passes of `tokens` home tokens per rank."""
        whole = max(1, round(tokens))
        sized = whole if pool.policy("gating").settings else 0
        key = (_place(pool), pool.policy("gating"), pool.policy("alltoall"), pool.policy("overlap"), sized)
        if key not in self._layouts:
            self._layouts[key] = arrange(self.scenario, pool, tokens=whole, seed=self.seed)
        return self._layouts[key]

    def routed(self, pool: Pool, tokens: Sequence[float], half: int) -> Routed:
        """Draw routing for a pass of `tokens` home tokens per rank in each kind of MoE layer.

        Each half of a batch has its own draws.
        """
        if not self.scenario.model.moe_layers:
            return Routed(counts=np.zeros((1, 1, 1, 1)), layer_of=np.zeros((1, 1), int), distinct={})
        block = pool.parallel.ep * pool.parallel.etp
        key = (_place(pool), tuple(round(each * block) for each in tokens), half)
        if key not in self._routed:
            distinct = self._distinct_blocks(pool, max(tokens))
            self._routed[key] = draw_routing(
                self.scenario.routing, pool, tokens, distinct, draws=self.draws, seed=self.seed + half
            )
        return self._routed[key]

    def _distinct_blocks(self, pool: Pool, tokens: float) -> Mapping[int, float]:
        key = _place(pool)
        if key not in self._distinct:
            node = self.scenario.hardware.offer(pool.node).node
            sizes = [size for _, size in reach(node, self.scenario.hardware.fabric)]
            layout = self.layout(pool, tokens)
            self._distinct[key] = distinct_blocks(self.scenario.routing, layout, pool.parallel.etp, sizes)
        return self._distinct[key]


def _place(pool: Pool) -> Hashable:
    """Name what decides where experts live."""
    return pool.policy("placement"), pool.parallel.ep, pool.parallel.etp, pool.node
