"""Rows of closed-loop serving measurements: what ran where, under which load, and what came out."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from moesim.ground.errors import Fault, InputError
from moesim.ground.units import Seconds

from .names import backend_named, model_named, modes_named, system_named

COLUMNS = (
    *("model", "system", "backend", "gemm_quant_mode", "moe_quant_mode", "isl", "osl", "concurrency"),
    *("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "gpus"),
)
"""Columns that say what ran; any others are kept as they are."""

NEEDED = ("model", "system", "backend", "isl", "osl", "concurrency")
"""Columns a file must have; what others would say is assumed where they are missing or empty."""

COUNTS = COLUMNS[5:]

MOST_AT_ONCE = 65536
"""Requests in flight that can be simulated: ten times as many make a run."""

LONGEST = 1_000_000
"""Characters of a line that can be one of a table."""

JITTER = 0.9
"""Mean length over the nominal one: published benchmarks draw lengths from 0.8 to 1.0 of what they are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What ran: everything about a measurement but its results; equal setups are predicted once."""

    model: str
    system: str
    backend: str
    gemm: str
    moe: str
    isl: int
    osl: int
    concurrency: int
    tp: int
    pp: int
    dp: int
    etp: int
    ep: int
    gpus: int

    @property
    def layout(self) -> tuple[int, ...]:
        """How the gpus are split."""
        return self.tp, self.pp, self.dp, self.etp, self.ep


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row: its text as it was, its setup or why it has none, and its results where they are given."""

    text: Mapping[str, str]
    setup: Setup | None
    reason: str = ""
    ttft: Seconds = math.nan
    tpot: Seconds = math.nan

    @property
    def throughput(self) -> float:
        """Output tokens per second and gpu, by Little's law."""
        return math.nan if self.setup is None else throughput(self.setup, self.ttft, self.tpot)


def throughput(setup: Setup, ttft: Seconds, tpot: Seconds) -> float:
    """Output tokens per second and gpu of a closed loop: requests in flight over their time, times their tokens.

    Lengths are the nominal ones, in what was measured and in what is predicted alike.

    Examples
    --------
    >>> one = Setup(model="", system="", backend="", gemm="", moe="", isl=1, osl=101, concurrency=4, tp=2, pp=1, dp=1,
    ...     etp=2, ep=1, gpus=2)
    >>> throughput(one, 1.01, 0.01)
    100.497
    """
    return setup.concurrency * setup.osl / (ttft + (setup.osl - 1) * tpot) / setup.gpus


def read_measured(path: Path) -> list[Measured]:
    """Read a file of measurements; a row that says nothing usable keeps its place with a reason.

    Raises
    ------
    InputError
        No such file, no rows, or columns that are missing.
    """
    rows = read_table(path)[1]
    if not rows:
        raise _refused(path, "has no rows", "give one measurement a line")
    return rows


def read_table(path: Path) -> tuple[Sequence[str], list[Measured]]:
    """Read the columns of a file of measurements, and its rows, of which there may be none.

    Raises
    ------
    InputError
        No such file, or columns that are missing or there twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            head, *rows = [row for row in csv.reader(_bounded(lines)) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refused(path, f"cannot be read ({error})", "give a CSV file") from error
    names = [name.strip() for name in head]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise _refused(path, f"lacks the columns {', '.join(missing)}", f"give {', '.join(COLUMNS)}")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise _refused(path, f"has the column `{twice[0]}` more than once", "name each column once")
    return names, [_measured(names, row) for row in rows]


def _bounded(lines: TextIO) -> Iterator[str]:
    """Read line by line, so that a file which is no table does not fill the memory."""
    while line := lines.readline(LONGEST):
        if len(line) == LONGEST:
            raise csv.Error(f"a line is longer than {LONGEST:,} characters")
        yield line


def _refused(path: Path, problem: str, remedy: str) -> InputError:
    return InputError(str(path), [Fault(path="", problem=problem, remedy=remedy)])


def _measured(names: Sequence[str], cells: Sequence[str]) -> Measured:
    """Read one row."""
    text = dict(zip(names, [*cells, *[""] * len(names)], strict=False))
    if any(cells[len(names) :]):
        return Measured(text=text, setup=None, reason=f"has {len(cells)} cells under {len(names)} columns")
    try:
        setup = _setup({name: text.get(name, "").strip() for name in (*COLUMNS, "precision")})
    except ValueError as error:
        return Measured(text=text, setup=None, reason=str(error))
    return Measured(text=text, setup=setup, ttft=_result(text, "ttft_ms"), tpot=_result(text, "tpot_ms"))


def _setup(text: Mapping[str, str]) -> Setup:
    """Put a row's columns into moesim's words."""
    gemm, moe = modes_named(text["gemm_quant_mode"], text["moe_quant_mode"], text["precision"], text["model"])
    said = {name: _count(name, text[name]) for name in COUNTS if text[name] or name in NEEDED}
    if said["concurrency"] > MOST_AT_ONCE:
        raise ValueError(f"concurrency = `{text['concurrency']}` is more than the {MOST_AT_ONCE} that can be simulated")
    degrees = _degrees(said)
    return Setup(
        model=model_named(text["model"]) or text["model"],
        system=system_named(text["system"]),
        backend=backend_named(text["backend"]),
        gemm=gemm,
        moe=moe,
        isl=said["isl"],
        osl=said["osl"],
        concurrency=said["concurrency"],
        tp=degrees["tp_size"],
        pp=degrees["pp_size"],
        dp=degrees["attention_dp_size"],
        etp=degrees["moe_tp_size"],
        ep=degrees["moe_ep_size"],
        gpus=degrees["gpus"],
    )


def _degrees(said: Mapping[str, int]) -> Mapping[str, int]:
    """Fill in the degrees that a row does not say.

    Attention is split over all gpus that other degrees leave; experts are cut under tensor parallelism alone and spread
    out under data parallelism, as frameworks start by themselves.

    Examples
    --------
    >>> _degrees({"tp_size": 2, "attention_dp_size": 4})["moe_ep_size"], _degrees({"gpus": 8})["moe_tp_size"]
    (8, 8)
    """
    if not {"tp_size", "gpus"} & said.keys():
        raise ValueError("neither tp_size nor gpus is given")
    pp, dp = said.get("pp_size", 1), said.get("attention_dp_size", 1)
    tp = said.get("tp_size", max(said.get("gpus", 1) // (pp * dp), 1))
    ep = said.get("moe_ep_size", max(tp * dp // said.get("moe_tp_size", 1 if dp > 1 else tp), 1))
    assumed = {"tp_size": tp, "pp_size": pp, "attention_dp_size": dp, "moe_ep_size": ep}
    return {**assumed, "moe_tp_size": max(tp * dp // ep, 1), "gpus": tp * pp * dp, **said}


def _count(name: str, text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (1 <= number < 2**31 and number == int(number)):
        raise ValueError(f"{name} = `{text}` is not a positive whole number")
    return int(number)


def _result(text: Mapping[str, str], name: str) -> Seconds:
    """Read milliseconds; NaN where they are not given, as in a file of setups alone."""
    try:
        value = float(text.get(name) or "nan")
    except ValueError:
        return math.nan
    return value / 1e3 if 0 < value < math.inf else math.nan
