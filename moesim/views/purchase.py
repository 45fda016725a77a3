"""What to buy, for a terminal, a pipe and a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from moesim.ground.units import show
from moesim.search.purchasing import Purchase
from moesim.views.charts import Bar, Quantity, tornado
from moesim.views.page import figure, paragraph, section, table
from moesim.views.ranking import records
from moesim.views.tables import console, show_table

HOUR = 3600.0

PRICE = Quantity(title="price of what the layout needs", show=lambda price: f"{price:,.3g} USD/h")


def show_purchase(purchase: Purchase) -> None:
    """Print the sized layouts, rent beside own, and what if."""
    out = console()
    out.print("\n[bold]Purchase[/bold]: " + " ".join(purchase.sentences()) + "\n")
    if purchase.chosen is not None:
        show_table(
            out, purchase.options, "Layouts sized for the busiest hours, cheapest first; targets' mean over trials"
        )
        show_table(out, money_words(purchase.money), "Rent and own")
        show_table(
            out, what_words(purchase.what_if), "What if: what the layout needs then, and how often it misses as bought"
        )


def money_words(money: pd.DataFrame) -> pd.DataFrame:
    """Write each amount in its own unit."""
    values = zip(money["value"].tolist(), money["unit"].tolist(), strict=True)
    words = ["never" if math.isnan(value) else show(value, unit) for value, unit in values]
    return pd.DataFrame({"what": money["what"], "amount": words, "meaning": money["meaning"]})


def what_words(what_if: pd.DataFrame) -> pd.DataFrame:
    """Count gpus, and say where no number of them is enough."""
    words = ["too few on offer" if math.isnan(gpus) else f"{gpus:.0f}" for gpus in what_if["gpus"].tolist()]
    dollars = {name: [_dollars(price) for price in what_if[name].tolist()] for name in ("price", "change")}
    shown = what_if.assign(gpus=words, **dollars, miss=[f"{miss:.0%}" for miss in what_if["miss"].tolist()])
    shown.attrs = what_if.attrs
    return shown


def _dollars(price: float) -> str:
    return "" if math.isnan(price) else show(price, "USD/s")


def purchase_dict(purchase: Purchase) -> dict[str, Any]:
    """Write a purchase as a tree for JSON, SI units."""
    return {
        "good": purchase.good,
        "miss": purchase.miss,
        "miss_error": purchase.error,
        "short": purchase.short,
        "confidence": purchase.buying.confidence,
        "options": records(purchase.options),
        "money": records(purchase.money),
        "what_if": records(purchase.what_if),
    }


def purchase_sections(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Draw a purchase's tables as sections of a report; nothing where nothing is bought."""
    if not len(tables.get("options", ())):
        return
    yield section("What to buy: layouts sized for the busiest hours, cheapest first", table(tables["options"]))
    yield section("Rent and own", table(money_words(tables["money"])))
    what = tables["what_if"]
    note = "What the layout that was bought would need in another world, and how often it misses as it was bought."
    chart = figure(tornado(bars(what), PRICE)) if what["price"].notna().any() else ""
    yield section("What if", chart, paragraph(note, soft=True), table(what_words(what)))


def bars(what_if: pd.DataFrame) -> list[Bar]:
    """Make a bar of each circumstance, from the price one way to the price the other way."""
    known = what_if[what_if["price"].notna()]
    names = ("circumstance", "value", "price", "change")
    found: dict[str, list[tuple[str, float]]] = {}
    base = 0.0
    for circumstance, value, price, change in zip(*(known[name].tolist() for name in names), strict=True):
        found.setdefault(circumstance, []).append((value, price * HOUR))
        base = (price - change) * HOUR
    return [Bar(name=name, base=base, ends=tuple(ends)) for name, ends in found.items()]
