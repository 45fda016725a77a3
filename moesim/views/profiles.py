"""Hardware profiles for a terminal and for a pipe: every number beside its source."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moesim.ground.units import Source, Unit, show


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A number of a profile: what it is called, its value in SI, its unit, and where it comes from."""

    path: str
    value: float
    unit: str
    source: Source

    @property
    def words(self) -> str:
        """The value at a human scale."""
        return show(self.value, self.unit) if self.unit else f"{self.value:g}"


def shown_numbers(record: object, sources: Mapping[str, Source]) -> list[Shown]:
    """List the numbers of a record that have a source, in the order of its fields."""
    return [
        Shown(path=path, value=value, unit=unit, source=sources[path])
        for path, value, unit in _numbers(record, type(record), "")
        if path in sources
    ]


def _numbers(value: Any, hint: Any, path: str) -> Iterator[tuple[str, float, str]]:
    """Walk a record, naming list items by their own name as profile files do."""
    inner = get_args(hint)
    if is_dataclass(value):
        hints = get_type_hints(type(value), include_extras=True)
        for field in fields(value):
            yield from _numbers(getattr(value, field.name), hints[field.name], _below(path, field.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, inner[-1], _below(path, key))
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _numbers(item, inner[0], _below(path, getattr(item, "name", str(number))))
    elif isinstance(value, int | float):
        marks = inner[1:] if get_origin(hint) is Annotated else ()
        yield path, value, next((mark.symbol for mark in marks if isinstance(mark, Unit)), "")


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def show_names(names: Mapping[str, Iterable[str]]) -> None:
    """Print the names of profiles, kind by kind."""
    out = Console()
    for kind, listed in names.items():
        out.print(f"[bold]{kind}[/bold]")
        for name in listed:
            out.print(f"  {name}", highlight=False)


def show_profile(kind: str, name: str, numbers: Iterable[Shown]) -> None:
    """Print a profile: its numbers, each with its source."""
    out = Console()
    out.print(f"[bold]{kind} {name}[/bold]", highlight=False)
    _table(out, numbers)


def show_price(device: str, price: Iterable[Shown]) -> None:
    """Print the dated price of a device, or that there is none."""
    out = Console()
    if price := list(price):
        out.print(f"[bold]price of {device}, per gpu[/bold]", highlight=False)
        _table(out, price)
    else:
        out.print(f"No dated price of {device} is known: give yours in the offer, as `rent`.", highlight=False)


def _table(out: Console, numbers: Iterable[Shown]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("number", "value", "", "source"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for number in numbers:
        source = number.source
        dated = f"{source.title} ({source.read})" if source.read else source.title
        table.add_row(escape(number.path), number.words, source.kind, escape(dated))
    out.print(table, highlight=False)


def checked(file: str, kind: str, name: str, numbers: Iterable[Shown]) -> str:
    """Say that a file is right, and what its numbers rest on."""
    kinds = Counter(number.source.kind for number in numbers)
    grounds = ", ".join(f"{count} {ground}" for ground, count in kinds.most_common())
    return f"{file}: the {kind} {name}, {kinds.total()} numbers: {grounds}"


def profile_json(kind: str, name: str, numbers: Iterable[Shown], price: Iterable[Shown]) -> str:
    """Write a profile as JSON, values in SI."""
    return json.dumps(
        {"kind": kind, "name": name, "numbers": [asdict(n) for n in numbers], "price": [asdict(n) for n in price]},
        indent=1,
    )
