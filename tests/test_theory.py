"""Queues with known waiting times, through the engine: customers are tasks, replications are ranks."""

import numpy as np
import pytest

from moesim.ground.streams import stream
from moesim.passes.engine import engine
from moesim.schedules.ops import fixed
from moesim.schedules.schedule import Priced, Schedule, Task

OP = fixed(0.0)
CUSTOMERS, WARM_UP, REPLICATIONS = 700, 100, 24
UTILIZATION = 0.5


def mean_waits(services):
    """Mean wait of the customers after the warm-up in each replication; service takes 1 on average."""
    gaps = stream(11, "arrivals").exponential(1.0 / UTILIZATION, services.shape)
    tasks = []
    for customer in range(CUSTOMERS):
        tasks.append(Task(name="embed", stream="arrivals", op=OP))
        tasks.append(Task(name="experts", stream="server", op=OP, after=(2 * customer,)))
    queue = Schedule(tasks=tuple(tasks), out=(len(tasks) - 1,), count=np.ones(REPLICATIONS))
    durations = tuple(length for pair in zip(gaps, services, strict=True) for length in pair)
    records = engine(Priced(schedule=queue, duration=durations))
    return (records.start[1::2] - records.finish[0::2])[WARM_UP:].mean(axis=0)


@pytest.mark.parametrize("name", ["M/M/1", "M/D/1"])
def test_a_queue_waits_as_theory_says(name):
    shape = (CUSTOMERS, REPLICATIONS)
    services = stream(11, "services").exponential(1.0, shape) if name == "M/M/1" else np.ones(shape)
    waits = mean_waits(services)
    # Pollaczek and Khinchine: rho / (1 - rho) x (1 + cv squared) / 2, in units of the mean service.
    expected = UTILIZATION / (1 - UTILIZATION) * {"M/M/1": 1.0, "M/D/1": 0.5}[name]
    standard_error = waits.std(ddof=1) / np.sqrt(REPLICATIONS)
    assert abs(waits.mean() - expected) <= 3 * standard_error
    assert standard_error <= 0.1 * expected
