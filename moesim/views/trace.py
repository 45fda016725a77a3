"""A run as a timeline for Perfetto or Chrome: a process per rank class, a thread per stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pandas as pd

from moesim.deployments.tables import task_table
from moesim.schedules.schedule import Records, Schedule

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
    if records.start.size != len(schedule.tasks) * schedule.rows:
        lead = records.start.shape[1:-1]
        raise ValueError(f"a trace shows one run; these records have leading axes {lead}: index them")
    return task_trace(task_table(schedule, records))


def task_trace(tasks: pd.DataFrame) -> str:
    """Write a table of tasks in the Trace Event Format.

    Parameters
    ----------
    tasks : as `deployments.tables.task_table` makes it; seconds

    Returns
    -------
    JSON, the same to the byte for the same table.
    """
    if tasks.empty:
        return json.dumps({"displayTimeUnit": "ms", "traceEvents": []}, separators=(",", ":"))
    threads = {stream: number for number, stream in enumerate(dict.fromkeys(tasks["stream"].tolist()))}
    ranks = dict(sorted(zip(tasks["rank"].tolist(), tasks["alike"].tolist(), strict=True)))
    columns = [tasks[column].tolist() for column in _COLUMNS]
    events = [*_names(ranks, threads), *(_complete(threads, *row) for row in zip(*columns, strict=True))]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))


_COLUMNS = ("name", "layer", "chunk", "microbatch", "stream", "op", "rank", "start", "finish")


def _names(ranks: Mapping[int, float], threads: Mapping[str, int]) -> Iterator[dict[str, object]]:
    """Name rank classes and streams, in their order."""
    for rank, real in ranks.items():
        name = f"rank {rank}" if real == 1 else f"rank {rank} of {real:g} alike"
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}
        for stream, number in threads.items():
            where = {"pid": rank, "tid": number}
            yield {"ph": "M", "name": "thread_name", **where, "args": {"name": stream}}
            yield {"ph": "M", "name": "thread_sort_index", **where, "args": {"sort_index": number}}


def _complete(
    threads: Mapping[str, int],
    name: str,
    layer: int,
    chunk: int,
    microbatch: int,
    stream: str,
    op: str,
    rank: int,
    start: float,
    finish: float,
) -> dict[str, object]:
    """Write one task on one rank class."""
    return {
        "ph": "X",
        "name": name if layer < 0 else f"{name} {layer}",
        "cat": stream,
        "pid": rank,
        "tid": threads[stream],
        "ts": start * MICROSECONDS,
        "dur": (finish - start) * MICROSECONDS,
        "args": {"layer": layer, "chunk": chunk, "microbatch": microbatch, "op": op},
    }
