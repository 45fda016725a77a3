"""Tutel's knobs, r, degree and all-to-all, of every MoE layer, and the dictionary of what is best at which capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from types import MappingProxyType

import numpy as np

from moesim.ground.units import Bytes
from moesim.plans.layout import Layout
from moesim.policies.parallelism import ALGORITHMS, DEGREES, family, least
from moesim.policies.protocols import Seen, Sizes

Knobs = tuple[int, int, str]
"""r, degree, all-to-all."""


def knobs_of(layout: Layout) -> tuple[Knobs, ...]:
    """Read every layer's."""
    return tuple(zip(layout.r.tolist(), layout.degree.tolist(), layout.alltoall, strict=True))


def with_knobs(layout: Layout, knobs: Sequence[Knobs]) -> Layout:
    """Set every layer's."""
    r, degree, alltoall = zip(*knobs, strict=True)
    return replace(layout, r=np.array(r), degree=np.array(degree), alltoall=tuple(alltoall))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turning:
    """What a policy that turns knobs remembers: its dictionary, and how many trials filling it has taken.

    Attributes
    ----------
    rs, algorithms : what there is to choose among, besides the degrees
    best : the best knobs by key
    of_r : the least cost by key and r, and the knobs that take them
    trials : passes of a layer run to find them
    moved : bytes a gpu copies in when a layer's r changes; 0 where all r share one layout
    since : steps since an r changed
    """

    rs: tuple[int, ...]
    algorithms: tuple[str, ...]
    best: Mapping[int, Knobs] = field(default_factory=lambda: MappingProxyType({}))
    of_r: Mapping[int, Mapping[int, tuple[float, Knobs]]] = field(default_factory=lambda: MappingProxyType({}))
    trials: int = 0
    moved: Bytes = 0.0
    since: int = 0

    @property
    def choices(self) -> tuple[Knobs, ...]:
        """All knobs a layer can have."""
        return tuple(product(self.rs, DEGREES, self.algorithms))

    def met(self, seen: Seen, keys: Sequence[int], *, own: bool = False) -> Turning:
        """Fill in the keys of the layers' capacities that are new, each tried on the first layer that needs it.

        `own` says whether the r that a layer has is tried too where the search passes it by.
        """
        found = self
        for layer, (key, r) in enumerate(zip(keys, seen.layout.r.tolist(), strict=True)):
            if key not in found.of_r:
                found = found._filled(seen, key, layer, self.rs)
            if own and r not in found.of_r[key]:
                found = found._filled(seen, key, layer, (r,))
        return found

    def _filled(self, seen: Seen, key: int, layer: int, rs: Sequence[int]) -> Turning:
        """Try degrees and algorithms in turn, for each the r that a search of some visits."""
        present, tried = list(knobs_of(seen.layout)), dict[Knobs, float]()

        def cost(degree: int, algorithm: str, r: int) -> float:
            knobs = (r, degree, algorithm)
            if knobs not in tried:
                asked = [*present[:layer], knobs, *present[layer + 1 :]]
                tried[knobs] = float(seen.cost_of(with_knobs(seen.layout, asked))[layer])
            return tried[knobs]

        for degree, algorithm in product(DEGREES, self.algorithms):
            least(rs, partial(cost, degree, algorithm))
        of_r = dict(self.of_r.get(key, {}))
        for knobs, found in tried.items():
            of_r[knobs[0]] = min(of_r.get(knobs[0], (found, knobs)), (found, knobs))
        return replace(
            self,
            best=MappingProxyType({**self.best, key: min(of_r.values())[1]}),
            of_r=MappingProxyType({**self.of_r, key: MappingProxyType(of_r)}),
            trials=self.trials + len(tried),
        )


def turning(layout: Layout, sizes: Sizes, *, every_r: bool = True) -> Turning:
    """Start with an empty dictionary; two-dimensional exchanges need more than one node."""
    rs = family(sizes.gpus, layout.expert_of_slot.shape[1]) if every_r else (int(layout.r[0]),)
    return Turning(rs=rs, algorithms=ALGORITHMS if sizes.gpus > sizes.node else ALGORITHMS[:1])
