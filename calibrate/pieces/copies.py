"""Copies between a device, its host's memory and a disk."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .bench import Args, Bench, Case, Inputs

BLOCK = 4096
"""Bytes to which reads past the page cache are aligned."""
FILE = 1 << 27
"""Bytes of the file that is read, at least: at another place each time."""


class ColdFile:
    """A file that is read past the page cache, into memory aligned to a page.

    Attributes
    ----------
    path : the file
    direct : whether the file system can bypass the cache; where not, it is told to forget what it read
    """

    def __init__(self, path: Path, largest: int) -> None:
        """Open the file, past the cache where that is possible, for reads of so many bytes at most."""
        self.path = path
        self.direct = True
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except (OSError, AttributeError):  # a file system without it, or an operating system
            self.direct = False
            self._file = os.open(path, os.O_RDONLY)
        self._buffer = mmap.mmap(-1, -(-largest // BLOCK) * BLOCK)

    def read(self, offset: int, size: int) -> memoryview:
        """Read bytes at an offset, both multiples of `BLOCK`; what is returned is overwritten by the next read."""
        target = memoryview(self._buffer)[:size]
        done = 0
        while done < size:
            got = os.preadv(self._file, [target[done:]], offset + done)
            if not got:
                raise OSError(f"{self.path}: ends at {offset + done}")
            done += got
        return target

    def forget(self, offset: int, size: int) -> None:
        """Drop what the page cache holds of a range, where reading went through it."""
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, offset, size, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file, once."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        """Let go of the file when the case that used it is gone."""
        self.close()


def write_cold(path: Path, size: int) -> None:
    """Write random bytes to a file, down to the disk, unless it is there already."""
    if path.exists() and path.stat().st_size >= size:
        return
    with path.open("wb") as file:
        for _ in range(0, size, 1 << 24):
            file.write(os.urandom(1 << 24))
        file.flush()
        os.fsync(file.fileno())


def to_device(target: Tensor, source: Tensor) -> Tensor:
    """Copy from the host's memory; beside the device's own work where the source is pinned."""
    return target.copy_(source, non_blocking=True)


def to_host(target: Tensor, source: Tensor) -> Tensor:
    """Copy to the host's memory; beside the device's own work where the target is pinned."""
    return target.copy_(source, non_blocking=True)


def host_tensor(size: int, *, pinned: bool) -> Tensor:
    """Return bytes in the host's memory that have been touched, so that no first use is timed."""
    return torch.zeros(size, dtype=torch.uint8).pin_memory() if pinned else torch.zeros(size, dtype=torch.uint8)


def inward_case(inputs: Inputs, dtype: str, bench: Bench, *, pinned: bool) -> Case:
    """Make a copy to the device ready."""
    size = int(inputs["size"])
    pair = (torch.empty(size, dtype=torch.uint8, device=bench.device), host_tensor(size, pinned=pinned))
    return Case(call=to_device, args=lambda: pair, on_host=not pinned)


def outward_case(inputs: Inputs, dtype: str, bench: Bench, *, pinned: bool) -> Case:
    """Make a copy from the device ready."""
    size = int(inputs["size"])
    pair = (host_tensor(size, pinned=pinned), torch.empty(size, dtype=torch.uint8, device=bench.device))
    return Case(call=to_host, args=lambda: pair, on_host=not pinned)


def disk_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a read from the disk ready: at another offset of a file each time."""
    size = int(inputs["size"])
    path = bench.scratch / "cold.bin"
    write_cold(path, max(FILE, size))
    file = ColdFile(path, size)
    return Case(call=file.read, args=_offsets(file, size), on_host=True, warm=1, most=12)


def _offsets(file: ColdFile, size: int) -> Callable[[], Args]:
    """Walk through the file in jumps that come back to no place soon."""
    places = max((file.path.stat().st_size - size) // BLOCK, 1)
    step = int(places * 0.381966) | 1  # golden section: jumps of it fill the file evenly
    at = 0

    def following() -> Args:
        nonlocal at
        at = (at + step) % places
        file.forget(at * BLOCK, size)
        return at * BLOCK, size

    return following
