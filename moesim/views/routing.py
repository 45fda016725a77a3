"""A routing trace's description: a table, JSON, and a drawing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from moesim.views.tables import console, show_table
from moesim.world.tracing import Description, Following


def tidy(found: Description) -> dict[str, Any]:
    """Make a plain tree of a description: means over layers, and what each layer shows."""
    tree: dict[str, Any] = {
        "layers": found.shape.layers,
        "experts": found.shape.experts,
        "topk": found.shape.topk or None,
        "batches": found.batches,
        "choices_per_layer": found.choices,
        "mean": {name: float(values.mean()) for name, values in _columns(found).items()},
        "by_layer": {name: values.tolist() for name, values in _columns(found).items()},
    }
    if found.following:
        gaps = {"next_one": found.following.next_one, "next_two": found.following.next_two}
        gaps["next_one_by_chance"] = found.following.next_one_by_chance
        tree["mean"] |= {name: float(values.mean()) for name, values in gaps.items() if len(values)}
        tree["by_gap"] = {name: values.tolist() for name, values in gaps.items()}
    return tree


def description_json(found: Description) -> str:
    """Write a description as JSON."""
    return json.dumps(tidy(found), indent=2)


_MEANING = {
    "cv": "deviation over mean of the experts' shares, whole trace",
    "top_fifth": "share of the choices that goes to the most popular fifth of the experts",
    "idle": "share of the experts that no token of a batch chose",
    "repeat_first": "share of the tokens whose first choice is the last token's",
    "repeat_first_by_chance": "the same if tokens were independent",
    "repeat_any": "share of the tokens with an expert in common with the last token",
    "next_one": "share of an expert's tokens that share the most popular next expert",
    "next_two": "share of an expert's tokens that share one of the two most popular",
    "next_one_by_chance": "the same for one if layers were independent",
}


def show_description(found: Description) -> None:
    """Print a description."""
    out, shape = console(), found.shape
    kind = f"top-{shape.topk} choices" if shape.topk else "counts"
    out.print(
        f"{kind} of {shape.layers} layers, {shape.experts} experts: "
        f"{found.choices:,} a layer, in {found.batches:,} batches\n"
    )
    rows = []
    means, columns = tidy(found)["mean"], _columns(found)
    for name, mean in means.items():
        values = columns.get(name)
        low, high = (float(values.min()), float(values.max())) if values is not None else (float("nan"),) * 2
        meaning = _MEANING.get(name, "fullest rank over the mean rank, experts in equal runs")
        rows.append((name, *(_number(name, each) for each in (mean, low, high)), meaning))
    show_table(out, pd.DataFrame(rows, columns=["statistic", "mean", "least", "most", "of layers"]), "Routing")


def _number(name: str, value: float) -> str:
    """Write ratios to a mean plainly, shares in percent."""
    if np.isnan(value):
        return ""
    return f"{value:.2f}" if name == "cv" or name.startswith("max_over_mean") else f"{value:.1%}"


def _columns(found: Description) -> dict[str, Float[np.ndarray, "layer"]]:
    """Name what every layer shows."""
    columns = {"cv": found.cv, "top_fifth": found.top, "idle": found.idle}
    columns |= {f"max_over_mean_ep{size}": values for size, values in found.imbalance.items()}
    if found.following:
        columns["repeat_first"] = found.following.first
        columns["repeat_first_by_chance"] = found.following.first_by_chance
        columns["repeat_any"] = found.following.any
    return columns


_WIDTH, _HEIGHT, _GAP = 320, 180, 60
_LINES = ("#0b6e99", "#d9730d", "#6b7280")


def description_svg(found: Description) -> str:
    """Draw a description: shares by rank, imbalance by expert parallelism, and what layers show."""
    panels = list(_panels(found))
    width, height = _WIDTH + _GAP, _HEIGHT + _GAP + 34
    columns = 2
    placed = [
        f'<g transform="translate({index % columns * width + 44} {index // columns * height + 44})">{panel}</g>'
        for index, panel in enumerate(panels)
    ]
    size = (columns * width + 10, -(-len(panels) // columns) * height + 10)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#1f2937">'
        f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>{"".join(placed)}</svg>\n'
    )


def _panels(found: Description) -> Iterator[str]:
    """Draw what is known, a panel each."""
    experts, layers = np.arange(1, found.shape.experts + 1), np.arange(found.shape.layers)
    ranked = np.sort(found.shares, axis=1)[:, ::-1] * found.shape.experts
    loads = {"median layer": np.median(ranked, axis=0), "most skewed layer": ranked[found.cv.argmax()]}
    yield _panel("Load by rank of expert (1 is even)", "expert, most popular first", experts, loads)
    if found.imbalance:
        means = {"mean of layers": np.array([values.mean() for values in found.imbalance.values()])}
        labels = [str(size) for size in found.imbalance]
        yield _panel("Fullest rank over mean", "expert-parallel ranks", np.log2(list(found.imbalance)), means, labels)
    shares = {"idle": found.idle, "top fifth": found.top}
    yield _panel("Idle experts and top fifth", "MoE layer", layers, shares)
    if found.following:
        yield from _following(found.following, layers)


def _following(found: Following, layers: Int[np.ndarray, "layer"]) -> Iterator[str]:
    """Draw how a choice follows from the one of the token, or of the layer, before."""
    tokens = {"any": found.any, "first": found.first, "first, by chance": found.first_by_chance}
    yield _panel("Choice repeated by next token", "MoE layer", layers, tokens)
    if len(layers) > 1:
        onward = {"two": found.next_two, "one": found.next_one, "one, by chance": found.next_one_by_chance}
        yield _panel("Most popular next expert", "MoE layer", layers[:-1], onward)


def _panel(
    title: str,
    axis: str,
    x: Float[np.ndarray, "point"],
    lines: dict[str, Float[np.ndarray, "point"]],
    labels: Sequence[str] = (),
) -> str:
    """Draw one small chart from zero up, its lines named above it."""
    top = _round_above(max(float(np.nanmax(values)) for values in lines.values()))
    start, span = float(x[0]), max(float(x[-1] - x[0]), 1e-9)
    parts = [f'<text x="0" y="-28" font-size="12" font-weight="600">{title}</text>', _legend(list(lines))]
    for part in (0.0, 0.5, 1.0):
        y = _HEIGHT * (1 - part)
        parts.append(f'<line x1="0" x2="{_WIDTH}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="-6" y="{y + 4}" text-anchor="end">{top * part:.3g}</text>')
    marks = labels or [f"{value:.0f}" for value in (x[0], x[-1])]
    for mark, place in zip(marks, x if labels else (x[0], x[-1]), strict=True):
        at = (float(place) - start) / span * _WIDTH
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT + 14}" text-anchor="middle">{mark}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 30}" text-anchor="middle" fill="#6b7280">{axis}</text>')
    for values, color in zip(lines.values(), _LINES, strict=False):
        points = " ".join(
            f"{(float(a) - start) / span * _WIDTH:.1f},{_HEIGHT * (1 - float(b) / top):.1f}"
            for a, b in zip(x, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"/>')
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    """Name the lines in a row, each after a dash of its color."""
    parts, x = [], 0.0
    for name, color in zip(names, _LINES, strict=False):
        parts.append(f'<line x1="{x}" x2="{x + 14}" y1="-14" y2="-14" stroke="{color}" stroke-width="2.5"/>')
        parts.append(f'<text x="{x + 18}" y="-10">{name}</text>')
        x += 34 + 6 * len(name)
    return "".join(parts)


def _round_above(value: float) -> float:
    """Find a round number no smaller.

    Examples
    --------
    >>> _round_above(0.43), _round_above(1.02), _round_above(0.0)
    (0.5, 1.5, 1.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(power * step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if power * step >= value * (1 - 1e-9)))
