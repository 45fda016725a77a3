"""The timed pieces, from where `calibrate` is: beside `validate` in a checkout, or installed with it inside moesim."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrate.pieces import attention, bench, collectives, compilation, copies, passes, products, routing
else:
    _home = f"{__name__.rpartition('validate.layers')[0]}calibrate.pieces"
    attention, bench, collectives, compilation, copies, passes, products, routing = (
        import_module(f"{_home}.{name}")
        for name in ("attention", "bench", "collectives", "compilation", "copies", "passes", "products", "routing")
    )

__all__ = ["attention", "bench", "collectives", "compilation", "copies", "passes", "products", "routing"]
