"""Raw samples of one's own machine, fitted: a profile of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from moesim.ground.errors import MoesimError
from moesim.world.hardware import MEMORY_TIERS, Fit, Node, Tier

from .cases import Cases
from .fastest import Fitted, by_key
from .fit import Bench
from .own import cases_of
from .raw import Sample
from .spread import fit_with_spread

GUESSED = 0.2
"""Certainty of a device that is nobody's in particular: its numbers are right to about a factor of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Fits by key, and what could not be fitted with the reason, one line each."""

    fits: Mapping[str, Fit]
    left_out: tuple[str, ...]


def fit_samples(samples: Iterable[Sample], node: Node, *, title: str = "our samples") -> Outcome:
    """Fit every operation that was measured and that a cost form prices.

    Parameters
    ----------
    samples : as `raw.read` gives them
    node : the machine as its datasheet says, from which parameters are expected
    title : where the samples are

    Raises
    ------
    MoesimError
        Nothing could be fitted.
    """
    link = next((tier for tier in node.tiers if tier.name not in MEMORY_TIERS), None)
    fitted: list[Fitted] = []
    left_out: list[str] = []
    for cases in cases_of(samples, link.name if link else "link"):
        try:
            bench = _bench(cases, node)
            fit = fit_with_spread(cases, bench, certainty=_certainty(node), title=f"{title}, {len(cases)} points")
        except MoesimError as fault:
            left_out.append(str(fault))
        else:
            fitted.append(Fitted(cases=cases, bench=bench, fit=fit))
    if not fitted:
        raise MoesimError(f"{title}: nothing could be fitted; {'; '.join(left_out) or 'it has no samples'}")
    return Outcome(fits=by_key(fitted), left_out=tuple(left_out))


def _certainty(node: Node) -> float:
    return GUESSED if node.device.name.startswith("generic/") else 1.0


def _bench(cases: Cases, node: Node) -> Bench:
    bare = replace(node.device, fits=MappingProxyType({}))
    if not cases.kind or cases.operation.startswith("attention"):
        return Bench(device=bare)
    return Bench(device=bare, tier=_tier(node, cases.kind))


def _tier(node: Node, name: str) -> Tier:
    for tier in node.tiers:
        if tier.name == name:
            return tier
    raise MoesimError(f"{node.name} has no tier `{name}`, which was measured; name the node that was")
