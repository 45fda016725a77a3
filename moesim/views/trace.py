"""A run as a timeline for Perfetto or Chrome: a process per rank, a thread per stream."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd

from moesim.schedules.schedule import Records, Schedule, Task

MICROSECONDS = 1e6
"""Per second; the unit that trace viewers expect."""


def trace(schedule: Schedule, records: Records) -> str:
    """Write a run in the Trace Event Format, to be opened at ui.perfetto.dev or chrome://tracing.

    Parameters
    ----------
    schedule : what was run
    records : when; of one run, so leading axes are absent or have size 1

    Returns
    -------
    JSON, the same to the byte for the same run.

    Raises
    ------
    ValueError
        The records hold several runs.
    """
    shape = (len(schedule.tasks), schedule.rows)
    if records.start.size != shape[0] * shape[1]:
        lead = records.start.shape[1:-1]
        raise ValueError(f"a trace shows one run; these records have leading axes {lead}: index them")
    start, finish = (times.reshape(shape) * MICROSECONDS for times in (records.start, records.finish))
    threads = {stream: number for number, stream in enumerate(dict.fromkeys(task.stream for task in schedule.tasks))}
    events = [*_names(schedule, threads)]
    for number, task in enumerate(schedule.tasks):
        for rank in np.flatnonzero(schedule.parts[task.on]).tolist() if task.on else range(schedule.rows):
            begin, end = start[number, rank], finish[number, rank]
            events.append(_complete(task, rank, threads[task.stream], float(begin), float(end - begin)))
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))


def task_trace(tasks: pd.DataFrame) -> str:
    """Write a table of tasks in the Trace Event Format: one process, a thread per stream.

    Parameters
    ----------
    tasks : columns name, layer, chunk, stream, start, finish; seconds

    Returns
    -------
    JSON, the same to the byte for the same table.
    """
    threads = {stream: number for number, stream in enumerate(dict.fromkeys(tasks["stream"]))}
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "slowest stage, first start to last finish"}}
    ]
    for stream, number in threads.items():
        events.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": stream}})
    columns = ("name", "layer", "chunk", "stream", "start", "finish")
    for name, layer, chunk, stream, start, finish in zip(*(tasks[column].tolist() for column in columns), strict=True):
        where = {"ph": "X", "name": _title(name, layer), "cat": stream, "pid": 0, "tid": threads[stream]}
        when = {"ts": start * MICROSECONDS, "dur": (finish - start) * MICROSECONDS}
        events.append({**where, **when, "args": {"layer": layer, "chunk": chunk}})
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))


def _title(name: str, layer: int) -> str:
    return name if layer < 0 else f"{name} {layer}"


def _names(schedule: Schedule, threads: dict[str, int]) -> Iterator[dict[str, object]]:
    """Name ranks and streams, in their order."""
    count = np.broadcast_to(schedule.count, (*schedule.count.shape[:-1], schedule.rows)).reshape(-1, schedule.rows)[0]
    for rank, real in enumerate(count.tolist()):
        name = f"rank {rank}" if real == 1 else f"rank {rank} of {real:g} alike"
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}
        for stream, number in threads.items():
            where = {"pid": rank, "tid": number}
            yield {"ph": "M", "name": "thread_name", **where, "args": {"name": stream}}
            yield {"ph": "M", "name": "thread_sort_index", **where, "args": {"sort_index": number}}


def _complete(task: Task, rank: int, thread: int, begin: float, length: float) -> dict[str, object]:
    """One task on one rank; times in microseconds."""
    return {
        "ph": "X",
        "name": _title(task.name, task.layer),
        "cat": task.stream,
        "pid": rank,
        "tid": thread,
        "ts": begin,
        "dur": length,
        "args": {"layer": task.layer, "chunk": task.chunk, "microbatch": task.microbatch, "op": type(task.op).__name__},
    }
