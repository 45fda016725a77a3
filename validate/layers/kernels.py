"""The pieces that are compiled where a layer is: each by itself, for one shape, as they are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moesim.ground.errors import Fault, InputError

from .experts import Matrices, equal
from .pieces import compilation, routing

VARIANTS = 128
"""Shapes that one piece may be compiled for in a process: each change of capacity is one more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernels:
    """What computes: pieces as they are, or compiled."""

    gate: Callable[..., tuple[Tensor, Tensor]] = routing.gate
    mask: Callable[..., Tensor] = routing.dispatch_mask
    dispatch: Callable[..., Tensor] = routing.dispatch_dense
    combine: Callable[..., Tensor] = routing.combine_dense
    buffer_order: Callable[..., Tensor] = routing.buffer_order
    encode: Callable[..., Tensor] = routing.encode
    decode: Callable[..., Tensor] = routing.decode
    experts: Callable[[Tensor, Matrices], Tensor] = equal


EAGER = Kernels()


def compiled(device: torch.device) -> Kernels:
    """Compile all pieces, for fixed shapes: another shape is compiled anew when it is first met.

    Raises
    ------
    InputError
        torch.compile does not work on this machine.
    """
    try:
        compilation.load_compiler(device)
    except Exception as fault:  # whatever the compiler's tools throw
        said = str(fault).strip().splitlines()
        problem = f"torch.compile does not work on this machine ({said[0] if said else type(fault).__name__})"
        remedy = "install a C++ compiler such as g++, or leave it out"
        raise InputError("layer", [Fault(path="compiled", problem=problem, remedy=remedy)]) from fault
    _allow("recompile_limit", "cache_size_limit", VARIANTS)
    _allow("accumulated_recompile_limit", "accumulated_cache_size_limit", VARIANTS * len(fields(Kernels)))
    return Kernels(**{each.name: torch.compile(getattr(EAGER, each.name), dynamic=False) for each in fields(Kernels)})


def _allow(name: str, before: str, variants: int) -> None:
    """Raise a limit of the compiler, by its name or, up to torch 2.6, the one it had before."""
    settings = torch._dynamo.config
    known = name if hasattr(settings, name) else before
    setattr(settings, known, max(getattr(settings, known), variants))
