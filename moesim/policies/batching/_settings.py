"""What every batching policy's settings must satisfy."""

from __future__ import annotations

from moesim.policies.protocols import Batching


def check(batching: Batching) -> None:
    """Refuse settings out of range.

    Raises
    ------
    ValueError
        A size is not positive, or the buckets do not ascend.
    """
    if batching.max_batch < 1:
        raise ValueError(f"max_batch = {batching.max_batch}; give at least 1")
    if batching.speculated < 0:
        raise ValueError(f"speculated = {batching.speculated}; give 0 or more")
    if list(batching.buckets) != sorted({size for size in batching.buckets if size > 0}):
        raise ValueError(f"buckets = {batching.buckets}; give positive sizes in ascending order")
