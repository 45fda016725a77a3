"""Choices recorded in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from moesim.world.generators.choosing import Limits
from moesim.world.generators.law import check_limits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """Choices recorded in a run: replayed exactly at their own size, thinned or resampled at another.

    Steps beyond the last begin again at the first. Each token keeps its choices of all layers together.

    Attributes
    ----------
    choices : the experts of each token
    experts : how many there are, chosen or not
    """

    choices: Int[np.ndarray, "step layer token topk"]
    experts: int

    def __post_init__(self) -> None:
        """Protect the record."""
        check_limits(Limits(experts=self.experts, topk=self.topk, groups=1, group_topk=1))
        self.choices.flags.writeable = False

    @property
    def layers(self) -> int:
        """MoE layers recorded."""
        return int(self.choices.shape[1])

    @property
    def topk(self) -> int:
        """Experts per token."""
        return int(self.choices.shape[3])

    @property
    def alike(self) -> bool:
        """Recorded layers differ."""
        return False

    @property
    def independent(self) -> bool:
        """A batch of the recorded size is the record itself."""
        return False

    @property
    def period(self) -> int:
        """Every recorded step has its own choices."""
        return int(len(self.choices) > 1)

    def only(self, layers: Sequence[int]) -> Recorded:
        """Keep some of the layers."""
        return replace(self, choices=self.choices[:, list(layers)])

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Return the step's own shares."""
        chosen = self.choices[step % len(self.choices)].reshape(self.layers, -1)
        counts = np.stack([np.bincount(row, minlength=self.experts) for row in chosen])
        return np.asarray(counts / chosen.shape[1])

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Count the choices of `assign`."""
        chosen = self.assign(tokens, step, rng)
        rank = np.repeat(np.arange(len(tokens)), tokens)
        cells = (np.arange(self.layers)[:, None] * len(tokens) + rank)[..., None] * self.experts + chosen
        size = self.layers * len(tokens) * self.experts
        return np.bincount(cells.ravel(), minlength=size).reshape(self.layers, len(tokens), self.experts)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Return the step's tokens in order; fewer are picked without and more with replacement."""
        recorded, wanted = self.choices.shape[2], int(tokens.sum())
        if wanted == recorded:
            picked = np.arange(recorded)
        elif wanted < recorded:
            picked = np.sort(rng.choice(recorded, wanted, replace=False))
        else:
            picked = rng.integers(recorded, size=wanted)
        return np.asarray(self.choices[step % len(self.choices)][:, picked], dtype=np.int64)

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Count the groups of the recorded tokens, all steps together."""
        groups = np.sort(group_of_expert[self.choices], axis=-1)
        changes = (np.diff(groups, axis=-1) != 0).sum(axis=-1)
        return np.asarray(1.0 + changes.mean(axis=(0, 2)))

    def note(self, tokens: int) -> str:
        """Say how a step of so many tokens is made from the record.

        Examples
        --------
        >>> Recorded(choices=np.zeros((1, 1, 4096, 1), dtype=int), experts=8).note(512)
        'routing thinned from 4096 recorded tokens to 512'
        """
        recorded = self.choices.shape[2]
        if tokens == recorded:
            return f"routing replayed exactly, {recorded} recorded tokens"
        change = "thinned" if tokens < recorded else "resampled with replacement"
        return f"routing {change} from {recorded} recorded tokens to {tokens}"
