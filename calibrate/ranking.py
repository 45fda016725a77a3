"""Which kernel each framework runs: of those tabled for it, the one that was measured to be the fastest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .cases import Cases
from .tables import FRAMEWORKS

DIGITS = 6
"""Significant digits in which sizes of one shape agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """Kernels that a framework runs too, though its own tables may not hold them.

    Attributes
    ----------
    borrower, lender : frameworks
    kernel : part of the name that the lender's tables give them
    keys : operations and formats that the borrower runs them for
    """

    borrower: str
    lender: str
    kernel: str
    keys: frozenset[str]


LOANS = (
    # FlashInfer's "trtllm" kernels are those of TensorRT-LLM's TRTLLM backend, which computes such experts on
    # Blackwell (TensorRT-LLM 1.3, moe_config.backend; InferenceX's launch scripts of B200 ask for it).
    Loan(
        borrower="tensorrt_llm",
        lender="sglang",
        kernel="flashinfer_trtllm",
        keys=frozenset({"grouped_gemm/fp8_block", "grouped_gemm/nvfp4", "grouped_gemm/mxfp4"}),
    ),
)


def framework_of(cases: Cases) -> str:
    """Name the framework that runs a kernel as plans do; "" for what every one may run, as NCCL.

    Examples
    --------
    >>> cases = Cases(operation="gemm", dtype="bf16", kind="", kernel="trtllm 1.3.0 cutlass", inputs={},
    ...               seconds=np.ones(1), family=np.zeros(1, dtype=int))
    >>> framework_of(cases)
    'tensorrt_llm'
    """
    return FRAMEWORKS.get(cases.kernel.partition(" ")[0], "")


def by_key(tables: Iterable[Cases]) -> Mapping[str, Mapping[str, list[Cases]]]:
    """Gather the kernels of each key by framework, the fastest first."""
    groups: dict[str, dict[str, list[Cases]]] = {}
    for cases in tables:
        groups.setdefault(cases.key, {}).setdefault(framework_of(cases), []).append(cases)
    for loan in LOANS:
        for key in loan.keys & groups.keys():
            lent = [cases for cases in groups[key].get(loan.lender, ()) if loan.kernel in cases.kernel]
            groups[key].get(loan.borrower, []).extend(lent)
    return {key: {name: ranked(ones) for name, ones in owners.items()} for key, owners in groups.items()}


def ranked(kernels: Sequence[Cases]) -> list[Cases]:
    """Order kernels of one key from the fastest on.

    Compared is what was measured on shapes that several were timed on: how far a kernel is above the fastest there, in
    logarithms, in the mean. One that shares no shape with any other stands behind those that do; of several such, the
    one that was timed most widely comes first.
    """
    if len(kernels) < 2:
        return list(kernels)
    points = pd.concat([_points(cases, number) for number, cases in enumerate(kernels)])
    shapes = points.groupby([name for name in points.columns if name not in ("kernel", "log")], sort=False)
    shared = points[shapes.kernel.transform("nunique") > 1]
    above = (shared.log - shapes.log.transform("min").loc[shared.index]).groupby(shared.kernel).mean()
    order = sorted(range(len(kernels)), key=lambda one: (above.get(one, np.inf), -len(kernels[one])))
    return [kernels[one] for one in order]


def quickest(cases: Cases, others: Sequence[Cases]) -> Cases:
    """Return points with the time of the kernel that was the quickest at each, which who tunes would run."""
    if not others:
        return cases
    own = _points(cases, 0)
    sizes = [name for name in own.columns if name not in ("kernel", "log")]
    theirs = pd.concat([_points(one, number) for number, one in enumerate(others)])
    least = theirs.groupby(sizes, as_index=False, sort=False).log.min()
    found = own[sizes].merge(least, on=sizes, how="left").log.to_numpy()
    return replace(cases, seconds=np.minimum(cases.seconds, np.exp(np.where(np.isnan(found), np.inf, found))))


def _points(cases: Cases, number: int) -> pd.DataFrame:
    """Write points as rows: their sizes, the number of their kernel, the logarithm of their time."""
    sizes = {name: _rounded(values) for name, values in cases.inputs.items()}
    frame = pd.DataFrame({**sizes, "kernel": number, "log": np.log(cases.seconds)})
    return frame.set_index(pd.Index(np.arange(len(frame)) + number * 10_000_000))


def _rounded(values: np.ndarray) -> np.ndarray:
    """Round to `DIGITS` significant digits."""
    scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.maximum(np.abs(values), 1e-300))))
    return np.asarray(np.round(values * scale) / scale)
