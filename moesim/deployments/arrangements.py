"""Layouts and routing draws that the plans of one call share: equal placements and sizes are made once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.streams import stream
from moesim.passes.buffering import buffered, popular
from moesim.passes.exchanges import Routed, Sized
from moesim.passes.lowering import arrange, distinct_blocks, sampled_layers
from moesim.passes.presence import mixture_kinds
from moesim.passes.shortcut import thin
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.world.hardware import reach
from moesim.world.model import Layer
from moesim.world.routing import Routing
from moesim.world.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangements:
    """Makes layouts and draws for one scenario and seed, and keeps them.

    Draws are taken from a sample of the MoE layers: where layers follow one law, the mean over draws of a pass whose
    layers all have the draw's counts is the mean pass.

    Attributes
    ----------
    step : the step whose routing is drawn
    placed : which expert each slot holds, in every pool; None: as its placement policy has it
    held : the layout of every pool, of the sampled layers alone; None: the one that its policies start with
    """

    scenario: Scenario
    seed: int
    kinds: tuple[Layer, ...]
    layers: tuple[int, ...]
    sample: Routing
    step: int = 0
    placed: Int[np.ndarray, "layer slot"] | None = None
    held: Layout | None = None
    sized: Sized = field(default_factory=dict)
    _layouts: dict[Hashable, Layout] = field(default_factory=dict)
    _distinct: dict[Hashable, Mapping[int, Float[np.ndarray, "draw"]]] = field(default_factory=dict)
    _counts: dict[tuple[int, int], Int[np.ndarray, "draw 1 expert"]] = field(default_factory=dict)
    _parts: dict[tuple[int, int], Int[np.ndarray, "draw 1 expert"]] = field(default_factory=dict)
    _routed: dict[Hashable, Routed] = field(default_factory=dict)

    def layout(self, pool: Pool, tokens: float) -> Layout:
        """Arrange a pool's experts for passes of `tokens` home tokens per rank."""
        if self.held is not None:
            return self.held
        whole = max(1, round(tokens))
        buffering = pool.policy("buffering")
        sized_for = whole if pool.policy("gating").name != "dynamic" or buffered(pool) else 0
        key = (self._place(pool), pool.policy("gating"), buffering, pool.policy("shortcut"), sized_for)
        if key not in self._layouts:
            layout = arrange(self.scenario, pool, tokens=whole, seed=self.seed)
            self._layouts[key] = layout if self.placed is None else self._moved(pool, layout, self.placed)
        return self._layouts[key]

    def _moved(self, pool: Pool, layout: Layout, placed: Int[np.ndarray, "layer slot"]) -> Layout:
        """Let experts live elsewhere; where the host computes some, the popular ones are on the gpu all the same."""
        moved = replace(layout, expert_of_slot=placed)
        if layout.resident.all():
            return moved
        node = self.scenario.hardware.offer(pool.node).node
        return replace(moved, resident=popular(self.scenario.routing, pool, moved, node))

    def at(self, step: int) -> Arrangements:
        """Draw the routing of another step."""
        return self if step == self.step else replace(self, step=step, _counts={}, _parts={}, _routed={})

    def placing(self, expert_of_slot: Int[np.ndarray, "layer slot"]) -> Arrangements:
        """Let experts live in these slots, whatever the placement policy."""
        return replace(self, placed=expert_of_slot, sized={}, _layouts={}, _distinct={}, _routed={})

    def holding(self, layout: Layout) -> Arrangements:
        """Lay every pool out alike: where experts live does not decide what is drawn."""
        return replace(self, held=layout, sized={}, _routed={})

    def routed(self, pool: Pool, tokens: Sequence[float], half: int) -> Routed:
        """Draw routing for a pass of `tokens` home tokens per rank in each kind of MoE layer.

        Each half of a batch has its own draws.
        """
        if not tokens:
            return Routed(counts=np.zeros((1, 1, 1, 1)), layer_of=np.zeros((1, 1), int), distinct={})
        block = pool.parallel.ep * pool.parallel.etp
        totals = tuple(round(each * block) for each in tokens)
        key = (self._place(pool), totals, half)
        if key not in self._routed:
            counts = np.stack([self.drawn(total, half) for total in totals], axis=1)
            layers = self.layers if self.held is None else range(len(self.layers))
            self._routed[key] = Routed(
                counts=counts / block,
                layer_of=np.repeat(np.array(layers)[:, None], len(totals), axis=1),
                distinct={
                    size: np.repeat(touched[:, None], len(totals), axis=1)
                    for size, touched in self._distinct_blocks(pool, max(tokens)).items()
                },
            )
        return self._routed[key]

    def active(self, total: int, half: int, kept: float = 1.0) -> float:
        """Mean number of experts that so many tokens choose, over the draws of `routed`, a share of them kept."""
        drawn = self.drawn(total, half)
        return float(((drawn if kept == 1.0 else thin(drawn, kept)) > 0).sum(axis=-1).mean())

    def distinct(self, pool: Pool) -> Mapping[int, float]:
        """Mean number of different blocks of ranks that one token's experts live in, by ranks per block."""
        return {size: float(touched.mean()) for size, touched in self._distinct_blocks(pool, 1.0).items()}

    def drawn(self, total: int, half: int) -> Int[np.ndarray, "draw 1 expert"]:
        """Draw the choices of so many tokens in each sampled layer: the same for every plan that routes as many.

        Where tokens choose independently, a batch is put together from batches of powers of two, each drawn once: a
        search asks for hundreds of sizes.
        """
        key = (total, half)
        if key not in self._counts:
            bits = [1 << bit for bit in range(total.bit_length()) if total >> bit & 1]
            parts = bits if bits and self.sample.independent else [total]
            self._counts[key] = np.sum([self._part(part, half) for part in parts], axis=0)
        return self._counts[key]

    def _part(self, tokens: int, half: int) -> Int[np.ndarray, "draw 1 expert"]:
        key = (tokens, half)
        if key not in self._parts:
            rng = stream(self.seed, f"routing {half} {tokens}" + (f" {self.step}" if self.step else ""))
            self._parts[key] = self.sample.draw(np.array([tokens]), self.step, rng)
        return self._parts[key]

    def _distinct_blocks(self, pool: Pool, tokens: float) -> Mapping[int, Float[np.ndarray, "draw"]]:
        key = self._place(pool)
        if key not in self._distinct:
            node = self.scenario.hardware.offer(pool.node).node
            sizes = [size for _, size in reach(node, self.scenario.hardware.fabric)]
            layout = self.layout(pool, tokens)
            layers = None if self.held is not None else self.layers
            self._distinct[key] = distinct_blocks(self.sample, layout, pool.parallel.etp, sizes, layers)
        return self._distinct[key]

    def _place(self, pool: Pool) -> Hashable:
        """Name what decides where experts live, and what may be known of the way there."""
        node = self.scenario.hardware.offer(pool.node).node
        reaches = reach(node, self.scenario.hardware.fabric)
        return pool.policy("placement"), pool.parallel.ep, pool.parallel.etp, node.gpus, reaches


def arrangements(scenario: Scenario, *, seed: int, draws: int) -> Arrangements:
    """Start with nothing arranged; routing is drawn from `draws` layers spread over the model's depth."""
    layers = tuple(int(layer) for layer in sampled_layers(scenario.routing.layers, draws))
    return Arrangements(
        scenario=scenario,
        seed=seed,
        kinds=mixture_kinds(scenario.model),
        layers=layers,
        sample=scenario.routing.only(layers),
    )
