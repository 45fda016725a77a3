"""The raw file: what was measured, one JSON line per visit of a point, after a first line about the machine.

Appending a line is the only way it grows, so a run that is killed leaves a file that is whole up to its last line; a
torn last line is dropped on reading and cut off before the next one is written. Standard library only.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moesim.ground.errors import Fault, InputError

FORMAT = "moesim raw 1"
Line = Mapping[str, Any]
NO_INPUTS: Mapping[str, float] = MappingProxyType({})
FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One point: what ran, on which inputs, and how long each repetition took.

    Attributes
    ----------
    operation, dtype, kernel : what ran; kernel is the way it was done, "" where there is one only
    inputs : sizes by name; bytes where the name says size, sent, received or traffic
    seconds : every repetition of every visit, in order
    device : name of the device
    ranks : processes that took part
    visits : median of each visit, s; visits of a point lie minutes apart, so their spread is that of identical runs
    issue : s until the call returned on the host (median), where the device works on after that; else None
    alone : the same without what ran beside it, s; only where something did
    """

    operation: str
    dtype: str
    kernel: str
    inputs: Mapping[str, float]
    seconds: tuple[float, ...]
    device: str
    ranks: int = 1
    visits: tuple[float, ...] = ()
    issue: float | None = None
    alone: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median over repetitions, s."""
        return quantile(self.seconds, 0.5)

    @property
    def spread(self) -> float:
        """Half the distance between the 16th and 84th percentile, s: a standard deviation where noise is normal."""
        return spread(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A raw file: its header, its points in the order first measured, and what failed, by reason.

    Attributes
    ----------
    header : format, device, machine (processor, memory, versions), when it was started, probed speeds
    samples : one per point, visits merged
    failures : one line per point that could not be measured
    """

    header: Line
    samples: tuple[Sample, ...]
    failures: tuple[Line, ...] = field(default=())

    def summary(self) -> str:
        """Say how much was measured."""
        operations = {(sample.operation, sample.dtype, sample.kernel, sample.ranks) for sample in self.samples}
        times = sum(len(sample.seconds) for sample in self.samples)
        said = f"{len(self.samples)} points of {len(operations)} operations on {self.header['device']}, {times} times"
        return said if (noise := self.noise()) is None else f"{said}; identical visits differ by {noise:.0%}"

    def noise(self) -> float | None:
        """Return the median over points of how far the medians of two visits lie apart; None if none was made twice.

        Nothing predicts a time better than the machine repeats it.
        """
        apart = [
            abs(math.log(sample.visits[1] / sample.visits[0])) for sample in self.samples if len(sample.visits) > 1
        ]
        return math.expm1(quantile(apart, 0.5)) if apart else None


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile, interpolated linearly.

    Examples
    --------
    >>> quantile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(values: Iterable[float]) -> float:
    """Return half the distance between the 16th and 84th percentile.

    Examples
    --------
    >>> spread(range(101))
    34.0
    """
    kept = tuple(values)
    return (quantile(kept, 0.84) - quantile(kept, 0.16)) / 2


def slug(device: str) -> str:
    """Return a device's name as files and profiles carry it.

    Examples
    --------
    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "machine"


def key_of(line: Line) -> tuple[object, ...]:
    """Return what tells one point from another."""
    return (line["operation"], line["dtype"], line["kernel"], line["ranks"], *sorted(line["inputs"].items()))


def key_of_sample(sample: Sample) -> tuple[object, ...]:
    """Return what tells one point from another."""
    return (sample.operation, sample.dtype, sample.kernel, sample.ranks, *sorted(sample.inputs.items()))


def read(path: Path) -> Raw:
    """Read a raw file and merge the visits of each point.

    Raises
    ------
    InputError
        The file is missing, is no raw file (nor one compressed, .gz), or has lines that are no samples; all are named.
    """
    header, lines = parsed(path)
    faults = [fault for number, line in enumerate(lines, 2) if (fault := _fault_of(number, line))]
    if not isinstance(header["machine"], dict):
        faults.insert(
            0, Fault(path="line 1.machine", problem="is no machine", remedy="measure with `moesim calibrate`")
        )
    if faults:
        raise InputError(str(path), faults[:FAULTS_SHOWN])
    points: dict[tuple[object, ...], list[Line]] = {}
    for line in lines:
        if "seconds" in line and line not in (visits := points.setdefault(key_of(line), [])):  # a copy is no visit
            visits.append(line)
    return Raw(
        header=header,
        samples=tuple(_merged(visits, str(header["device"])) for visits in points.values()),
        failures=tuple(line for line in lines if "error" in line),
    )


def parsed(path: Path) -> tuple[Line, list[Any]]:
    """Parse the header and the lines; the torn end of a run that was killed is left out."""
    try:
        whole, _, _ = _bytes_of(path).rpartition(b"\n")
    except (OSError, EOFError, zlib.error) as fault:
        problem = getattr(fault, "strerror", None) or str(fault)
        raise InputError(str(path), [Fault(path="", problem=problem, remedy="name a file of raw samples")]) from None
    texts = whole.decode(errors="replace").split("\n")
    lines = [_json(text) for text in texts]
    if not (isinstance(lines[0], dict) and lines[0].get("format") == FORMAT and {"device", "machine"} <= set(lines[0])):
        found = lines[0].get("format") if isinstance(lines[0], dict) else None
        problem = f"its first line is not the header of a raw file ({FORMAT})"
        problem += f" but of `{found}`" if found not in (None, FORMAT) else ""
        raise InputError(str(path), [Fault(path="line 1", problem=problem, remedy="measure with `moesim calibrate`")])
    return lines[0], lines[1:]


def _bytes_of(path: Path) -> bytes:
    """Read a file; one that is kept for good is compressed."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _fault_of(number: int, line: Any) -> Fault | None:
    """Return what is wrong with a line, or None."""
    where = f"line {number}"
    remedy = "delete the line, or measure the point again"
    if not isinstance(line, dict):
        return Fault(path=where, problem="is not JSON of a sample", remedy=remedy)
    needed = ("operation", "dtype", "kernel", "ranks", "inputs")
    missing = [name for name in needed if name not in line]
    if missing or not ("seconds" in line or "error" in line):
        return Fault(path=where, problem=f"lacks {', '.join(missing) or 'seconds'}", remedy=remedy)
    if "seconds" in line and not all_times(line["seconds"]):
        return Fault(path=f"{where}.seconds", problem="has a time that is not a positive number", remedy=remedy)
    for name, problem in _misfits(line):
        return Fault(path=f"{where}.{name}", problem=problem, remedy=remedy)
    return None


def _misfits(line: Line) -> Iterator[tuple[str, str]]:
    """Name the fields of a line that hold no such thing, and what they hold."""
    for name in ("operation", "dtype", "kernel"):
        if not isinstance(line[name], str):
            yield name, f"{line[name]!r} is no text"
    if not isinstance(line["ranks"], int) or line["ranks"] < 1:
        yield "ranks", f"{line['ranks']!r} is no number of processes"
    if not isinstance(line["inputs"], dict):
        yield "inputs", f"{line['inputs']!r} are no sizes by name"
        return
    for name, size in line["inputs"].items():
        if not isinstance(size, (int, float)) or not math.isfinite(size):
            yield f"inputs.{name}", f"{size!r} is no number"


def all_times(seconds: object) -> bool:
    """Tell whether this is a list of positive, finite times, and not empty."""
    return (
        isinstance(seconds, list)
        and bool(seconds)
        and all(isinstance(time, (int, float)) and math.isfinite(time) and time > 0 for time in seconds)
    )


def _merged(visits: list[Line], device: str) -> Sample:
    first = visits[0]
    return Sample(
        operation=first["operation"],
        dtype=first["dtype"],
        kernel=first["kernel"],
        inputs=MappingProxyType(dict(first["inputs"])),
        seconds=tuple(time for visit in visits for time in visit["seconds"]),
        device=device,
        ranks=first["ranks"],
        visits=tuple(quantile(visit["seconds"], 0.5) for visit in visits),
        issue=first.get("issue"),
        alone=tuple(time for visit in visits for time in visit.get("alone", ())),
    )
