"""What an exchange takes longer in a layer than by itself: one number, found on whole layers.

A part that is timed by itself is called over and over. Between exchanges its code and data are cold and the threads
that moved bytes leave the cores late, so every pass starts slower, and so does the next exchange (measured directly on
one CPU: docs/background/evidence.md, section 10). That is charged to the two exchanges of a layer, in equal parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from scipy.optimize import minimize_scalar

from moesim.ground.units import Seconds
from moesim.schedules.costs.collectives import DIRECT
from moesim.schedules.costs.fits import machine_of
from moesim.world.hardware import Fit, Node

from .raw import Sample
from .sums import predicted

FEWEST = 4
"""Layers below which nothing is said."""


def among_work(samples: Sequence[Sample], node: Node, link: str) -> dict[str, Fit]:
    """Fit exchanges there and back: that of an all-to-all by itself, later by what layers take beyond their parts.

    Parameters
    ----------
    samples : any; layers whose experts live on all of the node's ranks count
    node : with fits of the parts
    link : the tier between ranks

    Returns
    -------
    fits by key; none where too few layers were measured, or no layer takes longer than its parts
    """
    layers = [one for one in samples if _exchanged(one) and one.ranks == node.gpus]
    if len(layers) < FEWEST or f"all_to_all/{link}" not in node.device.fits:
        return {}
    if (more := _longer(layers, node) / len(DIRECT)) == 0.0:
        return {}
    alone = machine_of(node, ()).transfer("all_to_all", link)
    params = MappingProxyType({**alone.params, "latency": alone.params["latency"] + more})
    source = replace(alone.source, title=f"{alone.source.title}, in {len(layers)} layers {more * 1e6:.0f} us longer")
    return {f"{way}/{link}": replace(alone, params=params, source=source) for way in DIRECT}


def _exchanged(sample: Sample) -> bool:
    return (sample.operation, sample.kernel) == ("moe_layer", "exchanged")


def _longer(layers: Sequence[Sample], node: Node) -> Seconds:
    """Find the time by which layers take longer than their parts, such that the sum misses by least, as a ratio."""
    parts = np.array([predicted(one, node) for one in layers])
    whole = np.array([one.median for one in layers])
    most = max(float((whole - parts).max()), 0.0)
    if most == 0.0:
        return 0.0

    def missed(more: Seconds) -> float:
        return float(np.abs(np.log((parts + more) / whole)).mean())

    return float(minimize_scalar(missed, bounds=(0.0, most), options={"xatol": 1e-4 * most}).x)
