"""Seeded draws for the suites."""

from __future__ import annotations

import numpy as np


def seeded(seed: int) -> np.random.Generator:
    """Start a stream of draws."""
    return np.random.Generator(np.random.PCG64(seed))
