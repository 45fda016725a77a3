"""Random schedules in which nothing is shared, for hypothesis: streams, groups of every form, parts, lengths of zero."""

import numpy as np
from hypothesis import strategies as st

from moesim.schedules.ops import fixed
from moesim.schedules.schedule import ALONE, Priced, Schedule, Task

OP = fixed(1.0)
LENGTHS = st.one_of(st.just(0.0), st.floats(1e-6, 10.0))


@st.composite
def priced_schedules(draw, lead=()):
    """A priced schedule of up to 25 tasks on up to 8 ranks, with leading axes `lead`."""
    ranks = draw(st.integers(1, 8))
    groups = draw(_groups(ranks))
    parts = {"some": draw(_mask(ranks)), "others": draw(_mask(ranks))}
    tasks = tuple(draw(_task(number, tuple(groups))) for number in range(draw(st.integers(1, 25))))
    return Priced(
        schedule=Schedule(tasks=tasks, out=(len(tasks) - 1,), groups=groups, parts=parts, count=np.ones(ranks)),
        duration=tuple(draw(_lengths(lead, ranks)) for _ in tasks),
    )


def _mask(ranks):
    return st.lists(st.booleans(), min_size=ranks, max_size=ranks).map(np.array)


def _groups(ranks):
    """Everybody, blocks, lanes, blocks of lanes, any labels, and any labels with ranks that wait for nobody."""
    rank = np.arange(ranks)
    any_labels = st.lists(st.integers(ALONE, 3), min_size=ranks, max_size=ranks).map(np.array)
    regular = {"all": rank * 0, "tp": rank // 2, "ep": rank // 4, "rail": rank % 2, "cp": rank // 4 * 2 + rank % 2}
    return any_labels.map(lambda labels: regular | {"any": labels, "none alone": np.maximum(labels, 0)})


@st.composite
def _task(draw, number, groups):
    after = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else ()
    return Task(
        name="experts",
        stream=draw(st.sampled_from(["compute", "comm", "h2d"])),
        op=OP,
        after=tuple(sorted(after)),
        group=draw(st.sampled_from(["", "", *groups])),
        on=draw(st.sampled_from(["", "", "", "some", "others"])),
    )


@st.composite
def _lengths(draw, lead, ranks):
    """Alike on all ranks or not, and of full or broadcast leading axes."""
    shape = (*(draw(st.sampled_from([1, size])) for size in lead), draw(st.sampled_from([1, ranks])))
    size = int(np.prod(shape))
    return np.array(draw(st.lists(LENGTHS, min_size=size, max_size=size))).reshape(shape)
