"""A search that was killed goes on from what it had timed, and answers the same to the byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli_runs import WORLD, Told, contents, moesim

from moesim.deployments.pools import Estimator
from moesim.files.journal import Journal
from moesim.ground.errors import InputError
from moesim.search import pruning

__all__ = ["moesim"]

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

KILLED = """
import os, signal, sys
from moesim.cli import main
from moesim.files.journal import Journal
from moesim.search import pruning

pruning.TURN = 1
append = Journal.append

def die_after_two(self, arrays, done=[]):
    append(self, arrays)
    done.append(arrays)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = die_after_two
sys.argv = ["moesim", "optimize", "w.yaml", "--out", "killed"]
main()
"""


def killed() -> None:
    """Search in another process, which is killed when it has journaled its second turn."""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED], capture_output=True, check=False)
    assert found.returncode == -signal.SIGKILL, found.stderr


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that are timed, a turn at a time."""
    monkeypatch.setattr(pruning, "TURN", 1)
    rows: list[int] = []
    estimate = Estimator.estimate

    def counted(self: Estimator, some: np.ndarray, *others: object) -> object:
        rows.extend(some.tolist())
        return estimate(self, some, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Estimator, "estimate", counted)
    return rows


def test_a_killed_search_goes_on(moesim: Callable[..., Told], timed: list[int]) -> None:
    Path("w.yaml").write_text(WORLD.replace("tp: 1", "tp: [1, 2, 4]").replace("ep: [4, 8]", "ep: [1, 2, 4, 8]"))
    whole = moesim("optimize", "w.yaml", "--out", "whole")
    everything = [*timed]
    timed.clear()
    killed()
    assert sorted(path.name for path in Path().iterdir()) == [".killed.journal", "w.yaml", "whole"]
    code, said, told = moesim("optimize", "w.yaml", "--out", "killed", "--resume")
    assert 0 < len(timed) < len(everything)
    assert timed == everything[-len(timed) :]  # not one is timed again
    assert f"Going on from {len(everything) - len(timed)} layouts timed before." in told
    assert (code, said.replace("killed", "whole")) == whole[:2]
    assert contents("killed") == contents("whole")
    assert not Path(".killed.journal").exists()


def test_without_resume_a_search_begins_anew(moesim: Callable[..., Told], timed: list[int]) -> None:
    killed()
    assert moesim("optimize", "w.yaml", "--out", "killed")[0] == 0
    again = [*timed]
    timed.clear()
    assert moesim("optimize", "w.yaml", "--out", "killed", "--resume")[0] == 0  # no journal is left: from the start
    assert timed == again


def test_a_journal_of_another_seed_is_refused(moesim: Callable[..., Told]) -> None:
    killed()
    code, _, told = moesim("optimize", "w.yaml", "--out", "killed", "--seed", "1", "--resume")
    assert code == 2
    assert "is the journal of another scenario, space, seed or version" in told


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b'{"key": "k"}\n{"step": 3}\n'])
def test_a_damaged_journal_is_refused(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(line)
    with pytest.raises(InputError, match=r"is damaged|is the journal of another"):
        Journal(path, "k").read()


def test_what_dead_processes_left_is_removed(moesim: Callable[..., Told]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    names = (f".kept.{child.pid}.partial", f".kept.{child.pid}.old", f".other.{child.pid}.partial")
    for name in (*names, f".kept.{os.getppid()}.partial"):
        Path(name).mkdir()
        (Path(name) / "some").write_text("x")
    moesim("optimize", "w.yaml", "--out", "kept")
    left = {path.name for path in Path().iterdir()}
    assert left == {"kept", "w.yaml", f".other.{child.pid}.partial", f".kept.{os.getppid()}.partial"}


def test_a_run_whose_replacement_was_killed_between_two_renames_is_not_lost(moesim: Callable[..., Told]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    moesim("optimize", "w.yaml", "--out", "kept")
    before = contents("kept")
    Path("kept").rename(f".kept.{child.pid}.old")
    Path("w.yaml").write_text(WORLD.replace("name: small", "name: [small"))
    assert moesim("optimize", "w.yaml", "--out", "kept")[0] == 2
    Path("w.yaml").write_text(WORLD)
    moesim("optimize", "w.yaml", "--out", "kept")
    assert contents("kept") == before
    assert sorted(path.name for path in Path().iterdir()) == ["kept", "w.yaml"]
