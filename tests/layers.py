"""The schedule that benchmarks run: MoE layers of 14 tasks on two streams, durations drawn."""

import numpy as np

from moesim.schedules.ops import AllToAll, Copy, Elementwise, Grouped, Op, Reduce
from moesim.schedules.schedule import Link, Priced, Schedule, Task

ONE = np.ones(1)
KERNEL = Elementwise(traffic=ONE)
EXPERTS = Grouped(rows=np.ones((1, 1)), n=ONE, k=ONE, dtype="bf16")
REDUCE = Reduce(size=ONE, form="all_reduce", ranks=ONE, tier="nvlink")
ALL_TO_ALL = AllToAll(tiers=("nic",), sent=np.ones((1, 1)), received=np.ones((1, 1)), messages=np.ones((1, 1)))
STAGED = Copy(size=ONE, source="device", target="host")

LAYER: tuple[tuple[str, Op, str, str, tuple[int, ...]], ...] = (
    ("attention", KERNEL, "compute", "", ()),
    ("reduce", REDUCE, "compute", "tp", ()),
    ("gate", KERNEL, "compute", "", ()),
    ("sizes", KERNEL, "compute", "all", ()),
    ("pack", STAGED, "compute", "", ()),
    ("dispatch", ALL_TO_ALL, "comm", "all", (-1,)),
    ("shared", KERNEL, "compute", "", ()),
    ("experts", EXPERTS, "compute", "", (-2,)),
    ("experts", EXPERTS, "compute", "", ()),
    ("combine", ALL_TO_ALL, "comm", "all", (-1,)),
    ("unpack", STAGED, "compute", "", (-1,)),
    ("reduce", REDUCE, "compute", "tp", ()),
    ("norm", KERNEL, "compute", "", ()),
    ("add", KERNEL, "compute", "", ()),
)
"""Name, op, stream, group, and what it comes after, counted from itself."""

BY_RANK = ("dispatch", "experts", "combine")
"""What is not alike on all ranks."""


def layers(
    ranks: int, lead: tuple[int, ...] = (), count: int = 61, wants: float = 0.8, slowdown: bool = True
) -> Priced:
    """Layers of microseconds; all-to-all wants part of a NIC, pack and unpack of a PCIe link, both shared by two."""
    rng = np.random.default_rng(0)
    tasks = tuple(
        Task(
            name=name,
            stream=stream,
            op=op,
            after=tuple(place + len(LAYER) * layer + back for back in after),
            group=group,
            layer=layer,
        )
        for layer in range(count)
        for place, (name, op, stream, group, after) in enumerate(LAYER)
    )
    duration = tuple(rng.lognormal(0.0, 0.3, (*lead, ranks if task.name in BY_RANK else 1)) * 1e-5 for task in tasks)
    rank, none = np.arange(ranks), np.zeros(1)
    pairs = Link(capacity=50e9, link_of_rank=rank // 2, members=np.ones(ranks))
    users = {"nic": ALL_TO_ALL, "pcie": STAGED}
    return Priced(
        schedule=Schedule(
            tasks=tasks,
            out=(len(tasks) - 1,),
            groups={"all": rank * 0, "tp": rank // 8},
            count=np.ones(ranks),
        ),
        duration=duration,
        demand={
            tier: tuple(
                wants * 50e9 * length if task.op is op else none for task, length in zip(tasks, duration, strict=True)
            )
            for tier, op in users.items()
        },
        links=dict.fromkeys(users, pairs),
        slowdown={"compute": {"collective": 0.1}, "collective": {"compute": 0.05}} if slowdown else {},
    )


def collectives(ranks: int, count: int, streams: int = 3) -> Priced:
    """All-to-alls back to back on several streams, so that as many overlap at all times; every rank's bytes differ."""
    rng = np.random.default_rng(0)
    tasks = tuple(
        Task(name="dispatch", stream=f"comm {number % streams}", op=ALL_TO_ALL, group="all") for number in range(count)
    )
    rank = np.arange(ranks)
    duration = tuple(rng.lognormal(0.0, 0.5, 1) * 1e-4 for _ in tasks)
    tiers = {"nvlink": 1, "nic": 2}
    return Priced(
        schedule=Schedule(tasks=tasks, out=(count - 1,), groups={"all": rank * 0}, count=np.ones(ranks)),
        duration=duration,
        demand={tier: tuple(rng.uniform(0.0, 50e9, ranks) * length for length in duration) for tier in tiers},
        links={
            tier: Link(capacity=50e9, link_of_rank=rank // sharers, members=np.ones(ranks))
            for tier, sharers in tiers.items()
        },
    )
