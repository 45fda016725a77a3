"""CPU time of loading and validating every built-in model."""

from __future__ import annotations

from time import process_time

import pytest

from moesim.files.models import _built_in, load, model_names
from moesim.world.model import parameters


def everything() -> float:
    """Load every model afresh; the parameters of all of them."""
    _built_in.cache_clear()
    return sum(parameters(load(name)) for name in model_names())


@pytest.mark.benchmark(timer=process_time)
def test_models(benchmark) -> None:
    """The whole zoo, the machines' share left: reach 0.5 s of CPU, record 0.21 s (0.33 s the first time)."""
    total = benchmark.pedantic(everything, rounds=5, warmup_rounds=1)
    assert total > 1e13
    assert len(model_names()) >= 55
    assert _built_in.cache_info().currsize == len(model_names())
