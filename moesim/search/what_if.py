"""What if a circumstance is another: what the layout that was bought would need then, and cost, and miss as bought."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from moesim.deployments.tables import with_units
from moesim.ground.errors import PlanError
from moesim.ground.units import DollarsPerSecond
from moesim.plans.plan import Plan
from moesim.search.money import rented
from moesim.search.paths import changed, recipe_of
from moesim.search.processes import in_parallel
from moesim.search.shortage import odds
from moesim.search.sizing import Option, Sizer, replicas_of
from moesim.search.trials import with_traffic
from moesim.world.hardware import Offer, memory_tier
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

TRAFFIC = (0.5, 1.5)
SKEW = (0.5, 1.5)
HITS = (0.0, 0.5)
BANDWIDTH = (0.5, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """A scenario in which one circumstance is another; `name` is the circumstance and `value` what it is."""

    name: str
    value: str
    scenario: Scenario


def worlds(scenario: Scenario, plan: Plan) -> Iterator[World]:
    """List what to ask: traffic, routing's skew, prefix hits and bandwidth between nodes, less and more; and PCIe."""
    workload, hardware = scenario.workload, scenario.hardware
    assert isinstance(workload, Serving)
    for share in TRAFFIC:
        named = f"x {share:g}"
        yield World(name="traffic", value=named, scenario=replace(scenario, workload=with_traffic(workload, share)))
    with suppress(PlanError, LookupError):
        skew = recipe_of(scenario.routing).cv
        for share in SKEW if skew else ():
            world, _ = changed(scenario, plan, "routing.cv", skew * share)
            yield World(name="skew of routing", value=f"x {share:g}", scenario=world)
    for hits in HITS:
        if hits != workload.requests.prefix_hits:
            requests = replace(workload.requests, prefix_hits=hits)
            world = replace(scenario, workload=replace(workload, requests=requests))
            yield World(name="prefix hits", value=f"{hits:.0%}", scenario=world)
    for share in BANDWIDTH:
        fabric = tuple(replace(tier, bandwidth=tier.bandwidth * share) for tier in hardware.fabric)
        world = replace(scenario, hardware=replace(hardware, fabric=fabric))
        yield World(name="bandwidth between nodes", value=f"x {share:g}", scenario=world)
    yield from _on_pcie(scenario, plan)


def _on_pcie(scenario: Scenario, plan: Plan) -> Iterator[World]:
    """Let gpus of a node talk over the links to their host, as in boxes without NVLink."""
    used, hardware = {pool.node for pool in plan.pools}, scenario.hardware
    offers = [_without_nvlink(offer) if offer.node.name in used else offer for offer in hardware.offers]
    if offers != list(hardware.offers):
        world = replace(scenario, hardware=replace(hardware, offers=tuple(offers)))
        yield World(name="links in the node", value="pcie", scenario=world)


def _without_nvlink(offer: Offer) -> Offer:
    """Give a node's innermost tier the speed of the links to the host, where those are slower."""
    node = offer.node
    first, *others = node.tiers
    host = memory_tier(node, "host")
    if host.bandwidth / host.sharers >= first.bandwidth / first.sharers:
        return offer
    pcie = replace(host, name="pcie", ranks=first.ranks)
    return replace(offer, node=replace(node, tiers=(pcie, *others)))


def what_if(sizer: Sizer, best: Option, progress: Callable[[float], None]) -> pd.DataFrame:
    """Size the layout that was bought in other worlds, and price it at the ends of its rents.

    Returns
    -------
    DataFrame
        A row for each change: `circumstance`, `value`, `gpus` and `price` that the layout would need, `change` of the
        price, and `miss`, the probability that it misses as it was bought. Where no number of nodes on offer is enough,
        `price` does not exist.
    """
    asked = list(worlds(sizer.scenario, best.plan))
    answers = in_parallel(partial(_answer, sizer, best), [world.scenario for world in asked], progress)
    known = zip(asked, answers, strict=True)
    rows = [{"circumstance": world.name, "value": world.value} | answer for world, answer in known]
    rows += list(_prices(sizer.scenario, best))
    return with_units(pd.DataFrame(rows), {"price": "USD/s", "change": "USD/s"})


def _answer(sizer: Sizer, best: Option, scenario: Scenario) -> dict[str, object]:
    other = replace(sizer, scenario=scenario)
    ready = other.ready(best.plan)
    if ready is None:
        return _row(best, None, float("nan"), 1.0)
    replicas = replicas_of(best.plan)
    trials = ready.run(replicas)
    as_bought = odds(ready, best.plan, trials).share
    found = other.fewest(ready, replicas, trials)
    if found is None:
        return _row(best, None, float("nan"), as_bought)
    option = other.option(ready, *found)
    return _row(best, option.bill.gpus, option.bill.cheapest, as_bought)


def _prices(scenario: Scenario, best: Option) -> Iterator[dict[str, object]]:
    """Price the purchase at the ends of what is asked for it."""
    offers = scenario.hardware.offers
    as_bought = odds(best.bench, best.plan, best.trials).share
    for end in (0, 1):
        price = rented(best.bill, best.plan, {offer.node.name: offer.rent_band[end] for offer in offers}, scenario)
        row = _row(best, best.bill.gpus, price, as_bought)
        yield {"circumstance": "rent", "value": ("low end", "high end")[end]} | row


def _row(best: Option, gpus: int | None, price: DollarsPerSecond, miss: float) -> dict[str, object]:
    needed = float("nan") if gpus is None else float(gpus)
    return {"gpus": needed, "price": price, "change": price - best.bill.cheapest, "miss": miss}
