"""Records as notebooks show them: called by `ground.showing` when one is the last line of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from moesim.deployments.metrics import METRICS, base_metric
from moesim.deployments.result import Result
from moesim.deployments.tables import with_units
from moesim.ground.units import show
from moesim.plans.plan import Plan, Policy
from moesim.search.answer import headline
from moesim.search.naming import layout
from moesim.search.purchasing import Purchase
from moesim.search.ranking import Ranking
from moesim.search.study import Study
from moesim.search.sweeping import Sweep
from moesim.views.charts import Dots, Quantity, lines, stacked_bars
from moesim.views.page import HEADINGS, facts, figure, fragment, heading, metric_value, paragraph, section, table
from moesim.views.purchase import purchase_sections
from moesim.views.report import BYTES, TIME
from moesim.world.model import active_parameters, parameters
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving, Target, Training

ROWS = 10
"""Rows of a ranking that a cell shows."""


def html(record: object) -> str:
    """Draw a record as one self-contained fragment of HTML."""
    match record:
        case Result():
            return fragment(*_result(record))
        case Ranking():
            return fragment(*_ranking(record))
        case Purchase():
            return fragment(*_purchase(record))
        case Sweep():
            return fragment(*_sweep(record))
        case Scenario():
            return fragment(*_scenario(record))
        case Study():
            return fragment(*_scenario(record.scenario), paragraph(f"Goal: {record.goal}.", soft=True))
        case Plan():
            return fragment(_plan(record))
    raise TypeError(f"nothing draws a {type(record).__name__}")


def _result(result: Result) -> list[str]:
    verdict = result.verdict
    parts = [paragraph(f"{verdict.why}; bound by {verdict.binding}."), facts(_headline(result))]
    breakdown = result.tables.get("breakdown", pd.DataFrame())
    if len(breakdown):
        bar = dict(zip(breakdown["part"].tolist(), breakdown["exposed"].tolist(), strict=True))
        parts.append(section("One pass of the slowest stage", figure(stacked_bars({"exposed": bar}, TIME))))
    memory = result.tables["memory"] if "memory" in result.tables else pd.DataFrame()
    if len(memory):
        items = dict(zip(memory["item"].tolist(), memory["size"].tolist(), strict=True))
        parts.append(section("Memory of the fullest rank", figure(stacked_bars({"all": items}, BYTES))))
    return parts


def _headline(result: Result) -> list[tuple[str, str]]:
    return [
        (HEADINGS.get(name, name), metric_value(value.mid, name, value.unit)) for name, value in result.summary.items()
    ]


def _ranking(ranking: Ranking) -> list[str]:
    shown = ranking.plans.head(ROWS).drop(columns="miss", errors="ignore")
    shown.attrs = ranking.plans.attrs
    parts = [*map(paragraph, headline(ranking)), table(shown)]
    return [*parts, *(_result(ranking.best) if ranking.best else [])]


def _purchase(purchase: Purchase) -> list[str]:
    tables = {"options": purchase.options, "money": purchase.money, "what_if": purchase.what_if}
    return [*map(paragraph, purchase.sentences()), *purchase_sections(tables)]


def _sweep(sweep: Sweep) -> list[str]:
    metric = drawn_metric(sweep.table)
    along, others = along_axis(sweep)
    known = sweep.table[sweep.table[metric].notna()]
    groups = known.groupby(others, sort=False) if others else [((), known)]
    places = {value: number for number, value in enumerate(dict.fromkeys(known[along].tolist()))}
    even = pd.api.types.is_numeric_dtype(known[along])
    kinds = [
        Dots(
            name=", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in zip(others, key, strict=True)),
            x=[float(value if even else places[value]) for value in rows[along]],
            y=rows[metric].tolist(),
            joined=True,
        )
        for key, rows in groups
    ]
    unit = METRICS[metric].unit
    names = {float(number): str(value) for value, number in places.items()}
    x = Quantity(title=along, show=(lambda value: f"{value:g}") if even else lambda value: names.get(value, ""))
    y = Quantity(title=HEADINGS.get(metric, metric), show=lambda value: metric_value(value, metric, unit))
    drawn = [figure(lines(kinds, x, y))] if len(known) else []
    ends = [str(name) for name in sweep.table.columns if str(name).endswith(("_low", "_high"))]
    return [*drawn, table(sweep.table, leave_out=ends)]


def drawn_metric(table: pd.DataFrame) -> str:
    """Choose what a chart shows: the first of these metrics that the changes change, else the first there is."""
    known = [name for name in ("price_per_token", "tpot", "step", "throughput") if name in table]
    return next((name for name in known if table[name].max() > 1.001 * table[name].min()), known[0])


def along_axis(sweep: Sweep) -> tuple[str, list[str]]:
    """Choose what a chart runs along: the first axis of numbers, else the first; and what tells its lines apart."""
    numeric = [path for path in sweep.axes if pd.api.types.is_numeric_dtype(sweep.table[path])]
    along = (numeric or list(sweep.axes))[0]
    return along, [path for path in sweep.axes if path != along]


def _scenario(scenario: Scenario) -> list[str]:
    model = scenario.model
    numbers = [
        ("model", model.name),
        ("layers, of experts", f"{len(model.layers)}, {len(model.moe_layers)}"),
        ("parameters, active", f"{parameters(model) / 1e9:,.1f} G, {active_parameters(model) / 1e9:,.1f} G"),
        *_load(scenario.workload),
    ]
    rows = [
        {"node": offer.node.name, "gpus": offer.node.gpus, "nodes at most": offer.max_nodes, "rent": offer.rent}
        for offer in scenario.hardware.offers
    ]
    offers = with_units(pd.DataFrame(rows), {"rent": "USD/s"})
    return [heading(scenario.name), facts(numbers), table(offers)]


def _load(workload: Serving | Training) -> list[tuple[str, str]]:
    if isinstance(workload, Training):
        return [("tokens a step", f"{workload.sequence * workload.sequences:,}")]
    arrivals, limits = workload.requests.arrivals, workload.targets
    load = show(arrivals.rate, "/s") if arrivals.rate else f"{arrivals.concurrency} in flight"
    lengths = f"{workload.requests.input.mean:,.0f} in, {workload.requests.output.mean:,.0f} out"
    return [("requests", load), ("tokens", lengths), *((target.metric, _limit(target)) for target in limits)]


def _limit(target: Target) -> str:
    return f"≤ {show(target.limit, METRICS[base_metric(target.metric)].unit)}"


def _plan(plan: Plan) -> str:
    rows = [
        {
            "role": pool.role,
            "node": pool.node,
            "replicas": pool.replicas,
            "layout": layout(pool),
            "framework": pool.framework,
            **{kind: _policy(policy) for kind, policy in pool.policies.items()},
        }
        for pool in plan.pools
    ]
    return table(pd.DataFrame(rows))


def _policy(policy: Policy) -> str:
    return policy.name + _settings(policy.settings)


def _settings(settings: Mapping[str, object]) -> str:
    return f" ({', '.join(f'{name} {_words(value)}' for name, value in settings.items())})" if settings else ""


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
