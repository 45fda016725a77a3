"""What is asked of the machine: requests to serve or tokens to train on, and one pass's batch of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from moesim.ground.units import PerSecond, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit on a metric, by its name in the vocabulary: ``ttft.p99`` <= 2 seconds."""

    metric: str
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of token counts, by generator name, mean and coefficient of variation."""

    generator: str
    mean: Tokens
    cv: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests arrive: an open process of a `rate`, or a closed loop that keeps `concurrency` in flight.

    Exactly one of the two is positive. `burstiness` is the squared coefficient of variation of the gaps. A diurnal
    process swings about its rate by a share `swing`, once a `period`, upwards first.
    """

    generator: str
    rate: PerSecond = 0.0
    concurrency: int = 0
    burstiness: float = 1.0
    swing: float = 0.0
    period: Seconds = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Conversations: so many `turns` on average, the next `gap` seconds after the one before, on average.

    A turn's prompt holds the conversation so far and a new input.
    """

    turns: float
    gap: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """Prompts that begin alike: with one of so many `groups` of first `tokens`."""

    groups: int
    tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Requests as they were recorded in a file.

    Attributes
    ----------
    file : where from
    speed : how many times as fast as recorded they come
    arrival : seconds after the first, not falling
    input, output : tokens, at least one
    shared : first prompt tokens that earlier requests had too
    session : whose they are; -1: nobody's
    """

    file: str
    speed: float = 1.0
    arrival: Float[np.ndarray, "request"] = field(compare=False, repr=False)
    input: Int[np.ndarray, "request"] = field(compare=False, repr=False)
    output: Int[np.ndarray, "request"] = field(compare=False, repr=False)
    shared: Int[np.ndarray, "request"] = field(compare=False, repr=False)
    session: Int[np.ndarray, "request"] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """The stream of requests.

    `prefix_hits` is the share of prompt tokens found in the prefix cache. Where requests have `sessions`, `prefixes` or
    a record of what they share, a simulation finds that out by itself, and an estimate still reads the share. Of
    `recorded` requests the arrivals and lengths are what an estimate may know: their rate and their means.
    """

    arrivals: Arrivals
    input: Lengths
    output: Lengths
    prefix_hits: float = 0.0
    sessions: Sessions | None = None
    prefixes: Prefixes | None = None
    recorded: Recorded | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Requests to serve within latency targets; `horizon` and `warm_up` count requests."""

    requests: Requests
    targets: tuple[Target, ...] = ()
    horizon: int = 10000
    warm_up: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Tokens to train on: sequences of one length, `sequences` of them per optimizer step, `tokens` in all."""

    sequence: int
    sequences: int
    tokens: Tokens
    optimizer: str = "adam"


Row = Float[np.ndarray, "*#lead #rank"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one pass works on, per rank; leading axes are plans or steps, a size-1 rank axis means all alike.

    A token is counted once, at its home: a dp group's tokens are dealt evenly over its tp x cp ranks.

    Attributes
    ----------
    prefill : new prompt tokens
    prompts : how many prompts they belong to
    pairs : query-key pairs of the prefill, sum of new x (prefix + new / 2), windows not yet applied
    keys : KV tokens read by the prefill
    decode : sequences that get one token (times 1 + speculated)
    context : their mean context, tokens
    carriers : share of the dp groups that carry the prompt tokens: where it is below 1, what is told of prefill is that
        of a group with prompts, which all others wait for; experts get the prompts of that share
    backward : training; a microbatch is prefill tokens with ``backward=True``
    """

    prefill: Row
    prompts: Row
    pairs: Row
    keys: Row
    decode: Row
    context: Row
    carriers: Row | float = 1.0
    backward: bool = False

    @property
    def tokens(self) -> Row:
        """Tokens each rank is home to, prefill and decode together."""
        return np.asarray(self.prefill + self.decode)


def prompts(count: Row, length: Row, prefix: Row | float = 0.0, *, backward: bool = False) -> Batch:
    """Build a batch of `count` whole prompts per rank, each `length` new tokens after `prefix` cached ones.

    Examples
    --------
    >>> batch = prompts(np.array([2.0]), np.array([100.0]))
    >>> batch.prefill, batch.pairs
    (array([200.]), array([10000.]))
    """
    count, length, before = np.broadcast_arrays(
        np.asarray(count, float), np.asarray(length, float), np.asarray(prefix, float)
    )
    none = np.zeros_like(count)
    return Batch(
        prefill=count * length,
        prompts=count,
        pairs=count * length * (before + length / 2),
        keys=count * (before + length),
        decode=none,
        context=none,
        backward=backward,
    )


def decoding(sequences: Row, context: Row) -> Batch:
    """Build a batch of decoding sequences per rank with a mean context (tokens)."""
    sequences, context = np.broadcast_arrays(np.asarray(sequences, float), np.asarray(context, float))
    none = np.zeros_like(sequences)
    return Batch(prefill=none, prompts=none, pairs=none, keys=none, decode=sequences, context=context)


def mixed(prefill: Batch, decode: Batch) -> Batch:
    """Fuse a prefill batch and a decode batch into one pass (chunked prefill)."""
    return Batch(
        prefill=prefill.prefill + decode.prefill,
        prompts=prefill.prompts + decode.prompts,
        pairs=prefill.pairs + decode.pairs,
        keys=prefill.keys + decode.keys,
        decode=prefill.decode + decode.decode,
        context=prefill.context + decode.context,
        backward=prefill.backward,
    )
