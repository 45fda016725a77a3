"""The two executors agree: exactly where nothing is shared, closely where links are; and mutants of either do not."""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from contended import contended
from hypothesis import Phase, given, settings
from random_schedules import drawn_schedules

from moesim.ground.streams import stream
from moesim.passes import engine as engine_module
from moesim.passes import timeline as timeline_module
from moesim.passes.engine import engine
from moesim.passes.program import compiled
from moesim.passes.timeline import makespan, timeline

LOADS = (0.5, 0.8, 1.0)
SIZES = (8, 30, 100)
SEEDS = range(34)
CLOSE, FAR, SHARE = 0.10, 0.20, 0.95
"""With sharing, so large a share of schedules is so close, and none is so far."""


def assert_same(drawn):
    """Where nothing is shared every start and every finish is the same."""
    priced = drawn.priced
    by_timeline, by_engine = timeline(priced), engine(priced)
    np.testing.assert_allclose(by_timeline.start, by_engine.start, rtol=1e-9, atol=0)
    np.testing.assert_allclose(by_timeline.finish, by_engine.finish, rtol=1e-9, atol=0)


def assert_close(errors):
    assert np.mean(np.abs(errors) <= CLOSE) >= SHARE
    assert np.max(np.abs(errors)) <= FAR


@cache
def schedules(load, size, slowdown=0.0, seeds=SEEDS):
    return [contended(seed, size, load, slowdown) for seed in seeds]


def ends(load, size, slowdown=0.0, seeds=SEEDS):
    """When each schedule ends: by the timeline, by the engine, and if nothing were shared."""
    cases = schedules(load, size, slowdown, seeds)
    stretched = np.array([makespan(priced).item() for priced in cases])
    exact = np.array([engine(priced).finish.max() for priced in cases])
    return stretched, exact, np.array([makespan(priced, sharing=False).item() for priced in cases])


def errors(loads=LOADS, size=30):
    """By how much of the engine's end the timeline's is off, schedule by schedule."""
    return np.concatenate([stretched / exact - 1 for stretched, exact, _ in (ends(load, size) for load in loads)])


@given(drawn_schedules())
def test_they_are_one_where_nothing_is_shared(drawn):
    assert_same(drawn)


@given(drawn_schedules())
def test_coflows_change_nothing_where_nothing_is_shared(drawn):
    priced = drawn.priced
    np.testing.assert_allclose(engine(priced, coflows=True).finish, engine(priced).finish, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("slowdown", "seeds"), [(0.0, SEEDS), (0.2, SEEDS[:12])])
def test_they_are_close_where_links_are_shared(slowdown, seeds, capsys, record_property):
    every = []
    lines = ["load tasks schedules   mean     5%    95%    min    max  within 10%  cost of sharing"]
    for load, size in product(LOADS, SIZES):
        stretched, exact, alone = ends(load, size, slowdown, seeds)
        assert (stretched >= alone).all()
        off = stretched / exact - 1
        five, ninety_five = np.quantile(off, [0.05, 0.95])
        lines.append(
            f"{load:4} {size:5} {len(off):9} {off.mean():6.1%} {five:6.1%} {ninety_five:6.1%} {off.min():6.1%} "
            f"{off.max():6.1%} {np.mean(np.abs(off) <= CLOSE):11.0%} {np.mean(exact / alone) - 1:16.0%}"
        )
        every += off.tolist()
    title = f"timeline over engine, minus 1; kernels and copies slow each other by {slowdown:.0%}"
    figures = "\n".join((title, *lines))
    record_property("figures", figures)
    with capsys.disabled():
        print(f"\n{figures}")
    assert len(every) == len(LOADS) * len(SIZES) * len(seeds)
    assert_close(every)


def test_there_are_enough_contended_schedules():
    assert len(LOADS) * len(SIZES) * len(SEEDS) >= 300


STREAM_IGNORED, GROUP_IGNORED = "a stream ignored", "a group ignored"


def mutated(schedule, mutant):
    """The schedule as an executor would see it that ignored the streams, or the groups."""
    tasks = tuple(
        replace(task, stream=str(number)) if mutant == STREAM_IGNORED else replace(task, group="")
        for number, task in enumerate(schedule.tasks)
    )
    return replace(schedule, tasks=tasks)


@pytest.mark.parametrize("mutant", [STREAM_IGNORED, GROUP_IGNORED])
@pytest.mark.parametrize("module", [timeline_module, engine_module], ids=["timeline", "engine"])
def test_a_mutant_of_either_is_found_where_nothing_is_shared(module, mutant, monkeypatch):
    if module is timeline_module:
        monkeypatch.setattr(module, "compiled", lambda schedule: compiled(mutated(schedule, mutant)))
    else:
        run = module._FlowRun
        monkeypatch.setattr(
            module, "_FlowRun", lambda priced: run(replace(priced, schedule=mutated(priced.schedule, mutant)))
        )
    with pytest.raises(AssertionError):
        settings(phases=[Phase.generate])(given(drawn_schedules())(assert_same))()


@pytest.mark.parametrize("module", [timeline_module, engine_module], ids=["timeline", "engine"])
def test_a_skipped_stretch_is_found(module, monkeypatch):
    if module is timeline_module:
        monkeypatch.setattr(module, "_stretched", lambda program, priced: priced.duration)
    else:
        run = module._FlowRun
        monkeypatch.setattr(module, "_FlowRun", lambda priced: run(replace(priced, demand={}, links={})))
    with pytest.raises(AssertionError):
        assert_close(errors())


def test_a_stretch_of_one_stream_only_is_found(monkeypatch):
    stretch = timeline_module.stretch

    def of_every_second(priced, met, start, finish):
        factor = stretch(priced, met, start, finish)
        factor[::2] = 1.0
        return factor

    monkeypatch.setattr(timeline_module, "stretch", of_every_second)
    with pytest.raises(AssertionError):
        assert_close(errors())


def test_the_contended_schedules_are_the_same_in_every_run():
    first, second = (contended(3, 8, 0.8) for _ in range(2))
    assert [a.tobytes() for a in first.duration] == [b.tobytes() for b in second.duration]
    assert stream(3, "8 tasks at load 0.8").random() == stream(3, "8 tasks at load 0.8").random()
