"""Shapes in annotations, where `jaxtyping` is missing: a bare machine has torch and NumPy, and checks no shapes.

Policies shared with the simulator name array shapes by it; nothing else of theirs needs more than NumPy.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

NAMES = ("Bool", "Float", "Int", "Shaped")


class _Anything:
    """Takes any shape and means nothing."""

    def __class_getitem__(cls, _: object) -> Any:
        return Any


def provide() -> None:
    """Put something in the place of `jaxtyping` that takes every annotation, unless it is there."""
    if "jaxtyping" in sys.modules or find_spec("jaxtyping"):
        return
    stand_in = ModuleType("jaxtyping", "No shapes are checked.")
    for name in NAMES:
        setattr(stand_in, name, _Anything)
    sys.modules["jaxtyping"] = stand_in


provide()
