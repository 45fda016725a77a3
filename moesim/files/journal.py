"""The journal of a long search: what was estimated so far, chunk by chunk, so that a stopped search can go on."""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

import moesim
from moesim.files.trees import Tree
from moesim.files.yaml import dump_study
from moesim.ground.errors import Fault, InputError
from moesim.search.study import Study

Arrays = Mapping[str, np.ndarray]


def question_key(study: Study, seed: int) -> str:
    """Hash what an answer depends on: the world and the question in full, the seed, and the version of moesim."""
    return sha256(f"{moesim.__version__}\n{seed}\n{dump_study(study)}".encode()).hexdigest()


class Journal:
    """Chunks of named arrays, one on each line of a file that only grows; the first line says of which question.

    A line that was cut short, by a kill or a full disk, is passed over and written anew. A journal that is appended to
    without being read begins anew.

    Parameters
    ----------
    path : Path
        The file; made with the first chunk.
    key : str
        `question_key` of the search.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self._end = 0  # bytes of whole lines that were read or written

    def read(self) -> list[Arrays]:
        """Read the chunks in the order they were appended; none where there is no journal yet.

        Raises
        ------
        InputError
            The journal belongs to another question, or is damaged.
        """
        whole = self._lines()
        self._end = sum(map(len, whole))
        try:
            first, *chunks = [json.loads(line) for line in whole] or [{"key": self.key}]
            found: list[Arrays] = [{name: _array(tree) for name, tree in chunk.items()} for chunk in chunks]
        except (ValueError, TypeError, LookupError, AttributeError):
            raise self._fault("is damaged") from None
        if not isinstance(first, dict) or first.get("key") != self.key:
            raise self._fault("is the journal of another scenario, space, seed or version")
        return found

    def append(self, arrays: Arrays) -> None:
        """Add a chunk; it is on disk when this returns."""
        chunk = {name: _tree(array) for name, array in arrays.items()}
        lines = [chunk] if self._end else [{"key": self.key}, chunk]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self._end else "wb") as file:
            file.seek(self._end)
            file.truncate()
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()

    def _fault(self, problem: str) -> InputError:
        return InputError(str(self.path), [Fault(path="", problem=problem, remedy="delete it, or leave out --resume")])

    def drop(self) -> None:
        """Remove the journal of a search that is done."""
        self.path.unlink(missing_ok=True)

    def _lines(self) -> list[bytes]:
        """List the lines that are whole."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _tree(array: np.ndarray) -> Tree:
    whole = np.ascontiguousarray(array)
    return {"dtype": whole.dtype.str, "shape": whole.shape, "data": b64encode(whole.tobytes()).decode()}


def _array(tree: Tree) -> np.ndarray:
    return np.frombuffer(b64decode(tree["data"]), dtype=tree["dtype"]).reshape(tree["shape"]).copy()
