"""A progress bar on the error stream of a terminal; nothing in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


@contextmanager
def bar(what: str) -> Iterator[Callable[[float], None]]:
    """Show a bar while the block runs, and yield what moves it: a function of the share done."""
    out = Console(stderr=True)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as shown:
        task = shown.add_task(what, total=1.0)
        yield lambda share: shown.update(task, completed=share)
