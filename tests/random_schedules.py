"""Random schedules in which nothing is shared, for hypothesis: streams, groups of every form, parts, zero lengths."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from moesim.schedules.ops import fixed
from moesim.schedules.schedule import ALONE, Priced, Schedule, Task

OP = fixed(1.0)
LENGTHS = st.one_of(st.just(0.0), st.floats(1e-6, 10.0))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn; made into a `Priced` outside of the strategy, as the checking of annotations draws too."""

    ranks: int
    groups: dict[str, list[int]]
    parts: dict[str, list[bool]]
    tasks: list[dict[str, object]]
    lengths: list[np.ndarray]

    @property
    def priced(self) -> Priced:
        tasks = tuple(Task(name="experts", op=OP, **task) for task in self.tasks)
        schedule = Schedule(
            tasks=tasks,
            out=(len(tasks) - 1,),
            groups={key: np.array(labels) for key, labels in self.groups.items()},
            parts={key: np.array(part) for key, part in self.parts.items()},
            count=np.ones(self.ranks),
        )
        return Priced(schedule=schedule, duration=tuple(self.lengths))


@st.composite
def drawn_schedules(draw, lead=()):
    """Up to 25 tasks on up to 8 ranks, with lengths of leading axes `lead`."""
    ranks = draw(st.integers(1, 8))
    groups = draw(_groups(ranks))
    tasks = [draw(_task(number, tuple(groups))) for number in range(draw(st.integers(1, 25)))]
    return Drawn(
        ranks=ranks,
        groups=groups,
        parts={"some": draw(_mask(ranks)), "others": draw(_mask(ranks))},
        tasks=tasks,
        lengths=[draw(_lengths(lead, ranks)) for _ in tasks],
    )


def _mask(ranks):
    return st.lists(st.booleans(), min_size=ranks, max_size=ranks)


def _groups(ranks):
    """Everybody, blocks, lanes, lanes of blocks, any labels, and any labels with ranks that wait for nobody."""
    rank = np.arange(ranks)
    regular = {"all": rank * 0, "tp": rank // 2, "ep": rank // 4, "rail": rank % 2, "cp": rank // 4 * 2 + rank % 2}
    known = {key: labels.tolist() for key, labels in regular.items()}
    any_labels = st.lists(st.integers(ALONE, 3), min_size=ranks, max_size=ranks)
    return any_labels.map(lambda labels: known | {"any": labels, "none alone": [max(label, 0) for label in labels]})


@st.composite
def _task(draw, number, groups):
    return {
        "stream": draw(st.sampled_from(["compute", "comm", "h2d"])),
        "after": tuple(sorted(draw(st.sets(st.integers(0, number - 1), max_size=3)))) if number else (),
        "group": draw(st.sampled_from(["", "", *groups])),
        "on": draw(st.sampled_from(["", "", "", "some", "others"])),
    }


@st.composite
def _lengths(draw, lead, ranks):
    """Alike on all ranks or not, and of full or broadcast leading axes."""
    shape = (*(draw(st.sampled_from([1, size])) for size in lead), draw(st.sampled_from([1, ranks])))
    size = int(np.prod(shape))
    return np.array(draw(st.lists(LENGTHS, min_size=size, max_size=size))).reshape(shape)
