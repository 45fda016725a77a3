"""What is known of public runs beyond the columns of a file: how servers were started, and which rows to doubt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from moesim.files.checked import check
from moesim.files.trees import read
from moesim.ground.errors import InputError

from .measured import Setup

FILE = Path(__file__).parents[1] / "cases" / "serving" / "runs.yaml"

BUSY = 16
"""Requests from which scripts that start SGLang let it look at its queue less often."""

BUDGET = 8192
"""Tokens of a chunk where nothing else is known: vLLM's and SGLang's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Rows by their columns: models by how their name begins, formats by that of dense weights; empty or 0 is any."""

    backend: str
    systems: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    tp: int = 0
    ep: int = 0
    concurrency: int = 0

    def fits(self, setup: Setup) -> bool:
        """Whether a row is one of these."""
        name = setup.model.rsplit("/", 1)[-1]
        return (
            setup.backend == self.backend
            and (not self.systems or setup.system in self.systems)
            and (not self.models or name.startswith(self.models))
            and (not self.formats or setup.gemm in self.formats)
            and self.tp in (0, setup.tp)
            and self.ep in (0, setup.ep)
            and self.concurrency in (0, setup.concurrency)
        )

    def named(self) -> str:
        """Name these rows.

        Examples
        --------
        >>> Which(backend="vllm", models=("gpt-oss",), concurrency=512).named()
        'gpt-oss, vllm, concurrency 512'
        """
        degrees = {"tp": self.tp, "ep": self.ep, "concurrency": self.concurrency}
        numbers = [f"{name} {value}" for name, value in degrees.items() if value]
        return ", ".join([*self.models, *self.systems, self.backend, *self.formats, *numbers])


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(Which):
    """How a server was started: decode steps between two looks at the queue (0: its default), and tokens of a chunk.

    From `BUSY` requests on it is `busy` steps, where that is given.
    """

    poll: int = 0
    busy: int = 0
    budget: int = BUDGET

    def polls(self, setup: Setup, default: int) -> int:
        """Decode steps between two looks at the queue at a row's load."""
        return (self.busy if setup.concurrency >= BUSY else 0) or self.poll or default


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt(Which):
    """Rows whose columns are not what ran, why that is thought, and where it can be seen."""

    why: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """All that is known."""

    launches: tuple[Launch, ...]
    doubtful: tuple[Doubt, ...]
    source: str


@cache
def known_runs() -> Runs:
    """Read what is shipped.

    Raises
    ------
    InputError
        The file was damaged.
    """
    return check(Runs, read(FILE, str(FILE), InputError), str(FILE))


Kind = TypeVar("Kind", bound=Which)


def _first(kinds: Iterable[Kind], setup: Setup) -> Kind | None:
    return next((kind for kind in kinds if kind.fits(setup)), None)


def launch_of(setup: Setup) -> Launch:
    """How a row's server was started; by its framework's habits where nothing is known."""
    return _first(known_runs().launches, setup) or Launch(backend=setup.backend)


def doubted(setup: Setup) -> bool:
    """Whether a row's columns are known not to be what ran."""
    return _first(known_runs().doubtful, setup) is not None
