"""CPU time of the command line's start, counted in the processes it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def children() -> float:
    """CPU seconds, user and system, of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.benchmark(timer=children)
def test_help(benchmark) -> None:
    """`moesim --help`: reach 0.2 s of CPU, record 0.15 s."""
    shown = benchmark.pedantic(
        subprocess.run,
        args=([sys.executable, "-m", "moesim.cli", "--help"],),
        kwargs={"capture_output": True, "text": True, "check": True},
        rounds=9,
        warmup_rounds=1,
    )
    assert "optimize" in shown.stdout
