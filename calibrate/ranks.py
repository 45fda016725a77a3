"""Several processes that measure together: started with torchrun, watched, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import torch
from torch import distributed as dist

from moesim.ground.errors import MoesimError

from .pieces.bench import Bench, Pool
from .settings import threads

SILENCE = timedelta(seconds=60)
"""How long ranks wait for one that says nothing before they give up."""
START = 90.0
"""Seconds for starting processes and giving up on a silent one, beyond their budget."""


LAUNCHER = "MOESIM_LAUNCHER"
"""Names in a rank's environment the process that launched it."""


def join(device: torch.device, scratch: Path, pool: int) -> Bench:
    """Join the other ranks: NCCL between gpus, gloo between CPUs, and gloo for agreeing on what to do."""
    if LAUNCHER in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[LAUNCHER]),), daemon=True).start()
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cpu":
        torch.set_num_threads(threads(int(os.environ["LOCAL_WORLD_SIZE"])))
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


def _end_with(launcher: int) -> None:
    """End this rank once a process that launched it is gone, which may have been killed and could end nothing.

    That is torchrun, its parent, which starts each rank in a session of its own, or the process that started torchrun.
    """
    parent = os.getppid()
    while True:
        if os.getppid() != parent:
            os._exit(1)
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(0.2)


def leave() -> None:
    """Leave the other ranks."""
    dist.destroy_process_group()


def launch(
    module: str,
    arguments: Sequence[str],
    ranks: int,
    budget: float,
    told: Callable[[str], bool] = lambda line: False,
) -> None:
    """Run a module in so many processes on this machine and wait for them.

    Parameters
    ----------
    module, arguments : what each runs
    ranks : how many
    budget : s, that they should take
    told : called with each line they say; a line for which it gives False may be why they failed

    Raises
    ------
    MoesimError
        A rank died or fell silent; all are ended, and what they wrote is kept.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", module, *arguments]
    environment = environment_of(ranks) | os.environ | {LAUNCHER: str(os.getpid())}
    running = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    said = list[str]()
    listening = threading.Thread(target=_listen, args=(running.stderr, told, said))
    listening.start()
    try:
        running.wait(timeout=budget + START)
    except subprocess.TimeoutExpired:
        raise MoesimError(
            f"{ranks} ranks were silent for {START:.0f} s beyond their budget and were ended; finished samples are kept"
        ) from None
    finally:
        _end(running)
        listening.join()
    if running.returncode:
        raise MoesimError(f"{ranks} ranks: {_why(''.join(said))}; finished samples are kept")


def environment_of(ranks: int) -> dict[str, str]:
    """Return the environment of ranks on one machine: loopback, a share of the cores, and memory that is kept.

    Given back to the system at every free, as is the default for large pieces, memory would be mapped anew page by page
    at every call, which on a CPU takes longer than many a kernel.
    """
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    return {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(threads(ranks))} | kept


def _listen(stream: TextIO, told: Callable[[str], bool], said: list[str]) -> None:
    """Keep what is said until the end, but for what `told` takes."""
    with stream:
        said.extend(line for line in stream if not told(line))


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
