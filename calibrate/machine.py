"""What a machine is, read and never set: names, versions, clocks; and how fast it is, roughly."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .pieces.bench import Bench, Case
from .pieces.passes import move_case
from .pieces.products import gemm_case
from .settings import cores
from .timing import timed

QUERY = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
LIMITS = "driver_version,power.limit,clocks.max.sm,pcie.link.gen.max,pcie.link.width.max"
EVERY = 10.0
"""Seconds between readings of a gpu's clocks; asking takes a tenth of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Roughly how fast a device is, and how long a point may take on it: together they say how large one may be.

    Attributes
    ----------
    flop_rate, bandwidth : FLOP/s, B/s
    longest : s
    """

    flop_rate: float
    bandwidth: float
    longest: float


def device_name(device: torch.device) -> str:
    """Return the name of a device, as its maker writes it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def describe(device: torch.device) -> dict[str, Any]:
    """Return everything about a machine on which its times may depend; no name of a host or a user."""
    described: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": cores(),
        "memory": _memory(),
        "cache": cache_size(device),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
    }
    return described | (_gpu(device) if device.type == "cuda" else {})


def load() -> float:
    """Return how many processes want each core, over the last minute; 0 where the system does not say."""
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2) if hasattr(os, "getloadavg") else 0.0


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpus": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory": properties.total_memory,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "nccl_env": {name: value for name, value in sorted(os.environ.items()) if name.startswith("NCCL_")},
        "limits": _smi(LIMITS),
    }


def _smi(names: str) -> str:
    """Ask nvidia-smi, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.splitlines()[0]
    except (subprocess.TimeoutExpired, IndexError):
        return ""


def _processor() -> str:
    found = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _memory() -> int:
    found = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return int(found[0]) * 1024 if found else 0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def cache_size(device: torch.device) -> int:
    """Return the bytes of the last cache before memory; 32 MB where it cannot be read."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20))
    sizes = [_lines(str(path)) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[0].rstrip("K")) * 1024 for size in sizes if size), default=32 << 20)


def clocks(device: torch.device) -> str:
    """Return the clocks of this moment: MHz, W and degrees of a gpu; MHz of a CPU's cores."""
    if device.type == "cuda":
        return _smi(QUERY)
    return ", ".join(line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("cpu MHz"))


class Clocks:
    """The clocks as read last, not too often."""

    def __init__(self, device: torch.device) -> None:
        """Read nothing yet."""
        self._device = device
        self._read = float("-inf")
        self._said = ""

    def now(self) -> str:
        """Return the clocks, read anew where the last reading is old."""
        if time.monotonic() - self._read > EVERY:
            self._said, self._read = clocks(self._device), time.monotonic()
        return self._said


def probe(bench: Bench, longest: float) -> Speed:
    """Measure roughly how fast a device multiplies and copies, in a fraction of a second, for points of `longest` s."""
    large = bench.device.type == "cuda"
    side, size = (4096, 1 << 28) if large else (512, 1 << 25)
    product = _fastest(gemm_case({"m": side, "n": side, "k": side}, "bf16" if large else "fp32", bench), bench)
    copied = _fastest(move_case({"size": size}, "bytes", bench), bench)
    return Speed(flop_rate=_rounded(2 * side**3 / product), bandwidth=_rounded(2 * size / copied), longest=longest)


def _fastest(case: Case, bench: Bench) -> float:
    """Return the shortest time: on a machine that is busy the median says little about it."""
    return min(timed(case, bench).seconds)


def _rounded(rate: float) -> float:
    """Round to one digit: two runs of one machine should take the same points."""
    return float(f"{rate:.0e}")
