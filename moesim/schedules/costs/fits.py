"""Which fit an op is priced by: the calibrated one where the profile has it, else the datasheet prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from moesim.ground.errors import MoesimError, nearest
from moesim.ground.units import Source, weakest
from moesim.schedules.costs.collectives import ROUNDS, WAYS
from moesim.schedules.costs.kernels import Time
from moesim.schedules.costs.priors import compute_dtype, host_prior, kernel_prior, tier_prior
from moesim.world.formats import LIKE
from moesim.world.hardware import CPU, Device, Fit, Node, Tier, computes


def fit_of(device: Device, operation: str, dtype: str = "bf16", kernel: str = "default") -> Fit:
    """Return the fit of a compute kernel: the most specific one of the device's, else the datasheet prior.

    The keys tried are "operation/dtype/kernel", "operation/dtype" and "operation"; then those of the storage format of
    as many bits that is multiplied alike, if there is one, whose fit is no stronger than ``derived`` here. A fit may
    state some of the form's parameters only; the rest are the prior's, and then it is no stronger than ``derived``.
    """
    prior = kernel_prior(device, operation, dtype, kernel)
    keys = (f"{operation}/{dtype}/{kernel}", f"{operation}/{dtype}", operation)
    other = LIKE.get(dtype)
    if other is None or any(key in device.fits for key in keys):
        return _found(device.fits, keys, prior)
    found = _found(device.fits, (f"{operation}/{other}/{kernel}", f"{operation}/{other}"), prior)
    if found is prior:
        return prior
    source = replace(
        found.source, kind=weakest((found.source.kind, "derived")), title=f"as {other}: {found.source.title}"
    )
    return replace(found, source=source)


_SHARED = {"reduce": tuple(ROUNDS), "all_to_all": WAYS}
"""Forms of transfers, and which operations are priced by them."""


def fit_of_tier(device: Device, operation: str, tier: Tier) -> Fit:
    """Return the fit of a transfer on a tier, keyed "operation/tier" or "operation", else the datasheet prior.

    An all-reduce, a reduce-scatter and an all-gather may each have one, and share that of "reduce" where not; so do a
    dispatch, a combine and the phases of a hierarchical exchange, and share that of "all_to_all".
    """
    form = next((form for form, ones in _SHARED.items() if operation in ones), operation)
    keys = tuple(key for name in dict.fromkeys((operation, form)) for key in (f"{name}/{tier.name}", name))
    return _found(device.fits, keys, tier_prior(form, tier))


def _found(fits: Mapping[str, Fit], keys: tuple[str, ...], prior: Fit) -> Fit:
    for key in keys:
        if key in fits:
            return _completed(fits[key], prior)
    return prior


def _completed(fit: Fit, prior: Fit) -> Fit:
    """Fill a fit's missing parameters from the prior of the same form."""
    if fit.form != prior.form:
        raise MoesimError(f"a fit for `{prior.form}` is of form `{fit.form}`; write `form: {prior.form}`")
    unknown = [name for name in fit.params if name not in prior.params]
    if unknown:
        raise MoesimError(
            f"a fit of form `{fit.form}` has the parameter `{unknown[0]}`, which the form lacks; "
            + nearest(unknown[0], prior.params)
        )
    full = MappingProxyType({**prior.params, **fit.params})
    missing = [name for name, value in prior.params.items() if name not in fit.params and value]
    if not missing:  # terms that are off by default need no source
        return replace(fit, params=full)
    source = Source(
        kind=weakest((fit.source.kind, prior.source.kind)),
        title=f"{fit.source.title}; {', '.join(missing)} from the {prior.source.title}",
    )
    return replace(fit, params=full, source=source)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Machine:
    """What ops are priced on: a device and the tiers around it, by name; `networked` are those outside the node.

    `cpu` is the fit of experts computed on the host, where that is possible. `known` and `tables` remember what one
    pricing pass looks up again and again: fits by key, and times of one expert by its whole number of rows, keyed by
    storage format, n and k.
    """

    device: Device
    tiers: Mapping[str, Tier]
    networked: frozenset[str] = frozenset()
    cpu: Fit | None = None
    known: dict[tuple[str, ...], Fit] = field(default_factory=dict)
    tables: dict[tuple[str, float, float], Time] = field(default_factory=dict)

    def tier(self, name: str) -> Tier:
        """Return a tier by name.

        Raises
        ------
        MoesimError
            There is none of that name.
        """
        if name not in self.tiers:
            raise MoesimError(f"node has no tier `{name}`; {nearest(name, self.tiers)}")
        return self.tiers[name]

    def kernel(self, operation: str, dtype: str = "bf16", kernel: str = "default") -> Fit:
        """Return the fit of a compute kernel."""
        key = (operation, dtype, kernel)
        if key not in self.known:
            self.known[key] = fit_of(self.device, *key)
        return self.known[key]

    def transfer(self, operation: str, tier: str) -> Fit:
        """Return the fit of a transfer on a tier."""
        key = (operation, tier)
        if key not in self.known:
            self.known[key] = fit_of_tier(self.device, operation, self.tier(tier))
        return self.known[key]

    def multiplied(self, dtype: str) -> str:
        """Name the dtype in which a storage format is multiplied."""
        return compute_dtype(self.device, dtype)


def machine_of(node: Node, fabric: tuple[Tier, ...]) -> Machine:
    """Gather a node's device, its tiers and the fabric's, and its CPUs where the node says what they are."""
    tiers = {tier.name: tier for tier in (*node.tiers, *fabric)}
    cpu = None
    if computes(node):
        cpu = _found(node.device.fits, ("hosted",), host_prior(node))
        sharers = max(1, node.gpus // node.numa)
        tiers[CPU] = Tier(name=CPU, ranks=1, bandwidth=cpu.params["bandwidth"], latency=0.0, sharers=sharers)
    networked = frozenset(tier.name for tier in fabric)
    return Machine(device=node.device, tiers=MappingProxyType(tiers), networked=networked, cpu=cpu)
