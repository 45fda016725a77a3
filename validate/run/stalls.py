"""How long layers stand still while they are compiled, and that they really are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .bundle import COMPILE


@dataclass(slots=True, kw_only=True, eq=False)
class Stalls:
    """A clock that records compiling and nothing else, so that steps are as quick as without one."""

    on: bool = False
    _begun: float = 0.0
    _taken: float = 0.0

    def begin(self, name: str, *, backward: bool = False) -> None:
        """Start a stretch of a part."""
        if name == COMPILE:
            self._begun = time.perf_counter()

    def end(self, name: str, *, backward: bool = False) -> None:
        """End it."""
        if name == COMPILE:
            self._taken += time.perf_counter() - self._begun

    def taken(self) -> float:
        """Return seconds spent compiling since the last call, and forget them."""
        taken, self._taken = self._taken, 0.0
        return taken


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Forget what was compiled, in memory and on disk: what is compiled inside is compiled for the first time."""
    from torch._inductor import utils

    fresh = getattr(utils, "fresh_cache", None) or utils.fresh_inductor_cache  # its name up to torch 2.7
    torch.compiler.reset()
    with fresh():
        yield
