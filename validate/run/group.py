"""Ranks as processes: started in their places, watched, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from moesim.ground.errors import MoesimError

from . import wing
from .links import Place

POLL = 0.05
"""Seconds between looks at the ranks."""
START = 60.0
"""Seconds that ranks may take to start and find each other before silence counts, on a machine that is busy."""
LINGER = 5.0
"""Seconds that ranks are given to say why they fail once one has: the first to end is not always the one at fault."""


class GroupFailed(MoesimError):
    """A rank died, or all fell silent."""


def run_group(
    module: str,
    words: Sequence[str],
    places: Sequence[Place],
    ranks: int,
    alive: Callable[[], float | None],
    silence: float,
) -> None:
    """Run a module as so many ranks, dealt over places in blocks, until all have ended.

    Parameters
    ----------
    alive : when a rank last said anything, by the monotonic clock; None: nothing yet
    silence : s without a word after which the ranks are taken to hang

    Raises
    ------
    GroupFailed
        Why; all ranks are ended.
    """
    with tempfile.TemporaryDirectory() as folder, _started(module, words, places, ranks, Path(folder)) as running:
        begun = time.monotonic()
        while any(rank.poll() is None for rank in running):
            if any(rank.poll() for rank in running):
                raise GroupFailed(_why(running, Path(folder)))
            last = alive()
            if time.monotonic() - (begun + START if last is None else last) > silence:
                raise GroupFailed(f"silent for {silence:.0f} s, so the ranks were ended")
            time.sleep(POLL)
        if any(rank.returncode for rank in running):
            raise GroupFailed(_why(running, Path(folder)))


@contextmanager
def _started(
    module: str, words: Sequence[str], places: Sequence[Place], ranks: int, folder: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the ranks; end them, and all they started, at the end."""
    port, local = _free_port(), ranks // len(places)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            place = places[rank // local]
            environment = (
                os.environ
                | wing.ranks.environment_of(ranks)
                | {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank % local),
                    "WORLD_SIZE": str(ranks),
                    "LOCAL_WORLD_SIZE": str(ranks),  # one host, whatever its network looks like: ranks share a clock
                    "MASTER_ADDR": places[0].address,
                    "MASTER_PORT": str(port),
                    "GLOO_SOCKET_IFNAME": place.interface,
                }
            )
            command = [*place.prefix, sys.executable, "-m", module, *words]
            with (folder / f"rank{rank}").open("wb") as said:
                running.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.PIPE, stderr=said, start_new_session=True
                    )
                )
        yield running
    finally:
        for process in running:
            _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(rank: subprocess.Popen[bytes]) -> None:
    """End a rank and all that it started: they are a session of their own."""
    try:
        os.killpg(rank.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        rank.communicate()


def _why(running: Sequence[subprocess.Popen[bytes]], folder: Path) -> str:
    """Find which rank is at fault: one that was killed, before one that says why, before one that lost its peer."""
    until = time.monotonic() + LINGER
    while time.monotonic() < until and any(rank.poll() is None for rank in running):
        time.sleep(POLL)
    reasons = [_reason(rank, number, folder) for number, rank in enumerate(running) if rank.poll()]
    return min(reasons)[1]


def _reason(rank: subprocess.Popen[bytes], number: int, folder: Path) -> tuple[int, str]:
    """Say how a rank ended, and how likely it is the cause: the less the likelier."""
    if rank.returncode < 0:
        name = signal.Signals(-rank.returncode).name
        hint = "; where nobody killed it, the system did for want of memory" if name == "SIGKILL" else ""
        return 0, f"rank {number} was ended by {name}{hint}"
    said = [line.strip() for line in (folder / f"rank{number}").read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(said) if line), f"exit code {rank.returncode}")
    lost = any(word in last for word in ("Connection closed", "Connection reset", "Timed out waiting", "gloo"))
    return 2 if lost else 1, f"rank {number}: {last.removeprefix('moesim: ')}"
