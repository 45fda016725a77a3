"""What is run in one go: a scenario, or a file that lists several with the ranks, links and changes of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from moesim.files.checked import check
from moesim.files.trees import Tree, read
from moesim.ground.errors import Fault, InputError
from moesim.ground.units import BytesPerSecond

from .bundle import Setting

LATENCY = 200e-6
"""Seconds that an emulated link delays what crosses it: several times what a process takes to wake up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One bundle to be made and run.

    Attributes
    ----------
    scenario : a study file, beside the suite
    name : of the bundle's folder; empty: the scenario's file name
    ranks, nodes, link : processes, network namespaces they are spread over, and the rate between these
    batch : sequences of a step on each rank, in place of the space's
    changes : of the scenario by dotted path, such as ``routing.cv``
    course : steps that plans with reacting policies are run for, in order; 0: draws by themselves
    rounds : how often all are run by turns
    emulated : whether the link is slow by waiting rather than by the kernel's doing
    graphed : whether layers of fixed shapes are captured as CUDA graphs and replayed
    """

    scenario: str
    name: str = ""
    ranks: int = 2
    nodes: int = 1
    link: BytesPerSecond = 0.0
    batch: int = 0
    course: int = 0
    rounds: int = 10
    changes: Mapping[str, Any] = field(default_factory=dict)
    emulated: bool = False
    graphed: bool = False

    def setting(self, device: str) -> Setting:
        """Describe what it is run on.

        Raises
        ------
        InputError
            Ranks do not divide over nodes, or there are nodes without a rate between them.
        """
        if self.ranks < 1 or self.nodes < 1 or self.ranks % self.nodes:
            raise _refusal("nodes", f"{self.ranks} ranks on {self.nodes} nodes", "give each node equally many")
        if (self.nodes > 1) != (self.link > 0):
            raise _refusal(
                "link", f"{self.link:g} B/s between {self.nodes} nodes", "give 2 nodes and a link, or neither"
            )
        plain = Setting(device=device, ranks=self.ranks, nodes=self.nodes, rate=self.link, graphed=self.graphed)
        if self.nodes == 1:
            return plain
        return emulated(plain) if self.emulated else replace(plain, link="kernel")


def emulated(setting: Setting) -> Setting:
    """Let the link of a setting be slow by waiting."""
    return replace(setting, link="emulated", latency=LATENCY)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    runs: tuple[Run, ...]


def runs_of(file: Path, like: Run) -> Iterator[tuple[Path, str, Run]]:
    """Yield the scenario, the folder's name and the run of everything that a file asks for.

    Parameters
    ----------
    file : a suite, or a scenario
    like : how a scenario alone is run

    Raises
    ------
    InputError
        The file has faults, or two of its runs have one name.
    """
    tree = read(file, str(file))
    if "runs" not in tree:
        yield file, like.name or file.stem, like
        return
    suite: _File = check(_File, tree, str(file), readers={(Run, "changes"): _kept})
    seen: set[str] = set()
    for run in suite.runs:
        name = run.name or Path(run.scenario).stem
        if name in seen:
            raise InputError(
                str(file), [Fault(path="runs", problem=f"two are called `{name}`", remedy="name one anew")]
            )
        seen.add(name)
        yield file.parent / run.scenario, name, run


def changes_of(words: Sequence[str]) -> Mapping[str, Any]:
    """Read `path=value` words.

    Examples
    --------
    >>> changes_of(["routing.cv=1.5"])
    {'routing.cv': 1.5}
    """
    found: dict[str, Any] = {}
    for word in words:
        path, _, value = word.partition("=")
        if not value:
            raise InputError("--set", [Fault(path="", problem=f"`{word}` sets nothing", remedy="write routing.cv=1.5")])
        found[path] = yaml.safe_load(value)
    return found


def _kept(tree: Tree) -> Any:
    return tree


def _refusal(path: str, problem: str, remedy: str) -> InputError:
    return InputError("run", [Fault(path=path, problem=problem, remedy=remedy)])
