"""Which cost form prices which kind of op, with which fits, and which bytes it puts on which link."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from moesim.ground.errors import MoesimError
from moesim.schedules.costs.attention import attention, attention_loads
from moesim.schedules.costs.collectives import (
    ROUNDS,
    WAYS,
    all_to_all,
    all_to_all_loads,
    all_to_all_rate,
    carried,
    reduce,
    reduce_loads,
    reduce_rate,
    send,
    send_loads,
    wire_bytes,
)
from moesim.schedules.costs.copies import copy, copy_loads, crossed
from moesim.schedules.costs.fits import Machine
from moesim.schedules.costs.hosted import hosted, hosted_loads
from moesim.schedules.costs.kernels import (
    Size,
    Time,
    elementwise,
    elementwise_loads,
    gemm,
    gemm_loads,
    grouped,
    grouped_loads,
    grouped_terms,
    host,
    least_grouped,
)
from moesim.schedules.costs.residuals import corrected
from moesim.schedules.ops import (
    AllToAll,
    Attend,
    Copy,
    Elementwise,
    Exchange,
    Fixed,
    Gemm,
    Grouped,
    Host,
    Hosted,
    Op,
    Reduce,
    Send,
)
from moesim.world.formats import bytes_of
from moesim.world.hardware import CPU, MEMORY_TIERS, Fit, Tier

Demand = Mapping[str, Size]
NOTHING: Demand = MappingProxyType({})


def _largest(op: Op, machine: Machine, loads: Sequence[Time]) -> Time:
    return np.asarray(np.maximum.reduce(np.broadcast_arrays(*loads)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one kind of op is priced. `Any` stands for the op's own class.

    Attributes
    ----------
    sizes : fields that hold arrays, ending in a rank axis
    inner : of those, the fields with an axis of their own before the leading ones (slot, tier)
    alike : what ops must agree on to be priced in one evaluation
    fits : the fits it is priced by, by key
    price : duration, and bytes by tier
    loads : seconds for which each resource is busy at least, linear in work and traffic; the largest is the floor
    terms, least : a tighter bound, where there is one: its terms, linear in work and traffic, and what joins them,
        convex and growing in each, so that terms may be averaged first; else the loads, and the largest
    """

    sizes: tuple[str, ...]
    inner: tuple[str, ...]
    alike: Callable[[Any], Hashable]
    fits: Callable[[Any, Machine], Mapping[str, Fit]]
    price: Callable[[Any, Machine], tuple[Time, Demand]]
    loads: Callable[[Any, Machine], tuple[Time, ...]]
    terms: Callable[[Any, Machine], tuple[Time, ...]] | None = None
    least: Callable[[Any, Machine, Sequence[Time]], Time] = _largest


def form_of(op: Op) -> Form:
    """Return the form that prices an op.

    Raises
    ------
    MoesimError
        An exchange is not priced: an all-to-all policy turns it into phases first.
    """
    if isinstance(op, Exchange):
        raise MoesimError("an Exchange has no price; an alltoall policy must turn it into phases first")
    return FORMS[type(op)]


def floor(op: Op, machine: Machine) -> Time:
    """No op is quicker than its busiest resource at the fitted peak: max(work / peak, traffic / bandwidth), seconds.

    Calls of the host and known durations are their own floor.
    """
    return _largest(op, machine, form_of(op).loads(op, machine))


def _operand(op: Gemm | Grouped, machine: Machine) -> float:
    return bytes_of(machine.multiplied(op.dtype))


def _product_fits(op: Gemm | Grouped, machine: Machine) -> Mapping[str, Fit]:
    operation = "gemm" if isinstance(op, Gemm) else "grouped_gemm"
    return {f"{operation}/{op.dtype}": machine.kernel(operation, op.dtype)}


def _price_gemm(op: Gemm, machine: Machine) -> tuple[Time, Demand]:
    fit = machine.kernel("gemm", op.dtype)
    time = gemm(
        op.m,
        op.n,
        op.k,
        stored=bytes_of(op.dtype),
        operand=_operand(op, machine),
        params=fit.params,
        processors=machine.device.processors,
    )
    return corrected(time, op, fit.residual, lambda: floor(op, machine)), NOTHING


def _load_gemm(op: Gemm, machine: Machine) -> tuple[Time, ...]:
    return gemm_loads(op.m, op.n, op.k, stored=bytes_of(op.dtype), params=machine.kernel("gemm", op.dtype).params)


TABLE = 4096
"""Ranks from which a table of times by number of rows is worth building, and the number of rows up to which."""


def _price_grouped(op: Grouped, machine: Machine) -> tuple[Time, Demand]:
    """Price experts; where each of many ranks holds one slot, time follows from one whole number and is looked up."""
    one_slot = len(op.rows) == 1 and op.n.size == op.k.size == 1 and np.issubdtype(op.rows.dtype, np.integer)
    if one_slot and op.rows.size >= TABLE and op.rows.max() < TABLE:
        return _grouped_table(op, machine).take(op.rows[0]), NOTHING
    return _grouped_time(op, op.rows, machine), NOTHING


def _grouped_table(op: Grouped, machine: Machine) -> Time:
    key = (op.dtype, op.n.item(), op.k.item())
    if key not in machine.tables:
        rows = np.arange(TABLE).reshape(1, *[1] * (op.n.ndim - 1), TABLE)
        machine.tables[key] = _grouped_time(op, rows, machine).reshape(-1)
    return machine.tables[key]


def _grouped_time(op: Grouped, rows: Size, machine: Machine) -> Time:
    return grouped(
        rows,
        op.n,
        op.k,
        stored=bytes_of(op.dtype),
        operand=_operand(op, machine),
        params=machine.kernel("grouped_gemm", op.dtype).params,
        processors=machine.device.processors,
        reread=_reread(op, machine),
    )


def _reread(op: Grouped, machine: Machine) -> Size:
    """Share of an op's products that read their expert's weights from memory.

    Of products in a row by the same weights the first does; the others find them in the cache, if they fit there.
    """
    fits = op.n * op.k * bytes_of(op.dtype) <= machine.device.cache
    return np.where(fits, 1.0 / op.repeats, 1.0)


def _load_grouped(op: Grouped, machine: Machine) -> tuple[Time, ...]:
    params = machine.kernel("grouped_gemm", op.dtype).params
    total = op.rows.sum(axis=0)
    active = np.count_nonzero(op.rows, axis=0) if op.active is None else op.active
    active = active * _reread(op, machine) if op.repeats > 1 else active
    stored = bytes_of(op.dtype)
    return grouped_loads(total, active, op.n, op.k, stored=stored, operand=_operand(op, machine), params=params)


def _terms_grouped(op: Grouped, machine: Machine) -> tuple[Time, ...]:
    return grouped_terms(
        op.rows.sum(axis=0),
        np.count_nonzero(op.rows, axis=0) if op.active is None else op.active,
        op.n,
        op.k,
        stored=bytes_of(op.dtype),
        operand=_operand(op, machine),
        params=machine.kernel("grouped_gemm", op.dtype).params,
        processors=machine.device.processors,
        reread=_reread(op, machine),
    )


def _least_grouped(op: Grouped, machine: Machine, terms: Sequence[Time]) -> Time:
    return least_grouped(terms, machine.kernel("grouped_gemm", op.dtype).params)


def _cpu(machine: Machine) -> Fit:
    machine.tier(CPU)  # tells what is missing where the node's CPUs are not known
    assert machine.cpu is not None
    return machine.cpu


def _price_hosted(op: Hosted, machine: Machine) -> tuple[Time, Demand]:
    """Price experts on the host.

    Alone a rank has its whole memory domain, and keeps it busy: what it holds of the link is its time at the link's
    full rate, so that ranks at work together share the CPUs.
    """
    params = _cpu(machine).params
    total, active = op.rows.sum(axis=0), np.count_nonzero(op.rows, axis=0)
    time = hosted(total, active, op.weights, stored=bytes_of(op.dtype), params=params)
    return time, {CPU: time * params["bandwidth"]}


def _load_hosted(op: Hosted, machine: Machine) -> tuple[Time, ...]:
    total, active = op.rows.sum(axis=0), np.count_nonzero(op.rows, axis=0)
    return hosted_loads(total, active, op.weights, stored=bytes_of(op.dtype), params=_cpu(machine).params)


def _attention_fit(op: Attend, machine: Machine) -> Fit:
    return machine.kernel(f"attention_{op.phase}", op.dtype, type(op.kind).__name__.lower())


def _attention_fits(op: Attend, machine: Machine) -> Mapping[str, Fit]:
    key = f"attention_{op.phase}/{op.dtype}/{type(op.kind).__name__.lower()}"
    return {key: _attention_fit(op, machine)}


def _price_attention(op: Attend, machine: Machine) -> tuple[Time, Demand]:
    fit = _attention_fit(op, machine)
    time = attention(op, params=fit.params, processors=machine.device.processors)
    return corrected(time, op, fit.residual, lambda: floor(op, machine)), NOTHING


def _load_attention(op: Attend, machine: Machine) -> tuple[Time, ...]:
    return attention_loads(op, params=_attention_fit(op, machine).params)


def _elementwise_fits(op: Elementwise, machine: Machine) -> Mapping[str, Fit]:
    own = f"elementwise/bf16/{op.kernel}"
    key = own if own in machine.device.fits else "elementwise"
    return {key: machine.kernel("elementwise", kernel=op.kernel)}


def _price_elementwise(op: Elementwise, machine: Machine) -> tuple[Time, Demand]:
    return elementwise(op.traffic, params=machine.kernel("elementwise", kernel=op.kernel).params), NOTHING


def _load_elementwise(op: Elementwise, machine: Machine) -> tuple[Time, ...]:
    return elementwise_loads(op.traffic, params=machine.kernel("elementwise", kernel=op.kernel).params)


def _price_host(op: Host, machine: Machine) -> tuple[Time, Demand]:
    return host(op.calls, params=machine.kernel("host").params), NOTHING


def _price_fixed(op: Fixed, machine: Machine) -> tuple[Time, Demand]:
    return op.duration, NOTHING


def _copy_fits(op: Copy, machine: Machine) -> Mapping[str, Fit]:
    names = crossed(op.source, op.target)
    if not names:
        return {"elementwise": machine.kernel("elementwise")}
    return {f"copy/{name}": machine.transfer("copy", name) for name in names}


def _price_copy(op: Copy, machine: Machine) -> tuple[Time, Demand]:
    """Price a copy; inside the device it is a pass over memory that reads and writes."""
    names = crossed(op.source, op.target)
    if not names:
        return elementwise(2.0 * op.size, params=machine.kernel("elementwise").params), NOTHING
    params = [machine.transfer("copy", name).params for name in names]
    time = copy(op.size, params=params, tiers=[machine.tier(name) for name in names])
    return time, {way(name, op): op.size for name in names}


def _load_copy(op: Copy, machine: Machine) -> tuple[Time, ...]:
    names = crossed(op.source, op.target)
    if not names:
        return elementwise_loads(2.0 * op.size, params=machine.kernel("elementwise").params)
    params = [machine.transfer("copy", name).params for name in names]
    return copy_loads(op.size, params=params, tiers=[machine.tier(name) for name in names])


OUTWARD = " out"
"""Ends the name of the link from the device to a memory tier: both directions of a link run at once."""


def way(tier: str, op: Copy) -> str:
    """Name the link of a memory tier that a copy uses: the tier itself towards the device, "tier out" away from it."""
    outward = crossed("device", op.source) < crossed("device", op.target)
    return tier + OUTWARD if outward else tier


def _all_to_all_fits(op: AllToAll, machine: Machine) -> Mapping[str, Fit]:
    """Name the fits of the tiers: those of a way of its own where the device has them."""
    own = {name: f"{op.way}/{name}" in machine.device.fits for name in op.tiers}
    return {f"{op.way if own[name] else 'all_to_all'}/{name}": machine.transfer(op.way, name) for name in op.tiers}


def _price_all_to_all(op: AllToAll, machine: Machine) -> tuple[Time, Demand]:
    outside = [name in machine.networked for name in op.tiers]
    moved = np.maximum(carried(op.sent, outside), carried(op.received, outside))
    time = all_to_all(
        moved,
        carried(op.messages, outside),
        params=[machine.transfer(op.way, name).params for name in op.tiers],
        tiers=[machine.tier(name) for name in op.tiers],
        slots=op.slots,
    )
    if len(op.tiers) == 1:  # one tier was measured by itself; how several go together, the form says
        left = machine.transfer(op.way, op.tiers[0]).residual
        time = corrected(time, op, left, lambda: floor(op, machine))
    return time, dict(zip(op.tiers, moved, strict=True))


def _load_all_to_all(op: AllToAll, machine: Machine) -> tuple[Time, ...]:
    outside = [name in machine.networked for name in op.tiers]
    return all_to_all_loads(
        carried(op.sent, outside),
        carried(op.received, outside),
        params=[machine.transfer(op.way, name).params for name in op.tiers],
        tiers=[machine.tier(name) for name in op.tiers],
    )


def _price_reduce(op: Reduce, machine: Machine) -> tuple[Time, Demand]:
    fit = machine.transfer(op.form, op.tier)
    time = reduce(op.size, op.ranks, form=op.form, params=fit.params, tier=machine.tier(op.tier))
    time = corrected(time, op, fit.residual, lambda: floor(op, machine))
    return time, {op.tier: wire_bytes(op.size, op.ranks, op.form)}


def _load_reduce(op: Reduce, machine: Machine) -> tuple[Time, ...]:
    params = machine.transfer(op.form, op.tier).params
    return reduce_loads(op.size, op.ranks, form=op.form, params=params, tier=machine.tier(op.tier))


def _price_send(op: Send, machine: Machine) -> tuple[Time, Demand]:
    time = send(op.size, params=machine.transfer("send", op.tier).params, tier=machine.tier(op.tier))
    return time, {op.tier: op.size}


def _load_send(op: Send, machine: Machine) -> tuple[Time, ...]:
    return send_loads(op.size, params=machine.transfer("send", op.tier).params, tier=machine.tier(op.tier))


def capacity(tier: Tier, machine: Machine) -> float:
    """Bytes per second of a link: the most that any one transfer on it reaches alone."""
    if tier.name == CPU:
        return tier.bandwidth
    if tier.name in MEMORY_TIERS:
        return machine.transfer("copy", tier.name).params["efficiency"] * tier.bandwidth
    sent = machine.transfer("send", tier.name).params["efficiency"] * tier.bandwidth
    exchanged = (all_to_all_rate(machine.transfer(way, tier.name).params, tier) for way in WAYS)
    return max(sent, *exchanged, *(reduce_rate(machine.transfer(form, tier.name).params, tier) for form in ROUNDS))


FORMS: Mapping[type[Op], Form] = MappingProxyType(
    {
        Gemm: Form(
            sizes=("m", "n", "k"),
            inner=(),
            alike=lambda op: op.dtype,
            fits=_product_fits,
            price=_price_gemm,
            loads=_load_gemm,
        ),
        Grouped: Form(
            sizes=("rows", "n", "k"),
            inner=("rows",),
            alike=lambda op: (op.dtype, op.repeats),
            fits=_product_fits,
            price=_price_grouped,
            loads=_load_grouped,
            terms=_terms_grouped,
            least=_least_grouped,
        ),
        Hosted: Form(
            sizes=("rows", "weights"),
            inner=("rows",),
            alike=lambda op: op.dtype,
            fits=lambda op, machine: {"hosted": _cpu(machine)},
            price=_price_hosted,
            loads=_load_hosted,
        ),
        Attend: Form(
            sizes=("heads", "tokens", "prompts", "pairs", "keys"),
            inner=(),
            alike=lambda op: (op.kind, op.phase, op.dtype),
            fits=_attention_fits,
            price=_price_attention,
            loads=_load_attention,
        ),
        Elementwise: Form(
            sizes=("traffic",),
            inner=(),
            alike=lambda op: op.kernel,
            fits=_elementwise_fits,
            price=_price_elementwise,
            loads=_load_elementwise,
        ),
        Copy: Form(
            sizes=("size",),
            inner=(),
            alike=lambda op: (op.source, op.target),
            fits=_copy_fits,
            price=_price_copy,
            loads=_load_copy,
        ),
        AllToAll: Form(
            sizes=("sent", "received", "messages"),
            inner=("sent", "received", "messages"),
            alike=lambda op: (op.tiers, op.way, op.slots),
            fits=_all_to_all_fits,
            price=_price_all_to_all,
            loads=_load_all_to_all,
        ),
        Reduce: Form(
            sizes=("size", "ranks"),
            inner=(),
            alike=lambda op: (op.form, op.tier),
            fits=lambda op, machine: {f"{op.form}/{op.tier}": machine.transfer(op.form, op.tier)},
            price=_price_reduce,
            loads=_load_reduce,
        ),
        Send: Form(
            sizes=("size",),
            inner=(),
            alike=lambda op: op.tier,
            fits=lambda op, machine: {f"send/{op.tier}": machine.transfer("send", op.tier)},
            price=_price_send,
            loads=_load_send,
        ),
        Host: Form(
            sizes=("calls",),
            inner=(),
            alike=lambda op: None,
            fits=lambda op, machine: {"host": machine.kernel("host")},
            price=_price_host,
            loads=lambda op, machine: (_price_host(op, machine)[0],),
        ),
        Fixed: Form(
            sizes=("duration",),
            inner=(),
            alike=lambda op: None,
            fits=lambda op, machine: {},
            price=_price_fixed,
            loads=lambda op, machine: (op.duration,),
        ),
    }
)
