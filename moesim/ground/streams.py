"""Streams of random numbers, each found by its name."""

from zlib import crc32

import numpy as np

__all__ = ["stream"]


def stream(seed: int, name: str, replication: int = 0) -> np.random.Generator:
    """A stream depends on its seed, its name and its replication, and on no other stream.

    So adding a stream disturbs none that exists, and two plans run with one seed face the same arrivals: what differs
    between their results is due to the plans.

    Parameters
    ----------
    seed
        The root of a whole run, not negative.
    name
        What the numbers are for: ``"arrivals"``, ``"lengths"``, ``"routing"``, ``"failures"``, ``"residuals"``.
    replication
        Which independent repetition of the run this is, from 0.

    Returns
    -------
    np.random.Generator
        A fresh generator at the start of its stream. The bit generator is named rather than left to NumPy's default,
        which may change; a seed's numbers must not.

    Examples
    --------
    >>> stream(7, "arrivals").integers(1000, size=3).tolist()
    [662, 218, 337]
    >>> stream(7, "lengths").integers(1000, size=3).tolist()
    [655, 901, 997]
    >>> stream(7, "arrivals", replication=1).integers(1000, size=3).tolist()
    [545, 156, 33]
    """
    root = np.random.SeedSequence(seed, spawn_key=(crc32(name.encode()), replication))
    return np.random.Generator(np.random.PCG64(root))
