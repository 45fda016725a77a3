"""The ``failures`` section of a scenario file: a published machine room by name, or one's own numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moesim.files.checked import Rules, check, refuse
from moesim.files.sources import split
from moesim.files.trees import Tree, names_under, packaged, read
from moesim.ground.errors import ProfileError, nearest
from moesim.ground.units import Source
from moesim.world.scenario import Failures

FAILURES = "moesim/data/failures"


def read_failures(tree: Tree, file: str) -> tuple[Failures, Mapping[str, Source]]:
    """Read how often gpus fail; numbers of one's own need no source.

    Raises
    ------
    InputError
        With every fault; paths are relative to the section.
    """
    rules: Rules = {Failures: _faults}
    if not isinstance(tree, str):
        return check(Failures, tree, file, rules=rules), {}
    known = names_under(packaged(FAILURES))
    if tree not in known:
        raise refuse(file, f"no failures are called `{tree}`", nearest(tree, known))
    label = f"{FAILURES}/{tree}.yaml"
    parts = split(read(packaged(FAILURES).joinpath(f"{tree}.yaml"), label, ProfileError), label)
    return check(Failures, parts.plain, label, rules=rules, also=parts.faults), parts.sources


def _faults(failures: Failures) -> Iterator[tuple[str, str, str]]:
    for name in ("interval", "crash", "repair"):
        if getattr(failures, name) < 0:
            yield name, "is negative", "give a time such as `50000 h`, or leave it out"
    if failures.interval > 0 and failures.repair == 0:
        yield "repair", "is missing, and gpus take their nodes out", "say how long a node is out: `repair: 24 h`"
