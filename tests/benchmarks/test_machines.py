"""CPU time of loading and validating everything that ships: machines, prices, models."""

from __future__ import annotations

import time

import pytest

from moesim.files import models, prices, profiles


def load_all() -> int:
    """Load every device, node, fabric, price and model anew."""
    for cached in (profiles._built_in, prices.load_price, models._built_in):
        cached.cache_clear()
    found = [profiles.load_profile(kind, name) for kind in profiles.FOLDERS for name in profiles.profile_names(kind)]
    dated = [prices.load_price(device) for device in prices.priced_devices()]
    return len(found) + len(dated) + len([models.load(name) for name in models.model_names()])


@pytest.mark.benchmark(timer=time.process_time)
def test_the_whole_atlas(benchmark) -> None:
    """Everything that ships: reach 1 s of CPU."""
    loaded = benchmark.pedantic(load_all, rounds=3, warmup_rounds=1)
    assert loaded == load_all() > 80
