"""Results of the frameworks' own benchmarks, read back into the columns of serving measurements.

`vllm bench serve --save-result` (JSON, vLLM 0.24.0), `sglang.bench_serving --output-file` (JSON lines, SGLang 0.5.14)
and `trtllm-bench ... --report_json` (JSON, TensorRT-LLM) say how fast and under which load; the rest is said beside
them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.files.trees import read
from moesim.ground.errors import Fault, InputError

from .measured import COLUMNS, COUNTS, JITTER

RESULTS = ("ttft_ms", "tpot_ms")


def rows_of(logs: Sequence[Path], setup: Path | None) -> str:
    """Write logs as CSV, one row for each run.

    Parameters
    ----------
    logs : results of benchmarks
    setup : YAML with the columns that logs do not say: system, formats, degrees; it goes before what a log says

    Raises
    ------
    InputError
        A log or the setup is malformed, or a column is said by neither.
    """
    given = {} if setup is None else dict(read(setup))
    unknown = sorted(given.keys() - {*COLUMNS, *RESULTS, "backend_version"})
    if unknown:
        raise _fault(setup, unknown[0], "is no column of a measurement", f"give some of {', '.join(COLUMNS)}")
    found = [(file, {**row, **given}) for file in logs for row in _runs(file)]
    for file, row in found:
        _check(file, row)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, "backend_version", *RESULTS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for _, row in found)
    return text.getvalue()


def _runs(file: Path) -> Iterator[dict[str, Any]]:
    """Read every run of a file, whoever wrote it."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as flaw:
        raise _fault(file, "", f"cannot be read ({flaw})", "name a result that a benchmark has written") from None
    for number, tree in _trees(file, text):
        where = f"line {number}" if number else ""
        if not isinstance(tree, Mapping):
            raise _fault(file, where, "holds no fields", "name a result that a benchmark has written")
        yield _run(file, where, tree)


def _trees(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Read one JSON tree, or one on each line; the number of the line, 0 for the whole."""
    try:
        yield 0, json.loads(text)
        return
    except json.JSONDecodeError as flaw:
        whole = flaw
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) < 2:
        raise _fault(file, f"line {whole.lineno}", f"is no JSON: {whole.msg}", "was the benchmark stopped?")
    for number, line in lines:
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as flaw:
            raise _fault(file, f"line {number}", f"is no JSON: {flaw.msg}", "was the benchmark stopped?") from None


def _run(file: Path, where: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Take the columns that a run's fields say."""
    if "streaming_metrics" in tree or "world_info" in tree:
        return _tensorrt(file, where, tree)
    for field in ("mean_ttft_ms", "mean_tpot_ms", "completed", "total_input_tokens", "total_output_tokens"):
        _number(file, where, tree, field)
    requests = tree["completed"]
    if requests < 1:
        raise _fault(file, f"{where}.completed".lstrip("."), "no request was completed", "look at the server's log")
    sglang = "random_input_len" in tree
    lengths = {
        "isl": tree.get("random_input_len") or round(tree["total_input_tokens"] / requests / JITTER),
        "osl": tree.get("random_output_len") or round(tree["total_output_tokens"] / requests / JITTER),
    }
    said = {
        "model": tree.get("model_id"),
        "backend": "sglang" if sglang else "vllm",
        "concurrency": tree.get("max_concurrency"),
        **lengths,
        "ttft_ms": tree["mean_ttft_ms"],
        "tpot_ms": tree["mean_tpot_ms"],
    }
    return {name: value for name, value in said.items() if value is not None}


def _tensorrt(file: Path, where: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Take the columns of trtllm-bench's report."""
    if not isinstance(tree.get("streaming_metrics"), Mapping):
        raise _fault(file, "streaming_metrics", "is missing", "run trtllm-bench with --streaming")
    for section, fields in (
        ("streaming_metrics", ("avg_ttft_ms", "avg_tpot_ms")),
        ("request_info", ("avg_num_concurrent_requests", "avg_input_length", "avg_output_length")),
    ):
        inner = tree.get(section)
        for field in fields:
            _number(file, f"{where}.{section}".lstrip("."), inner if isinstance(inner, Mapping) else {}, field)
    asked, world = tree["request_info"], tree.get("world_info") or {}
    said = {
        "model": (tree.get("engine") or {}).get("model"),
        "backend": "trtllm",
        "backend_version": (tree.get("engine") or {}).get("version"),
        "concurrency": max(round(asked["avg_num_concurrent_requests"]), 1),
        "isl": round(asked["avg_input_length"] / JITTER),
        "osl": round(asked["avg_output_length"] / JITTER),
        "tp_size": world.get("tp_size"),
        "pp_size": world.get("pp_size"),
        "moe_ep_size": world.get("ep_size"),
        "gpus": world.get("world_size"),
        "ttft_ms": tree["streaming_metrics"]["avg_ttft_ms"],
        "tpot_ms": tree["streaming_metrics"]["avg_tpot_ms"],
    }
    return {name: value for name, value in said.items() if value is not None}


def _number(file: Path, where: str, tree: Mapping[str, Any], field: str) -> None:
    value, path = tree.get(field), f"{where}.{field}".lstrip(".")
    if field not in tree:
        raise _fault(file, path, "is missing", "name a result of `vllm bench serve`, bench_serving or trtllm-bench")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _fault(file, path, f"{value!r} is no number of 0 or more", "was the benchmark stopped?")


def _check(file: Path, row: Mapping[str, Any]) -> None:
    """See that every column is there and that counts are counts."""
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        remedy = f"say it in a YAML file: --setup FILE with `{missing[0]}: ...`"
        raise _fault(file, ", ".join(missing), "is said neither by the log nor beside it", remedy)
    for name in COUNTS:
        if isinstance(row[name], bool) or not isinstance(row[name], int) or row[name] < 1:
            raise _fault(file, name, f"{row[name]!r} is no positive whole number", "say it in --setup FILE")


def _fault(file: Path | None, path: str, problem: str, remedy: str) -> InputError:
    return InputError(str(file), [Fault(path=path, problem=problem, remedy=remedy)])
