"""The ``workload`` section: requests to serve within targets, or tokens to train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from moesim.deployments.metrics import METRICS, PERCENTILES, TIMES, base_metric
from moesim.files.checked import Readers, Rules, check, gather, not_positive, refuse, shown
from moesim.files.requests import load_requests
from moesim.files.trees import Tree
from moesim.ground.errors import UnitError, nearest
from moesim.ground.units import EXAMPLES, SPELLINGS, parse
from moesim.passes.trained import OPTIMIZERS
from moesim.world.workload import (
    Arrivals,
    Lengths,
    Prefixes,
    Recorded,
    Requests,
    Serving,
    Sessions,
    Target,
    Training,
)

KINDS = ("serving", "training")
ARRIVALS = ("poisson", "gamma", "constant", "diurnal")
REPLAYED = "recorded"
"""Name of arrivals that a trace gives."""
LENGTHS = ("constant", "uniform", "lognormal", "gamma")
CLOSED = "closed"
"""Name of a closed loop, which keeps a number of requests in flight instead of following a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Horizon:
    requests: int = 10000
    warm_up: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Serving:
    requests: Requests
    targets: tuple[Target, ...] = ()
    horizon: _Horizon = field(default_factory=_Horizon)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traced:
    """Requests from a trace: replayed `speed` times as fast, or in a closed loop with a concurrency."""

    trace: str
    speed: float = 1.0
    concurrency: int = 0
    prefix_hits: float = 0.0


def read_workload(tree: Tree, file: str, folder: Path) -> Serving | Training:
    """Read a workload of the `kind` it names; paths in it start from a folder.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section.
    """
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "give its `kind`: serving or training")
    if "kind" not in tree:
        raise refuse(file, "is missing", "give `serving` or `training`", path="kind")
    kind = str(tree["kind"])
    if kind not in KINDS:
        raise refuse(file, f"`{kind}` is unknown", nearest(kind, KINDS), path="kind")
    fields = {name: value for name, value in tree.items() if name != "kind"}
    return _serving(fields, file, folder) if kind == "serving" else _training(fields, file)


def _serving(tree: Mapping[str, Tree], file: str, folder: Path) -> Serving:
    readers: Readers = {
        tuple[Target, ...]: lambda targets: _targets(targets, file),
        Requests: lambda requests: _requests(requests, file, folder),
    }
    found = check(_Serving, tree, file, readers=readers, rules=_SERVING_RULES)
    return Serving(
        requests=found.requests,
        targets=found.targets,
        horizon=found.horizon.requests,
        warm_up=found.horizon.warm_up,
    )


def _requests(tree: Tree, file: str, folder: Path) -> Requests:
    """Read requests by their laws, or ``{trace: requests.csv}``."""
    if isinstance(tree, Mapping) and "trace" in tree:
        return traced_requests(check(_Traced, tree, file, rules={_Traced: _traced_faults}), folder)
    unwritten: Readers = {Recorded: lambda _: _refuse_record(file)}
    return check(Requests, tree, file, readers=unwritten, rules=_REQUEST_RULES)


def _refuse_record(file: str) -> Recorded:
    raise refuse(file, "cannot be written here", "give `trace: requests.csv` in place of arrivals and lengths")


def traced_requests(traced: _Traced, folder: Path) -> Requests:
    """Load a trace; its rate and mean lengths are what an estimate reads."""
    recorded = load_requests(folder / traced.trace)
    recorded = replace(recorded, arrival=recorded.arrival / traced.speed, speed=traced.speed)
    span, number = float(recorded.arrival[-1]), len(recorded.arrival)
    rate = 0.0 if traced.concurrency else (number - 1) / span if span else float(number)
    return Requests(
        arrivals=Arrivals(
            generator=CLOSED if traced.concurrency else REPLAYED, rate=rate, concurrency=traced.concurrency
        ),
        input=Lengths(generator=REPLAYED, mean=float(recorded.input.mean()), cv=_spread(recorded.input)),
        output=Lengths(generator=REPLAYED, mean=float(recorded.output.mean()), cv=_spread(recorded.output)),
        prefix_hits=traced.prefix_hits,
        recorded=recorded,
    )


def _spread(tokens: Int[np.ndarray, "request"]) -> float:
    return float(tokens.std() / tokens.mean())


def _training(tree: Mapping[str, Tree], file: str) -> Training:
    return check(Training, tree, file, rules={Training: _training_faults})


def _targets(tree: Tree, file: str) -> tuple[Target, ...]:
    """Read ``{ttft.p99: 2 s}``: limits on metrics of which less is better."""
    if not isinstance(tree, Mapping):
        raise refuse(file, f"{shown(tree)} is not a section", "write limits as `ttft.p99: 2 s` lines")
    return tuple(gather(file, tree.items(), lambda metric, limit: _target(str(metric), limit, file)).values())


def _target(metric: str, limit: Tree, file: str) -> Target:
    limited = [name for name, known in METRICS.items() if known.less_is_better and known.unit in SPELLINGS]
    if base_metric(metric) not in limited:
        raise refuse(file, f"no limit can be set on `{base_metric(metric)}`", nearest(base_metric(metric), limited))
    statistic = metric.partition(".")[2]
    if statistic and statistic not in PERCENTILES:
        raise refuse(file, f"no statistic is called `{statistic}`", nearest(statistic, PERCENTILES))
    if statistic and base_metric(metric) not in TIMES:
        raise refuse(
            file, f"`{base_metric(metric)}` is one number, without statistics", f"write `{base_metric(metric)}`"
        )
    unit = METRICS[base_metric(metric)].unit
    try:
        amount = parse(limit, unit)
    except UnitError as flaw:
        remedy = "write it as `50 ms`" if unit == "s" else f"write it as `{EXAMPLES[unit]}`"
        raise refuse(file, str(flaw).partition("; ")[0], remedy) from None
    if amount <= 0:
        raise refuse(file, f"{limit!r} can never be met", "give a limit above zero")
    return Target(metric=metric, limit=amount)


def _arrival_faults(arrivals: Arrivals) -> Iterator[tuple[str, str, str]]:
    if not 0 <= arrivals.swing <= 1:
        yield "swing", f"{arrivals.swing} is not a share", "give 0 to 1, such as 0.5"
    if arrivals.swing and arrivals.generator != "diurnal":
        yield "swing", f"`{arrivals.generator}` arrivals do not swing", "use `generator: diurnal`"
    if arrivals.period <= 0:
        yield "period", "is zero", "give `24 h`"
    if arrivals.generator not in (*ARRIVALS, CLOSED):
        yield "generator", f"`{arrivals.generator}` is unknown", nearest(arrivals.generator, (*ARRIVALS, CLOSED))
    elif arrivals.generator == CLOSED and (arrivals.rate or not arrivals.concurrency):
        yield "concurrency", "a closed loop needs it, and no rate", "give `concurrency: 64`, requests kept in flight"
    elif arrivals.generator != CLOSED and (arrivals.concurrency or not arrivals.rate):
        yield "rate", f"`{arrivals.generator}` arrivals need it, and no concurrency", "give `rate: 12 /s`"
    if arrivals.burstiness < 0:
        yield "burstiness", f"{arrivals.burstiness} is negative", "give the squared variation of the gaps, such as 1.0"


def _length_faults(lengths: Lengths) -> Iterator[tuple[str, str, str]]:
    if lengths.generator not in LENGTHS:
        yield "generator", f"`{lengths.generator}` is unknown", nearest(lengths.generator, LENGTHS)
    if lengths.mean < 1:
        yield "mean", f"{lengths.mean:g} tokens is less than one", "give at least `1 tokens`"
    if lengths.cv < 0:
        yield "cv", f"{lengths.cv} is negative", "give the deviation over the mean, such as 0.8"


def _request_faults(requests: Requests) -> Iterator[tuple[str, str, str]]:
    if not 0 <= requests.prefix_hits < 1:
        yield "prefix_hits", f"{requests.prefix_hits} is not a share", "give 0 or more and less than 1"

    if requests.sessions and (requests.arrivals.generator == CLOSED or requests.prefixes):
        other = "prefixes" if requests.prefixes else "a closed loop"
        yield "sessions", f"do not go with {other}", "leave one of them out"


def _session_faults(sessions: Sessions) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(sessions, "gap")
    if sessions.turns < 1:
        yield "turns", f"{sessions.turns:g} is less than one", "give the mean number of turns, such as 4"


def _prefix_faults(prefixes: Prefixes) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(prefixes, "groups", "tokens")


def _traced_faults(traced: _Traced) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(traced, "speed")
    if not 0 <= traced.prefix_hits < 1:
        yield "prefix_hits", f"{traced.prefix_hits} is not a share", "give 0 or more and less than 1"


def _horizon_faults(horizon: _Horizon) -> Iterator[tuple[str, str, str]]:
    if horizon.warm_up >= horizon.requests:
        problem = f"{horizon.warm_up} leaves none of {horizon.requests} requests to measure"
        yield "warm_up", problem, "give fewer"


def _training_faults(training: Training) -> Iterator[tuple[str, str, str]]:
    yield from not_positive(training, "sequence", "sequences", "tokens")
    if training.optimizer not in OPTIMIZERS:
        yield "optimizer", f"`{training.optimizer}` is unknown", nearest(training.optimizer, OPTIMIZERS)


_SERVING_RULES: Rules = {_Horizon: _horizon_faults}
_REQUEST_RULES: Rules = {
    Arrivals: _arrival_faults,
    Lengths: _length_faults,
    Requests: _request_faults,
    Sessions: _session_faults,
    Prefixes: _prefix_faults,
}
