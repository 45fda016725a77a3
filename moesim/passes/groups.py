"""Who meets whom: the label of every rank in each kind of group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from moesim.plans.plan import Parallel

GROUPS = ("all", "tp", "cp", "dp", "ep", "etp", "edp", "node", "rail")


def labels(parallel: Parallel, stage: int, gpus_per_node: int) -> Mapping[str, Int[np.ndarray, "rank"]]:
    """Label each rank of a stage in every kind of group; ranks of one label meet.

    Node and rail groups are told apart by expert block, because only ranks of one block exchange rows.

    Examples
    --------
    >>> found = labels(Parallel(dp=2, tp=2, ep=2, etp=2), 0, 2)
    >>> [int(label) for label in found["tp"]], [int(label) for label in found["dp"]]
    ([0, 0, 1, 1], [0, 1, 0, 1])
    """
    rank = np.arange(parallel.ranks)
    tp, cp, etp = parallel.tp, parallel.cp, parallel.etp
    block = parallel.ep * etp
    gpu = stage * parallel.ranks + rank
    expert_block = rank // block
    return {
        "all": np.zeros_like(rank),
        "tp": rank // tp,
        "cp": rank // (tp * cp) * tp + rank % tp,
        "dp": rank % (tp * cp),
        "ep": expert_block,
        "etp": rank // etp,
        "edp": rank % block,
        "node": gpu // gpus_per_node * parallel.edp + expert_block,
        "rail": gpu % gpus_per_node * parallel.edp + expert_block,
    }


def folded_labels(rows: int) -> Mapping[str, Int[np.ndarray, "rank"]]:
    """Label rank classes: the classes stand for the ranks of one group, so all of them meet in every kind."""
    return {key: np.zeros(rows, dtype=int) for key in GROUPS}
