"""What costs no product is computed again: norms and activation functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moesim.policies.protocols import Kept
from moesim.schedules.ops import Elementwise
from moesim.schedules.schedule import Task

AGAIN = frozenset({"default", "activation"})
"""Kernels of passes over memory that are run again; rows that were exchanged, and choices of the gate, are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selective:
    """Keep the inputs of norms and of activation functions instead of their results.

    Megatron-Core's modules `layernorm` and `moe_act`; the idea is that of Korthikanti et al. (arXiv 2205.05198).
    """

    keeps: ClassVar[Kept] = "products"

    def __call__(self, task: Task) -> bool:
        """Say yes to passes over memory that are no exchange of rows."""
        return isinstance(task.op, Elementwise) and task.op.kernel in AGAIN


policy = Selective
