"""What may change while a plan runs: which expert lives in which slot, capacities, resident slots, Tutel's knobs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

NO_LIMIT = np.iinfo(np.int64).max
"""Capacity of an expert that never drops a token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """One arrangement of a pool's experts. Axis `layer` counts MoE layers only.

    Attributes
    ----------
    expert_of_slot : which logical expert each slot holds
    rank_of_slot : ep index (0..ep-1) that owns each slot; slots are ordered by it
    capacity : rows per expert per source rank; `NO_LIMIT` where dropless
    resident : whether the slot's weights are on the gpu now
    missing : share of the experts a pass uses that have to be copied in first
    r : Tutel's parallelism per layer (1 = EP + DP)
    degree : pipelining degree per layer
    alltoall : all-to-all policy per layer
    buckets : batch sizes with a compiled graph; empty: any size
    cached : whether experts read the assignments of an earlier pass over the same data (DynaMoE)
    """

    expert_of_slot: Int[np.ndarray, "layer slot"]
    rank_of_slot: Int[np.ndarray, "slot"]
    capacity: Int[np.ndarray, "layer expert"] | Float[np.ndarray, "layer expert"]
    resident: Bool[np.ndarray, "layer slot"]
    r: Int[np.ndarray, "layer"]
    degree: Int[np.ndarray, "layer"]
    alltoall: tuple[str, ...]
    buckets: tuple[int, ...] = ()
    cached: bool = False
    missing: float = 0.0

    @property
    def slots_per_rank(self) -> int:
        """Slots each ep index owns; the same for all."""
        return int(np.bincount(self.rank_of_slot).max())
