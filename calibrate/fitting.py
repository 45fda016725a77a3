"""Raw samples of one's own machine, fitted: every operation that a cost form prices, by the key plans look it up by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from moesim.ground.errors import MoesimError
from moesim.schedules.costs.rebuilding import STEPS
from moesim.world.hardware import MEMORY_TIERS, Fit, Node, Tier

from .cases import Cases
from .compiled import fit_compiling
from .fastest import Fitted, by_key
from .fit import Bench
from .manners import best_fit
from .own import PADDED, cases_of, unplaced
from .raw import Sample

ELSEWHERE = (*STEPS, "interference", "moe_layer")
"""Operations that no cost form prices: what compiling takes, slowdowns, and whole layers, to which sums are held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Fits by key, and what could not be fitted with the reason, one line each."""

    fits: Mapping[str, Fit]
    left_out: tuple[str, ...]


def fit_samples(samples: Iterable[Sample], node: Node, *, title: str = "our samples") -> Outcome:
    """Fit every operation that was measured and that a cost form prices.

    Ways of multiplying experts that pad them all to the fullest are kept under their own names and never the default.

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
    samples = tuple(samples)
    fitted: list[Fitted] = []
    compiling, left_out = fit_compiling(samples, title)
    for cases in cases_of(samples, link_of(node)):
        try:
            fitted.append(_fitted(cases, node, title))
        except MoesimError as fault:
            left_out.append(str(fault))
    if not fitted:
        raise MoesimError(f"{title}: nothing could be fitted; {'; '.join(left_out) or 'it has no samples'}")
    others = [name for name in unplaced(samples, link_of(node)) if name not in ELSEWHERE]
    left_out += [f"{', '.join(others)}: no plan looks this up"] if others else []
    padded = {f"{one.cases.key}/{one.cases.kernel}": one.fit for one in fitted if one.cases.kernel in PADDED}
    fits = {**by_key(one for one in fitted if one.cases.kernel not in PADDED), **padded}
    return Outcome(fits=fits | compiling, left_out=tuple(left_out))


def _fitted(cases: Cases, node: Node, title: str) -> Fitted:
    bench = bench_of(cases, node)
    fit = best_fit(cases, bench, node, title=f"{title}, {len(cases)} points")
    return Fitted(cases=cases, bench=bench, fit=fit)


def link_of(node: Node) -> str:
    """Name the innermost tier between ranks."""
    return next((tier.name for tier in node.tiers if tier.name not in MEMORY_TIERS), "link")


def bench_of(cases: Cases, node: Node) -> Bench:
    """Return what points were measured on: the device, and the tier that they crossed.

    Raises
    ------
    MoesimError
        The node has no such tier.
    """
    bare = replace(node.device, fits=MappingProxyType({}))
    if not cases.kind or cases.operation in ("elementwise", "attention_prefill", "attention_decode"):
        return Bench(device=bare)
    return Bench(device=bare, tier=_tier(node, cases.kind))


def _tier(node: Node, name: str) -> Tier:
    for tier in node.tiers:
        if tier.name == name:
            return tier
    raise MoesimError(f"{node.name} has no tier `{name}`, which was measured; name the node that was")
