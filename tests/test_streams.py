import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from moesim.ground.streams import stream

NAMES = ("arrivals", "lengths", "routing", "failures", "residuals")


def first(*key: object, size: int = 4) -> list[int]:
    return stream(*key).bit_generator.random_raw(size).tolist()


def test_the_same_key_gives_the_same_numbers():
    assert first(7, "arrivals", 2) == first(7, "arrivals", 2)


@pytest.mark.parametrize(
    "other", [(8, "arrivals", 0), (7, "lengths", 0), (7, "arrivals", 1)], ids=["seed", "name", "replication"]
)
def test_every_part_of_the_key_counts(other):
    assert first(7, "arrivals", 0) != first(*other)


def test_a_seed_keeps_its_numbers_from_release_to_release():
    assert first(7, "arrivals", size=2) == [4028124412421919108, 259086335846879638]
    assert first(7, "arrivals", 1, size=2) == [2883184829156500296, 8004739396777751911]


def test_the_names_in_use_have_distinct_keys():
    assert len({crc32(name.encode()) for name in NAMES}) == len(NAMES)


def test_streams_are_uncorrelated():
    count = 20_000
    draws = [stream(0, name, replication).standard_normal(count) for name in NAMES for replication in range(3)]
    worst = max(abs(np.mean(a * b)) for a, b in combinations(draws, 2))
    assert worst < 4 / np.sqrt(count)  # four standard errors, over 105 pairs


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_another_process_with_another_hash_seed_draws_the_same(hash_seed):
    code = "from moesim.ground.streams import stream; print(stream(7, 'routing').random())"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(answer.stdout) == stream(7, "routing").random()
