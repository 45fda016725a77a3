"""Rules of case files that sweep something: placements over batches, communication up to a threshold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moesim.files.profiles import load_profile
from moesim.ground.roots import crossing
from moesim.plans.plan import Policy
from moesim.policies.finding import make
from moesim.schedules.costs.fits import machine_of
from moesim.schedules.costs.forms import form_of
from moesim.schedules.ops import Copy
from moesim.world.hardware import Node

BATCHES, TOKENS, TOPICS = 64, 8192, 4
"""Batches of `device_share`, the assignments of each, and how many kinds of text take turns."""


def device_share(placement: str, experts: int, devices: int, exponent: float) -> float:
    """Largest share of a batch that any device gets: placed by the first half of the batches, worst of the second.

    Popularity falls with an expert's number by a Zipf law; each kind of text likes every `TOPICS`-th expert twice as
    much as the others.
    """
    rng = np.random.default_rng(0)
    popularity = np.arange(1.0, experts + 1) ** -exponent
    liked = np.stack([popularity * np.where(np.arange(experts) % TOPICS == topic, 2.0, 1.0) for topic in range(TOPICS)])
    liked /= liked.sum(axis=1, keepdims=True)
    counts = np.stack([rng.multinomial(TOKENS, liked[batch % TOPICS]) for batch in range(BATCHES)]) / TOKENS
    seen, later = np.split(counts, 2)
    slots = make("placement", Policy(name=placement))(seen[:, None], experts, devices, 1, rng)[0]
    return float(later[:, slots].reshape(len(later), devices, -1).sum(axis=2).max())


def copied(node: str, size: float) -> float:
    """Seconds that a copy of so many bytes from host memory takes a gpu of a shipped node alone."""
    found: Node = load_profile("node", node).profile
    op = Copy(size=np.array([size]), source="host", target="device")
    seconds, _ = form_of(op).price(op, machine_of(found, ()))
    return float(seconds[0])


def share_at(excess: Callable[[float], float], experts: float) -> float:
    """Communication over communication and experts at the point where an excess of time crosses zero."""
    exchanged = crossing(excess, 0.0, 64.0 * experts)
    return exchanged / (exchanged + experts)
