"""The most memory that a turn takes: of a gpu as torch counts it, of a CPU's process as the system does."""

from __future__ import annotations

from pathlib import Path

import torch

_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PEAK = "5"
"""What, written to `clear_refs`, makes the system count the peak anew (Linux, proc(5))."""


class Memory:
    """Counts the peak since it was reset; 0 where the system does not tell."""

    def __init__(self, device: torch.device) -> None:
        """Count for a device."""
        self._device = device

    def reset(self) -> None:
        """Begin a new peak."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _REFS.write_text(_PEAK)
        except OSError:
            return

    def high(self) -> int:
        """Return the peak, bytes."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            lines = _STATUS.read_text().splitlines()
        except OSError:
            return 0
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
