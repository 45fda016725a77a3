import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import moesim

ROOT = Path(__file__).parents[1]
HEAVY = ("numpy", "scipy", "pandas", "networkx", "simpy", "pydantic", "jaxtyping", "torch")


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after running `code`."""
    trace = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert trace.returncode == 0, trace.stderr[-2000:]
    lines = [line for line in trace.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def modules() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(moesim.__path__, "moesim.")]


def test_the_floors_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_importing_moesim_loads_nothing_heavy():
    loaded = loaded_by("import moesim")
    assert "moesim" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_loads_nothing_heavy():
    loaded = loaded_by("from moesim.cli import main; main()", "--help")
    assert "cyclopts" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_no_floor_imports_torch():
    assert "torch" not in loaded_by("\n".join(f"import {name}" for name in modules()))


@pytest.mark.parametrize("name", moesim.__all__)
def test_a_public_name_is_a_documented_thing_of_its_home(name):
    public = getattr(moesim, name)
    assert public.__doc__
    assert public.__name__ == name
    assert public.__module__ == moesim._HOMES[name]
    assert name in dir(moesim)


def test_every_public_name_has_a_home():
    assert list(moesim._HOMES) == moesim.__all__ == sorted(moesim.__all__)


def test_an_unknown_name_is_refused_by_name():
    with pytest.raises(AttributeError, match="module 'moesim' has no attribute 'guess'"):
        moesim.guess  # noqa: B018 - the look-up is what is tested


@pytest.mark.parametrize("name", modules())
def test_a_module_has_what_it_exports_and_says_what_it_is(name):
    module = import_module(name)
    exported = getattr(module, "__all__", [])
    assert [missing for missing in exported if not hasattr(module, missing)] == []
    assert len(set(exported)) == len(exported)
    assert module.__doc__
