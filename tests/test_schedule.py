import numpy as np
import pytest
from hand_cases import run, schedule
from hypothesis import given
from hypothesis import strategies as st

from moesim.ground.errors import MoesimError
from moesim.passes.program import check
from moesim.schedules.ops import Exchange, fixed, shares, slot_shares
from moesim.schedules.schedule import beside, relayered, repeat, series, then


def names(joined):
    return "".join(task.name for task in joined.tasks)


def after(joined):
    return [task.after for task in joined.tasks]


@pytest.fixture
def block():
    """a, then b beside a prefetch c that is not part of the result."""
    return schedule(run("a", "compute", 1), run("b", "compute", 1, after=(0,)), run("c", "h2d", 1), out=(1,))


def test_then_waits_for_the_result_and_not_for_the_rest(block):
    joined = then(block, block)
    assert names(joined) == "abcabc"
    assert after(joined) == [(), (0,), (), (1,), (3,), (1,)]
    assert joined.out == (4,)


def test_series_is_then_after_then(block):
    once, twice = series((block, block, block)), then(then(block, block), block)
    assert after(once) == after(twice)
    assert once.out == twice.out == (7,)


def test_an_empty_schedule_in_a_series_changes_nothing(block):
    empty = schedule(out=())
    assert after(series((block, empty, block))) == after(then(block, block))


def test_repeat_shares_ops_and_numbers_layers(block):
    layered = relayered(block, 4)
    repeated = repeat(layered, 3)
    assert [task.layer for task in repeated.tasks] == [3] * 3 + [4] * 3 + [5] * 3
    assert repeated.tasks[0].op is repeated.tasks[3].op is repeated.tasks[6].op


def test_beside_merges_in_proportion_with_the_first_first():
    long = schedule(*(run(name, "compute", 1, after=(i - 1,) if i else ()) for i, name in enumerate("abcd")))
    short = schedule(run("x", "comm", 1), run("y", "comm", 1, after=(0,)))
    merged = beside(long, short)
    assert names(merged) == "axbcyd"
    assert after(merged) == [(), (), (0,), (2,), (1,), (3,)]
    assert merged.out == (5, 4)
    assert names(beside(short, short)) == "xxyy"


def test_beside_keeps_the_ranks_of_either(block):
    wide = schedule(run("a", "compute", 1, 2), ranks=2, groups={"all": [0, 0]})
    assert beside(wide, block).rows == beside(block, wide).rows == 2


@pytest.mark.parametrize("join", [then, beside])
@pytest.mark.parametrize(
    ("what", "values"), [("groups", ([0, 0], [0, 1])), ("parts", ([True, True], [True, False]))], ids=["group", "part"]
)
def test_one_name_with_two_meanings_is_refused(join, what, values):
    one, other = ({what: {"ep": value}} for value in values)
    task = run("a", "compute", 1)
    with pytest.raises(ValueError, match=r"`ep` has different labels in the two schedules; rename one of them"):
        join(schedule(task, ranks=2, **one), schedule(task, ranks=2, **other))
    assert join(schedule(task, ranks=2, **one), schedule(task, ranks=2, **one)).rows == 2


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(1, 7))
def test_shares_of_whole_numbers_add_up_and_differ_by_one_at_most(sizes, parts):
    cut = shares(np.array(sizes), parts)
    assert sum(cut).tolist() == sizes
    assert np.ptp(np.stack(cut), axis=0).max() <= 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(1, 7))
def test_an_exchange_is_cut_as_its_experts_are(rows, parts):
    sent = np.array(rows)[:, np.newaxis]
    exchange = Exchange(
        rows=sent,
        ranks_of_slot=np.zeros((len(rows), 1), int),
        ranks=1,
        row=2.0,
        reverse=False,
        tokens=np.array([sum(rows)]),
    )
    cut = exchange.split(parts)
    assert [part.rows.tolist() for part in cut] == [part.tolist() for part in slot_shares(sent, parts)]
    assert sum(part.rows for part in cut).tolist() == sent.tolist()
    assert sum(part.tokens for part in cut).tolist() == [sum(rows)]


def test_a_fixed_duration_is_cut_evenly():
    assert [part.duration.tolist() for part in fixed(3.0).split(2)] == [[1.5], [1.5]]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (schedule(run("gate", "compute", 1, after=(0,))), r"task 0 `gate` comes after \(0,\)"),
        (
            schedule(run("gate", "compute", 1, group="al"), groups={"all": [0]}),
            "task 0 `gate` has no group `al`; did you mean `all`",
        ),
        (
            schedule(run("gate", "compute", 1, on="som"), parts={"some": [True]}),
            "no part `som`; did you mean `some`",
        ),
    ],
)
def test_a_schedule_that_nobody_can_run_is_refused(wrong, complaint):
    with pytest.raises(MoesimError, match=complaint):
        check(wrong)


def test_a_group_of_other_ranks_is_refused():
    wrong = schedule(run("gate", "compute", 1), ranks=3)
    # Past the checks of annotations, which only tests run under.
    object.__setattr__(wrong, "groups", {"ep": np.zeros(2, int)})
    with pytest.raises(MoesimError, match=r"group `ep` has shape \(2,\); it must have one entry for each of 3 rows"):
        check(wrong)
