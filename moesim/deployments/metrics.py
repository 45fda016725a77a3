"""The fixed vocabulary of metrics: each with its unit, its better side and its definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric's unit, whether less of it is better, what it means, and what when simulated if not the same."""

    unit: str
    less_is_better: bool
    meaning: str
    simulated: str = ""


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "price_per_token": Metric(
            unit="USD/tokens", less_is_better=True, meaning="price rate of all nodes, spares too, over output tokens/s"
        ),
        "price": Metric(unit="USD/s", less_is_better=True, meaning="price rate of all nodes, spares too"),
        "gpus": Metric(unit="", less_is_better=True, meaning="gpus of all nodes"),
        "throughput": Metric(
            unit="tokens/s",
            less_is_better=False,
            meaning="output tokens/s at full batch; in training, tokens/s",
            simulated="output tokens/s given in the measured window",
        ),
        "throughput_per_gpu": Metric(
            unit="tokens/s", less_is_better=False, meaning="throughput over all gpus paid for"
        ),
        "ttft": Metric(
            unit="s",
            less_is_better=True,
            meaning="mean time to the first token, its prefill passes and half a step; no queue",
            simulated="time from a request's arrival to its first token",
        ),
        "tpot": Metric(
            unit="s",
            less_is_better=True,
            meaning="mean time per output token after the first",
            simulated="a request's time per output token after the first",
        ),
        "itl": Metric(unit="s", less_is_better=True, meaning="gap between two output tokens of a request"),
        "e2e": Metric(unit="s", less_is_better=True, meaning="time from a request's arrival to its last token"),
        "goodput": Metric(
            unit="/s",
            less_is_better=False,
            meaning="requests per second that were done in the measured window and kept every limit",
        ),
        "utilization": Metric(unit="", less_is_better=False, meaning="share of time that replicas are at work"),
        "availability": Metric(
            unit="", less_is_better=False, meaning="share of time that replicas serve: not failed, starting or off"
        ),
        "power": Metric(
            unit="W", less_is_better=True, meaning="what all nodes draw on average, spares too, cooling apart"
        ),
        "energy_per_token": Metric(
            unit="J/tokens", less_is_better=True, meaning="power over output tokens/s, cooling apart"
        ),
        "energy_per_request": Metric(
            unit="J", less_is_better=True, meaning="power over requests served per second, cooling apart"
        ),
        "queue": Metric(unit="requests", less_is_better=True, meaning="mean number of requests that wait"),
        "prefix_hits": Metric(unit="", less_is_better=False, meaning="share of prompts that was found in the cache"),
        "preemptions": Metric(unit="", less_is_better=True, meaning="how often a request's cache was taken from it"),
        "step": Metric(
            unit="s", less_is_better=True, meaning="one pass through all stages; in training, from update to update"
        ),
        "time_to_train": Metric(
            unit="s", less_is_better=True, meaning="until all tokens are trained on, failures and checkpoints counted"
        ),
        "price_to_train": Metric(
            unit="USD", less_is_better=True, meaning="price of all nodes until all tokens are trained on"
        ),
        "useful": Metric(
            unit="",
            less_is_better=False,
            meaning="share of time that trains: not spent on checkpoints, repairs, and work done again",
        ),
        "mfu": Metric(
            unit="", less_is_better=False, meaning="work of active parameters over dense peak in the dtype of experts"
        ),
        "regret": Metric(
            unit="", less_is_better=True, meaning="how much longer reacting took than it would with full knowledge"
        ),
        "break_even": Metric(unit="steps", less_is_better=True, meaning="steps that a mean change must last to pay"),
        "memory_headroom": Metric(unit="B", less_is_better=False, meaning="free bytes on the fullest rank"),
    }
)
"""Definitions follow the project's metric table; every output prints them beside its numbers."""

SIMULATED = frozenset(
    {"itl", "e2e", "goodput", "utilization", "availability", "queue", "prefix_hits", "preemptions", "power"}
    | {"energy_per_token", "energy_per_request"}
)
"""Metrics that only a simulation gives."""

LATENCIES = frozenset({"ttft", "tpot"})
"""Metrics that only serving has."""

TRAINED = frozenset({"time_to_train", "price_to_train", "useful"})
"""Metrics that only training has."""

REACTING = frozenset({"regret", "break_even"})
"""Metrics of plans whose policies react to the routing."""

PERCENTILES = ("mean", "p50", "p90", "p99")

TIMES = ("ttft", "tpot", "itl", "e2e")
"""Metrics of single requests or tokens, which have statistics."""


def base_metric(name: str) -> str:
    """Strip a percentile from a metric's name.

    Examples
    --------
    >>> base_metric("ttft.p99")
    'ttft'
    """
    return name.split(".", 1)[0]
