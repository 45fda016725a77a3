"""Time of experts that the host's CPUs compute where the weights lie."""

from __future__ import annotations

import numpy as np

from moesim.ground.units import Bytes
from moesim.schedules.costs.kernels import Params, Size, Time


def hosted(total: Size, active: Size, weights: Size, *, stored: Bytes, params: Params) -> Time:
    """Experts on the host take a call, and then the slower of the CPUs' products and of reading the weights.

    call + max(2 S w / peak, A w stored / bandwidth), without the call where there are no rows

    Roofline, Williams et al., CACM 52(4), 2009, of one memory domain.

    Parameters
    ----------
    total, active : rows S over all slots, and slots A with rows
    weights : parameters w of an expert
    stored : bytes of a parameter
    params : call (s), peak (flop/s), bandwidth (B/s) of a memory domain

    Examples
    --------
    >>> fit = {"call": 1.0, "peak": 4.0, "bandwidth": 2.0}
    >>> hosted(np.array([1.0, 6.0, 0.0]), np.array([1.0, 1.0, 0.0]), np.array([2.0]), stored=2.0, params=fit)
    array([3., 7., 0.])
    """
    computing, reading = hosted_loads(total, active, weights, stored=stored, params=params)
    return np.asarray((active > 0) * params["call"] + np.maximum(computing, reading))


def hosted_loads(total: Size, active: Size, weights: Size, *, stored: Bytes, params: Params) -> tuple[Time, Time]:
    """At least so long are the CPUs and their memory busy: 2 S w / peak, A w stored / bandwidth.

    Examples
    --------
    >>> fit = {"peak": 4.0, "bandwidth": 2.0}
    >>> hosted_loads(np.array([6.0]), np.array([1.0]), np.array([2.0]), stored=2.0, params=fit)
    (array([6.]), array([2.]))
    """
    return total * weights * (2.0 / params["peak"]), active * weights * (stored / params["bandwidth"])
