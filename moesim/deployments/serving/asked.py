"""The requests of one run, made from the workload's laws: when they come and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from moesim.deployments.serving.ticks import NEVER, PER_SECOND
from moesim.ground.streams import stream
from moesim.ground.units import PerSecond, Tokens
from moesim.world.workload import Arrivals, Lengths, Recorded, Requests, Serving, Sessions

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
    """Make as many requests as the workload's horizon counts, or as its trace has where those are fewer.

    They are drawn from the streams `arrivals`, `lengths` and `sessions`: plans that are simulated with one seed face
    the same requests. A trace is the same in every replication.
    """
    requests, number = serving.requests, serving.horizon
    if requests.recorded is not None:
        return _replayed(requests, requests.recorded, number)
    lengths = stream(seed, "lengths", replication)
    prompt = draw_lengths(requests.input, number, lengths)
    output = draw_lengths(requests.output, number, lengths)
    arrival = _arrivals(requests.arrivals, number, stream(seed, "arrivals", replication))
    sharing = stream(seed, "sessions", replication)
    if requests.sessions is not None:
        return conversations(requests.sessions, requests.arrivals.rate, prompt, output, sharing)
    if requests.prefixes is not None:
        groups = sharing.integers(requests.prefixes.groups, size=number)
        shared = np.minimum(round(requests.prefixes.tokens), prompt - 1)
        return Asked(arrival=arrival, prompt=prompt, output=output, shared=shared, session=groups)
    return Asked(
        arrival=arrival,
        prompt=prompt,
        output=output,
        shared=hits(prompt, requests.prefix_hits),
        session=np.full(number, -1),
        concurrency=requests.arrivals.concurrency,
    )


def hits(prompt: Int[np.ndarray, "request"], share: float) -> Int[np.ndarray, "request"]:
    """Tokens of prompts that are cached for certain; the last one never is."""
    return np.asarray(np.minimum((prompt * share).astype(np.int64), prompt - 1))


def _replayed(requests: Requests, recorded: Recorded, number: int) -> Asked:
    """Take the first requests of a trace, at their own times or in a closed loop."""
    closed = requests.arrivals.concurrency > 0
    prompt = recorded.input[:number]
    known = bool((recorded.session >= 0).any())
    return Asked(
        arrival=np.full(len(prompt), NEVER) if closed else _ticks(recorded.arrival[:number]),
        prompt=prompt,
        output=recorded.output[:number],
        shared=recorded.shared[:number] if known else hits(prompt, requests.prefix_hits),
        session=recorded.session[:number],
        concurrency=requests.arrivals.concurrency,
    )


def conversations(
    sessions: Sessions,
    rate: PerSecond,
    new: Int[np.ndarray, "request"],
    output: Int[np.ndarray, "request"],
    rng: np.random.Generator,
) -> Asked:
    """Deal inputs and outputs to the turns of conversations, which begin as often as to make the rate.

    Numbers of turns are geometric, gaps between turns exponential.
    """
    number = len(new)
    turns = rng.geometric(1.0 / sessions.turns, number)
    session = np.repeat(np.arange(number), turns)[:number]
    first = np.flatnonzero(np.diff(session, prepend=-1))
    begins = np.cumsum(rng.exponential(sessions.turns / rate, len(first)))
    gaps = rng.exponential(sessions.gap, number)
    past, said = np.cumsum(gaps), np.cumsum(new + output)
    times = begins[session] + past - past[first][session]
    before = said - new - output
    before = before - before[first][session]  # said in this conversation so far
    order = np.argsort(times, kind="stable")
    return Asked(
        arrival=_ticks(times[order]),
        prompt=(new + before)[order],
        output=output[order],
        shared=before[order],
        session=session[order],
    )


def _ticks(times: Float[np.ndarray, "request"]) -> Int[np.ndarray, "request"]:
    return np.asarray(np.rint(times * PER_SECOND), dtype=np.int64)


def _arrivals(arrivals: Arrivals, number: int, rng: np.random.Generator) -> Int[np.ndarray, "request"]:
    if arrivals.generator == CLOSED:
        return np.full(number, NEVER, dtype=np.int64)
    times = np.cumsum(draw_gaps(arrivals, number, rng))
    return _ticks(swung(times, arrivals) if arrivals.swing else times)


def swung(times: Float[np.ndarray, "request"], arrivals: Arrivals) -> Float[np.ndarray, "request"]:
    """Move arrivals at a constant rate to where a rate that swings has let as many in.

    The rate at t is rate x (1 + swing sin(2 pi t / period)), so that by then as many are in as a constant rate lets in
    by t + swing period / (2 pi) (1 - cos(2 pi t / period)).
    """
    period = arrivals.period
    turn = np.linspace(0.0, 1.0, 4097)
    let_in = turn + arrivals.swing / (2 * np.pi) * (1 - np.cos(2 * np.pi * turn))
    whole, part = np.divmod(times / period, 1.0)
    return np.asarray((whole + np.interp(part, let_in, turn)) * period)


def draw_gaps(arrivals: Arrivals, number: int, rng: np.random.Generator) -> Float[np.ndarray, "request"]:
    """Draw the seconds between arrivals: exponential, gamma of a given burstiness, or all alike."""
    mean = 1.0 / arrivals.rate
    match arrivals.generator:
        case "poisson" | "diurnal":
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
