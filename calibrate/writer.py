"""Appending to a raw file, line by line, so that whatever happens leaves what was finished."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import TracebackType

from moesim.ground.errors import MoesimError

from .raw import FORMAT, Line, parsed


class Unfinished(MoesimError):
    """A run could not go on, through no fault of what it was asked; finished samples are kept."""


class Writer:
    """Appends lines to a raw file, each flushed to the disk before the next is measured.

    Attributes
    ----------
    path : the file
    header : its first line
    lines : what it held when opened, and what was appended since
    """

    def __init__(self, path: Path, header: Line) -> None:
        """Open a file to go on with it, or start one.

        Raises
        ------
        MoesimError
            The file cannot be written, or holds samples of another machine.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            begins = fresh(path)
            self._file = path.open("ab", buffering=0)  # nothing may be left to write when the disk is full
        except OSError as fault:
            raise MoesimError(f"{path}: {fault.strerror}; name another file with --out") from None
        self.header = header
        self.lines: list[Line] = []
        try:
            if begins:
                self._file.truncate(0)
                self._write(header)
            else:
                self._go_on(header)
        except MoesimError:
            self.close()
            raise

    def _go_on(self, header: Line) -> None:
        """Take over what the file holds; its torn end, if any, is cut off."""
        self.header, self.lines = parsed(self.path)
        for name in ("device", "machine"):
            if self.header.get(name) != header[name]:
                raise MoesimError(
                    f"{self.path}: holds samples of another {name} ({self.header.get(name)}, here {header[name]}); "
                    "name another file with --out"
                )
        self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)

    def append(self, line: Line) -> None:
        """Write one line, whole or not at all.

        Raises
        ------
        Unfinished
            The disk is full or gone.
        """
        self._write(line)
        self.lines.append(line)

    def _write(self, line: Line) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
            if self._file.write(written) < len(written):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as fault:
            os.truncate(self.path, end)
            raise Unfinished(
                f"{self.path}: {fault.strerror}; the {len(self.lines)} finished samples are kept. "
                "Make room and run the same command again: it goes on from there"
            ) from None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Writer:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the file."""
        self.close()


def fresh(path: Path) -> bool:
    """Tell whether nothing of this file is worth going on with: it is not there, or its first line was never finished.

    Examples
    --------
    >>> fresh(Path("no such file.jsonl"))
    True
    """
    if not path.is_file():
        return True
    begins = f'{{"format":"{FORMAT}'.encode()
    try:
        with path.open("rb") as file:
            first = file.readline()
    except OSError:  # opening it to write says what is wrong
        return False
    return not first.endswith(b"\n") and begins.startswith(first[: len(begins)])
