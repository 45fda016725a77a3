"""Links made slow for real: network namespaces joined by a pair of interfaces whose rate the kernel limits.

Two nodes are two namespaces with a virtual cable between them. Each end may send at the given rate, so that the link
has that bandwidth in either direction, as a tier's is; ranks of one node talk over its loopback, at full speed. It
takes no rights where users may make namespaces; where they may not, `available` says why.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from moesim.ground.errors import MoesimError

ADDRESS = "10.99.0.{}"
BURST = 128 * 1024
"""Bytes that may leave at once: the largest packet a kernel hands over, twice."""
QUEUE = 64 << 20
"""Bytes that wait at a link before any is dropped: more than a rank ever has under way."""
HELD = (sys.executable, "-c", "import sys; sys.stdin.read()")
"""A process that keeps a namespace alive until its input is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the ranks of one node run.

    Attributes
    ----------
    prefix : words before a command that make it run there
    interface : what its ranks talk over
    address : of the first rank, as ranks of any node reach it
    """

    prefix: tuple[str, ...] = ()
    interface: str = "lo"
    address: str = "127.0.0.1"


PLAIN = Place()
"""This process's own network."""


@contextmanager
def places(nodes: int, rate: float) -> Iterator[tuple[Place, ...]]:
    """Make so many nodes joined at a rate in B/s, and take them away at the end; one node is the machine as it is.

    Raises
    ------
    MoesimError
        The system permits no namespaces, or there are more than two nodes.
    """
    if nodes == 1:
        yield (PLAIN,)
        return
    if nodes != 2:
        raise MoesimError(f"{nodes} nodes: a cable has two ends; give 1 or 2")
    with ExitStack() as stack:
        first = stack.enter_context(_held(("unshare", "--map-root-user", "--net")))
        second = stack.enter_context(_held((*_inside(first), "unshare", "--net")))
        for words in _wiring(first, second, rate):
            _run(words)
        yield tuple(
            Place(prefix=_inside(pid), interface=f"moesim{number}", address=ADDRESS.format(1))
            for number, pid in enumerate((first, second))
        )


def available() -> str:
    """Return why no slow links can be made here; "" where they can."""
    try:
        with places(2, 1e6):
            return ""
    except MoesimError as fault:
        return str(fault)


@contextmanager
def _held(words: Sequence[str]) -> Iterator[int]:
    """Start a process in a namespace of its own and wait until it is there."""
    try:
        held = subprocess.Popen([*words, *HELD], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as fault:
        raise MoesimError(f"{words[0]}: {fault.strerror}; slow links need it") from None
    try:
        for _ in range(100):
            if _settled(held.pid):
                break
            if held.poll() is not None:
                assert held.stderr is not None
                raise MoesimError(f"no namespace could be made: {held.stderr.read().strip()}")
            time.sleep(0.02)
        yield held.pid
    finally:
        held.kill()
        held.communicate()


def _settled(pid: int) -> bool:
    """Whether a process has become the one that waits: what makes the namespace is done then."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(HELD[0].encode())
    except OSError:
        return False


def _inside(pid: int) -> tuple[str, ...]:
    """Return what makes a command run in a process's network."""
    return ("nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials")


def _wiring(first: int, second: int, rate: float) -> Iterator[tuple[str, ...]]:
    """Yield the commands that join two namespaces."""
    yield (*_inside(first), *["ip", "link", "add", "moesim0", "type", "veth", "peer", "name", "moesim1"])
    yield (*_inside(first), *f"ip link set moesim1 netns {second}".split())
    for number, pid in enumerate((first, second)):
        end, inside = f"moesim{number}", _inside(pid)
        yield (*inside, *["ip", "link", "set", "lo", "up"])
        yield (*inside, *f"ip addr add {ADDRESS.format(number + 1)}/24 dev {end}".split())
        yield (*inside, *f"ip link set {end} up".split())
        limit = f"rate {8 * rate:.0f}bit burst {BURST} limit {QUEUE}"
        yield (*inside, *f"tc qdisc add dev {end} root tbf {limit}".split())


def _run(words: Sequence[str]) -> None:
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise MoesimError(f"no slow link could be made: {fault}") from None
    if ended.returncode:
        command = next(word for word in words if word in ("ip", "tc"))
        raise MoesimError(f"no slow link could be made: {command} said {ended.stderr.strip() or ended.returncode}")
