"""What every built layer answers: `building.build(spec, group, rank, device, seed)` makes one on each rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from .clock import SILENT, Clock
from .spec import LayerSpec


class Layer(Protocol):
    """A layer on one rank, ready to be stepped; all ranks step together."""

    @property
    def spec(self) -> LayerSpec:
        """What it was built from."""
        ...

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Weights of this rank by name; after a step with a backward pass each has its gradient."""
        ...

    def step(self, tokens: Tensor, routing: Tensor, clock: Clock = SILENT, *, batch: int = 0) -> Tensor:
        """Run the layer once, forward, and backward where the spec asks for it.

        Parameters
        ----------
        tokens : [token, hidden], this rank's; none, or fewer than on other ranks, are fine. With a backward pass the
            gradient of the output is `tokens` themselves, and `tokens.grad` is added to
        routing : [token, topk] int64, the experts each token uses, all different. The gate is computed, and its
            shares are those of these experts
        clock : records the parts
        batch : number of the batch in its epoch, by which cached assignments are found

        Returns
        -------
        [token, hidden]: tokens + shared expert + shares of routed experts, less what found no room
        """
        ...

    def restart(self) -> None:
        """Forget what earlier steps left behind: resident experts, scores, cached assignments, altered capacities."""
        ...

    def close(self) -> None:
        """Let go of files and threads."""
        ...
