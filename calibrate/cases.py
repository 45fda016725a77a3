"""Timed points of one operation: what a fit is made of and what it is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

Floats = Float[np.ndarray, " case"]
Index = Int[np.ndarray, " some"] | Bool[np.ndarray, " case"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cases:
    """Points of one operation in one dtype, done by one kernel.

    Attributes
    ----------
    operation : as it is keyed in a profile: gemm, grouped_gemm, attention_prefill, attention_decode, reduce, ...
    dtype : storage format of weights or cache; "" for transfers
    kind : of attention gqa or mla; of transfers the tier they cross; else ""
    kernel : what ran
    inputs : sizes by name, one per point
    seconds : measured
    family : number of the group of shapes a point belongs to: a model, a head layout, a number of gpus
    """

    operation: str
    dtype: str
    kind: str
    kernel: str
    inputs: Mapping[str, Floats]
    seconds: Floats
    family: Int[np.ndarray, " case"]

    @property
    def key(self) -> str:
        """Where a profile keeps the fit that a plan uses by default."""
        return "/".join(filter(None, (self.operation, self.dtype, self.kind)))

    def __len__(self) -> int:
        """Return how many points there are."""
        return len(self.seconds)

    def take(self, index: Index) -> Cases:
        """Return some of the points."""
        return replace(
            self,
            inputs={name: values[index] for name, values in self.inputs.items()},
            seconds=self.seconds[index],
            family=self.family[index],
        )


def family_of(*columns: Floats) -> Int[np.ndarray, " case"]:
    """Number the groups of points that agree in all columns.

    Examples
    --------
    >>> family_of(np.array([1.0, 2.0, 1.0]), np.array([5.0, 5.0, 5.0]))
    array([0, 1, 0])
    """
    return np.asarray(np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1]).reshape(-1)
