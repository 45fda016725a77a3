"""The range of every headline number: residuals of the costs drawn, and carried through to deployments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from moesim.deployments.deployed import NONE, Deployments
from moesim.deployments.metrics import METRICS
from moesim.deployments.pools import Estimator
from moesim.deployments.residuals import NUMBER, Residuals
from moesim.deployments.result import Interval
from moesim.deployments.summary import Summary, summarize
from moesim.ground.streams import stream
from moesim.ground.units import SourceKind
from moesim.world.scenario import Scenario

LOW, HIGH = 0.1, 0.9
"""The quantiles an interval gives."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranges:
    """Headline numbers of some deployments under each draw of the residuals, by metric."""

    drawn: Mapping[str, Float[np.ndarray, "plan residual"]]
    offered: float

    def only(self, plan: int) -> Ranges:
        """Keep one plan."""
        return Ranges(drawn={name: values[[plan]] for name, values in self.drawn.items()}, offered=self.offered)

    def summary(self, plan: int) -> Summary:
        """Summarize one plan, its draws taking the place of plans."""
        return Summary(metrics={name: values[plan] for name, values in self.drawn.items()}, offered=self.offered)


def drawn_ranges(scenario: Scenario, estimator: Estimator, deployed: Deployments, *, number: int = NUMBER) -> Ranges:
    """Draw residuals, time the pools of some deployments under them, and summarize every draw.

    All deployments meet the same draws; prices are drawn within their bands, one draw an offer.
    """
    used = np.unique(np.concatenate([deployed.pool, deployed.feeder[deployed.feeder != NONE]]))
    residuals = Residuals(seed=estimator.run.seed, number=number)
    step, carrying = (np.full((len(used), number), np.nan) for _ in range(2))
    place = {int(row): at for at, row in enumerate(used)}
    for group in estimator.structures(used):
        times = estimator.run.block(estimator.table, group, residuals)
        at = [place[row] for row in group]
        followed = [estimator.follow(row) for row in group]
        factor = np.array([each.factor if each else 1.0 for each in followed])[:, None]
        step[at], carrying[at] = times.step.T * factor, times.carrying.T * factor
    return _summarized(scenario, estimator, deployed, place, step, carrying)


def _summarized(
    scenario: Scenario,
    estimator: Estimator,
    deployed: Deployments,
    place: Mapping[int, int],
    step: Float[np.ndarray, "pool residual"],
    carrying: Float[np.ndarray, "pool residual"],
) -> Ranges:
    """Summarize all draws of all deployments at once: pools and deployments are repeated, once a draw."""
    number = step.shape[1]
    rows = np.repeat(list(place), number)
    estimates = replace(estimator.estimates.take(rows), step=step.reshape(-1), carrying=carrying.reshape(-1))
    many = len(deployed) * number
    draw = np.tile(np.arange(number), len(deployed))

    def repeated(pools: np.ndarray) -> np.ndarray:
        at = np.array([place.get(int(row), NONE) for row in pools])
        return np.where(np.repeat(at, number) == NONE, NONE, np.repeat(at, number) * number + draw)

    copies = Deployments(
        table=estimator.table.take(rows),
        pool=repeated(deployed.pool),
        replicas=np.repeat(deployed.replicas, number),
        feeder=repeated(deployed.feeder),
        feeders=np.repeat(deployed.feeders, number),
        spare_nodes=np.repeat(deployed.spare_nodes, number),
    )
    assert len(copies) == many
    rents = drawn_rents(scenario, estimator.run.seed, number)
    found = summarize(scenario, copies, estimates, {name: np.tile(each, len(deployed)) for name, each in rents.items()})
    drawn = {name: values.reshape(len(deployed), number) for name, values in found.metrics.items()}
    return Ranges(drawn=drawn, offered=found.offered)


def drawn_rents(scenario: Scenario, seed: int, number: int) -> dict[str, Float[np.ndarray, "residual"]]:
    """Draw the rent of every offer, USD/s per gpu, with the ends of its band at P10 and P90.

    Between its low, its middle and its high a rent is uniform, and so it is beyond them by a quarter as far. Draws are
    a shuffle of evenly spaced quantiles, so that few of them have the quantiles of many.
    """
    shares = np.linspace(0.0, 1.0, number) if number > 1 else np.array([0.5])
    found = {}
    for offer in scenario.hardware.offers:
        (low, high), middle = offer.rent_band, offer.rent
        ends = max(low - (middle - low) / 4, 0.0), high + (high - middle) / 4
        mixed = stream(seed, f"rent {offer.node.name}").permutation(shares)
        found[offer.node.name] = np.interp(mixed, (0.0, LOW, 0.5, HIGH, 1.0), (ends[0], low, middle, high, ends[1]))
    return found


def intervals(summary: Summary, ranges: Ranges | None, plan: int, source: SourceKind) -> dict[str, Interval]:
    """Give every headline number of one plan its range; without draws, none."""
    found = {}
    for name, values in summary.metrics.items():
        low = mid = high = float(values[plan])
        if ranges is not None:
            least, most = np.quantile(ranges.drawn[name][plan], (LOW, HIGH)).tolist()
            low, high = min(least, mid), max(most, mid)
        found[name] = Interval(low=low, mid=mid, high=high, unit=METRICS[name].unit, source=source)
    return found
