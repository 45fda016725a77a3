"""What a purchase costs a second, rented or owned, how many spares it needs, and when owning has paid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, inf

from moesim.ground.units import Dollars, DollarsPerSecond, Seconds, Watts
from moesim.plans.plan import Plan
from moesim.search.buying import Buying
from moesim.world.scenario import Failures, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a plan's nodes cost, spares too.

    Attributes
    ----------
    gpus : of all nodes
    rent : USD/s to rent them; infinite where one is not for rent
    purchase : to buy them; infinite where one is not for sale
    running : USD/s of energy at what trials of peak traffic drew, hosting and staff
    owned : USD/s to own them over the horizon: what the purchase loses in value, and running
    breakeven : seconds after which renting would have cost more than buying and running, resale not counted
    """

    gpus: int
    rent: DollarsPerSecond
    purchase: Dollars
    running: DollarsPerSecond
    owned: DollarsPerSecond
    breakeven: Seconds

    @property
    def cheapest(self) -> DollarsPerSecond:
        """USD/s of the cheaper way to have them."""
        return min(self.rent, self.owned)

    @property
    def way(self) -> str:
        """Whether renting or owning is cheaper."""
        return "own" if self.owned < self.rent else "rent"


def nodes_used(scenario: Scenario, plan: Plan) -> dict[str, int]:
    """Count nodes by type; spares are of the first pool's."""
    nodes: dict[str, int] = {}
    for number, pool in enumerate(plan.pools):
        per_node = scenario.hardware.offer(pool.node).node.gpus
        wanted = -(-pool.replicas * pool.parallel.gpus // per_node) + plan.spare_nodes * (number == 0)
        nodes[pool.node] = nodes.get(pool.node, 0) + wanted
    return nodes


def bill(scenario: Scenario, plan: Plan, buying: Buying, *, power: Watts) -> Bill:
    """Price a plan both ways; its nodes draw so much power, spares too."""
    used = [(scenario.hardware.offer(name), nodes) for name, nodes in nodes_used(scenario, plan).items()]
    gpus = sum(nodes * offer.node.gpus for offer, nodes in used)
    rent = sum(nodes * offer.node.gpus * (offer.rent or inf) for offer, nodes in used)
    if buying.own is None:
        return Bill(gpus=gpus, rent=rent, purchase=inf, running=0.0, owned=inf, breakeven=inf)
    purchase = sum(nodes * offer.node.gpus * (offer.buy or inf) for offer, nodes in used)
    own = buying.own
    running = power * own.pue * own.energy + gpus * own.hosting + own.staff
    return Bill(
        gpus=gpus,
        rent=rent,
        purchase=purchase,
        running=running,
        owned=purchase * (1 - own.residual) / buying.horizon + running if purchase < inf else inf,
        breakeven=purchase / (rent - running) if running < rent < inf else inf,
    )


def rented(bill: Bill, plan: Plan, rents: Mapping[str, DollarsPerSecond], scenario: Scenario) -> DollarsPerSecond:
    """USD/s of the cheaper way where rents are others."""
    nodes = nodes_used(scenario, plan)
    rent = sum(count * scenario.hardware.offer(name).node.gpus * rents[name] for name, count in nodes.items())
    return min(rent or inf, bill.owned)


def spares(nodes: int, gpus: int, failures: Failures, availability: float) -> int:
    """Fewest spare nodes with which enough nodes are up for that share of the time.

    A node is up for a share interval / (interval + gpus x repair) of the time, independently of others; of n nodes and
    their spares at least n must be (binomial).

    Examples
    --------
    >>> spares(10, 8, Failures(interval=5e6, repair=86400.0), 0.99)
    5
    """
    if not availability:
        return 0
    up = up_share(gpus, failures)
    extra = 0
    while _enough(nodes, nodes + extra, up) < availability:
        extra += 1
    return extra


def up_share(gpus: int, failures: Failures) -> float:
    """Share of the time in which a node of so many gpus is up."""
    return failures.interval / (failures.interval + gpus * failures.repair) if failures.interval else 1.0


def downs(nodes: int, up: float) -> list[float]:
    """Probability that 0, 1, 2 ... of so many nodes are down, each up for a share of the time, independently.

    Examples
    --------
    >>> downs(2, 0.5)
    [0.25, 0.5, 0.25]
    """
    return [comb(nodes, down) * (1 - up) ** down * up ** (nodes - down) for down in range(nodes + 1)]


def _enough(needed: int, of: int, up: float) -> float:
    """Probability that at least so many of so many are up."""
    return sum(downs(of, up)[: of - needed + 1])
