"""What to buy, for a terminal, a pipe and a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from moesim.deployments.metrics import METRICS, base_metric
from moesim.ground.units import show
from moesim.search.purchasing import MONTH, Purchase
from moesim.search.sizing import TRIALS
from moesim.views.charts import Bar, Dots, Quantity, lines, scatter, tornado
from moesim.views.page import figure, number, paragraph, section, table
from moesim.views.ranking import records
from moesim.views.tables import console, show_table

HOUR = 3600.0

RATE = Quantity(title="price", show=lambda price: f"{price:,.3g} USD/h")

PRICE = Quantity(title="price of what the layout needs", show=lambda price: f"{price:,.3g} USD/h")


def show_purchase(purchase: Purchase) -> None:
    """Print the sized layouts, rent beside own, and what if."""
    out = console()
    out.print("\n[bold]Purchase[/bold]: " + " ".join(purchase.sentences()) + "\n")
    if purchase.chosen is not None:
        show_table(
            out,
            purchase.options,
            f"Layouts sized for the busiest hours, cheapest first; targets' mean and misses over {TRIALS} trials",
        )
        show_table(out, money_words(purchase.money), "Rent and own")
        show_table(
            out,
            what_words(purchase.what_if),
            f"What if: what the layout needs then, and how often it misses as bought; {TRIALS} trials, not confirmed",
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
        "trials": TRIALS,
    }


def purchase_sections(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Draw a purchase's tables as sections of a report; nothing where nothing is bought."""
    if not len(tables.get("options", ())):
        return
    options, money = tables["options"], tables["money"]
    words = f"Targets and misses (with standard error) over {TRIALS} trials; only what is bought was tried again."
    drawn = trade_off(options)
    parts = (*([figure(drawn)] if drawn else []), paragraph(words, soft=True), table(option_words(options)))
    yield section("What to buy: layouts sized for the busiest hours, cheapest first", *parts)
    drawn = outlay(money)
    yield section("Rent and own", *([figure(drawn)] if drawn else []), table(money_words(money)))
    what = tables["what_if"]
    note = (
        "What the layout that was bought would need in another world, and how often it misses as it was bought: "
        f"by {TRIALS} trials, not confirmed as the purchase is."
    )
    chart = figure(tornado(bars(what), PRICE)) if what["price"].notna().any() else ""
    yield section("What if", chart, paragraph(note, soft=True), table(what_words(what)))


def option_words(options: pd.DataFrame) -> pd.DataFrame:
    """Write shares of misses, and their errors, as percentages."""
    shares = {name: [f"{share:.1%}" for share in options[name].tolist()] for name in ("miss", "error")}
    shown = options.assign(**shares)
    shown.attrs = options.attrs
    return shown


def trade_off(options: pd.DataFrame) -> str:
    """Draw price against the last target of every sized layout, the front joined; "" where no target is measured."""
    names = [str(name) for name in options.columns]
    targets = names[names.index("price") + 1 : names.index("miss")]
    if not targets:
        return ""
    metric = targets[-1]
    unit = METRICS[base_metric(metric)].unit
    front = options["front"].astype(bool)
    kinds = [
        _layouts("sized", options[~front], metric, color="c2", size=4.0),
        _layouts("front: none as cheap is as fast", options[front], metric, color="c1", size=4.5),
        _layouts("bought", options.head(1), metric, color="c3", size=6.0),
    ]
    return scatter(kinds, RATE, Quantity(title=f"{metric}, mean over trials", show=lambda value: number(value, unit)))


def _layouts(name: str, rows: pd.DataFrame, metric: str, *, color: str, size: float) -> Dots:
    """Make sized layouts dots that say what they are and how often they miss."""
    said = zip(*(rows[column].tolist() for column in ("way", "cluster", "layout", "miss")), strict=True)
    return Dots(
        name=name,
        x=[price * HOUR for price in rows["price"].tolist()],
        y=rows[metric].tolist(),
        tips=[f"{way} {cluster}, {layout}: misses {miss:.1%}" for way, cluster, layout, miss in said],
        joined=color == "c1",
        color=color,
        size=size,
    )


def outlay(money: pd.DataFrame) -> str:
    """Draw what renting and owning have cost by any day of the horizon; "" where nothing can be owned."""
    amounts = dict(zip(money["what"].tolist(), money["value"].tolist(), strict=True))
    known = ("rent", "rent over the horizon", "purchase", "running")
    if not all(math.isfinite(amounts.get(name, math.nan)) for name in known):
        return ""
    rent, whole, bought, running = (amounts[name] for name in known)
    horizon = whole / rent
    even = amounts["break-even"]
    times = [0.0, *([even] if 0 < even < horizon else []), horizon]
    months = [time / MONTH for time in times]
    kinds = [
        Dots(name="rented", x=months, y=[rent * time for time in times], joined=True),
        Dots(name="bought and run, no resale", x=months, y=[bought + running * time for time in times], joined=True),
    ]
    return lines(
        kinds,
        Quantity(title="months", show=lambda month: f"{month:g}"),
        Quantity(title="paid until then", show=_millions),
    )


def _millions(amount: float) -> str:
    return f"{amount / 1e6:,.3g} M USD"


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
