"""How a plan's reacting policies fared, as a result tells it: tables, metrics, a word in the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from moesim.deployments.adaptation import break_even
from moesim.deployments.following import Followed
from moesim.deployments.hindsight import in_hindsight, paid
from moesim.deployments.metrics import METRICS
from moesim.deployments.pools import Estimator
from moesim.deployments.result import Interval, Verdict
from moesim.deployments.tables import with_units
from moesim.ground.units import SourceKind
from moesim.policies.knobs import Turning

TOLD = 200
"""Changes that are listed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reaction:
    """What reacting came to in the pools of a plan.

    Attributes
    ----------
    tables : ``reaction`` with a row for each pool that was followed, ``changes``; none where no pool was
    idle : whether a pool has reacting policies, and a routing that gives them nothing to react to
    """

    tables: Mapping[str, pd.DataFrame]
    idle: bool

    @classmethod
    def of(cls, estimator: Estimator, used: Sequence[int]) -> Reaction:
        """Look at the pools of some rows."""
        followed = {row: estimator.follow(row) for row in used}
        idle = any(not found and estimator.table.pool(row).adaptation for row, found in followed.items())
        known = {estimator.table.pool(row).role: found for row, found in followed.items() if found}
        return cls(tables=reaction_tables(known), idle=idle)

    def summary(self, source: SourceKind) -> dict[str, Interval]:
        """Give the largest regret and break-even horizon of any pool as headline numbers."""
        if not self.tables:
            return {}
        largest = {name: float(self.tables["reaction"][name].max()) for name in ("regret", "break_even")}
        return {
            name: Interval(low=value, mid=value, high=value, unit=METRICS[name].unit, source=source)
            for name, value in largest.items()
        }

    def told(self, verdict: Verdict) -> Verdict:
        """Add a word on how reacting fared."""
        if self.idle:
            return replace(verdict, why=f"{verdict.why}; the routing is stationary, so nothing reacts")
        if not self.tables:
            return verdict
        table = self.tables["reaction"]
        changes, steps = int(table["changes"].sum()), int(table["steps"].max())
        words = f"{changes:,} changes in {steps:,} steps, {table['regret'].max():.1%} behind full knowledge"
        return replace(verdict, why=f"{verdict.why}; {words}")


def reaction_tables(known: Mapping[str, Followed]) -> dict[str, pd.DataFrame]:
    """Tabulate what reacting came to in the pools that were followed, by role; nothing where none was."""
    return {"reaction": _joined(known, _summed), "changes": _joined(known, _changes)} if known else {}


def _joined(known: Mapping[str, Followed], table: Callable[[Followed], pd.DataFrame]) -> pd.DataFrame:
    """Join one table of several pools, each row with the pool's role."""
    frames = {role: table(found) for role, found in known.items()}
    joined = pd.concat([frame.assign(pool=role) for role, frame in frames.items()], ignore_index=True)
    joined = joined[["pool", *(name for name in joined if name != "pool")]]
    return with_units(joined, next(iter(frames.values())).attrs["units"])


def _summed(followed: Followed) -> pd.DataFrame:
    """Write in a row what reacting came to: a mean step with it, without it, and with full knowledge."""
    rival, walk = in_hindsight(followed), followed.walk
    dictionaries = [state for state in walk.state if isinstance(state, Turning)]
    row = {
        "policies": " ".join(policy.name for policy in followed.watched.pool.adaptation),
        "steps": followed.trace.steps,
        "period": followed.watched.scenario.routing.period,
        "changes": len(walk.changes),
        "keys": sum(len(each.best) for each in dictionaries),
        "trials": sum(each.trials for each in dictionaries),
        "step": followed.mean,
        "still": followed.still,
        "best": rival.best / followed.trace.steps,
        "stalled": float(walk.stalls.sum()) / walk.total,
        "regret": rival.regret,
        "break_even": rival.break_even,
    }
    return with_units(pd.DataFrame([row]), dict.fromkeys(("step", "still", "best"), "s") | {"break_even": "steps"})


def _changes(followed: Followed) -> pd.DataFrame:
    """List changes: what each stalled, what it saved a step, how long it had to last to pay and how long it did."""
    steps = [step for step, _ in followed.walk.changes] + [followed.trace.steps]
    rows = [
        {"before": step, "stalled": cost, "saved": gain, "break_even": break_even(cost, gain), "lasted": end - step}
        for (step, cost, gain), end in zip(paid(followed), steps[1:], strict=True)
    ]
    table = pd.DataFrame(rows[:TOLD], columns=["before", "stalled", "saved", "break_even", "lasted"])
    return with_units(table, dict.fromkeys(("stalled", "saved"), "s") | {"break_even": "steps"})
