"""Processes that stay up for a module's tests and step layers together; what each finds comes back to be compared."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one rank is to do: a spec as JSON, its tokens and routing for each step."""

    spec: dict[str, Any]
    steps: tuple[tuple[Any, Any], ...]
    seed: int = 5
    record: bool = False
    history: Any = None
    emulated: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one rank found: outputs of all steps, gradients of the last, parts, and what its cache and policies did."""

    outputs: tuple[Any, ...]
    gradients: dict[str, Any]
    tokens: Any
    parts: frozenset[str]
    misses: tuple[int, ...]
    changes: tuple[int, ...]


class Ranks:
    """So many processes in one group, each at the end of a pipe."""

    def __init__(self, number: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(number):
            here, there = context.Pipe()
            worker = context.Process(target=work, args=(rank, number, str(folder / "store"), there), daemon=True)
            worker.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(worker)

    def run(self, cases: list[Case], patience: float = 60.0) -> list[Found]:
        for pipe, case in zip(self.pipes, cases, strict=True):
            pipe.send(case)
        said = []
        for pipe in self.pipes:
            assert pipe.poll(patience), "a rank is silent"
            said.append(pipe.recv())
        wrong = [answer for answer in said if isinstance(answer, str)]
        assert not wrong, wrong[0]
        return said

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()


@contextmanager
def ranks(number: int, folder: Path) -> Iterator[Ranks]:
    group = Ranks(number, folder)
    try:
        yield group
    finally:
        group.close()


def work(rank: int, number: int, store: str, pipe: Any) -> None:
    """Answer cases until the pipe is closed."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    from torch import distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=number)
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send(found(case, rank))
        except Exception:
            pipe.send(f"rank {rank}: {traceback.format_exc()}")
    dist.destroy_process_group()


def found(case: Case, rank: int) -> Found:
    """Build a case's layer, step it, and tell what came out."""
    import torch
    from moesim.validate.layers.building import build
    from moesim.validate.layers.clock import SILENT, Recorder
    from moesim.validate.layers.emulated import Link
    from moesim.validate.layers.spec import from_json

    cpu = torch.device("cpu")
    link = Link(rate=1e7, latency=1e-3, width=1) if case.emulated else None
    layer = build(from_json(case.spec), None, rank, cpu, case.seed, history=case.history, link=link)
    clock = Recorder(device=cpu) if case.record else SILENT
    outputs, misses, changes = [], [], []
    try:
        for number, (tokens, routing) in enumerate(case.steps):
            tokens.grad = None
            outputs.append(layer.step(tokens, routing, clock, batch=number % 2))
            misses.append(layer.cache.misses if layer.cache else 0)
            changes.append(layer.reacting.changes if layer.reacting else 0)
    finally:
        layer.close()
    gradients = {name: weight.grad for name, weight in layer.weights.items() if weight.grad is not None}
    return Found(
        outputs=tuple(outputs),
        gradients=gradients,
        tokens=case.steps[-1][0].grad,
        parts=frozenset(clock.seconds()) if case.record else frozenset(),
        misses=tuple(misses),
        changes=tuple(changes),
    )
