"""What may be chosen: pools of replicas with their parallel degrees, precision and policies; and a space of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from moesim.ground.showing import Shown

Scalar = bool | int | float | str
Setting = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy by name (its file's name in ``policies/<kind>/``) and its settings."""

    name: str
    settings: Mapping[str, Setting] = field(default_factory=lambda: MappingProxyType({}))

    def __hash__(self) -> int:
        """Hash by content, so that plans can be grouped by structure."""
        return hash((self.name, tuple(sorted(self.settings.items()))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Parallel degrees of one replica: R = dp x tp x cp = ep x etp x edp ranks in each of pp stages.

    Rank order: rank = (dp_index x cp + cp_index) x tp + tp_index, and also
    rank = (edp_index x ep + ep_index) x etp + etp_index.
    """

    pp: int = 1
    dp: int = 1
    tp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1

    @property
    def ranks(self) -> int:
        """Ranks in one pipeline stage."""
        return self.dp * self.tp * self.cp

    @property
    def edp(self) -> int:
        """Copies of the whole set of experts in one stage."""
        return self.ranks // (self.ep * self.etp)

    @property
    def gpus(self) -> int:
        """Gpus of one replica."""
        return self.ranks * self.pp


KINDS = ("placement", "gating", "alltoall", "shortcut", "overlap", "buffering", "prefetch", "batching")
"""Kinds of policy a pool must name; `files` fills in the defaults below."""

DEFAULT_POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "placement": Policy(name="contiguous"),
        "gating": Policy(name="dynamic"),
        "alltoall": Policy(name="linear"),
        "shortcut": Policy(name="none"),
        "overlap": Policy(name="none"),
        "buffering": Policy(name="resident"),
        "prefetch": Policy(name="none"),
        "batching": Policy(name="chunked"),
    }
)

TRAINING_POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "pipeline": Policy(name="one_f_one_b"),
        "sharding": Policy(name="zero"),
        "recompute": Policy(name="none"),
    }
)
"""Kinds that only training has, and their defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Equal replicas on one node type, and everything chosen about them.

    `precision` overrides the model's storage formats by tensor class (experts, dense, embedding, kv, dispatch,
    combine); `microbatch` counts sequences and is for training.
    """

    role: str
    node: str
    replicas: int
    parallel: Parallel
    framework: str = "plain"
    microbatch: int = 1
    precision: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    policies: Mapping[str, Policy] = field(default_factory=lambda: DEFAULT_POLICIES)
    adaptation: tuple[Policy, ...] = ()

    def policy(self, kind: str) -> Policy:
        """Return the policy of a kind: the pool's own, or the default."""
        return self.policies.get(kind) or DEFAULT_POLICIES.get(kind) or TRAINING_POLICIES[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Shown):
    """A deployment: one or more pools, a router before them, spare nodes behind them."""

    pools: tuple[Pool, ...]
    router: Policy = Policy(name="round_robin")
    spare_nodes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Alternatives by dotted path into a plan ("parallel.ep": (8, 16, 32)); the search enumerates their product."""

    axes: Mapping[str, tuple[object, ...]]


def divisors(number: int) -> tuple[int, ...]:
    """List the divisors of a number, ascending.

    Examples
    --------
    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def misfits(parallel: Parallel) -> Iterable[tuple[str, str, str]]:
    """Name what is wrong with a set of degrees: (field, problem, remedy); nothing when they agree."""
    for name in ("pp", "dp", "tp", "cp", "ep", "etp"):
        if getattr(parallel, name) < 1:
            yield name, f"{getattr(parallel, name)} is not a positive whole number", "give at least 1"
            return
    block = parallel.ep * parallel.etp
    if parallel.ranks % block:
        fits = ", ".join(str(d) for d in divisors(parallel.ranks) if d % parallel.etp == 0)
        yield (
            "ep",
            f"ep x etp = {parallel.ep} x {parallel.etp} does not divide dp x tp x cp = {parallel.ranks} ranks",
            f"choose ep x etp among {fits or divisors(parallel.ranks)}",
        )
