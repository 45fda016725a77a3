"""How wrong the costs may be: draws of the residuals of every fit, the same for all plans.

A fit says how far measurements scatter about it: `shared`, the standard deviation of the logarithm common to all shapes
of an operation, and `point`, that of each shape by itself. One draw of the shared part applies to every task of every
plan that is priced by the fit, and one of the point part to every task of that shape; so plans that do alike things
err alike, and their difference is surer than either.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Shaped

from moesim.ground.streams import stream
from moesim.schedules.costs.fits import Machine, machine_of
from moesim.schedules.costs.forms import floor, form_of
from moesim.schedules.ops import Op
from moesim.schedules.schedule import Priced
from moesim.world.hardware import Fit, Node, Tier

NUMBER = 64
"""Draws by default: enough for a P10 and a P90 that are right to a fifth of the spread."""

Draws = Float[np.ndarray, "residual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """Draws of residuals by name, kept so that all plans of a call meet the same ones."""

    seed: int
    number: int = NUMBER
    _known: dict[Hashable, Draws] = field(default_factory=dict)

    def applied(self, priced: Priced, node: Node, fabric: tuple[Tier, ...]) -> Priced:
        """Multiply durations by drawn residuals, along a new first axis; none falls below its op's floor."""
        machine = machine_of(node, fabric)
        seconds: dict[int, Float[np.ndarray, "residual ..."]] = {}
        for task, duration in zip(priced.schedule.tasks, priced.duration, strict=True):
            if id(task.op) not in seconds:
                seconds[id(task.op)] = self._drawn(task.op, duration, machine)
        return replace(priced, duration=tuple(seconds[id(task.op)] for task in priced.schedule.tasks))

    def _drawn(self, op: Op, duration: Float[np.ndarray, "..."], machine: Machine) -> Float[np.ndarray, "residual ..."]:
        """Durations of one op, its sizes shaped (plan, draw, rank) or less."""
        fits = form_of(op).fits(op, machine)
        if not fits:
            return duration[np.newaxis]
        key, fit = max(fits.items(), key=lambda item: item[1].shared + item[1].point)
        place = f"{machine.device.name} {key}"
        factor = np.exp(self._log(place, fit.shared) + self._points(op, place, fit))[..., np.newaxis, np.newaxis]
        least = np.minimum(floor(op, machine), duration)
        return np.asarray(np.maximum(duration * factor, least))

    def _points(self, op: Op, place: str, fit: Fit) -> Float[np.ndarray, "residual plan"]:
        """Residuals of the shapes that an op has in each plan."""
        sizes = [_by_plan(getattr(op, name)) for name in form_of(op).sizes]
        shapes = zip(*np.broadcast_arrays(*sizes), strict=True)
        return np.stack([self._log(f"{place} {_name(shape)}", fit.point)[:, 0] for shape in shapes], axis=1)

    def _log(self, name: str, deviation: float) -> Float[np.ndarray, "residual 1"]:
        """Draw residuals, in logarithms, under a name."""
        if name not in self._known:
            self._known[name] = stream(self.seed, f"residuals {name}").standard_normal(self.number)
        drawn: Float[np.ndarray, "residual"] = self._known[name]
        return np.asarray(deviation * drawn[:, np.newaxis])


def _by_plan(size: Shaped[np.ndarray, "... draw rank"]) -> Float[np.ndarray, "plan"]:
    """Mean of a size in each plan."""
    plans = size.shape[-3] if size.ndim > 2 else 1
    leading = np.moveaxis(size, -3, 0) if size.ndim > 2 else size
    means: Float[np.ndarray, "plan"] = leading.reshape(plans, -1).mean(axis=1)
    return means


def _name(shape: tuple[float, ...]) -> str:
    """Name a shape by its sizes to three digits: shapes nearer than that err alike."""
    return " ".join(f"{size:.3g}" for size in shape)
