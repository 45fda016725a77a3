"""Rows of closed-loop serving measurements: what ran where, under which load, and what came out."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moesim.ground.errors import Fault, InputError
from moesim.ground.units import Seconds

COLUMNS = (
    *("model", "system", "backend", "gemm_quant_mode", "moe_quant_mode", "isl", "osl", "concurrency"),
    *("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "gpus"),
)
"""Columns a file must have; any others are kept as they are."""

COUNTS = COLUMNS[5:]
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
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restkey="", restval="")
            rows, columns = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refused(path, f"cannot be read ({error})", "give a CSV file") from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise _refused(path, f"lacks the columns {', '.join(missing)}", f"give {', '.join(COLUMNS)}")
    if not rows:
        raise _refused(path, "has no rows", "give one measurement a line")
    return [_measured({key: value for key, value in row.items() if key}) for row in rows]


def _refused(path: Path, problem: str, remedy: str) -> InputError:
    return InputError(str(path), [Fault(path="", problem=problem, remedy=remedy)])


def _measured(text: Mapping[str, str]) -> Measured:
    """Read one row."""
    try:
        counts = {name: _count(name, text[name]) for name in COUNTS}
    except ValueError as error:
        return Measured(text=text, setup=None, reason=str(error))
    setup = Setup(
        model=text["model"].strip(),
        system=text["system"].strip(),
        backend=text["backend"].strip(),
        gemm=text["gemm_quant_mode"].strip(),
        moe=text["moe_quant_mode"].strip(),
        isl=counts["isl"],
        osl=counts["osl"],
        concurrency=counts["concurrency"],
        tp=counts["tp_size"],
        pp=counts["pp_size"],
        dp=counts["attention_dp_size"],
        etp=counts["moe_tp_size"],
        ep=counts["moe_ep_size"],
        gpus=counts["gpus"],
    )
    return Measured(text=text, setup=setup, ttft=_result(text, "ttft_ms"), tpot=_result(text, "tpot_ms"))


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
