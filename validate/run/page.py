"""The pages of a comparison: what was predicted beside what was measured, misses as misses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from .bundle import COMPILE, Setting
from .scores import LARGE, Compared, Scored, Summary, real, scored, summary
from .waiting import milliseconds, waiting

HEAD = """# Predicted and measured

Written by `moesim validate report`; do not edit. A scenario's plans are chosen by the search on the profile of the
machine they are run on, predicted, and written to a file; then real layers carry them out in torch, by turns, with the
very routing that was predicted. Nothing is fitted afterwards: a result is read only where it names the hash of the
prediction that lies beside it. [How to run this](../guides/run-plans.md), and
[what was seen before](../../validate/cases/measured/README.md).

A *pair* is two plans that differ in one axis. Its order counts where the measured ratio exceeds 1.10 and twice the
noise floor, which is how far two runs of one plan lie apart in the same round. *No difference* is what predicting equal
times for all plans would score. Pairs of a scenario share plans, so they are fewer facts than their number. Memory is
the high-water of a rank's process, which holds the layers of all plans of its scenario at once. Links are *plain* (the
loopback), made slow by the *kernel*, or *emulated*, slow because ranks wait; the last are scored apart.
"""
TARGETS = (
    ("step time, median error", "time_median_error", 0.0, 0.15),
    ("speedup, median error", "speedup_median_error", 0.0, 0.10),
    ("pairs that count, ordered right", "ordered_right", 0.90, 1.0),
    ("step times inside P10-P90", "inside_interval", 0.70, 0.90),
)
"""What is to be reached: name, score, and the range it should lie in."""
NOTHING: Mapping[str, Sequence[Path]] = MappingProxyType({})
WORST = 8
"""Plans whose step time is missed by most that are listed."""


def page(
    machines: Sequence[tuple[str, Sequence[Compared]]],
    unanswered: Mapping[str, Sequence[Path]] = NOTHING,
    *,
    figures: bool = True,
) -> str:
    """Write the page as Markdown: machine by machine, scenario by scenario.

    Parameters
    ----------
    unanswered : folders of bundles that were predicted and not run, by machine
    """
    parts = [HEAD]
    for machine, some in machines:
        parts += [f"## {machine}\n", *_about(some), _scores(some), _targets(some)]
        if figures:
            parts.append(f"![Predicted against measured ratios]({machine}.svg)\n")
        parts += list(_misses(some))
        for compared in some:
            parts += list(_section(compared))
    return "\n".join([*parts, *waiting(unanswered)])


def _about(some: Sequence[Compared]) -> Iterator[str]:
    """Say what machine it was, and when."""
    headers = [compared.results.header for compared in some]
    machine = headers[0]["machine"]
    memory = f"{machine.get('memory', 0) / 1e9:.0f} GB"
    days = sorted({header["started"][:10] for header in headers})
    load = max(header.get("load", 0.0) for header in headers)
    yield (
        f"{headers[0]['device']}, {machine.get('cores', '?')} cores, {memory}; torch {machine.get('torch', '?')}; "
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}; {load:.1f} processes wanted each core at most.\n"
    )


def _scores(some: Sequence[Compared]) -> str:
    """Write the scores of a machine: all real links together, and each kind of link alone."""
    by_link = {"all real links": real(some)}
    for compared in some:
        by_link.setdefault(compared.bundle.setting.link, []).append(compared)
    if len(by_link) == 2:
        by_link.popitem()
    sums = {name: summary(each) for name, each in by_link.items()}
    rows: list[tuple[str, list[str]]] = [
        ("pairs of plans", [str(each.pairs) for each in sums.values()]),
        (f"of which differ by {LARGE:g}x or more", [str(each.large) for each in sums.values()]),
        ("speedup, median error", [_percent(each.speedup_median_error) for each in sums.values()]),
        ("the same of *no difference*", [_percent(each.unmoved_median_error) for each in sums.values()]),
        ("pairs whose order counts", [str(each.telling) for each in sums.values()]),
        ("of which ordered right", [_percent(each.ordered_right) for each in sums.values()]),
        ("step times", [str(each.times) for each in sums.values()]),
        ("step time, median error", [_percent(each.time_median_error) for each in sums.values()]),
        ("step times inside P10-P90", [_percent(each.inside_interval) for each in sums.values()]),
        ("noise floor, median", [_percent(each.floor) for each in sums.values()]),
        ("trials that failed", [str(each.failed) for each in sums.values()]),
    ]
    head = [f"| link | {' | '.join(sums)} |", f"|---|{'--:|' * len(sums)}"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(values)} |" for name, values in rows)]) + "\n"


def _targets(some: Sequence[Compared]) -> str:
    """Set scores beside what is to be reached; emulated links are left out."""
    found = summary(real(some))
    rows = ["| what | to reach | reached | |", "|---|---|--:|---|"]
    for name, score, least, most in TARGETS:
        value = getattr(found, score)
        asked = f"{least:.0%} to {most:.0%}" if least else f"{most:.0%} or less"
        rows.append(f"| {name} | {asked} | {_percent(value)} | {'met' if least <= value <= most else '**missed**'} |")
    return "\n".join(rows) + "\n"


def _misses(some: Sequence[Compared]) -> Iterator[str]:
    """List pairs in the wrong order, and the largest misses of a step time with the part that they come from."""
    yield "### Misses\n"
    wrong = [(each, pair) for each in some for pair in scored(each) if pair.telling and not pair.right]
    for compared, pair in wrong:
        yield (
            f"- Wrong order in {compared.folder.name}: {pair.slow} took {pair.measured:.2f} times as long as "
            f"{pair.fast}, and {pair.predicted:.2f} was predicted."
        )
    missed = [
        (compared.predictions[name].seconds / each.seconds - 1, compared, name)
        for compared in some
        for name, each in compared.finished.items()
    ]
    for error, compared, name in sorted(missed, key=lambda miss: -abs(miss[0]))[:WORST]:
        part, apart = blamed(compared, name)
        cause = f"most of it is {part}, {apart:+.0%} of the step"
        yield f"- {compared.folder.name}, {name}: step time {error:+.0%}; {cause}."
    yield ""


def blamed(compared: Compared, name: str) -> tuple[str, float]:
    """Return the part of a trial that is missed by most, and by how much of its step; none: no part was recorded."""
    rows = parts_of(compared, name)
    if not rows:
        return "unknown", 0.0
    worst = max(rows, key=lambda part: abs(rows[part][0] - rows[part][1]))
    return worst, (rows[worst][0] - rows[worst][1]) / compared.finished[name].seconds


def _section(compared: Compared) -> Iterator[str]:
    """Write one scenario: its plans, its pairs, and where the time went."""
    bundle = compared.bundle
    yield f"### {compared.folder.name}\n"
    yield f"{described(bundle.setting)}; {bundle.rounds} rounds; noise floor {_percent(compared.floor)}.\n"
    yield "| plan | predicted | P10-P90 | measured | spread | error | inside | memory |"
    yield "|---|--:|--:|--:|--:|--:|---|--:|"
    for name, each in compared.finished.items():
        told = compared.predictions[name]
        inside = "yes" if told.low <= each.seconds <= told.high else "no"
        label = f"**{name}** (the pick)" if name == bundle.pick else name
        expected = f"{milliseconds(told.seconds)} | {milliseconds(told.low)}-{milliseconds(told.high)}"
        error = f"{told.seconds / each.seconds - 1:+.0%}"
        seen = (
            f"{milliseconds(each.seconds)} | {_percent(each.spread)} | {error} | {inside} | {each.memory / 1e6:.0f} MB"
        )
        yield f"| {label} | {expected} | {seen} |"
    for name, why in compared.failed.items():
        yield f"| {name} | | | failed: {why} | | | | |"
    yield from _pairs(scored(compared))
    yield from _parts(compared)


def _pairs(pairs: Sequence[Scored]) -> Iterator[str]:
    yield "\n| axis | slower | faster | predicted | measured | error | order |\n|---|---|---|--:|--:|--:|---|"
    for pair in pairs:
        order = ("right" if pair.right else "**wrong**") if pair.telling else "within noise"
        yield (
            f"| {pair.axis} | {pair.slow} | {pair.fast} | {pair.predicted:.2f} | {pair.measured:.2f} | "
            f"{_percent(pair.error)} | {order} |"
        )


def _parts(compared: Compared) -> Iterator[str]:
    """Write predicted and measured busy time of every part, and name the one that a plan's miss comes from."""
    yield "\n| plan | part by part, predicted / measured ms | largest miss |\n|---|---|---|"
    for name in compared.finished:
        if not (rows := parts_of(compared, name)):
            continue
        cells = ", ".join(f"{part} {told * 1e3:.2f} / {seen * 1e3:.2f}" for part, (told, seen) in rows.items())
        worst, apart = blamed(compared, name)
        yield f"| {name} | {cells} | {worst} {apart:+.0%} of the step |"
    yield ""


def parts_of(compared: Compared, name: str) -> dict[str, tuple[float, float]]:
    """Return predicted and measured seconds of each part; what a layer calls by two names is one part to moesim."""
    told, seen = dict(compared.predictions[name].parts), dict(compared.finished[name].parts)
    if not seen:  # a captured graph is one piece
        return {}
    for part, whole in JOINED.items():
        for parts in (told, seen):
            if part in parts:
                parts[whole] = parts.get(whole, 0.0) + parts.pop(part)
    if (steps := _aside(compared, name)) is not None:  # what is watched afterwards is compiled already
        seen[COMPILE] = compared.finished[name].seconds - steps
    names = dict.fromkeys((*told, *seen))
    return {part: (told.get(part, 0.0), seen.get(part, 0.0)) for part in names}


def _aside(compared: Compared, name: str) -> float | None:
    """Return what the steps of a course took, stalls aside; None where there is no course."""
    asides = (trial.name for trial in compared.bundle.trials if trial.aside == name)
    return next((compared.finished[each].seconds for each in asides if each in compared.finished), None)


JOINED = {"regroup": "pack", "prefetch": "fetch"}
"""Parts of a layer, and of a schedule, that count to another."""


def described(setting: Setting) -> str:
    """Say what a bundle ran on.

    Examples
    --------
    >>> described(Setting(ranks=4, nodes=2, rate=1e8, link="kernel"))
    '4 ranks on cpu, on 2 nodes joined at 100 MB/s by the kernel'
    """
    ranks = f"{setting.ranks} rank{'s' * (setting.ranks > 1)} on {setting.device}"
    if setting.nodes == 1:
        return f"{ranks}, fixed shapes captured as graphs and replayed" if setting.graphed else ranks
    how = "by the kernel" if setting.link == "kernel" else f"by waiting ({setting.link})"
    return f"{ranks}, on {setting.nodes} nodes joined at {setting.rate / 1e6:.0f} MB/s {how}"


def lines(found: Summary) -> Iterator[str]:
    """Say in a few lines for a terminal how a summary came out."""
    yield f"{found.pairs} pairs, {found.large} of them {LARGE:g}x apart or more; noise floor {_percent(found.floor)}"
    yield (
        f"speedup: median error {_percent(found.speedup_median_error)}; "
        f"of predicting no difference {_percent(found.unmoved_median_error)}"
    )
    yield f"order: {_percent(found.ordered_right)} of the {found.telling} pairs that count are right"
    yield (
        f"step time: median error {_percent(found.time_median_error)} of {found.times}; "
        f"{_percent(found.inside_interval)} inside P10-P90"
    )
    if found.failed:
        yield f"{found.failed} trials failed"


def _percent(share: float) -> str:
    """Write a share; a dash where there is none.

    Examples
    --------
    >>> _percent(0.1234), _percent(math.nan)
    ('12.3%', '-')
    """
    return f"{share:.1%}" if math.isfinite(share) else "-"
