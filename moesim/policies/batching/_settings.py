"""What batching policies' settings must satisfy, and what follows from them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Settings(Protocol):
    """Settings that every batching policy has."""

    @property
    def max_batch(self) -> int:
        """Most sequences that decode together."""
        ...

    @property
    def speculated(self) -> int:
        """Draft tokens verified per sequence and step."""
        ...

    @property
    def acceptance(self) -> float:
        """Chance that a draft token is right, given that those before it were."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes with a compiled graph."""
        ...

    @property
    def graphs(self) -> int:
        """How many graphs may be compiled, their sizes still to be chosen."""
        ...


def check(settings: Settings) -> None:
    """Refuse settings out of range.

    Raises
    ------
    ValueError
        A size is not positive, drafts come without their chance of being right, the buckets do not ascend, or both
        sizes of graphs and their number are given.
    """
    if settings.max_batch < 1:
        raise ValueError(f"max_batch = {settings.max_batch}; give at least 1")
    if settings.speculated < 0:
        raise ValueError(f"speculated = {settings.speculated}; give 0 or more")
    if not 0 <= settings.acceptance < 1 or (settings.speculated > 0 and settings.acceptance == 0):
        raise ValueError(
            f"acceptance = {settings.acceptance} with speculated = {settings.speculated};"
            " give the chance that a draft token is right, above 0 and below 1"
        )
    if list(settings.buckets) != sorted({size for size in settings.buckets if size > 0}):
        raise ValueError(f"buckets = {settings.buckets}; give positive sizes in ascending order")
    if settings.graphs < 0:
        raise ValueError(f"graphs = {settings.graphs}; give how many may be compiled, or 0 for those of `buckets`")
    if settings.graphs and settings.buckets:
        problem = f"graphs = {settings.graphs} asks for a choice of sizes, and buckets = {settings.buckets} has made it"
        raise ValueError(f"{problem}; give one of them")


def emitted_tokens(speculated: int, acceptance: float) -> float:
    """Mean tokens out of one verification: 1 + a + a^2 + ... (Leviathan et al., ICML 2023, equation 1).

    Examples
    --------
    >>> emitted_tokens(0, 0.0), emitted_tokens(2, 0.5)
    (1.0, 1.75)
    """
    return sum(acceptance**draft for draft in range(1, speculated + 1)) + 1.0
