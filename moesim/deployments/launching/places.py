"""Which nodes and gpus every replica of a pool is on: in order, without gaps."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.plans.plan import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One node's part of one replica: its number among the replica's nodes, the pool's node, and the gpus there."""

    replica: int
    index: int
    node: int
    first: int
    gpus: int

    @property
    def devices(self) -> str:
        """The gpus' numbers, as CUDA_VISIBLE_DEVICES wants them."""
        return ",".join(map(str, range(self.first, self.first + self.gpus)))


def places(pool: Pool, gpus: int) -> list[Place]:
    """Fill nodes of so many gpus with a pool's replicas.

    Examples
    --------
    >>> from moesim.plans.plan import Parallel
    >>> two = Pool(role="all", node="n", replicas=2, parallel=Parallel(tp=4))
    >>> [(place.replica, place.node, place.devices) for place in places(two, 8)]
    [(0, 0, '0,1,2,3'), (1, 0, '4,5,6,7')]
    """
    found = []
    for replica in range(pool.replicas):
        at, end, index = replica * pool.parallel.gpus, (replica + 1) * pool.parallel.gpus, 0
        while at < end:
            count = min(gpus - at % gpus, end - at)
            found.append(Place(replica=replica, index=index, node=at // gpus, first=at % gpus, gpus=count))
            at, index = at + count, index + 1
    return found
