"""Options and money of a purchase as tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.tables import with_units
from moesim.search.buying import Buying
from moesim.search.money import Bill, nodes_used
from moesim.search.naming import layout
from moesim.search.processes import in_parallel
from moesim.search.shortage import odds
from moesim.search.sizing import Option
from moesim.world.scenario import Scenario


def option_table(scenario: Scenario, options: Sequence[Option]) -> pd.DataFrame:
    """Write sized layouts as rows, targets as the mean over trials; `front` where none is as cheap and as fast."""
    rows = in_parallel(partial(_option_row, scenario), options)
    table = pd.DataFrame(rows)
    if not rows:
        return table
    targets = list(options[0].trials.values)
    if targets:
        times = table[targets[-1]].to_numpy()
        table["front"] = [bool(place == 0 or time < times[:place].min()) for place, time in enumerate(times)]
    units = {name: METRICS[base_metric(name)].unit for name in targets}
    return with_units(table, units | {"price": "USD/s"})


def _option_row(scenario: Scenario, option: Option) -> dict[str, object]:
    nodes = nodes_used(scenario, option.plan)
    row: dict[str, object] = {
        "cluster": " + ".join(f"{number} x {name}" for name, number in nodes.items()),
        "spares": option.plan.spare_nodes,
        "replicas": " + ".join(str(pool.replicas) for pool in option.plan.pools),
        "layout": " + ".join(layout(pool) for pool in option.plan.pools),
        "way": option.bill.way,
        "price": option.bill.cheapest,
    }
    means = {name: float(np.mean(values)) for name, values in option.trials.values.items()}
    missed = odds(option.bench, option.plan, option.trials)
    return row | means | {"miss": missed.share, "error": missed.error}


def money_table(bill: Bill, buying: Buying) -> pd.DataFrame:
    """Set renting beside owning: USD/s, outlay over the horizon, and when owning has paid; what cannot be is NaN."""
    rows = [
        ("rent", "USD/s", bill.rent, "all nodes, spares too"),
        ("rent over the horizon", "USD", bill.rent * buying.horizon, "at the end of the horizon"),
    ]
    if buying.own is not None:
        rows += [
            ("purchase", "USD", bill.purchase, "all nodes, spares too"),
            ("running", "USD/s", bill.running, "energy at what peak traffic draws, hosting, staff"),
            ("own", "USD/s", bill.owned, "what the purchase loses over the horizon, and running"),
            ("own over the horizon", "USD", bill.owned * buying.horizon, "what is got back is taken off"),
            ("break-even", "s", bill.breakeven, "renting has cost as much as buying and running; resale not counted"),
            ("rent to break even", "USD/s", bill.owned / bill.gpus, "per gpu: below it renting is cheaper"),
        ]
    return pd.DataFrame(
        [
            {"what": what, "value": value if np.isfinite(value) else float("nan"), "unit": unit, "meaning": meaning}
            for what, unit, value, meaning in rows
        ]
    )
