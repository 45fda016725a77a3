"""Recorded requests: traces of the Azure LLM inference, Mooncake and BurstGPT forms, line by line.

A trace's columns say which form it has. Lines are read one at a time, so that memory holds the numbers and no text.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from moesim.ground.errors import Fault, WorkloadError, nearest
from moesim.ground.units import Seconds
from moesim.world.workload import Recorded

LONGEST = 1 << 20
"""Characters that a line may have."""

HASHED = 512
"""Tokens that one of Mooncake's block hashes stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Where a trace keeps what: its columns, and how its times are written.

    `blocks` names the column of the prompt's block hashes, if it has one; `failed` says that requests without output
    are ones that failed, and are left out.
    """

    time: str
    prompt: str
    output: str
    seconds: Callable[[Any], Seconds]
    blocks: str = ""
    failed: bool = False


def _stamp(text: str) -> Seconds:
    """Seconds of a date and time; Azure's have seven digits after the point, one more than Python reads."""
    whole, _, part = text.partition(".")
    return datetime.fromisoformat(whole).timestamp() + (float(f"0.{part}") if part else 0.0)


FORMS: Mapping[str, Form] = {
    "Azure": Form(time="TIMESTAMP", prompt="ContextTokens", output="GeneratedTokens", seconds=_stamp),
    "Splitwise": Form(time="arrived_at", prompt="num_prefill_tokens", output="num_decode_tokens", seconds=float),
    "BurstGPT": Form(time="Timestamp", prompt="Request tokens", output="Response tokens", seconds=float, failed=True),
    "Mooncake": Form(
        time="timestamp",
        prompt="input_length",
        output="output_length",
        seconds=lambda milliseconds: float(milliseconds) / 1e3,
        blocks="hash_ids",
    ),
}
"""Traces as published: Azure LLM inference 2023 and 2024, their copies in Splitwise's tools, BurstGPT, Mooncake."""


def load_requests(file: Path) -> Recorded:
    """Read a trace, CSV or JSON lines.

    Raises
    ------
    WorkloadError
        The file cannot be read, or a line of it is wrong; the message has the line's number.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            return _recorded(file, _Lines(str(file), stream))
    except OSError as flaw:
        raise WorkloadError(str(file), [Fault(path="", problem=f"cannot be read: {flaw.strerror}")]) from None


class _Lines:
    """The lines of a file, none of them without end; `fault` names the one that was read last."""

    def __init__(self, file: str, stream: TextIO) -> None:
        self.file = file
        self.stream = stream
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self.stream.readline(LONGEST):
            self.number += 1
            if len(line) == LONGEST and not line.endswith("\n"):
                raise self.fault(f"is longer than {LONGEST:,} characters", "is this a trace?")
            if line.strip():
                yield line

    def fault(self, problem: str, remedy: str = "") -> WorkloadError:
        return WorkloadError(self.file, [Fault(path=f"line {self.number}", problem=problem, remedy=remedy)])


def _recorded(file: Path, lines: _Lines) -> Recorded:
    """Read all lines into columns."""
    times, prompts, outputs = array("d"), array("q"), array("q")
    sharing = _Sharing()
    for form, row in _rows(lines):
        time, prompt, output = _facts(form, row, lines)
        if times and time < times[-1]:
            raise lines.fault(f"comes {times[-1] - time:g} s before the line above", "sort the trace by time")
        if not output and form.failed:
            continue
        if not output:
            raise lines.fault(f"{form.output} is zero", "leave out requests that failed")
        times.append(time)
        prompts.append(prompt)
        outputs.append(output)
        sharing.add(_hashes(row.get(form.blocks), form.blocks, lines) if form.blocks else (), prompt)
    if not times:
        raise WorkloadError(
            str(file), [Fault(path="", problem="holds no request", remedy="give a trace with requests")]
        )
    arrival = np.array(times)
    return Recorded(
        file=str(file),
        arrival=arrival - arrival[0],
        input=np.array(prompts),
        output=np.array(outputs),
        shared=np.array(sharing.shared),
        session=np.array(sharing.session),
    )


def _hashes(value: Any, name: str, lines: _Lines) -> Sequence[int]:
    """Read the hashes of a prompt's blocks; none where the line has none."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(block) is int and -(2**63) <= block < 2**63 for block in value):
        raise lines.fault(f"{name} is no list of whole numbers of 64 bits", f"write `{name}: [1, 2]`, or leave it out")
    return value


class _Sharing:
    """Which first tokens of each prompt were seen before, by the hashes of its blocks."""

    def __init__(self) -> None:
        self.shared = array("q")
        self.session = array("q")
        self.seen: set[int] = set()

    def add(self, hashes: Sequence[int], prompt: int) -> None:
        """Note one prompt; its session is its first block's."""
        known = 0
        for block in hashes:
            if block not in self.seen:
                break
            known += 1
        self.seen.update(hashes)
        self.shared.append(min(known * HASHED, prompt - 1))
        self.session.append(hashes[0] if hashes else -1)


def _rows(lines: _Lines) -> Iterator[tuple[Form, Mapping[str, Any]]]:
    """Read lines into fields, of a form that the first line tells."""
    source = iter(lines)
    first = next(source, "")
    if first.lstrip().startswith("{"):
        form = _form(_parsed(first, lines), lines)
        yield form, _parsed(first, lines)
        for line in source:
            yield form, _parsed(line, lines)
    elif first:
        names = [name.strip() for name in _cells(first, lines)]
        form = _form(names, lines)
        for line in source:
            values = _cells(line, lines)
            if len(values) != len(names):
                raise lines.fault(f"has {len(values)} fields, not {len(names)}", f"give {', '.join(names)}")
            yield form, dict(zip(names, values, strict=True))


def _cells(line: str, lines: _Lines) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error as flaw:
        raise lines.fault(f"is no CSV: {flaw}") from None


def _parsed(line: str, lines: _Lines) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as flaw:
        raise lines.fault(f"is no JSON: {flaw}") from None
    if not isinstance(row, dict):
        raise lines.fault("is no JSON object", 'write `{"timestamp": ..., "input_length": ..., "output_length": ...}`')
    return row


def _form(names: Sequence[str] | Mapping[str, Any], lines: _Lines) -> Form:
    """Tell a trace's form by its columns."""
    for form in FORMS.values():
        if {form.time, form.prompt, form.output} <= set(names):
            return form
    wanted = {name: {form.time, form.prompt, form.output} for name, form in FORMS.items()}
    close = max(wanted, key=lambda name: len(wanted[name] & set(names)))
    missing = sorted(wanted[close] - set(names))
    remedies = "; ".join(f"`{column}`: {nearest(column, names)}" for column in missing)
    raise lines.fault(f"lacks {', '.join(f'`{column}`' for column in missing)} of a trace of {close}'s form", remedies)


def _facts(form: Form, row: Mapping[str, Any], lines: _Lines) -> tuple[Seconds, int, int]:
    """Read time and lengths of one request."""
    try:
        time = form.seconds(row[form.time])
    except (KeyError, TypeError, ValueError):
        raise lines.fault(f"{form.time} = {row.get(form.time)!r} is no time") from None
    if not np.isfinite(time):
        raise lines.fault(f"{form.time} = {row[form.time]!r} is no time")
    return time, _tokens(form.prompt, row, lines, least=1), _tokens(form.output, row, lines, least=0)


def _tokens(name: str, row: Mapping[str, Any], lines: _Lines, *, least: int) -> int:
    value = row.get(name)
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise lines.fault(f"{name} = {value!r} is no whole number of tokens")
    if not least <= number < 2**40:
        raise lines.fault(f"{name} = {value} tokens", f"give at least {least}")
    return int(number)
