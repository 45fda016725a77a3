"""The requests of one run, made from the workload's laws: when they come and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.serving.ticks import NEVER, PER_SECOND
from moesim.ground.streams import stream
from moesim.ground.units import Tokens
from moesim.world.workload import Arrivals, Lengths, Requests, Serving

CLOSED = "closed"
"""Name of arrivals that keep a number of requests in flight."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """Requests in order of arrival.

    Attributes
    ----------
    arrival : ticks; in a closed loop `NEVER`, until one before it is done
    prompt, output : tokens, at least one each
    shared : first tokens of the prompt that a prefix cache may hold; less than the prompt
    session : requests of one session share them; -1: they are cached for certain
    concurrency : requests kept in flight in a closed loop; 0 where arrivals are open
    """

    arrival: Int[np.ndarray, "request"]
    prompt: Int[np.ndarray, "request"]
    output: Int[np.ndarray, "request"]
    shared: Int[np.ndarray, "request"]
    session: Int[np.ndarray, "request"]
    concurrency: int = 0


def generate(serving: Serving, *, seed: int, replication: int = 0) -> Asked:
    """Draw as many requests as the workload's horizon counts, from the streams `arrivals` and `lengths`.

    Plans that are simulated with one seed face the same requests.
    """
    requests, number = serving.requests, serving.horizon
    lengths = stream(seed, "lengths", replication)
    prompt = draw_lengths(requests.input, number, lengths)
    output = draw_lengths(requests.output, number, lengths)
    return Asked(
        arrival=_arrivals(requests, number, stream(seed, "arrivals", replication)),
        prompt=prompt,
        output=output,
        shared=np.minimum((prompt * requests.prefix_hits).astype(np.int64), prompt - 1),
        session=np.full(number, -1),
        concurrency=requests.arrivals.concurrency,
    )


def _arrivals(requests: Requests, number: int, rng: np.random.Generator) -> Int[np.ndarray, "request"]:
    if requests.arrivals.generator == CLOSED:
        return np.full(number, NEVER, dtype=np.int64)
    times = np.cumsum(draw_gaps(requests.arrivals, number, rng))
    return np.asarray(np.rint(times * PER_SECOND), dtype=np.int64)


def draw_gaps(arrivals: Arrivals, number: int, rng: np.random.Generator) -> Float[np.ndarray, "request"]:
    """Draw the seconds between arrivals: exponential, gamma of a given burstiness, or all alike."""
    mean = 1.0 / arrivals.rate
    match arrivals.generator:
        case "poisson":
            return rng.exponential(mean, number)
        case "gamma" if arrivals.burstiness > 0:
            return rng.gamma(1.0 / arrivals.burstiness, arrivals.burstiness * mean, number)
        case _:
            return np.full(number, mean)


def draw_lengths(lengths: Lengths, number: int, rng: np.random.Generator) -> Int[np.ndarray, "request"]:
    """Draw token counts of a mean and a coefficient of variation, whole and at least one.

    Uniform lengths reach from mean x (1 - sqrt(3) cv) to mean x (1 + sqrt(3) cv).
    """
    tokens = np.rint(_broken_lengths(lengths.generator if lengths.cv else "constant", lengths, number, rng))
    return np.asarray(np.maximum(tokens, 1), dtype=np.int64)


def _broken_lengths(law: str, lengths: Lengths, number: int, rng: np.random.Generator) -> Float[np.ndarray, "request"]:
    mean: Tokens = lengths.mean
    match law:
        case "lognormal":
            variance = np.log1p(lengths.cv**2)
            return rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), number)
        case "gamma":
            return rng.gamma(lengths.cv**-2, mean * lengths.cv**2, number)
        case "uniform":
            half = np.sqrt(3.0) * lengths.cv * mean
            return rng.uniform(mean - half, mean + half, number)
        case _:
            return np.full(number, mean)
