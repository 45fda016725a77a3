"""The program of one rank: it builds every trial, runs all of them by turns, round after round, and times each step.

Rank 0 appends a line to the results after each turn, and says which trial is under way, so that a rank that dies or
hangs leaves all that was measured and the name of what it was at.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from moesim.ground.errors import MoesimError

from .bundle import Bundle, Setting, Trial, read_bundle
from .memory import Memory
from .stalls import Stalls, compiling_anew
from .wing import bench, building, clock, emulated, layer, ranks, spec

WARM = 2
"""Steps of every draw before the first round."""
WATCHED = 5
"""Passes over the draws with the parts recorded, after the last round."""
EXCHANGES = ("sizes", "dispatch", "combine")
"""Parts in which ranks wait for each other."""


def main(words: Sequence[str]) -> int:
    """Run some trials of a bundle: FOLDER RESULTS UNDERWAY TRIAL..."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, results, underway, *names = words
    bundle = read_bundle(Path(folder))
    try:
        session = Session(bundle, Path(results), Path(underway))
        session.run([trial for trial in bundle.trials if trial.name in names])
    except MoesimError as fault:
        sys.stderr.write(f"moesim: {fault}\n")
        return 1
    return 0


def _end_with_parent() -> None:
    """End when the program that started this rank is gone, however it ended."""
    os.read(sys.stdin.fileno(), 1)  # nothing ever comes; a read by Python itself would hold up the end of this rank
    os._exit(1)


class Session:
    """One rank's part of a run."""

    def __init__(self, bundle: Bundle, results: Path, underway: Path) -> None:
        """Join the other ranks."""
        self.bundle, self.results, self.underway = bundle, results, underway
        device = torch.device(bundle.setting.device)
        self.bench = ranks.join(device, results.parent, pool=1 << 20) if bundle.setting.ranks > 1 else _alone(device)
        self.memory = Memory(self.bench.device)

    def run(self, trials: Sequence[Trial]) -> None:
        """Build and warm up every trial, run all rounds, then look where the time goes."""
        run = [trial for trial in trials if not trial.aside]
        turn = self._course if self.bundle.course else self._turn
        anew = compiling_anew if any(trial.spec["compiled"] for trial in run) else nullcontext
        with anew():
            held = {trial.name: made for trial in run if (made := self._made(trial)) is not None}
            for number in range(self.bundle.rounds):
                order = list(held) if number % 2 == 0 else list(reversed(held))
                for name in order:
                    turn(name, held[name], number)
            for name, made in held.items():
                self._watched(name, made)
        if self.bench.ranks > 1:
            ranks.leave()

    def _made(self, trial: Trial) -> Made | None:
        """Build a trial and step it until it is warm; None where any rank cannot build it, which is told.

        On one rank, neither can a layer be had whose first step fails: a gpu may refuse a kernel, or to capture it.
        """
        self._say(trial.name)
        fault, stalled = "", 0.0
        try:
            made = Made(trial, self.bundle, self.bench)
            if self.bench.ranks == 1:
                stalled = self._compiled(made)
        except Exception as caught:  # whatever a layer or torch says: this trial is lost, not the run
            fault = f"{caught}".strip().splitlines()[0] if f"{caught}".strip() else type(caught).__name__
        if faults := [each for each in self._gathered(fault) if each]:
            self._keep({"trial": trial.name, "failed": faults[0]})
            return None
        if self.bench.ranks > 1:  # whose first step fails leaves the others waiting, and all are ended
            stalled = self._most(self._compiled(made))
        self._keep({"trial": trial.name, "compile": stalled})
        for draw in range(WARM * made.draws if not self.bundle.course else WARM):
            made.step(draw % made.draws)
        self._settle()
        return made

    def _compiled(self, made: Made) -> float:
        """Step for the first time, and return how long that was held up by compiling."""
        stalls = Stalls()
        made.step(0, stalls)
        return stalls.taken()

    def _turn(self, name: str, made: Made, number: int) -> None:
        """Step once over all draws, each timed from when the last rank starts until the last one ends."""
        self._say(name)
        self.memory.reset()
        seconds = [self._timed(made, draw) for draw in range(made.draws)]
        line = {"trial": name, "round": number, "seconds": seconds, "memory": self._most(self.memory.high())}
        self._keep(line)

    def _course(self, name: str, made: Made, number: int) -> None:
        """Walk the course from the layer as it was built, with nothing compiled but what its first step needs.

        Only a layer that may change has to forget what it was compiled for before.
        """
        self._say(name)
        self.memory.reset()
        stalls, seconds, still = Stalls(), list[float](), list[float]()
        with compiling_anew() if made.layer.spec.reactions else nullcontext():
            made.start()
            for draw in range(made.draws):
                seconds.append(self._timed(made, draw, stalls))
                still.append(self._most(stalls.taken()))
        seconds[0], still[0] = seconds[0] - still[0], 0.0  # known already: only run once more
        memory = self._most(self.memory.high())
        self._keep({"trial": name, "round": number, "seconds": seconds, "memory": memory})
        running = (np.array(seconds) - still).tolist()
        for aside in (trial.name for trial in self.bundle.trials if trial.aside == name):
            self._keep({"trial": aside, "round": number, "seconds": running, "memory": memory})

    def _timed(self, made: Made, draw: int, watch: clock.Clock = clock.SILENT) -> float:
        self._settle()
        if self.bench.ranks > 1:
            dist.barrier(group=self.bench.talk)
        start = time.perf_counter()
        made.step(draw, watch)
        self._settle()
        end = time.perf_counter()
        if self.bench.ranks == 1:
            return end - start
        last = torch.tensor([start, end], dtype=torch.float64)
        dist.all_reduce(last, op=dist.ReduceOp.MAX, group=self.bench.talk)
        return float(last[1] - last[0])

    def _watched(self, name: str, made: Made) -> None:
        """Record the parts of a step, the mean over draws: of each the busiest rank's, but of exchanges the shortest.

        A rank that has nothing to wait for is the one that tells how long an exchange takes.
        """
        self._say(name)
        watch = clock.Recorder(device=self.bench.device)
        steps: list[dict[str, float]] = []
        passes = WATCHED
        if self.bundle.course:
            made.start()
            passes = 1
        for draw in range(passes * made.draws):
            if self.bench.ranks > 1:
                dist.barrier(group=self.bench.talk)
            made.step(draw % made.draws, watch)
            steps.append(watch.seconds())
        everyone: list[Mapping[str, float]] = self._gathered(_typical(steps, made.draws))
        names = dict.fromkeys(part for each in everyone for part in each)
        parts = {part: (min if part in EXCHANGES else max)(each.get(part, 0.0) for each in everyone) for part in names}
        self._keep({"trial": name, "parts": parts})

    def _gathered(self, said: Any) -> list[Any]:
        """Return what every rank says."""
        if self.bench.ranks == 1:
            return [said]
        heard: list[Any] = [None] * self.bench.ranks
        dist.all_gather_object(heard, said, group=self.bench.talk)
        return heard

    def _most(self, value: float) -> float:
        return float(max(self._gathered(value)))

    def _settle(self) -> None:
        if self.bench.device.type == "cuda":
            torch.cuda.synchronize()

    def _say(self, name: str) -> None:
        """Note which trial is under way."""
        if self.bench.rank == 0:
            self.underway.write_text(name)

    def _keep(self, line: Mapping[str, Any]) -> None:
        """Append one line to the results."""
        if self.bench.rank == 0:
            with self.results.open("a") as file:
                file.write(json.dumps(line) + "\n")


class Made:
    """A trial built on this rank, with the tokens and the routing of every draw."""

    def __init__(self, trial: Trial, bundle: Bundle, here: bench.Bench) -> None:
        """Build the layer, seeded alike on all ranks."""
        asked = spec.from_json(trial.spec)
        choices = torch.from_numpy(bundle.choices[trial.choices][:, here.rank])
        generator = torch.Generator().manual_seed(1 + here.rank)
        shape = (len(choices), choices.shape[1], asked.hidden)
        kind = torch.bfloat16 if asked.dtype == "bf16" else torch.float32
        tokens = torch.randn(shape, generator=generator).to(here.device, kind)
        self.tokens: tuple[Tensor, ...] = tuple(each.requires_grad_(asked.backward) for each in tokens.clone().unbind())
        self.routing: tuple[Tensor, ...] = choices.to(here.device).unbind()
        group = dist.group.WORLD if here.ranks > 1 else None
        history = _history(bundle.choices[trial.choices], asked, here.rank) if asked.cache else None
        self.layer: layer.Layer = building.build(
            asked, group, here.rank, here.device, 0, history=history, scratch=here.scratch, link=_link(bundle.setting)
        )

    @property
    def draws(self) -> int:
        """How many batches it is run with."""
        return len(self.routing)

    def start(self) -> None:
        """Forget what was done so far, with what the first step needs compiled."""
        self.layer.restart()
        self.step(0)
        self.layer.restart()

    def step(self, draw: int, watch: clock.Clock = clock.SILENT) -> None:
        """Run one draw."""
        self.layer.step(self.tokens[draw], self.routing[draw], watch, batch=draw)


def _typical(steps: Sequence[Mapping[str, float]], draws: int) -> dict[str, float]:
    """Return the median of each part over the passes of a draw, the mean over draws."""
    names = dict.fromkeys(part for step in steps for part in step)
    if not names:  # a captured graph is one piece
        return {}
    seconds = np.array([[step.get(name, 0.0) for name in names] for step in steps])
    found = np.median(seconds.reshape(-1, draws, len(names)), axis=0).mean(axis=0)
    return dict(zip(names, found.tolist(), strict=True))


def _history(choices: np.ndarray[Any, Any], asked: spec.LayerSpec, rank: int) -> np.ndarray[Any, Any]:
    """Say which of a rank's slots each draw uses, over and over: what a cache that knows the future is told."""
    local = len(asked.placement) // asked.ep
    first = rank % asked.ep * local
    block = choices[:, rank // asked.ep * asked.ep :][:, : asked.ep, :, : asked.topk]
    used = [[bool((draw == expert).any()) for expert in asked.placement[first : first + local]] for draw in block]
    return np.array(used)


def _link(setting: Setting) -> emulated.Link | None:
    """Return the link of a rank where a slow one is emulated."""
    if setting.link != "emulated":
        return None
    return emulated.Link(rate=setting.rate, latency=setting.latency, width=setting.ranks // setting.nodes)


def _alone(device: torch.device) -> bench.Bench:
    return bench.Bench(device=device, pool=bench.Pool(device=device, size=1 << 20), scratch=Path())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
