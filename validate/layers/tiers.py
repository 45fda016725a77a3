"""Where experts that are not resident live, and how they come in: the host's memory or a file, beside other work."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor

from .experts import Matrices
from .pieces import copies

Handle = Any
"""A copy under way."""


class Tier(Protocol):
    """Brings experts in, one after another."""

    def fetch(self, slot: int, places: Matrices, place: int) -> Handle:
        """Start to copy a slot's weights to a place; what is computed there now has been issued."""
        ...

    def wait(self, handle: Handle) -> None:
        """Wait for a copy: the host, or on a gpu the stream that computes."""
        ...

    def close(self) -> None:
        """Let go of threads and files."""
        ...


class HostTier:
    """All experts in the host's memory, pinned beside a gpu; a stream copies, or a thread where there is no gpu."""

    def __init__(self, experts: Matrices) -> None:
        """Take the weights, moving them to the host."""
        self._cuda = experts.inner.is_cuda
        self._experts = [_to_host(each, pinned=self._cuda) for each in (experts.inner, experts.outer)]
        self._stream: Any = torch.cuda.Stream() if self._cuda else None
        self._thread = None if self._cuda else ThreadPoolExecutor(1, thread_name_prefix="fetch")

    def fetch(self, slot: int, places: Matrices, place: int) -> Handle:
        """Copy on the stream or in the thread."""
        if self._thread is not None:
            return self._thread.submit(self._copy, slot, places, place)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._copy(slot, places, place)
            return self._stream.record_event()

    def wait(self, handle: Handle) -> None:
        """Wait for the thread, or let the computing stream wait for the copying one."""
        if isinstance(handle, Future):
            handle.result()
        else:
            torch.cuda.current_stream().wait_event(handle)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _copy(self, slot: int, places: Matrices, place: int) -> None:
        for source, target in zip(self._experts, (places.inner, places.outer), strict=True):
            copies.to_device(target[place], source[slot])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """A file's records: each slot's two matrices one after the other, from a multiple of a block on."""

    inner: int
    outer: int

    @property
    def size(self) -> int:
        return -(-(self.inner + self.outer) // copies.BLOCK) * copies.BLOCK


class DiskTier:
    """All experts in a file, read past the page cache; a thread reads, and copies to the device."""

    def __init__(self, experts: Matrices, scratch: Path | None) -> None:
        """Write the weights to a file of a new folder, in `scratch` or where temporary files go."""
        self._folder = TemporaryDirectory(prefix="moesim-experts-", dir=scratch)
        path = Path(self._folder.name) / "experts.bin"
        sizes = [each[0].numel() * each.element_size() for each in (experts.inner, experts.outer)]
        self._record = _Record(inner=sizes[0], outer=sizes[1])
        with path.open("wb") as file:
            for inner, outer in zip(experts.inner, experts.outer, strict=True):
                whole = _bytes(inner.cpu()) + _bytes(outer.cpu())
                file.write(whole.ljust(self._record.size, b"\0"))
            file.flush()
            os.fsync(file.fileno())
        self._file = copies.ColdFile(path, self._record.size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fetch")

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._file.direct

    def fetch(self, slot: int, places: Matrices, place: int) -> Handle:
        """Read in the thread."""
        done = torch.cuda.current_stream().record_event() if places.inner.is_cuda else None
        return self._thread.submit(self._read, slot, places, place, done)

    def wait(self, handle: Handle) -> None:
        """Wait for the thread."""
        handle.result()

    def close(self) -> None:
        """End the thread and remove the file."""
        self._thread.shutdown()
        self._file.close()
        self._folder.cleanup()

    def _read(self, slot: int, places: Matrices, place: int, done: Any) -> None:
        if done is not None:
            done.synchronize()
        start = slot * self._record.size
        self._file.forget(start, self._record.size)
        whole = torch.frombuffer(self._file.read(start, self._record.size), dtype=torch.uint8)
        ends = self._record.inner, self._record.inner + self._record.outer
        for target, part in ((places.inner, whole[: ends[0]]), (places.outer, whole[ends[0] : ends[1]])):
            target[place].copy_(part.view(target.dtype).view_as(target[place]))


def _to_host(weights: Tensor, *, pinned: bool) -> Tensor:
    return weights.cpu().pin_memory() if pinned else weights.clone()


def _bytes(weights: Tensor) -> bytes:
    return bytes(weights.contiguous().view(torch.uint8).numpy().data)
