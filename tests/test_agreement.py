"""The two executors agree: exactly where nothing is shared, closely where links are; and mutants of either do not."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from contended import contended
from hypothesis import given
from random_schedules import priced_schedules

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


def assert_same(priced):
    """Where nothing is shared every start and every finish is the same."""
    by_timeline, by_engine = timeline(priced), engine(priced)
    np.testing.assert_allclose(by_timeline.start, by_engine.start, rtol=1e-9, atol=0)
    np.testing.assert_allclose(by_timeline.finish, by_engine.finish, rtol=1e-9, atol=0)


def assert_close(errors):
    assert np.mean(np.abs(errors) <= CLOSE) >= SHARE
    assert np.max(np.abs(errors)) <= FAR


@cache
def schedules(load, size, slowdown=0.0):
    return [contended(seed, size, load, slowdown) for seed in SEEDS]


def errors(load, size, slowdown=0.0):
    """By how much of the engine's end the timeline's is off, schedule by schedule."""
    cases = schedules(load, size, slowdown)
    return np.array([makespan(priced).item() / engine(priced).finish.max() - 1 for priced in cases])


@given(priced_schedules())
def test_they_are_one_where_nothing_is_shared(priced):
    assert_same(priced)


@given(priced_schedules())
def test_coflows_change_nothing_where_nothing_is_shared(priced):
    np.testing.assert_allclose(engine(priced, coflows=True).finish, engine(priced).finish, rtol=1e-9, atol=0)


@pytest.mark.parametrize("slowdown", [0.0, 0.2])
def test_they_are_close_where_links_are_shared(slowdown, capsys):
    by_kind = {(load, size): errors(load, size, slowdown) for load in LOADS for size in SIZES}
    alone = {
        key: np.array([makespan(priced, sharing=False).item() for priced in schedules(*key, slowdown)])
        for key in by_kind
    }
    stretched = {key: np.array([makespan(priced).item() for priced in schedules(*key, slowdown)]) for key in by_kind}
    with capsys.disabled():
        print(f"\ntimeline over engine, minus 1; kernels beside copies slowed by {slowdown:.0%}")
        print("load tasks schedules   mean     5%    95%    min    max  within 10%  sharing costs (engine)")
        for (load, size), off in by_kind.items():
            five, ninety_five = np.quantile(off, [0.05, 0.95])
            cost = np.mean(stretched[load, size] / (1 + off) / alone[load, size]) - 1
            print(
                f"{load:4} {size:5} {len(off):9} {off.mean():6.1%} {five:6.1%} {ninety_five:6.1%} "
                f"{off.min():6.1%} {off.max():6.1%} {np.mean(np.abs(off) <= CLOSE):10.0%} {cost:12.0%}"
            )
    every = np.concatenate(list(by_kind.values()))
    assert len(every) >= 300
    assert_close(every)
    assert all((stretched[key] >= alone[key]).all() for key in by_kind)


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
        given(priced_schedules())(assert_same)()


@pytest.mark.parametrize("module", [timeline_module, engine_module], ids=["timeline", "engine"])
def test_a_skipped_stretch_is_found(module, monkeypatch):
    if module is timeline_module:
        monkeypatch.setattr(module, "_stretched", lambda program, priced: None)
    else:
        run = module._FlowRun
        monkeypatch.setattr(module, "_FlowRun", lambda priced: run(replace(priced, demand={}, links={})))
    with pytest.raises(AssertionError):
        assert_close(np.concatenate([errors(load, 30) for load in LOADS]))


def test_a_stretch_of_one_stream_only_is_found(monkeypatch):
    stretch = timeline_module.stretch

    def of_every_second(priced, met, start, finish):
        factor = stretch(priced, met, start, finish)
        factor[::2] = 1.0
        return factor

    monkeypatch.setattr(timeline_module, "stretch", of_every_second)
    with pytest.raises(AssertionError):
        assert_close(np.concatenate([errors(load, 30) for load in LOADS]))


def test_the_contended_schedules_are_the_same_in_every_run():
    first, second = (contended(3, 8, 0.8) for _ in range(2))
    assert [a.tobytes() for a in first.duration] == [b.tobytes() for b in second.duration]
    assert stream(3, "8 tasks at load 0.8").random() == stream(3, "8 tasks at load 0.8").random()
