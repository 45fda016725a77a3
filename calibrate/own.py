"""Our own raw samples as timed points, keyed as a plan looks them up.

A sample says what ran, a plan what it needs. Some samples serve no key: what they time is a sum that others time by
parts (gate, whole layers), a part of one that is timed whole (permute, sort), or no work of a plan's (interference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Int

from moesim.schedules.costs.collectives import ROUNDS

from .cases import Cases, Floats, family_of
from .raw import Sample

Inputs = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a plan looks a sample up; fields as those of `Cases`."""

    operation: str
    dtype: str = ""
    kind: str = ""
    kernel: str = ""


PASSES: Mapping[tuple[str, str, str], str] = MappingProxyType(
    {
        ("choose", "bf16", ""): "gate",
        ("pack", "bf16", ""): "pack",
        ("unpermute", "bf16", ""): "unpack",
        ("dispatch_mask", "fp32", ""): "mask",
        ("elementwise", "bf16", "swiglu"): "activation",
        ("elementwise", "bf16", "norm"): "",
    }
)
"""What plans call the passes over memory that were measured; activations are bf16 in a plan, and masks fp32."""
PADDED = ("batched", "compiled")
"""Ways of multiplying experts that give each as many rows as the fullest has."""


LINK = "loopback"
"""The tier that joins ranks: of one machine, whatever it really is."""
LEVELS = "hierarchical"
"""The exchange in two phases, whose kernel goes on with nodes x ranks of a node: `hierarchical 2x4`."""


def cases_of(samples: Iterable[Sample], link: str) -> list[Cases]:
    """Gather samples by operation, dtype and kernel.

    Parameters
    ----------
    samples : as `raw.read` gives them
    link : the tier that joined the ranks
    """
    return [as_cases(place, group) for place, group in placed(samples, link).items()]


def placed(samples: Iterable[Sample], link: str) -> Mapping[Place, list[Sample]]:
    """Gather samples by where a plan looks them up."""
    groups: dict[Place, list[Sample]] = {}
    for sample in samples:
        if (place := place_of(sample, link)) is not None:
            groups.setdefault(place, []).append(sample)
    return groups


def unplaced(samples: Iterable[Sample], link: str) -> list[str]:
    """Name the operations that no plan looks up, in order."""
    known: dict[str, bool] = {}
    for sample in samples:
        known[sample.operation] = known.get(sample.operation, False) or place_of(sample, link) is not None
    return sorted(operation for operation, placed in known.items() if not placed)


def place_of(sample: Sample, link: str) -> Place | None:
    """Return where a plan looks a sample up; None where it does not."""
    operation, dtype, kernel = sample.operation, sample.dtype, sample.kernel
    if operation in ("gemm", "grouped_gemm"):
        return Place(operation=operation, dtype=dtype, kernel=kernel)
    if operation in ("attention_prefill", "attention_decode"):
        return Place(operation=operation, dtype=dtype, kind=kernel)
    if (what := (operation, dtype, kernel)) in PASSES:
        kind = PASSES[what]
        return Place(operation="elementwise", dtype="bf16" if kind else "", kind=kind)
    if operation == "host":
        return Place(operation=operation)
    if operation == "all_to_all" and kernel.startswith(LEVELS):
        return Place(operation=LEVELS, kind=link)
    if operation in ROUNDS or operation == "send" or (operation == "all_to_all" and kernel in ("even", "uneven")):
        return Place(operation=operation, kind=link)
    if operation == "copy":
        tier, _, how = kernel.partition(" ")
        return Place(operation=operation, kind=tier, kernel=how)
    return None


def as_cases(place: Place, samples: list[Sample]) -> Cases:
    """Return samples of one place as timed points."""
    read = _READERS[place.operation]
    points = [read(sample) for sample in samples]
    inputs = {name: np.array([point[name] for point in points], dtype=float) for name in points[0]}
    return Cases(
        operation=place.operation,
        dtype=place.dtype,
        kind=place.kind,
        kernel=place.kernel,
        inputs=inputs,
        seconds=np.array([sample.median for sample in samples]),
        family=_family(inputs),
    )


def _family(inputs: Mapping[str, Floats]) -> Int[np.ndarray, " case"]:
    """Tell apart the shapes that a model would hold: widths, heads, ranks; a point alone where it has none."""
    names = [name for name in ("n", "k", "heads", "kv_heads") if name in inputs]
    return family_of(*(inputs[name] for name in names)) if names else np.arange(len(next(iter(inputs.values()))))


def _only(*names: str) -> Callable[[Sample], Inputs]:
    return lambda sample: {name: sample.inputs[name] for name in names}


def _experts(sample: Sample) -> Inputs:
    """Read a grouped product; where all experts are padded, it is one of equal rows."""
    inputs = {name: sample.inputs[name] for name in ("rows", "slots", "skew", "n", "k")}
    if sample.kernel not in PADDED:
        return inputs
    return {**inputs, "rows": sample.inputs["slots"] * sample.inputs["fullest"], "skew": 0.0}


def _exchange(sample: Sample) -> Inputs:
    moved = max(sample.inputs["sent"], sample.inputs["received"])
    return {"moved": moved, "messages": sample.inputs["messages"]}


def _by_levels(sample: Sample) -> Inputs:
    """Read the width of the innermost level off the kernel's name."""
    width = float(sample.kernel.rpartition("x")[2])
    return {"size": sample.inputs["size"], "ranks": float(sample.ranks), "width": width}


_ATTENTION = _only("heads", "kv_heads", "key_dim", "value_dim", "tokens", "prompts", "pairs", "keys")
_READERS: Mapping[str, Callable[[Sample], Inputs]] = MappingProxyType(
    {
        "gemm": _only("m", "n", "k"),
        "grouped_gemm": _experts,
        "attention_prefill": _ATTENTION,
        "attention_decode": _ATTENTION,
        "elementwise": _only("traffic"),
        "host": _only("calls"),
        "copy": _only("size"),
        "send": _only("size"),
        **dict.fromkeys(ROUNDS, _only("size", "ranks")),
        "all_to_all": _exchange,
        LEVELS: _by_levels,
    }
)
"""What of a sample's inputs an operation's cost depends on."""
