"""What is taken from the other folders of the wings, from where they are: in a checkout, or installed inside moesim."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibrate import fit, machine, measured, nodes, plain, ranks, raw, settings, spread, suite
    from calibrate.pieces import bench
    from validate.layers import building, clock, emulated, layer, spec
else:
    _root = __name__.rpartition("validate.run")[0]
    _HOMES = {
        **{name: f"{_root}calibrate.{name}" for name in ("fit", "machine", "measured", "nodes", "plain", "ranks")},
        **{name: f"{_root}calibrate.{name}" for name in ("raw", "settings", "spread", "suite")},
        "bench": f"{_root}calibrate.pieces.bench",
        **{name: f"{_root}validate.layers.{name}" for name in ("building", "clock", "emulated", "layer", "spec")},
    }

    def __getattr__(name: str) -> Any:
        """Import a module when it is first asked for: some need torch, and planning has none."""
        if name not in _HOMES:
            raise AttributeError(name)
        return import_module(_HOMES[name])


__all__ = [
    "bench",
    "building",
    "clock",
    "emulated",
    "fit",
    "layer",
    "machine",
    "measured",
    "nodes",
    "plain",
    "ranks",
    "raw",
    "settings",
    "spec",
    "spread",
    "suite",
]
