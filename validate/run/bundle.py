"""A bundle: plans to run, the routing they are run with, and what was predicted for them before anything was measured.

It is a folder. `bundle.json` says what is run and which plans are compared, `choices.npz` holds the experts every token
uses, `predictions.json` what is expected. A prediction is written once; who wants another makes another bundle.
Standard library and NumPy only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from moesim.ground.errors import Fault, InputError

FORMAT = "moesim bundle 1"
BUNDLE, CHOICES, PREDICTIONS, RESULTS = "bundle.json", "choices.npz", "predictions.json", "results.jsonl"
PARTIAL = "results.partial.jsonl"
"""Results while trials are under way; what a run that was stopped leaves is told from a whole one by this name."""

COMPILE = "compile"
"""Name of the part that a layer stands still for."""
Choices = np.ndarray[Any, Any]
"""Experts that tokens use: [draw, rank, token, topk], whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One plan to be run.

    Attributes
    ----------
    name : unique in the bundle
    spec : the layer, as `layers.spec.LayerSpec.json` gives it
    choices : name of the routing it is run with
    plan : what was chosen, by axis, for people
    aside : the trial whose steps these are, less what it stood still for; such a one is not run by itself. "": it is
    """

    name: str
    spec: Mapping[str, Any]
    choices: str
    plan: Mapping[str, str] = field(default_factory=dict)
    aside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two trials that are compared, and the axis in which they differ."""

    first: str
    second: str
    axis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a bundle is run on.

    Attributes
    ----------
    device : cpu or cuda
    ranks : processes
    nodes : how many network namespaces they are spread over; 1: they talk over the loopback
    rate : B/s of each node's link in one direction; 0: as fast as it is
    link : how the rate comes about: `kernel`, `emulated`, or `plain` where there is none
    latency : s of an emulated link; a real one has its own
    graphed : whether layers of fixed shapes are captured as CUDA graphs and replayed
    """

    device: str = "cpu"
    ranks: int = 1
    nodes: int = 1
    rate: float = 0.0
    link: str = "plain"
    latency: float = 0.0
    graphed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Trials of one scenario on one setting.

    Attributes
    ----------
    scenario : its name
    pick : the trial that the search put first
    repeated : the trial that is run twice in every round: how far its runs lie apart is the noise floor
    rounds : times that all trials are run by turns
    course : whether draws are the steps of a course, run in order from a layer as it was built, which policies change
    """

    scenario: str
    setting: Setting
    trials: tuple[Trial, ...]
    pairs: tuple[Pair, ...]
    pick: str
    repeated: str
    rounds: int = 10
    course: bool = False
    choices: Mapping[str, Choices] = field(default_factory=lambda: MappingProxyType({}), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What one trial is expected to take: s, the P10 and P90 of it, and the busy seconds of its parts."""

    seconds: float
    low: float
    high: float
    parts: Mapping[str, float]
    outside: tuple[str, ...] = ()


def write_bundle(folder: Path, bundle: Bundle, predictions: Mapping[str, Predicted], grounds: Mapping[str, Any]) -> str:
    """Write a bundle with its predictions, and return what these are told by: the hash of their file.

    Parameters
    ----------
    grounds : what the predictions rest on, such as the profile's name and when it was measured

    Raises
    ------
    InputError
        The folder holds predictions already: they are never written over.
    """
    if (folder / PREDICTIONS).exists():
        raise InputError(
            str(folder / PREDICTIONS),
            [
                Fault(
                    path="", problem="was predicted already", remedy="predictions are never changed; name a new folder"
                )
            ],
        )
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"format": FORMAT, **asdict(bundle)}
    del tree["choices"]
    _write(folder / BUNDLE, json.dumps(tree, indent=1).encode())
    draft = folder / f".{CHOICES}"
    with draft.open("wb") as file:
        held: dict[str, Any] = {name: value.astype(np.int16) for name, value in bundle.choices.items()}
        np.savez_compressed(file, **held)
    draft.replace(folder / CHOICES)
    trials = {name: asdict(each) for name, each in predictions.items()}
    _write(folder / PREDICTIONS, json.dumps({**grounds, "trials": trials}, indent=1).encode())
    return digest(folder)


def _write(path: Path, text: bytes) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(text + b"\n")
    draft.replace(path)


def digest(folder: Path) -> str:
    """Return the hash of a bundle's predictions, SHA-256."""
    return hashlib.sha256((folder / PREDICTIONS).read_bytes()).hexdigest()


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle.

    Raises
    ------
    InputError
        There is none, or it is damaged.
    """
    tree = _tree(folder / BUNDLE)
    try:
        with np.load(folder / CHOICES) as held:
            choices = {name: held[name].astype(np.int64) for name in held.files}
        return Bundle(
            scenario=tree["scenario"],
            setting=Setting(**tree["setting"]),
            trials=tuple(Trial(**each) for each in tree["trials"]),
            pairs=tuple(Pair(**each) for each in tree["pairs"]),
            pick=tree["pick"],
            repeated=tree["repeated"],
            rounds=tree["rounds"],
            course=tree.get("course", False),
            choices=MappingProxyType(choices),
        )
    except (KeyError, TypeError, OSError, ValueError) as fault:
        raise _damaged(folder / BUNDLE, f"is no whole bundle ({fault})") from None


def read_predictions(folder: Path) -> Mapping[str, Predicted]:
    """Read what was predicted, by trial.

    Raises
    ------
    InputError
        Nothing was, or the file is damaged.
    """
    tree = _tree(folder / PREDICTIONS)
    try:
        return {name: Predicted(**{**each, "outside": tuple(each["outside"])}) for name, each in tree["trials"].items()}
    except (KeyError, TypeError) as fault:
        raise _damaged(folder / PREDICTIONS, f"holds no whole predictions ({fault})") from None


def _tree(path: Path) -> Mapping[str, Any]:
    try:
        tree: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise _damaged(path, "is missing") from None
    except ValueError as fault:
        raise _damaged(path, f"is no JSON ({fault})") from None
    return tree


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(
        str(path), [Fault(path="", problem=problem, remedy="make it with `moesim validate run SCENARIO`")]
    )
