"""What a search ranks plans by, and what it trades off: numbers of which less is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.summary import Summary
from moesim.deployments.verdicts import worst_miss
from moesim.world.workload import Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objectives:
    """Numbers to rank plans by, one row a plan.

    Attributes
    ----------
    rank : largest relative miss of a target (0: all are met), goal, throughput against ties; compared in this order
    front : the metrics of the frontier
    """

    rank: Float[np.ndarray, "plan 3"]
    front: Float[np.ndarray, "plan metric"]

    @property
    def meets(self) -> Bool[np.ndarray, "plan"]:
        """Whether a plan meets every target and carries the load."""
        return np.asarray(self.rank[:, 0] <= 0)

    def before(self, limit: Float[np.ndarray, "3"]) -> Bool[np.ndarray, "plan"]:
        """Whether a plan ranks before a limit."""
        (miss, goal, tie), (a, b, c) = self.rank.T, limit
        return np.asarray((miss < a) | ((miss == a) & ((goal < b) | ((goal == b) & (tie < c)))))

    def order(self, rows: Int[np.ndarray, "row"]) -> Int[np.ndarray, "row"]:
        """Sort some plans, the best first."""
        return rows[np.lexsort(self.rank[rows].T[::-1])]


def objectives(summary: Summary, targets: Sequence[Target], goal: str, frontier: Sequence[str]) -> Objectives:
    """Read the objectives of every plan from its headline numbers.

    A metric's percentile is read as its mean: an estimate has no other.
    """
    miss = np.maximum(worst_miss(summary, targets), 0.0)
    rank = np.stack([miss, _signed(summary, goal), -summary.metrics["throughput"]], axis=1)
    front = np.stack([_signed(summary, name) for name in frontier], axis=1)
    return Objectives(rank=rank, front=front)


def _signed(summary: Summary, name: str) -> Float[np.ndarray, "plan"]:
    """A metric, its sign turned where more is better."""
    metric = METRICS[base_metric(name)]
    return summary.metrics[base_metric(name)] * (1.0 if metric.less_is_better else -1.0)
