"""How results show themselves in a notebook: a door for whoever draws, so that records know nothing of HTML.

Records are drawn by `moesim.views.notebook`, which stands above them. A record only says that it can be shown; the top
of the library says who shows it (`show_with`), and that is imported when a notebook first asks.
"""

from __future__ import annotations

from html import escape
from importlib import import_module

_drawer = ""


def show_with(module: str) -> None:
    """Name the module whose function ``html(record)`` draws records."""
    global _drawer
    _drawer = module


class Shown:
    """A record that notebooks display drawn."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Draw the record as HTML; as its plain text where nobody draws."""
        if not _drawer:
            return f"<pre>{escape(repr(self))}</pre>"
        drawn: str = import_module(_drawer).html(self)
        return drawn
