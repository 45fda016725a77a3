"""Many pools as columns: what has a name is kept once, what is a number is an array over pools."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from moesim.plans.plan import Parallel, Policy, Pool
from moesim.policies.finding import make
from moesim.policies.protocols import Batching

Whole = Int[np.ndarray, "plan"]

DEGREES = ("pp", "dp", "tp", "cp", "ep", "etp")
COUNTED = (*DEGREES, "max_batch", "microbatch")
"""The columns of a table."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolTable:
    """Pools of one replica each, any number of them.

    Attributes
    ----------
    variants : one pool for each combination of names (node, role, framework, precision, policies); its degrees and
        batch sizes stand for nothing
    variant : which of them each pool is like
    counts : one column for each of `COUNTED`
    """

    variants: tuple[Pool, ...]
    variant: Whole
    counts: Mapping[str, Whole]
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.variant)

    def __getitem__(self, name: str) -> Whole:
        """Return a column."""
        return self.counts[name]

    @property
    def ranks(self) -> Whole:
        """Ranks in one pipeline stage."""
        return np.asarray(self["dp"] * self["tp"] * self["cp"])

    @property
    def gpus(self) -> Whole:
        """Gpus of one replica."""
        return np.asarray(self.ranks * self["pp"])

    @property
    def members(self) -> Whole:
        """Ranks among which a dp group's tokens are dealt."""
        return np.asarray(self["tp"] * self["cp"])

    def take(self, rows: Sequence[int] | Whole) -> PoolTable:
        """Keep some of the pools."""
        counts = {name: values[rows] for name, values in self.counts.items()}
        return PoolTable(variants=self.variants, variant=self.variant[rows], counts=MappingProxyType(counts))

    def pool(self, row: int) -> Pool:
        """Write one pool out."""
        like = self.variants[self.variant[row]]
        number = {name: int(values[row]) for name, values in self.counts.items()}
        batching = like.policy("batching")
        sized = Policy(name=batching.name, settings={**batching.settings, "max_batch": number["max_batch"]})
        found: Pool = replace(
            like,
            parallel=Parallel(**{name: number[name] for name in DEGREES}),
            microbatch=number["microbatch"],
            policies=MappingProxyType({**like.policies, "batching": sized}),
        )
        return found

    def pools(self, rows: Iterable[int] | None = None) -> list[Pool]:
        """Write some pools out; all of them by default."""
        return [self.pool(int(row)) for row in (range(len(self)) if rows is None else rows)]

    def each(self, value: Callable[..., float], *names: str) -> Float[np.ndarray, "plan"]:
        """Evaluate a function of a variant and some columns, once for each combination that occurs."""
        if not names:
            variants, place = np.unique(self.variant, return_inverse=True)
            return np.asarray(np.array([float(value(self.variants[like])) for like in variants])[place.reshape(-1)])
        keys = np.stack([self.variant, *(self[name] for name in names)])
        distinct, place = np.unique(keys, axis=1, return_inverse=True)
        values = [float(value(self.variants[like], *map(int, numbers))) for like, *numbers in distinct.T]
        return np.asarray(np.array(values)[place.reshape(-1)])

    def groups(
        self, key: Callable[[Pool], Hashable], *columns: Shaped[np.ndarray, "plan"]
    ) -> list[Int[np.ndarray, "_"]]:
        """Rows of each group of pools whose variants have one key and whose columns agree, by first appearance."""
        codes: dict[Hashable, int] = {}
        variants, place = np.unique(self.variant, return_inverse=True)
        labels = [codes.setdefault(key(self.variants[like]), len(codes)) for like in variants]
        label = np.array(labels, np.int64)[place.reshape(-1)]
        for values in columns:
            label = label * (int(values.max(initial=0)) + 1) + values
        order = np.argsort(label, kind="stable")
        cuts = np.flatnonzero(np.diff(label[order])) + 1
        return sorted((rows for rows in np.split(order, cuts) if len(rows)), key=lambda rows: int(rows[0]))


def table_of(pools: Sequence[Pool]) -> PoolTable:
    """Read pools into columns."""
    names: dict[Hashable, int] = {}
    variants: list[Pool] = []
    variant = np.zeros(len(pools), np.int64)
    for row, pool in enumerate(pools):
        key = _names(pool)
        if key not in names:
            names[key] = len(variants)
            variants.append(pool)
        variant[row] = names[key]
    counts = {name: np.array([getattr(p.parallel, name) for p in pools], np.int64) for name in DEGREES}
    counts["max_batch"] = np.array([batching_of(pool).max_batch for pool in pools], np.int64)
    counts["microbatch"] = np.array([pool.microbatch for pool in pools], np.int64)
    return PoolTable(variants=tuple(variants), variant=variant, counts=MappingProxyType(counts))


def _names(pool: Pool) -> Hashable:
    """Name all about a pool that is no column."""
    policies = {kind: policy for kind, policy in pool.policies.items() if kind != "batching"}
    batching = pool.policy("batching")
    rest = tuple(sorted((name, value) for name, value in batching.settings.items() if name != "max_batch"))
    return (
        pool.role,
        pool.node,
        pool.framework,
        tuple(sorted(pool.precision.items())),
        tuple(sorted(policies.items(), key=lambda item: item[0])),
        (batching.name, rest),
        pool.adaptation,
    )


def batching_of(pool: Pool) -> Batching:
    """Build the batching policy of a pool."""
    policy: Batching = make("batching", pool.policy("batching"))
    return policy
