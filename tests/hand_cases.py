"""Schedules worked by hand: what goes in, and what must come out of both executors, to 1e-12."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moesim.ground.units import Source
from moesim.schedules.costs.pricing import price
from moesim.schedules.ops import Copy, Fixed
from moesim.schedules.schedule import ALONE, Priced, Schedule, Task, beside, series, then
from moesim.world.hardware import Device, Fit, Node, Tier

IDEAL = Fit(
    form="copy",
    params={"latency": 0.0, "efficiency": 1.0},
    shared=0.0,
    point=0.0,
    box={},
    source=Source(kind="assumed", title="a link without losses"),
)
DEVICE = Device(
    name="hand",
    memory=1.0,
    bandwidth=1.0,
    power=0.0,
    processors=1,
    cache=0.0,
    flop_rate={"bf16": 1.0},
    fits={"copy": IDEAL},
)


def node(sharers=1):
    """A node whose gpus share links of 10 GB/s to the host, so many to a link."""
    host = Tier(name="host", ranks=1, bandwidth=10e9, latency=0.0, sharers=sharers)
    return Node(name="hand", device=DEVICE, gpus=8, tiers=(host,), host_memory=1.0, power=0.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A schedule, how many gpus share a link to the host, and what comes out.

    `times` is by task: starts (or None) and finishes per rank. `end` is when the pass ends by the engine, `stretched`
    by the timeline where the two differ, `alone` where nothing is shared.
    """

    schedule: Schedule
    end: float
    times: Mapping[int, tuple[list[float] | None, list[float]]] = field(default_factory=dict)
    sharers: int = 1
    stretched: float | None = None
    alone: float | None = None

    @property
    def priced(self) -> Priced:
        return price(self.schedule, node(self.sharers), ())


def fixed(*seconds):
    return Fixed(duration=np.array(seconds, float))


def run(name, stream, *seconds, after=(), group="", on="", op=None):
    return Task(name=name, stream=stream, op=op or fixed(*seconds), after=after, group=group, on=on)


def schedule(*tasks, ranks=1, groups=None, parts=None, out=None):
    return Schedule(
        tasks=tasks,
        out=(len(tasks) - 1,) if out is None else out,
        groups={key: np.array(labels) for key, labels in (groups or {}).items()},
        parts={key: np.array(part) for key, part in (parts or {}).items()},
        count=np.ones(ranks),
    )


def rendezvous():
    tasks = (run("gate", "compute", 1, 3), run("dispatch", "comm", 2, 1, after=(0,), group="all"))
    return Case(schedule=schedule(*tasks, ranks=2, groups={"all": [0, 0]}), end=5, times={1: ([3.0, 3.0], [5.0, 4.0])})


def pipelined(degree, message=0.0, stages=1, by_chunk=True):
    """All dispatches, then the experts, then all combines; `stages` expert tasks of each chunk."""
    dispatches = [run("dispatch", "comm", 4 / degree + message) for _ in range(degree)]
    order = [(c, s) for c in range(degree) for s in range(stages)]
    if not by_chunk:
        order.sort(key=lambda pair: pair[1])
    place = {pair: degree + at for at, pair in enumerate(order)}
    experts = [run("experts", "compute", 4 / degree / stages, after=(place[c, s - 1] if s else c,)) for c, s in order]
    combines = [run("combine", "comm", 4 / degree + message, after=(place[c, stages - 1],)) for c in range(degree)]
    return schedule(*dispatches, *experts, *combines)


def shortcut(slot):
    """ScMoE, position 2: the expert stands after this many of mlp, attention and shared; -1 for all in series."""
    compute = [("mlp", 2.0), ("attention", 2.0), ("shared", 1.0)]
    tasks = [run("attention", "compute", 2.0)]
    if slot < 0:
        tasks += [run(name, "compute", seconds) for name, seconds in compute]
        tasks += [run("dispatch", "comm", 3.0, after=(3,)), run("experts", "compute", 1.0, after=(4,))]
        return schedule(*tasks, run("combine", "comm", 3.0, after=(5,)))
    tasks.append(run("dispatch", "comm", 3.0, after=(0,)))
    for at, (name, seconds) in enumerate(compute):
        tasks.append(run(name, "compute", seconds))
        if at + 1 == slot:
            tasks.append(run("experts", "compute", 1.0, after=(1,)))
            tasks.append(run("combine", "comm", 3.0, after=(len(tasks) - 1,)))
    return schedule(*tasks)


def expert_cache():
    dispatch, combine = run("dispatch", "comm", 3.0), ("combine", "comm", 3.0)
    fetches = (run("fetch", "h2d", 2.5), run("fetch", "h2d", 2.5))
    hit = schedule(dispatch, run("experts", "compute", 2.0, after=(0,)), run(*combine, after=(1,)))
    grouped = schedule(dispatch, *fetches, run("experts", "compute", 2.0, after=(0, 1, 2)), run(*combine, after=(3,)))
    one_by_one = schedule(
        dispatch,
        *fetches,
        run("experts", "compute", 1.0, after=(0, 1)),
        run("experts", "compute", 1.0, after=(0, 2)),
        run(*combine, after=(3, 4)),
    )
    late = schedule(
        dispatch,
        fetches[0],
        run("experts", "compute", 1.0, after=(0, 1)),
        run("fetch_late", "h2d", 2.5, after=(2,)),
        run("experts", "compute", 1.0, after=(3,)),
        run(*combine, after=(2, 4)),
    )
    times = {1: ([0.0], [2.5]), 2: ([3.0], [4.0]), 3: ([4.0], [6.5]), 4: ([6.5], [7.5]), 5: ([7.5], [10.5])}
    return {
        "all hit": Case(schedule=hit, end=8),
        "one grouped task after both fetches": Case(schedule=grouped, end=10),
        "experts one by one": Case(schedule=one_by_one, end=9),
        "the second miss waits for a slot": Case(schedule=late, end=10.5, times=times),
    }


def assignment_caching(cached):
    tasks = [run("gate", "compute", 0.7, on="gating")]
    if not cached:
        tasks.append(run("sizes", "comm", 0.0, after=(0,), group="all"))
    tasks.append(run("experts", "compute", 1.0, after=() if cached else (1,), on="experts"))
    return schedule(*tasks, ranks=2, groups={"all": [0, 0]}, parts={"gating": [True, False], "experts": [False, True]})


def two_dh():
    tasks = (
        run("gate", "compute", 0, 1, 5, 6),
        run("dispatch", "comm", 1, after=(0,), group="node"),
        run("dispatch", "comm", 1, after=(1,), group="rail"),
    )
    return Case(
        schedule=schedule(*tasks, ranks=4, groups={"node": [0, 0, 1, 1], "rail": [0, 1, 0, 1]}),
        end=8,
        times={1: ([1, 1, 6, 6], [2, 2, 7, 7]), 2: ([7, 7, 7, 7], [8, 8, 8, 8])},
    )


def one_f_one_b(stages=4, microbatches=8, send=0.0):
    """Stages are ranks; a unit is on one of them, and what it hands on is a task of the two that meet for it."""
    todo = []
    for stage in range(stages):
        ahead = stages - stage
        order = [("F", m) for m in range(min(ahead, microbatches))]
        for m in range(microbatches):
            order.append(("B", m))
            order += [("F", m + ahead)] if m + ahead < microbatches else []
        todo.append(order)
    tasks, done = [], {}
    while any(todo):
        for stage, order in enumerate(todo):
            while order and (needed := _needed(*order[0], stage, stages)) <= done.keys():
                unit, m = order.pop(0)
                after = tuple(done[key] for key in sorted(needed))
                done[unit, m, stage] = len(tasks)
                seconds = 1.0 if unit == "F" else 2.0
                tasks.append(run("experts", "compute", seconds, after=after, on=f"stage:{stage}"))
                to = stage + 1 if unit == "F" else stage - 1
                if 0 <= to < stages:
                    low = min(stage, to)
                    done[unit, m, stage, to] = len(tasks)
                    after = (done[unit, m, stage],)
                    stream, pair = f"net:{stage}>{to}", f"pair:{low}"
                    tasks.append(run("send", stream, send, after=after, group=pair, on=pair))
    ranks = range(stages)
    pairs = {f"pair:{low}": [rank in (low, low + 1) for rank in ranks] for low in range(stages - 1)}
    return schedule(
        *tasks,
        ranks=stages,
        groups={key: [0 if part else ALONE for part in its] for key, its in pairs.items()},
        parts=pairs | {f"stage:{stage}": [rank == stage for rank in ranks] for stage in ranks},
    )


def _needed(unit, m, stage, stages):
    came_from = stage - 1 if unit == "F" else stage + 1
    if 0 <= came_from < stages:
        return {(unit, m, came_from, stage)}
    return {("F", m, stage)} if unit == "B" else set()


def halves():
    tasks = (
        run("attention", "compute", 2.0),
        run("dispatch", "comm", 2.0, after=(0,)),
        run("experts", "compute", 2.0, after=(1,)),
    )
    return schedule(*tasks), schedule(*tasks)


def copies(*starts, seconds=0.1):
    """Copies that each fill a link of 10 GB/s, on as many ranks, each after its own clock."""
    copy = Copy(size=np.array([seconds * 10e9]), source="host", target="device")
    tasks = (run("embed", "host", *starts), run("fetch", "h2d", after=(0,), op=copy))
    return schedule(*tasks, ranks=len(starts))


def hand_over():
    decode = [run("head", "decode", 0.1, after=(1,)), run("head", "decode", 0.1)]
    return schedule(run("head", "prefill", 1.0), run("send", "net:prefill>decode", 0.5, after=(0,)), *decode)


def no_part():
    tasks = (
        run("attention", "compute", 1, 9),
        run("dispatch", "comm", 1, after=(0,), group="all", on="dispatching"),
    )
    return Case(
        schedule=schedule(*tasks, ranks=2, groups={"all": [0, 0]}, parts={"dispatching": [True, False]}),
        end=9,
        times={1: ([1, 9], [2, 9])},
    )


def background_copy():
    block = schedule(run("attention", "compute", 2.0), run("fetch", "h2d", 5.0), out=(0,))
    times = {2: ([2.0], [4.0]), 3: ([5.0], [10.0])}
    return Case(schedule=then(block, block), end=10, times=times)


CASES: Mapping[str, Case] = {
    "rendezvous": rendezvous(),
    **{f"pipelined, degree {d}": Case(schedule=pipelined(d), end=end) for d, end in ((1, 12), (2, 8), (4, 8))},
    "pipelined, two expert tasks, chunk by chunk": Case(schedule=pipelined(4, stages=2), end=8),
    "pipelined, two expert tasks, task by task": Case(schedule=pipelined(4, stages=2, by_chunk=False), end=9),
    **{
        f"pipelined with messages, degree {d}": Case(schedule=pipelined(d, message=0.5), end=end)
        for d, end in ((1, 13), (2, 10), (4, 12))
    },
    **{
        f"shortcut, {where}": Case(schedule=shortcut(slot), end=end)
        for where, slot, end in (
            ("in series", -1, 14),
            ("expert after mlp", 1, 9),
            ("expert after second attention", 2, 10),
            ("expert after shared", 3, 11),
        )
    },
    **{f"expert cache, {name}": case for name, case in expert_cache().items()},
    "assignment caching, dependent": Case(schedule=assignment_caching(cached=False), end=1.7),
    "assignment caching, cached": Case(schedule=assignment_caching(cached=True), end=1.0),
    "2DH groups": two_dh(),
    "1F1B": Case(schedule=one_f_one_b(), end=33),
    "1F1B with sends": Case(schedule=one_f_one_b(send=0.25), end=37),
    "two-batch": Case(schedule=beside(*halves()), end=8),
    "two batches in series": Case(schedule=series(halves()), end=12),
    "PCIe shared by two": Case(
        schedule=copies(0, 0), sharers=2, end=0.2, alone=0.1, times={1: ([0.0, 0.0], [0.2, 0.2])}
    ),
    "PCIe shared by two, the second later": Case(
        schedule=copies(0, 0.05), sharers=2, end=0.2, alone=0.15, times={1: ([0.0, 0.05], [0.15, 0.2])}
    ),
    "KV hand-over": Case(schedule=hand_over(), end=1.7, times={0: (None, [1.0])}),
    "no part": no_part(),
    "background copy": background_copy(),
    "three staggered flows": Case(
        schedule=copies(0, 0.9, 1.8, seconds=1.0), sharers=3, end=3.0, stretched=2.9, alone=2.8
    ),
}
