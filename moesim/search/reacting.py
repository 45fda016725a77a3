"""Which reacting policies a search tries where a space leaves them out."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.deployments.following import horizon
from moesim.plans.layout import NO_LIMIT
from moesim.plans.plan import Policy
from moesim.policies.finding import make
from moesim.policies.protocols import Gating
from moesim.world.generators import Topical
from moesim.world.routing import Routing

Reacting = tuple[Policy, ...]


def offered(routing: Routing, gatings: Sequence[Policy]) -> tuple[Reacting, ...]:
    """List what may react to a routing, standing still included; nothing where the routing does not drift.

    Topics that come and go are no drift: they return, tens of steps later, to the same shares. DynaMoE and Tutel are
    tried where a gating leaves them a capacity to alter, or one to follow.

    Examples
    --------
    >>> from moesim.world.generators import Balanced
    >>> offered(Balanced(layers=1, experts=8, topk=2), [])
    ()
    """
    if isinstance(routing, Topical) or not horizon(routing.period):
        return ()
    names = ["none", "rebalance"]
    made: list[Gating] = [make("gating", policy) for policy in gatings]
    if any(gating.capacity(1024, 8, 1) < NO_LIMIT for gating in made):
        names.append("dynamoe")
    if any(policy.name != "dynamic" for policy in gatings):
        names.append("tutel")
    return tuple((Policy(name=name),) for name in names)
