"""Linear all-to-all: every rank sends each owner its rows directly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.policies.alltoall._traffic import Reach, joining, messages, rows_by_owner
from moesim.policies.protocols import Phase
from moesim.schedules.ops import AllToAll, Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Post one message to each other rank, over the innermost tier that joins the two.

    NCCL's plain algorithm, and the one that Tutel starts from (Hwang et al., "Tutel", MLSys 2023). A rank's rows for
    itself cost nothing; a peer that gets no rows still gets its message. A framework whose own kernels send each row
    straight to its expert (DeepEP's low-latency ones) is priced by those, where they were measured.
    """

    replicated: ClassVar[bool] = False
    everywhere: ClassVar[bool] = False

    def __call__(self, op: Exchange, reach: Reach) -> tuple[Phase, ...]:
        """Return one phase of all ranks."""
        if op.ranks == 1:
            return ()
        rows = rows_by_owner(op)
        marks = joining(op.ranks, tuple(block for _, block in reach))
        if op.rows.shape[-1] == 1:  # sources alike: one column stands for all of them
            sent = op.row * np.einsum("d...,tdr->t...r", rows[..., 0], marks)
            received = op.row * np.einsum("d...,td->t...d", rows[..., 0], marks.sum(axis=-1))
        else:
            sent = op.row * np.einsum("d...r,tdr->t...r", rows, marks)
            received = op.row * np.einsum("d...r,tdr->t...d", rows, marks)
        if op.reverse:
            sent, received = received, sent
        exchange = AllToAll(
            tiers=tuple(name for name, _ in reach),
            sent=sent,
            received=received,
            messages=messages(marks.sum(axis=1), sent),
            way="combine" if op.reverse else "dispatch",
            slots=len(op.rows),
        )
        return (Phase(op=exchange, group="ep", stream="comm"),)


policy = Linear
