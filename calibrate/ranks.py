"""Several processes that measure together: started with torchrun, watched, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist

from moesim.ground.errors import MoesimError

from .pieces.bench import Bench, Pool

SILENCE = timedelta(seconds=60)
"""How long ranks wait for one that says nothing before they give up."""
START = 90.0
"""Seconds for starting processes and giving up on a silent one, beyond their budget."""


def world() -> int:
    """Return how many processes torchrun started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: torch.device, scratch: Path, pool: int) -> Bench:
    """Join the other ranks: NCCL between gpus, gloo between CPUs, and gloo for agreeing on what to do."""
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
    return Bench(
        device=device,
        pool=Pool(device=device, size=pool),
        scratch=scratch,
        rank=dist.get_rank(),
        ranks=dist.get_world_size(),
        one_host=int(os.environ["LOCAL_WORLD_SIZE"]) == dist.get_world_size(),
        talk=dist.new_group(backend="gloo", timeout=SILENCE) if device.type == "cuda" else None,
    )


def leave() -> None:
    """Leave the other ranks."""
    dist.destroy_process_group()


def launch(module: str, arguments: Sequence[str], ranks: int, budget: float) -> None:
    """Run a module in so many processes on this machine and wait for them.

    Raises
    ------
    MoesimError
        A rank died or fell silent; all are ended, and what they wrote is kept.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", module, *arguments]
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": _threads(ranks)} | os.environ
    running = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        _, said = running.communicate(timeout=budget + START)
    except subprocess.TimeoutExpired:
        raise MoesimError(
            f"{ranks} ranks were silent for {START:.0f} s beyond their budget and were ended; finished samples are kept"
        ) from None
    finally:
        _end(running)
    if running.returncode:
        raise MoesimError(f"{ranks} ranks: {_why(said)}; finished samples are kept")


def _threads(ranks: int) -> str:
    return str(max((os.cpu_count() or 1) // ranks, 1))


def _end(running: subprocess.Popen[str]) -> None:
    """End torchrun and every rank: they are a session of their own."""
    try:
        os.killpg(running.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        running.wait()


def _why(said: str) -> str:
    """Find in what torchrun and the ranks said which rank failed first, and why."""
    lines = [line.strip() for line in said.splitlines()]
    own = [line.removeprefix("moesim: ") for line in lines if line.startswith("moesim: ")]
    if own:
        return own[0]
    root = said.rpartition("Root Cause")[2]
    found = dict(part for line in root.splitlines() if len(part := [word.strip() for word in line.split(" : ")]) == 2)
    rank, how = found.get("rank", "").partition(" ")[0], found.get("traceback", found.get("exitcode", ""))
    return f"rank {rank} died ({how})" if rank else "a rank died"
