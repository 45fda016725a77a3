"""Raw samples as a machine: a node whose device, links and fits are those of what was measured.

No datasheet says what one rank's share of a CPU can do, so the best that any point reached stands for the peak, and
fits say what is reached of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from moesim.ground.errors import Fault, InputError, MoesimError
from moesim.schedules.costs.collectives import ROUNDS
from moesim.world.hardware import Device, Fit, Node, Tier

from .among import among_work
from .fitting import fit_samples
from .own import LEVELS, LINK
from .raw import Raw, Sample, quantile, slug

TOGETHER = (*ROUNDS, "all_to_all", "send", "exchange_sizes")
"""What ranks do together."""
DISK = 1e11
"""Bytes of a disk, whose size nothing measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A machine as it was measured.

    Attributes
    ----------
    node : its ranks as devices, with fits and interference; the tiers between them, and to its memory and disk
    left_out : what was measured and could not be fitted, one line each with the reason
    noise : how far the medians of identical visits lie apart, in the median; None if nothing was visited twice
    """

    node: Node
    left_out: tuple[str, ...]
    noise: float | None


def profile_of(raw: Raw, *, ranks: int | None = None, title: str = "samples of this machine") -> Profile:
    """Turn raw samples into a machine of so many ranks.

    Ranks beyond those that were measured side by side take turns on the cores, so that what they compute takes longer
    by as much; a gpu is not shared.

    Parameters
    ----------
    raw : what was measured
    ranks : how many share the machine; as many as ran kernels side by side, or as there are gpus, if not given
    title : where the samples are

    Raises
    ------
    MoesimError
        Too little was measured: no product, no pass over memory, no read from the disk.
    """
    beside = max((sample.ranks for sample in raw.samples if sample.operation == "gemm"), default=1)
    ranks = ranks or int(raw.header["machine"].get("gpus", beside))
    samples = of_ranks(raw, ranks)
    try:
        bare = bare_of(raw, samples, ranks)
    except InputError:
        raise
    except MoesimError as fault:
        raise MoesimError(f"{title}: {fault}") from None
    outcome = fit_samples(samples, bare, title=title)
    parts = replace(bare, device=replace(bare.device, fits=MappingProxyType(dict(outcome.fits))))
    fits = {**outcome.fits, **among_work(samples, parts, LINK)}
    crowd = 1.0 if "gpus" in raw.header["machine"] else max(ranks / beside, 1.0)
    device = replace(
        bare.device,
        fits=MappingProxyType({key: slowed(fit, crowd) for key, fit in fits.items()}),
        interference=interference(samples),
    )
    return Profile(node=replace(bare, device=device), left_out=outcome.left_out, noise=raw.noise())


def of_ranks(raw: Raw, ranks: int) -> tuple[Sample, ...]:
    """Keep what so many ranks did together, or all of it where they did nothing; a CPU's copies are its host's.

    That holds for each kind by itself: an exchange by levels takes four ranks at least.
    """
    between: dict[tuple[str, str], set[int]] = {}
    for sample in raw.samples:
        if together(sample):
            between.setdefault(_kind(sample), set()).add(sample.ranks)
    kept = (
        sample
        for sample in raw.samples
        if not together(sample) or sample.ranks == ranks or ranks not in between[_kind(sample)]
    )
    return tuple(kept) if "gpus" in raw.header["machine"] else tuple(_of_cpu(sample) for sample in kept)


def together(sample: Sample) -> bool:
    """Tell whether ranks did this with each other; so is work beside a collective."""
    return sample.operation in TOGETHER or (sample.operation == "interference" and "all_to_all" in sample.kernel)


def _kind(sample: Sample) -> tuple[str, str]:
    return sample.operation, sample.kernel.partition(" ")[0] if sample.operation == "all_to_all" else sample.kernel


def _of_cpu(sample: Sample) -> Sample:
    copied = (sample.operation, sample.kernel) == ("elementwise", "copy")
    return replace(sample, operation="copy", kernel="host") if copied else sample


def _check_machine(machine: Mapping[str, object], needed: Sequence[str]) -> None:
    """Refuse a header that does not say how large its machine is."""
    lacking = [name for name in needed if not isinstance(machine.get(name), (int, float))]
    if lacking:
        remedy = "take the first line of another file of this machine, or measure again"
        faults = [Fault(path=f"machine.{name}", problem="is missing or no number", remedy=remedy) for name in lacking]
        raise InputError("the first line of the raw file", faults)


def bare_of(raw: Raw, samples: Sequence[Sample], ranks: int) -> Node:
    """Describe the machine without fits: sizes as it says them, peaks as the best points reached them."""
    machine = raw.header["machine"]
    cpu = "gpus" not in machine
    _check_machine(
        machine, ("memory", "cache", "cores") if cpu else ("memory", "cache", "gpu_memory", "multiprocessors")
    )
    name = f"measured/{slug(str(raw.header['device']))}"
    memory = float(machine["memory"])
    device = Device(
        name=name,
        memory=memory / ranks if cpu else float(machine["gpu_memory"]),
        bandwidth=_best(samples, "elementwise", lambda sample: sample.inputs["traffic"]),
        power=0.0,
        processors=max(int(machine["cores"]) // ranks, 1) if cpu else int(machine["multiprocessors"]),
        cache=float(machine["cache"]) / (ranks if cpu else 1),
        flop_rate=MappingProxyType(_flop_rates(samples)),
    )
    return Node(
        name=name,
        device=device,
        gpus=ranks,
        tiers=(_link(samples, ranks), _memory(samples, "host", 1), _memory(samples, "disk", ranks)),
        host_memory=memory,
        power=0.0,
        disk=DISK,
    )


def _flop_rates(samples: Sequence[Sample]) -> dict[str, float]:
    def work(sample: Sample) -> float:
        return 2 * sample.inputs["m"] * sample.inputs["n"] * sample.inputs["k"]

    dtypes = dict.fromkeys(sample.dtype for sample in samples if sample.operation == "gemm")
    rates = {dtype: _best([one for one in samples if one.dtype == dtype], "gemm", work) for dtype in dtypes}
    if not rates:
        raise MoesimError("no product was measured (gemm); measure without --only, or with gemm in it")
    return rates


def _best(samples: Iterable[Sample], operation: str, amount: Callable[[Sample], float]) -> float:
    """Return the best rate at which any point of an operation was done."""
    rates = [amount(sample) / sample.median for sample in samples if sample.operation == operation]
    if not rates:
        raise MoesimError(f"{operation} was not measured; measure without --only, or with {operation} in it")
    return max(rates)


def _link(samples: Sequence[Sample], ranks: int) -> Tier:
    """Describe what joins ranks by what they sent each other; a machine without it has a slow one, of one rank."""
    sent = [sample for sample in samples if sample.operation == "all_to_all" and not sample.kernel.startswith(LEVELS)]
    if not sent:
        return Tier(name=LINK, ranks=ranks, bandwidth=1e9, latency=1e-4)
    best = _best(sent, "all_to_all", lambda sample: sample.inputs["sent"])
    return Tier(name=LINK, ranks=ranks, bandwidth=best, latency=min(sample.median for sample in sent) / 2)


def _memory(samples: Sequence[Sample], name: str, sharers: int) -> Tier:
    """Describe a colder memory by the copies from it."""
    copied = [one for one in samples if one.operation == "copy" and one.kernel.partition(" ")[0] == name]
    best = _best(copied, "copy", lambda sample: sample.inputs["size"])
    return Tier(name=name, ranks=1, bandwidth=best, latency=min(one.median for one in copied) / 2, sharers=sharers)


_COMPUTED = ("gemm", "grouped_gemm", "attention_prefill", "attention_decode", "elementwise", "host")
_TIMES = ("launch", "overhead", "call")


def slowed(fit: Fit, times: float) -> Fit:
    """Let everything that a rank computes take so many times as long: ranks take turns on its cores.

    Examples
    --------
    >>> from moesim.ground.units import Source
    >>> some = {"launch": 1.0, "bandwidth": 8.0}
    >>> source = Source(kind="fitted", title="64 points")
    >>> fit = Fit(form="elementwise", params=some, shared=0, point=0, box={}, source=source)
    >>> dict(slowed(fit, 2.0).params)
    {'launch': 2.0, 'bandwidth': 4.0}
    """
    if times == 1.0 or fit.form not in _COMPUTED:
        return fit
    params = {
        name: value * times if name in _TIMES else value / times if name == "peak" or "bandwidth" in name else value
        for name, value in fit.params.items()
    }
    source = replace(fit.source, kind="derived", title=f"{fit.source.title}, {times:g} ranks to a core")
    return replace(fit, params=MappingProxyType(params), source=source)


_KINDS: Mapping[str, str] = MappingProxyType(
    {"gemm": "compute", "all_to_all": "collective", "disk": "copy", "host pinned": "copy", "host out pinned": "copy"}
)
"""What runs beside what, as plans tell kernels apart."""


def interference(samples: Iterable[Sample]) -> Mapping[str, Mapping[str, float]]:
    """Return by how much each kind of work slows beside another: the largest of what was measured, zero at least."""
    slowdown: dict[str, dict[str, float]] = {}
    for sample in samples:
        slow, _, other = sample.kernel.partition(" beside ")
        if sample.operation != "interference" or not sample.alone or not {slow, other} <= _KINDS.keys():
            continue
        own = slowdown.setdefault(_KINDS[slow], {})
        more = sample.median / quantile(sample.alone, 0.5) - 1.0
        own[_KINDS[other]] = max(own.get(_KINDS[other], 0.0), more)
    return MappingProxyType({kind: MappingProxyType(others) for kind, others in slowdown.items()})
