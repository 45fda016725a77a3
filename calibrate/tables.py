"""Published tables of measurements: found in the `aiconfigurator-core` package, read and checked.

The tables are Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES, Apache-2.0; see docs/background/evidence.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from moesim.ground.errors import Fault, InputError, MoesimError, nearest

PACKAGE = "aiconfigurator_core"
ORIGIN = "NVIDIA AIConfigurator 0.12.0 tables (Apache-2.0)"

NOTICE = """Contains data derived from NVIDIA AIConfigurator 0.12.0 (github.com/ai-dynamo/aiconfigurator),
Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES, licensed under Apache-2.0.
Modified: parameters of cost forms fitted to subsets of its tables by the moesim authors."""
"""What must stand over anything made from the tables."""

DEVICES: Mapping[str, str] = MappingProxyType(
    {
        "a100_sxm": "nvidia/a100-80gb-sxm",
        "h100_sxm": "nvidia/h100-sxm",
        "h200_sxm": "nvidia/h200-sxm",
        "b200_sxm": "nvidia/b200",
        "b300_sxm": "nvidia/b300",
        "gb200": "nvidia/gb200",
        "gb300": "nvidia/gb300",
        "l40s": "nvidia/l40s",
        "rtx_pro_6000_server": "nvidia/rtx-pro-6000",
    }
)
"""Systems with tables, and the devices they measured."""

NODES: Mapping[str, str] = MappingProxyType(
    {
        "a100_sxm": "nvidia/hgx-a100",
        "h100_sxm": "nvidia/hgx-h100",
        "h200_sxm": "nvidia/hgx-h200",
        "b200_sxm": "nvidia/hgx-b200",
        "b300_sxm": "nvidia/hgx-b300",
        "gb200": "nvidia/gb200-nvl72",
        "gb300": "nvidia/gb300-nvl72",
        "l40s": "pcie/l40s-x8",
        "rtx_pro_6000_server": "pcie/rtx-pro-6000-x8",
    }
)
"""The nodes in which their collectives were measured."""

FRAMEWORKS: Mapping[str, str] = MappingProxyType({"sglang": "sglang", "trtllm": "tensorrt_llm", "vllm": "vllm"})
"""Frameworks whose kernels were timed, and what plans call them."""

STAMPS: Mapping[str, str] = MappingProxyType(
    {
        "a100_sxm": "A100",
        "h100_sxm": "H100",
        "h200_sxm": "H200",
        "b200_sxm": "B200",
        "b300_sxm": "B300",
        "gb200": "GB200",
        "gb300": "GB300",
        "l40s": "L40S",
        "rtx_pro_6000_server": "RTX PRO 6000",
    }
)
"""What a table's `device` column says of the system that it claims to be of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One file: what framework, in which version, measured which operation."""

    path: Path
    framework: str
    version: str


def check_system(system: str) -> str:
    """Return the device of a system.

    Raises
    ------
    MoesimError
        There are no tables of it.
    """
    if system not in DEVICES:
        others = "devices without tables keep datasheet priors"
        raise MoesimError(f"--system: there are no tables of `{system}`; {nearest(system, DEVICES)} ({others})")
    return DEVICES[system]


def folder_of(system: str, data: Path | None = None) -> Path:
    """Find the folder of a system's tables, in the installed package or below a folder of one's own.

    Raises
    ------
    MoesimError
        No such system, no such package, or no tables in it.
    """
    check_system(system)
    root = data if data is not None else _installed()
    if not (root / system).is_dir():
        raise MoesimError(f"{root}: has no tables of `{system}`; name the folder that holds one folder per system")
    return root / system


def _installed() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MoesimError(
            "the published tables are not installed; `pip install 'moesim[tables]'`, or give --data FOLDER"
        )
    return Path(spec.submodule_search_locations[0]) / "systems" / "data"


def tables_of(folder: Path, family: str, name: str) -> Iterator[Table]:
    """List the files of an operation by framework, the newest version first."""
    for framework in sorted(path for path in (folder / family).glob("*") if path.is_dir()):
        files = sorted(framework.glob(f"*/{name}_perf.parquet"), key=lambda path: _version(path.parent.name))
        for path in reversed(files):
            yield Table(path=path, framework=framework.name, version=path.parent.name)


def _version(name: str) -> tuple[tuple[int, int], ...]:
    """Order versions: 0.9 before 0.14, a release candidate before its release.

    Examples
    --------
    >>> sorted(["0.14.0", "1.3.0rc20", "0.9.0", "1.3.0", "1.3.0rc3"], key=_version)
    ['0.9.0', '0.14.0', '1.3.0rc3', '1.3.0rc20', '1.3.0']
    """
    parts = re.findall(r"[a-z]+|\d+", name)
    return (*((1, int(part)) if part.isdigit() else (0, 0) for part in parts), (1, -1))


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    system: str,
    times: Sequence[str] = ("latency",),
    absent: Mapping[str, int] = MappingProxyType({}),
    gaps: bool = False,
) -> pd.DataFrame:
    """Read the columns of a table that are needed.

    Rows that were measured twice are one, with the median time. A column that older tables lack may be given in
    `absent`, with the value that all their rows have. With `gaps` a row may lack its time, and is left out.

    Raises
    ------
    InputError
        The file is not Parquet or is cut short, lacks columns, is of another device, or has a time that is no
        positive number.
    """
    try:
        whole = pyarrow.parquet.read_table(path).to_pandas()
    except (OSError, pyarrow.ArrowException) as fault:
        problem = f"is not a whole Parquet file ({str(fault).splitlines()[0]})"
        raise InputError(str(path), [Fault(path="", problem=problem, remedy="install the tables again")]) from None
    whole = whole.assign(**{name: value for name, value in absent.items() if name not in whole.columns})
    whole = whole.dropna(subset=[name for name in times if gaps and name in whole.columns])
    faults = list(_faults(whole, (*columns, *times), times, STAMPS.get(system, "")))
    if faults:
        raise InputError(str(path), faults)
    kept = whole[[*columns, *times]]
    merged: pd.DataFrame = kept.groupby(list(columns), as_index=False, sort=False)[list(times)].median()
    return merged


def _faults(found: pd.DataFrame, columns: Sequence[str], times: Sequence[str], stamp: str) -> Iterator[Fault]:
    lacking = [name for name in columns if name not in found.columns]
    for name in lacking:
        yield Fault(path=name, problem="the table has no such column", remedy="it is a table of another kind")
    if lacking:
        return
    for name in times:
        if not pd.api.types.is_numeric_dtype(found[name]):
            yield Fault(path=name, problem="holds no numbers", remedy="it is a table of another kind")
            continue
        wrong = int((~(np.isfinite(found[name]) & (found[name] > 0))).sum())
        if wrong:
            yield Fault(path=name, problem=f"{wrong} rows have no positive time", remedy="remove those rows")
    devices = [str(name) for name in found["device"].unique()] if "device" in found.columns else []
    other = [name for name in devices if not re.search(rf"\b{stamp}\b", name)]
    if other:
        yield Fault(path="device", problem=f"measured on `{other[0]}`, not {stamp}", remedy="name its own system")
