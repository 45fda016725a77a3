"""Random schedules whose flows contend for shared links, at a given load.

Load is the time that the flows of the busiest link would need at its full capacity, over the time the pass takes when
nothing is shared: at 1 the link must work without a pause to keep up with the unshared pass.

A schedule has 4 ranks, a link for every 2 or every 4 of them, and tasks on three streams: `compute`, `comm` and
`h2d`. Tasks on the last two are flows, exponential in length (mean 1) and wanting 0.3 to 1 of their link, evenly
distributed; half of those on `comm` meet all ranks or their neighbor. A task comes after up to two of the six before
it. Lengths of compute tasks are exponential too, and scaled so that the load is what is asked for; a schedule that
cannot have that load is thrown away. Nothing else is chosen by what comes out.
"""

from dataclasses import replace

import numpy as np

from moesim.ground.streams import stream
from moesim.passes.timeline import makespan
from moesim.schedules.ops import Copy, Elementwise
from moesim.schedules.schedule import Link, Priced, Schedule, Task

RANKS = 4
LONG = 100.0
"""Compute tasks are at most so much longer than flows."""
KERNEL = Elementwise(traffic=np.ones(1))
COPY = Copy(size=np.ones(1), source="host", target="device")


def contended(seed: int, tasks: int, load: float, slowdown: float = 0.0) -> Priced:
    """The first schedule of a seed's stream that can have the load."""
    rng = stream(seed, f"{tasks} tasks at load {load}")
    while True:
        drawn = draw(rng, tasks, slowdown)
        if load_of(computing(drawn, 0.0)) > load > load_of(computing(drawn, LONG)):
            return at_load(drawn, load)


def draw(rng: np.random.Generator, tasks: int, slowdown: float) -> Priced:
    drawn = [_task(rng, number) for number in range(tasks)]
    duration = tuple(rng.exponential(1.0, RANKS) for _ in drawn)
    wants = tuple(rng.uniform(0.3, 1.0) if task.op is COPY else 0.0 for task in drawn)
    groups = {"all": np.zeros(RANKS, int), "pair": np.arange(RANKS) // 2}
    return Priced(
        schedule=Schedule(tasks=tuple(drawn), out=(tasks - 1,), groups=groups, count=np.ones(RANKS)),
        duration=duration,
        demand={"link": tuple(want * length for want, length in zip(wants, duration, strict=True))},
        links={
            "link": Link(capacity=1.0, link_of_rank=np.arange(RANKS) // int(rng.choice([2, 4])), members=np.ones(RANKS))
        },
        slowdown={"copy": {"compute": slowdown}, "compute": {"copy": slowdown}} if slowdown else {},
    )


def _task(rng: np.random.Generator, number: int) -> Task:
    queue = str(rng.choice(["compute", "comm", "h2d"]))
    earlier = np.arange(max(0, number - 6), number)
    after = rng.choice(earlier, min(len(earlier), int(rng.integers(3))), replace=False)
    meets = queue == "comm" and rng.random() < 0.5
    return Task(
        name="experts" if queue == "compute" else "dispatch",
        stream=queue,
        op=KERNEL if queue == "compute" else COPY,
        after=tuple(sorted(after.tolist())),
        group=str(rng.choice(["all", "pair"])) if meets else "",
    )


def computing(priced: Priced, scale: float) -> Priced:
    """The same with compute tasks longer by a factor."""
    pairs = zip(priced.schedule.tasks, priced.duration, strict=True)
    return replace(priced, duration=tuple(scale * length if task.op is KERNEL else length for task, length in pairs))


def load_of(priced: Priced) -> float:
    link = priced.links["link"].link_of_rank
    wanted = np.bincount(link, sum(np.broadcast_to(demand, RANKS) for demand in priced.demand["link"]))
    return float(wanted.max() / makespan(priced, sharing=False))


def at_load(priced: Priced, load: float) -> Priced:
    """Scale compute so that the load is met, the scale being right to a hundredth."""
    low, high = 1 / LONG, LONG
    while high > 1.01 * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if load_of(computing(priced, middle)) > load else (low, middle)
    return computing(priced, high)
