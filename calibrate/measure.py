"""Measure the machine at hand: `python -m calibrate.measure --out RAW`.

torch, NumPy and the standard library are all it needs, so that it runs on a bare machine from a checkout; fitting what
it writes is done anywhere later. Run again with the same file, it goes on where it was stopped.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.ground.errors import MoesimError, nearest

from .raw import FORMAT, Line, read
from .settings import GROUPS, MODULE, Settings, settings_of, threads
from .writer import Unfinished, Writer, fresh

if TYPE_CHECKING:
    import torch

    from .machine import Speed
    from .operation import Operation
    from .pieces.bench import Bench
    from .session import Session

LONGEST = {"cpu": 0.05, "cuda": 0.010}
"""Seconds that the largest point takes, about."""
BUSY = 0.5
"""Processes that want a core, per core, above which a machine is said to be busy."""
FAILED, BAD_INPUT, STOPPED = 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code: 0, 1 for a group that failed, 2 for a wrong input, 130 when stopped."""
    try:
        settings = settings_of(words)
        return _ranked(settings) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else _alone(settings)
    except MoesimError as fault:
        _say(str(fault))
        return FAILED if isinstance(fault, Unfinished) else BAD_INPUT
    except KeyboardInterrupt:
        _say("stopped; finished samples are kept. Run the same command again: it goes on from there")
        return STOPPED


def _alone(settings: Settings) -> int:
    """Measure in this process, and between processes that it starts."""
    import torch

    from .machine import cache_size, load
    from .pieces.bench import Bench, Pool
    from .session import DeviceLost, Session

    device = _device(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(threads(settings.sharers))
    with _scratch(settings.out) as scratch:
        bench = Bench(device=device, pool=Pool(device=device, size=4 * cache_size(device)), scratch=scratch)
        _check(settings.only, bench)
        with Writer(settings.out, _header(bench, settings)) as writer:
            session = Session.resumed(bench, _speed(writer.header), writer)
            if (busy := load()) > BUSY:
                _say(
                    f"this machine is busy ({busy:.1f} processes want each core); its times will be those of a busy one"
                )
            try:
                faults = _measure(session, settings)
            except DeviceLost as fault:
                _say(f"{fault}; going on in a new process")
                os.execv(sys.executable, [sys.executable, "-m", MODULE, *settings.arguments()])
            _tell(session, writer, faults)
    return FAILED if faults else 0


def _measure(session: Session, settings: Settings) -> list[str]:
    """Measure group by group; a group that fails is told at the end and keeps no other from its turn."""
    from .suite import everything

    chosen = _chosen(settings, everything(session.bench, session.speed))
    settings = replace(settings, ranks=settings.ranks or _numbers(settings.device))
    if "collectives" in chosen and not settings.ranks:
        _say("collectives need two gpus; left out")
        del chosen["collectives"]
    left, weights, faults = settings.budget, sum(GROUPS[group] for group in chosen), list[str]()
    for group, some in chosen.items():
        share = left * GROUPS[group] / weights
        weights -= GROUPS[group]
        begun = time.monotonic()
        if (numbers := _together(group, settings)) == (1,):
            left -= session.run(some, share, settings.points)
            continue
        session.free()
        faults += _between(settings, numbers, [one.name for one in some], share)
        left -= time.monotonic() - begun
    return faults


def _together(group: str, settings: Settings) -> tuple[int, ...]:
    """Return the numbers of processes that measure a group: collectives, and the kernels of ranks that share a CPU."""
    if group == "collectives":
        return settings.ranks
    return (settings.sharers if group == "kernels" else 1,)


def _between(settings: Settings, numbers: Sequence[int], names: Sequence[str], share: float) -> list[str]:
    """Measure between 2, 4 and so on processes, each number in a run of its own."""
    from .progress import Relay
    from .ranks import launch

    faults, relay = [], Relay()
    for ranks in numbers:
        part = replace(settings, budget=share / len(numbers), only=tuple(dict.fromkeys(names)), ranks=())
        try:
            launch(MODULE, part.arguments(), ranks, part.budget, told=relay)
        except MoesimError as fault:
            faults.append(str(fault))
        finally:
            relay.end()
    return faults


def _numbers(device: str) -> tuple[int, ...]:
    """Return the numbers of processes to try: on a CPU 2 and 4, among gpus every power of two there is."""
    import torch

    return (2, 4) if device == "cpu" else tuple(n for n in (2, 4, 8, 16) if n <= torch.cuda.device_count())


def _ranked(settings: Settings) -> int:
    """Measure as one of the processes that torchrun started."""
    from .ranks import join, leave
    from .session import Session
    from .suite import suite

    bench = join(_device(settings.device), settings.out.parent, pool=64 << 20)
    writer = Writer(settings.out, _header(bench, settings)) if bench.rank == 0 else None
    speed = _speed(_agreed(writer.header if writer is not None else None, bench))
    session = Session.resumed(bench, speed, writer)
    for operations in _chosen(settings, suite(bench, speed)).values():
        session.run(operations, settings.budget, settings.points)
    leave()
    return 0


def _agreed(header: Line | None, bench: Bench) -> Line:
    """Return rank 0's header on all ranks."""
    from torch import distributed as dist

    said = [header]
    dist.broadcast_object_list(said, 0, group=bench.talk)
    assert said[0] is not None
    return said[0]


def _device(name: str) -> torch.device:
    """Return the device.

    Raises
    ------
    MoesimError
        There is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise MoesimError("--device cuda: torch sees no gpu; measure the CPU with --device cpu")
    return torch.device(name)


def _header(bench: Bench, settings: Settings) -> Line:
    """Return the first line of a raw file; the speed is probed for a new file only."""
    from .machine import describe, device_name, load, probe

    header: dict[str, Any] = {"format": FORMAT, "device": device_name(bench.device), "machine": describe(bench.device)}
    if not fresh(settings.out):
        return header
    longest = settings.longest or LONGEST[settings.device]
    started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return header | {"started": started, "load": load(), "speed": asdict(probe(replace(bench, ranks=1), longest))}


def _speed(header: Line) -> Speed:
    from .machine import Speed

    return Speed(**header["speed"])


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Make a folder beside the raw file, whose disk is the one measured, and remove it at the end."""
    folder = out.parent.resolve() / f".{out.name}.scratch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise MoesimError(f"{out}: {fault.strerror}; name another file with --out") from None
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")  # no cache of an earlier day shortens a compile
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(only: Sequence[str], bench: Bench) -> None:
    """Refuse what is neither a group nor an operation."""
    from .machine import Speed
    from .suite import everything

    some = Speed(flop_rate=1.0, bandwidth=1.0, longest=1.0)  # names do not depend on it
    known = {*GROUPS, *(operation.name for operation in everything(bench, some))}
    for name in only:
        if name not in known:
            raise MoesimError(f"--only: `{name}` is neither a group nor an operation; {nearest(name, known)}")


def _chosen(settings: Settings, operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    """Pick what was asked for, by group."""
    wanted = [one for one in operations if not settings.only or {one.name, one.group} & {*settings.only}]
    grouped = {group: [one for one in wanted if one.group == group] for group in GROUPS}
    return {group: some for group, some in grouped.items() if some}


def _tell(session: Session, writer: Writer, faults: Sequence[str]) -> None:
    """Say what was measured, and what was not and why."""
    reasons = Counter(session.failures)
    for reason, times in reasons.items():
        _say(f"left out: {reason} ({times} points)")
    for fault in faults:
        _say(fault)
    _say(f"{writer.path}: {read(writer.path).summary()}")


def _say(text: str) -> None:
    sys.stderr.write(f"moesim: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
