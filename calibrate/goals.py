"""What fits are asked to reach on published tables: which operation and kernel, from how many points, how near."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .cases import Cases
from .published import attentions, dispatches, exchanges, gemms, latents, mixtures, reductions

Reader = Callable[[Path, str], Iterator[Cases]]

FORMED = ("h100_sxm",)
"""Systems that were looked at while forms were chosen."""
KEPT = ("h200_sxm", "gb200")
"""Systems that were kept for the final table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One operation that is scored.

    Attributes
    ----------
    name : what is predicted
    read : gives the tables
    key, kernel : which of them: its key, and how its kernel's name begins
    points : how many points are fitted
    reach, record : mean errors to reach and wished for
    families : families of shapes that they come from, the others held out whole; 0 for all
    """

    name: str
    read: Reader
    key: str
    kernel: str
    points: int
    reach: float
    record: float
    families: int = 0


def _nccl(form: str, read: Reader) -> Goal:
    name = f"NCCL {form.replace('_', '-')}"
    return Goal(name=name, read=read, key=f"{form}/nvlink", kernel="nccl", points=24, reach=0.06, record=0.04)


def _deepep(way: str, link: str, where: str, points: int) -> Goal:
    name, key = f"DeepEP low latency, {way}, {where}", f"{way}/{link}"
    return Goal(name=name, read=dispatches, key=key, kernel="sglang", points=points, reach=0.025, record=0.02)


GOALS = (
    Goal(name="GEMM bf16", read=gemms, key="gemm/bf16", kernel="vllm", points=64, reach=0.07, record=0.05),
    Goal(name="GEMM fp8", read=gemms, key="gemm/fp8", kernel="trtllm", points=64, reach=0.05, record=0.03),
    Goal(
        name="MoE fp8 block, models never seen",
        read=mixtures,
        key="grouped_gemm/fp8_block",
        kernel="trtllm",
        points=128,
        reach=0.07,
        record=0.05,
        families=3,
    ),
    Goal(
        name="MLA decode",
        read=latents,
        key="attention_decode/bf16/mla",
        kernel="sglang",
        points=64,
        reach=0.05,
        record=0.03,
    ),
    Goal(
        name="GQA decode",
        read=attentions,
        key="attention_decode/bf16/gqa",
        kernel="vllm",
        points=64,
        reach=0.10,
        record=0.06,
    ),
    Goal(
        name="prefill attention",
        read=attentions,
        key="attention_prefill/bf16/gqa",
        kernel="trtllm",
        points=64,
        reach=0.08,
        record=0.04,
    ),
    _nccl("all_reduce", reductions),
    _nccl("all_gather", reductions),
    _nccl("reduce_scatter", reductions),
    _nccl("all_to_all", exchanges),
    _deepep("dispatch", "rail", "2 to 8 nodes", 24),
    _deepep("combine", "rail", "2 to 8 nodes", 24),
    _deepep("dispatch", "nvlink", "one node", 64),
    _deepep("combine", "nvlink", "one node", 64),
)
"""Every operation that is scored; kernels as they are named on Hopper and Blackwell alike."""

EIGHT = (0.10, 0.06)
"""Mean errors to reach and wished for on eight gpus from points of up to four."""


TWO = (0.07, 0.04)
"""The same of DeepEP's published times on 32 to 256 gpus, from points of two nodes."""
PUBLISHED: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {
        "dispatch": MappingProxyType({32: 155e-6, 64: 173e-6, 128: 192e-6, 256: 194e-6}),
        "combine": MappingProxyType({32: 273e-6, 64: 314e-6, 128: 369e-6, 256: 360e-6}),
    }
)
"""Seconds of DeepEP's low-latency kernels by gpus: 128 tokens a gpu, width 7168, 8 of 256 experts (its docs/legacy.md,
version 1; docs/background/evidence.md, section 8)."""
HELD = MappingProxyType({"tokens": 128.0, "dim": 7168.0, "topk": 8.0, "experts": 256.0, "gpus": 8.0})
"""What they were measured with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carry:
    """A device predicted from another: which, with how many points of its own, and how near."""

    system: str
    points: int
    reach: float
    record: float


CARRIES: Mapping[str, Carry] = MappingProxyType(
    {
        f"{name} from H100{f', {points} points' if points else ' by datasheet ratios'}": Carry(
            system=system, points=points, reach=reach, record=record
        )
        for name, system, reach, record in (("H200", "h200_sxm", 0.08, 0.05), ("B200", "b200_sxm", 0.12, 0.08))
        for points in (0, 4, 16, 64)
    }
)
"""Devices predicted from H100; asked for were H200 by ratios and B200 with 16 points, others are held to the same."""

LAYERS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "decode": MappingProxyType({"GEMM fp8": 4, "MoE fp8 block, models never seen": 1, "MLA decode": 1}),
        "prefill": MappingProxyType({"GEMM fp8": 4, "MoE fp8 block, models never seen": 1, "prefill attention": 1}),
    }
)
"""Operations of a layer that are added up, and how many of each, besides two all-reduces."""
LAYER = (0.035, 0.025)
"""Mean errors of such a sum to reach and wished for."""
