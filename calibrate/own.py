"""Our own raw samples as timed points, keyed as a plan looks them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np

from moesim.schedules.costs.collectives import ROUNDS

from .cases import Cases, Floats, family_of
from .raw import Sample

Inputs = Mapping[str, float]


def cases_of(samples: Iterable[Sample], link: str) -> list[Cases]:
    """Gather samples by operation, dtype and kernel.

    What no cost form prices (interference, compilation, gates) is left out.

    Parameters
    ----------
    samples : as `raw.read` gives them
    link : the tier that joined the ranks
    """
    groups: dict[tuple[str, str, str, str], list[Sample]] = {}
    for sample in samples:
        if (place := _place(sample, link)) is not None:
            groups.setdefault(place, []).append(sample)
    return [_cases(place, group) for place, group in groups.items()]


def _place(sample: Sample, link: str) -> tuple[str, str, str, str] | None:
    """Return operation, dtype, kind and kernel of a sample; None where no form prices it."""
    operation, kernel = sample.operation, sample.kernel
    if operation in ("gemm", "grouped_gemm"):
        return operation, sample.dtype, "", kernel
    if operation in ("attention_prefill", "attention_decode"):
        return operation, sample.dtype, kernel, ""
    if operation in ("elementwise", "host"):
        return operation, "", "", ""
    if operation in ROUNDS or operation == "send" or (operation == "all_to_all" and kernel in ("even", "uneven")):
        return operation, "", link, ""
    if operation == "copy":
        tier, _, how = kernel.partition(" ")
        return operation, "", tier, how
    return None


def _cases(place: tuple[str, str, str, str], samples: list[Sample]) -> Cases:
    operation, dtype, kind, kernel = place
    read = _READERS.get(operation, _as_is)
    points = [read(sample) for sample in samples]
    inputs = {name: np.array([point[name] for point in points], dtype=float) for name in points[0]}
    seconds = np.array([sample.median for sample in samples])
    return Cases(
        operation=operation,
        dtype=dtype,
        kind=kind,
        kernel=kernel,
        inputs=inputs,
        seconds=seconds,
        family=_family(operation, inputs),
    )


def _family(operation: str, inputs: Mapping[str, Floats]) -> np.ndarray:
    """Tell apart the shapes that a model would hold: widths, heads, ranks; a point alone where it has none."""
    names = [name for name in ("n", "k", "heads", "kv_heads", "ranks") if name in inputs]
    return family_of(*(inputs[name] for name in names)) if names else np.arange(len(next(iter(inputs.values()))))


def _as_is(sample: Sample) -> Inputs:
    return sample.inputs


def _only(*names: str) -> Callable[[Sample], Inputs]:
    return lambda sample: {name: sample.inputs[name] for name in names}


def _exchange(sample: Sample) -> Inputs:
    moved = max(sample.inputs["sent"], sample.inputs["received"])
    return {"moved": moved, "messages": sample.inputs["messages"], "ranks": float(sample.ranks)}


_ATTENTION = _only("heads", "kv_heads", "key_dim", "value_dim", "tokens", "prompts", "pairs", "keys")
_READERS: Mapping[str, Callable[[Sample], Inputs]] = MappingProxyType(
    {
        "grouped_gemm": _only("rows", "slots", "skew", "n", "k"),
        "attention_prefill": _ATTENTION,
        "attention_decode": _ATTENTION,
        "elementwise": _only("traffic"),
        "host": _only("calls"),
        "copy": _only("size"),
        "send": _only("size"),
        **dict.fromkeys(ROUNDS, _only("size", "ranks")),
        "all_to_all": _exchange,
    }
)
"""What of a sample's inputs an operation's cost depends on."""
