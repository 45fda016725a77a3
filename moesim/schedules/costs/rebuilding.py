"""Seconds to make a step's graph anew: compiling it and, where the machine does that, capturing it."""

from __future__ import annotations

from moesim.ground.errors import MoesimError
from moesim.ground.units import Seconds
from moesim.world.hardware import Device, Fit

FORM = "compile"
"""The form of both."""
PARAMETERS = ("launch", "per_layer")
STEPS = ("compile", "graph")
"""Keys of what rebuilding takes, one after the other."""


def rebuilding(device: Device, layers: float) -> Seconds | None:
    """Return what it takes to make a graph anew; None where nobody measured the device compiling.

    The sum over compiling and capturing of launch + layers x per_layer.

    Parameters
    ----------
    device : with a fit `compile` and, where it captures graphs, one `graph`
    layers : products of the graph, each with the small work around it

    Raises
    ------
    MoesimError
        Such a fit is of another form, or lacks a parameter.

    Examples
    --------
    >>> from moesim.ground.units import Source
    >>> source = Source(kind="fitted", title="5 points")
    >>> fit = Fit(form="compile", params={"launch": 1.0, "per_layer": 0.1}, shared=0, point=0, box={}, source=source)
    >>> bare = Device(name="d", memory=1, bandwidth=1, power=1, processors=1, cache=0, flop_rate={})
    >>> known = Device(name="d", memory=1, bandwidth=1, power=1, processors=1, cache=0, flop_rate={},
    ...                fits={"compile": fit})
    >>> rebuilding(bare, 20.0), rebuilding(known, 20.0)
    (None, 3.0)
    """
    if STEPS[0] not in device.fits:
        return None
    return sum(straight(device.fits[key], layers) for key in STEPS if key in device.fits)


def straight(fit: Fit, layers: float) -> Seconds:
    """Return the time of a graph of so many layers.

    Raises
    ------
    MoesimError
        The fit is of another form, or lacks a parameter.
    """
    if fit.form != FORM or set(fit.params) != set(PARAMETERS):
        raise MoesimError(
            f"a fit of compiling is of form `{fit.form}` with {', '.join(fit.params) or 'no parameters'}; "
            f"write `form: {FORM}` with {' and '.join(PARAMETERS)}"
        )
    return fit.params["launch"] + layers * fit.params["per_layer"]
