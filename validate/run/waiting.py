"""Predictions that no machine has answered yet: bundles that lie there without results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .bundle import PREDICTIONS, RESULTS, read_bundle, read_predictions


def waiting_in(folder: Path) -> dict[str, list[Path]]:
    """List the folders of bundles that were predicted and not run, by machine."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*/*/{PREDICTIONS}")):
        if not path.with_name(RESULTS).exists():
            found.setdefault(path.parent.parent.name, []).append(path.parent)
    return found


def waiting(machines: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    """Write what each machine is expected to do, as Markdown."""
    for machine, folders in machines.items():
        yield f"## {machine}\n"
        yield "Not yet run: these predictions wait for such a machine (`make gpu`).\n"
        yield "| scenario | plans | pairs | predicted step times |"
        yield "|---|--:|--:|---|"
        for folder in folders:
            held, told = read_bundle(folder), read_predictions(folder)
            seconds = [each.seconds for each in told.values()]
            times = f"{milliseconds(min(seconds))} to {milliseconds(max(seconds))}"
            yield f"| {folder.name} | {len(told)} | {len(held.pairs)} | {times} |"
        yield ""


def milliseconds(seconds: float) -> str:
    """Write milliseconds in three digits.

    Examples
    --------
    >>> milliseconds(0.0123456), milliseconds(1.5)
    ('12.3 ms', '1500 ms')
    """
    value = seconds * 1e3
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"
