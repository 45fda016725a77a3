"""A whole training run: how long until all tokens are trained on, and what that costs, with what failures take away."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from moesim.passes.table import PoolTable, Whole
from moesim.world.hardware import Node
from moesim.world.scenario import Failures, Scenario
from moesim.world.workload import Training

Numbers = Float[np.ndarray, "plan"]


def training_run(
    scenario: Scenario, table: PoolTable, pool: Whole, throughput: Numbers, price: Numbers
) -> dict[str, Numbers]:
    """Metrics of the run to its end: `useful`, `time_to_train` and `price_to_train`.

    Parameters
    ----------
    pool : the pool of each plan, a row of the table
    throughput, price : tokens/s while it trains, USD/s
    """
    workload, offer = scenario.workload, scenario.hardware.offer
    assert isinstance(workload, Training)
    names = table.each(lambda like: checkpoint_rate(offer(like.node).node))[pool]
    share = useful(scenario.failures, table.gpus[pool], names)
    spent = workload.tokens / (throughput * share)
    return {"useful": share, "time_to_train": spent, "price_to_train": price * spent}


def checkpoint_rate(node: Node) -> float:
    """Bytes per second that one gpu's share of its node's disks takes; infinite where no disk is described."""
    disk = next((tier for tier in node.tiers if tier.name == "disk"), None)
    return disk.bandwidth / disk.sharers if disk else np.inf


def useful(failures: Failures, gpus: Whole, rate: Numbers) -> Numbers:
    """Share of time that trains, checkpoints as often as is best.

    With C seconds to write a checkpoint, M between interruptions of the whole job and R to repair one: checkpoints are
    sqrt(2 C M) apart, and C / that + that / 2 M + R / M is lost (Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006). All
    gpus write their share to their node's disks at once. A job so large that nothing is left has a share of 0.

    Parameters
    ----------
    gpus : of the job
    rate : bytes per second that a gpu writes

    Examples
    --------
    >>> often = Failures(interval=3.6e6, repair=360.0, checkpoint=1e12)  # 1,000 gpus: once an hour; 18 s a checkpoint
    >>> useful(often, np.array([1000]), np.array([1e9 / 18])).round(3).tolist()
    [0.8]
    """
    rates = [1.0 / seconds for seconds in (failures.interval, failures.crash) if seconds]
    if not rates:
        return np.ones(len(gpus))
    between: Numbers = 1.0 / (gpus * sum(rates))
    writing = failures.checkpoint / (gpus * rate)
    lost = np.sqrt(2.0 * writing / between) + failures.repair / between
    return np.asarray(np.maximum(1.0 - lost, 0.0))
