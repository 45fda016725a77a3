"""What to buy: the cheapest plan that meets every target at peak with the confidence asked for, and how sure that is.

The search ranks layouts by formula at peak traffic. The first of them, and those of its frontier, are sized by trials
(`trials`): replicas are added until few enough trials miss. The cheapest is tried again, oftener, under requests and
draws that it was not sized by, with all its nodes and with those that failures leave, which says how probable it is
that the purchase misses; where it misses too often it grows, and the then cheapest is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Int

from moesim.deployments.pace import Factors
from moesim.ground.showing import Shown
from moesim.plans.plan import Plan
from moesim.search.buying import Buying
from moesim.search.optimization import optimize
from moesim.search.processes import in_parallel, started
from moesim.search.purchase_tables import money_table, option_table
from moesim.search.ranking import Ranking
from moesim.search.resuming import Arrays, Journal
from moesim.search.shortage import Odds, odds
from moesim.search.sizing import TRIALS, Option, Sizer, replicas_of
from moesim.search.study import Study
from moesim.search.trials import Trials, joined, with_traffic
from moesim.search.what_if import what_if
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

CANDIDATES = 6
"""Layouts that are sized."""

CONFIRMED = 40
"""Trials of the purchase that it was not sized by."""

PARTS = 4
"""Parts of those trials that may run at the same time."""

GROWN = 12
"""How often the cheapest may turn out to miss too often."""

MONTH = 365 * 86400.0 / 12
"""Seconds in a month."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Purchase(Shown):
    """What to buy.

    Attributes
    ----------
    ranking : the search at peak traffic
    chosen : the cheapest plan that meets the targets, spares too; None where none does
    options : one row per layout that was sized, cheapest first; `front` where none that is as cheap is as fast
    money : renting beside owning the purchase
    what_if : what the purchase needs, costs and misses where a circumstance is another
    miss : probability that the purchase misses a target at peak, failures of its nodes counted
    error : standard error of that probability
    short : share of the time in which more nodes are in repair than there are spares
    buying : what was asked
    """

    ranking: Ranking
    chosen: Plan | None
    options: pd.DataFrame
    money: pd.DataFrame
    what_if: pd.DataFrame
    miss: float
    error: float
    short: float
    buying: Buying

    @property
    def good(self) -> bool:
        """Whether there is a purchase that meets every target as surely as asked."""
        return self.chosen is not None and self.miss <= 1 - self.buying.confidence + 1e-9

    def sentences(self) -> Iterator[str]:
        """Say what to buy, and how sure it is."""
        if self.chosen is None:
            yield "None of the layouts tried meets the targets at peak with the nodes on offer."
            return
        best = self.options.iloc[0]
        spares = f" ({best['spares']} of them spare)" if best["spares"] else ""
        yield f"{best['way']} {best['cluster']}{spares}: {best['replicas']} replicas of {best['layout']}."
        yield f"A month costs {best['price'] * MONTH:,.0f} USD."
        chance = f"{self.miss:.0%} +- {self.error:.0%}"
        kept = "as asked" if self.good else f"more than the {1 - self.buying.confidence:.0%} that was asked for"
        yield f"At peak it misses a target with a probability of {chance}, {kept}."
        if self.short:
            yield f"More nodes than the spares are in repair for {self.short:.2%} of the time; that is counted."


def purchase(
    study: Study,
    *,
    seed: int = 0,
    progress: Progress = lambda share: None,
    journal: Journal | None = None,
    kept: Sequence[Arrays] = (),
) -> Purchase:
    """Find the cheapest purchase that meets a study's targets at peak with the confidence asked for.

    Parameters
    ----------
    study : Study
        With `buy` and a serving workload.
    seed : int
        Seed of the routing draws, residuals and requests, equal for all plans.
    progress : callable
        Told the share done, from 0 to 1, now and then.
    journal, kept
        Of the search, as `optimize` has them.

    Returns
    -------
    Purchase

    Raises
    ------
    PlanError
        As `optimize`.
    """
    assert study.buy is not None
    peak = at_peak(study.scenario, study.buy)
    starting = started(_ready)
    ranking = optimize(
        peak,
        study.space,
        goal=study.goal,
        frontier=study.frontier,
        seed=seed,
        progress=lambda share: progress(0.3 * share),
        journal=journal,
        kept=kept,
    )
    for _ in starting:
        pass
    sizer = Sizer(scenario=peak, buying=study.buy, seed=seed)
    plans = candidates(ranking)
    sized = in_parallel(sizer.sized, plans, lambda share: progress(0.3 + 0.4 * share))
    options = [option for option in sized if option is not None]
    options.sort(key=lambda option: option.bill.cheapest)
    return _bought(sizer, ranking, options, lambda share: progress(0.7 + 0.3 * share))


def _ready() -> None:
    """Have this module imported where this is called."""


def at_peak(scenario: Scenario, buying: Buying) -> Scenario:
    """Let requests come as often as in the busiest hours at the end of the horizon."""
    assert isinstance(scenario.workload, Serving)
    return replace(scenario, workload=with_traffic(scenario.workload, buying.busiest))


def candidates(ranking: Ranking) -> list[Plan]:
    """List layouts worth sizing: the first by the goal and those of the frontier, by turns, each once."""
    longest = max(len(ranking.chosen), len(ranking.traded))
    turns = [plan for at in range(longest) for plans in (ranking.chosen, ranking.traded) for plan in plans[at : at + 1]]
    found: dict[str, Plan] = {}
    for plan in turns:
        found.setdefault(repr([replace(pool, replicas=1) for pool in plan.pools]), plan)
    return list(found.values())[:CANDIDATES]


def _bought(sizer: Sizer, ranking: Ranking, options: list[Option], progress: Progress) -> Purchase:
    """Choose the cheapest option, try it again, and ask what if."""
    if not options:
        table = none = pd.DataFrame()
        return Purchase(
            ranking=ranking,
            chosen=None,
            options=table,
            money=none,
            what_if=none,
            miss=1.0,
            error=0.0,
            short=0.0,
            buying=sizer.buying,
        )
    best, again = _confirmed(sizer, options)
    table = option_table(sizer.scenario, options)
    progress(0.2)
    return Purchase(
        ranking=ranking,
        chosen=best.plan,
        options=table,
        money=money_table(best.bill, sizer.buying),
        what_if=what_if(sizer, best, lambda share: progress(0.2 + 0.8 * share)),
        miss=again.share,
        error=again.error,
        short=again.short,
        buying=sizer.buying,
    )


def _confirmed(sizer: Sizer, options: list[Option]) -> tuple[Option, Odds]:
    """Try the cheapest again, and let it grow where it misses too often, until the cheapest holds; keeps the order."""
    for turns_left in range(GROWN, -1, -1):
        best = options[0]
        factors = sizer.slowness(best.plan, CONFIRMED)
        trials = _again(best, factors)
        again = odds(best.bench, best.plan, trials, first=TRIALS, factors=factors)
        too_often = again.share > 1 - sizer.buying.confidence + 1e-9
        grown = sizer.grown(best) if too_often and turns_left else None
        if grown is None:
            break
        options[0] = grown
        options.sort(key=lambda option: option.bill.cheapest)
    return best, again


def _again(option: Option, factors: Factors) -> Trials:
    """Try an option under requests that it was not sized by, in as many parts as there is work for."""
    parts = np.array_split(np.arange(len(factors)), PARTS)
    return joined(in_parallel(partial(_part, option, factors), parts))


def _part(option: Option, factors: Factors, numbers: Int[np.ndarray, "trial"]) -> Trials:
    """Make some of those trials, which follow each other."""
    first = TRIALS + int(numbers[0])
    return option.bench.run(replicas_of(option.plan), first=first, factors=factors[numbers])
