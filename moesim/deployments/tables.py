"""Tidy tables of one estimated plan: where the time goes, where the memory goes, and every task."""

from __future__ import annotations

from collections.abc import Mapping
from math import expm1, hypot

import numpy as np
import pandas as pd

from moesim.passes.footprint import Memory
from moesim.schedules.schedule import Records, Schedule
from moesim.world.hardware import Fit


def with_units(table: pd.DataFrame, units: Mapping[str, str]) -> pd.DataFrame:
    """Attach units by column."""
    table.attrs["units"] = dict(units)
    return table


def breakdown_table(parts: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    """List the named parts of a pass: busy time, exposed time (they add up to the pass) and what was hidden."""
    rows = [
        {"part": name, "busy": busy, "exposed": exposed, "hidden": _difference(busy, exposed)}
        for name, (busy, exposed) in sorted(parts.items(), key=lambda item: -item[1][1])
    ]
    table = pd.DataFrame(rows, columns=["part", "busy", "exposed", "hidden"])
    return with_units(table, {"busy": "s", "exposed": "s", "hidden": "s"})


def step_table(parts: Mapping[str, float]) -> pd.DataFrame:
    """List the parts of a training step, which add up to it, and the share each has."""
    whole = sum(parts.values())
    rows = [{"part": name, "time": seconds, "share": seconds / whole} for name, seconds in parts.items()]
    return with_units(pd.DataFrame(rows), {"time": "s", "share": ""})


def _difference(busy: float, exposed: float) -> float:
    """Busy time that is not exposed; a rounding error of sums is none."""
    return busy - exposed if busy - exposed > 1e-9 * busy else 0.0


def kernel_table(fits: Mapping[str, Fit]) -> pd.DataFrame:
    """List what prices each operation: the kernel or the rule, and how wrong 8 of 10 predictions are at most."""
    rows = [
        {"operation": key, "within": expm1(TENTH * hypot(fit.shared, fit.point)), "kernel": fit.source.title}
        for key, fit in sorted(fits.items())
    ]
    return with_units(pd.DataFrame(rows, columns=["operation", "within", "kernel"]), {"within": "1"})


TENTH = 1.2816
"""Standard deviations from the median to the tenth percentile of a normal distribution."""


def memory_table(memory: Memory, plan: int) -> pd.DataFrame:
    """Itemise the fullest rank's memory, largest first."""
    rows = [{"item": key, "size": float(values[plan])} for key, values in memory.items.items()]
    table = pd.DataFrame(rows).sort_values("size", ascending=False, kind="stable").reset_index(drop=True)
    return with_units(table, {"size": "B"})


def task_table(schedule: Schedule, records: Records) -> pd.DataFrame:
    """List every task of one draw on every rank class that has a part in it: when it started and finished.

    `alike` is the number of real ranks that a rank class stands for.
    """
    tasks, ranks = schedule.tasks, schedule.rows
    start, finish = (times.reshape(len(tasks), -1, ranks)[:, 0] for times in (records.start, records.finish))
    everyone = np.ones(ranks, bool)
    has_part = np.array([schedule.parts[task.on] if task.on else everyone for task in tasks]).reshape(-1, ranks)
    at, rank = np.nonzero(has_part)
    columns = {"name": str, "layer": int, "chunk": int, "microbatch": int, "stream": str}
    told: dict[str, np.ndarray] = {
        name: np.array([getattr(task, name) for task in tasks], kind)[at] for name, kind in columns.items()
    }
    told["op"] = np.array([type(task.op).__name__ for task in tasks], str)[at]
    alike = schedule.count.reshape(-1, ranks)[0][rank]
    table = pd.DataFrame({"task": at, **told, "rank": rank, "alike": alike})
    return with_units(table.assign(start=start[at, rank], finish=finish[at, rank]), {"start": "s", "finish": "s"})
