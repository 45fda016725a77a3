"""The conformance suite: what every policy of a kind must satisfy, yours as well as moesim's.

Write ``<folder>/placement/mine.py`` and, in a test, call ``moesim.testing.check("placement", "mine", [folder])``. A
policy that breaks its kind's promise raises `AssertionError`, which says what was promised.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from moesim.ground.errors import PolicyError
from moesim.passes.pipelining import drafts
from moesim.plans.layout import NO_LIMIT, Layout
from moesim.plans.plan import Policy, Setting
from moesim.policies.finding import find, make
from moesim.policies.placement.contiguous import Contiguous
from moesim.policies.protocols import (
    Adaptation,
    AllToAllPolicy,
    Batching,
    Buffering,
    CacheView,
    Change,
    Demand,
    Gated,
    Gating,
    Overlap,
    Phase,
    Pipeline,
    Placement,
    Prefetch,
    Recompute,
    Router,
    Scaling,
    Seen,
    Sharding,
    Shortcut,
    Sizes,
    Turn,
)
from moesim.schedules.ops import AllToAll, Elementwise, Exchange, Gemm, Grouped, Op
from moesim.schedules.schedule import Schedule, Task, relayered, series
from moesim.world.hardware import MEMORY_TIERS
from moesim.world.model import Moe

__all__ = [
    "check",
    "check_adaptation",
    "check_alltoall",
    "check_batching",
    "check_blindness",
    "check_buffering",
    "check_gating",
    "check_overlap",
    "check_pipeline",
    "check_placement",
    "check_prefetch",
    "check_recompute",
    "check_router",
    "check_scaling",
    "check_sharding",
    "check_shortcut",
    "rank_loads",
    "sizes_by_name",
]

_NO_SETTINGS: Mapping[str, Setting] = MappingProxyType({})


def check(kind: str, name: str, folders: Sequence[Path] = (), settings: Mapping[str, Setting] = _NO_SETTINGS) -> None:
    """Put one policy through the suite of its kind.

    Parameters
    ----------
    kind, name : str
        The policy's folder and file.
    folders : sequence of Path
        Folders of yours, each holding ``<kind>/<name>.py``.
    settings : mapping
        What to set; the rest as by default.

    Raises
    ------
    AssertionError
        The policy breaks a promise.
    PolicyError
        There is no such policy or setting.

    Examples
    --------
    >>> check("placement", "eplb", settings={"redundant": 4})
    """
    check_blindness(Path(inspect.getfile(find(kind, name, folders))))
    CHECKS[kind](make(kind, Policy(name=name, settings=settings), folders))


_TIMING = {"bandwidth", "bandwidths", "latency", "latencies", "duration", "durations", "seconds", "time"}
_SEALED = ("moesim.schedules.costs", "moesim.world.hardware", "time", "datetime")


def check_blindness(file: Path) -> None:
    """Check that a policy's file names no bandwidth, latency or duration, so that it cannot time anything."""
    for node in ast.walk(ast.parse(file.read_text())):
        for name in _names(node):
            words = set(re.split(r"_|(?<=[a-z])(?=[A-Z])", name))
            timing = _TIMING & {word.lower() for word in words}
            assert not timing, f"{file.name} names `{name}`; a policy may not see {', '.join(sorted(timing))}"
        for module in _imports(node):
            sealed = any(module == door or module.startswith(f"{door}.") for door in _SEALED)
            assert not sealed, f"{file.name} imports `{module}`, from which a policy could time what it decides"


def _names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ImportFrom(names=names):
            yield from (alias.name for alias in names)
        case _:
            pass


def _imports(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield module
            yield from (f"{module}.{alias.name}" for alias in names)
        case _:
            pass


_CLUSTERS = ((16, 4, 1), (64, 16, 2), (60, 8, 2), (12, 12, 3))  # experts, ranks, nodes


def check_placement(placement: Placement) -> None:
    """Check that every expert has a slot, ranks have equally many, and a promise to balance is kept."""
    for experts, ranks, nodes in _CLUSTERS:
        load = _rng(experts).lognormal(sigma=0.6, size=(4, 3, experts))
        load.flags.writeable = False
        slots = placement.slots(experts, ranks)
        assert slots >= experts, f"slots({experts}, {ranks}) = {slots}, fewer than the experts"
        assert slots % ranks == 0, f"slots({experts}, {ranks}) = {slots}, which {ranks} ranks do not share evenly"
        chosen = placement(load, slots, ranks, nodes, _rng(1))
        assert chosen.shape == (3, slots), f"expert_of_slot has shape {chosen.shape}, not {(3, slots)}"
        for row in chosen:
            assert set(row.tolist()) == set(range(experts)), "an expert has no slot, or a slot no expert"
        assert np.array_equal(chosen, placement(load, slots, ranks, nodes, _rng(1))), "two answers for one seed"
        if placement.balances:
            _check_balance(placement, load, chosen, ranks, nodes)


def _check_balance(
    placement: Placement,
    load: Float[np.ndarray, "step layer expert"],
    chosen: Any,
    ranks: int,
    nodes: int,
) -> None:
    mean, slots = load.mean(axis=0), chosen.shape[1]
    loads = rank_loads(chosen, mean, ranks)
    even = rank_loads(Contiguous()(load, slots, ranks, nodes, _rng(1)), mean, ranks)
    assert np.all(loads.max(axis=1) <= even.max(axis=1) * (1 + 1e-12)), "heavier than contiguous placement"
    # Read backwards, because that keeps groups of consecutive experts whole.
    mirrored = rank_loads(placement(load[..., ::-1], slots, ranks, nodes, _rng(1)), mean[:, ::-1], ranks)
    same = np.allclose(np.sort(loads, axis=1), np.sort(mirrored, axis=1), rtol=1e-9)
    assert same, "another balance when the experts are numbered backwards"


def rank_loads(
    expert_of_slot: Any, load: Float[np.ndarray, "layer expert"], ranks: int
) -> Float[np.ndarray, "layer rank"]:
    """Add up the load of each rank's slots; an expert's copies share its load evenly.

    Examples
    --------
    >>> rank_loads(np.array([[0, 1, 2, 0]]), np.array([[6.0, 1.0, 2.0]]), 2).tolist()
    [[4.0, 5.0]]
    """
    layers, experts = load.shape
    copies = np.stack([np.bincount(row, minlength=experts) for row in expert_of_slot])
    share = np.take_along_axis(load / copies, expert_of_slot, axis=1)
    return np.asarray(share.reshape(layers, ranks, -1).sum(axis=2))


def check_gating(gating: Gating) -> None:
    """Check that capacity is respected, nothing is kept that was not routed, and only drops change the model."""
    tokens, experts, topk = 48, 8, 2
    counts = _rng(2).multinomial(tokens * topk, _rng(3).dirichlet(np.ones(experts)), size=(2, 3, 4))
    counts = np.minimum(counts, tokens)
    capacity = np.full(experts, gating.capacity(tokens, experts, topk))
    home = np.full(counts.shape[:-1], tokens)
    gated = gating(counts, capacity, home)
    _check_gated(gating, gated, counts, capacity)
    _check_gated(gating, gating(counts * 0.97, capacity.astype(float), home), counts * 0.97, capacity)
    assert np.array_equal(gated.rows, gating(counts, capacity, home).rows), "two answers for the same counts"
    turned = gating(counts[:, ::-1, :, ::-1], capacity, home)
    assert np.array_equal(turned.kept, gated.kept[:, ::-1, :, ::-1]), "depends on how ranks or experts are numbered"
    larger = gating.capacity(2 * tokens, experts, topk)
    assert larger >= capacity[0], "less capacity for more tokens"


def _check_gated(gating: Gating, gated: Gated, counts: Any, capacity: Any) -> None:
    assert gated.rows.shape == gated.kept.shape == counts.shape, "rows and kept must be shaped like the counts"
    assert gated.mask.shape == counts.shape[:-1], "the mask is one size per rank"
    assert gated.rows.dtype == gated.kept.dtype == counts.dtype, "whole rows must stay whole, and means means"
    assert np.all(gated.kept <= counts), "keeps assignments that were not routed"
    assert np.all(gated.kept <= gated.rows), "keeps more assignments than it computes rows"
    assert np.all(gated.mask >= 0), "a negative mask"
    if capacity[0] < NO_LIMIT:
        assert np.all(gated.rows <= capacity), "more rows than the capacity"
    if not gating.changes_model:
        assert np.array_equal(gated.kept, counts), "drops assignments, though it says the model is unchanged"


_TOPK = 4
_NODES = (("nvlink", 8), ("rail", 64))
_LEAVES = (("nvlink", 4), ("leaf", 16), ("spine", 64))
_MACHINES = ((1, _NODES), (6, _NODES), (8, _NODES), (12, _NODES), (32, _NODES), (32, _LEAVES))  # ranks, reach


def check_alltoall(policy: AllToAllPolicy) -> None:
    """Check that what is sent arrives, that the way back mirrors the way there, and that numbering does not matter."""
    for ranks, reach in _MACHINES:
        op = _exchange(ranks, reach)
        try:
            phases = policy(op, reach)
        except PolicyError as refusal:
            _check_refusal(str(refusal), ranks)
            continue
        if policy.replicated:
            assert phases == (), "keeps tokens in place, yet sends some"
            continue
        _check_phases(phases, reach, ranks)
        _check_same(phases, policy(op, reach), "two answers for one exchange")
        _check_mirrored(phases, policy(replace(op, reverse=True), reach))
        _check_numbering(policy, op, reach, phases)
        _check_alike(policy, op, reach)


def _check_refusal(message: str, ranks: int) -> None:
    assert "`linear`" in message, f"refuses {ranks} ranks without naming an algorithm that works"


def _exchange(ranks: int, reach: tuple[tuple[str, int], ...]) -> Exchange:
    """Route 20 to 40 tokens of every rank to 4 of 3 slots per rank, in 2 draws."""
    rng, slots = _rng(ranks), 3 * ranks
    tokens = rng.integers(20, 40, size=(1, ranks))
    popularity = rng.dirichlet(np.ones(slots))
    rows = np.moveaxis(rng.multinomial(np.tile(tokens, (2, 1)) * _TOPK, popularity), -1, 0)
    blocks = {size: -(-ranks // size) for size in (1, *(size for _, size in reach))}
    return Exchange(
        rows=rows,
        ranks_of_slot=np.arange(slots)[:, None] // 3,
        ranks=ranks,
        row=7168.0,
        reverse=False,
        tokens=tokens,
        distinct={size: number * (1 - (1 - 1 / number) ** _TOPK) for size, number in blocks.items()},
    )


def _bytes(phase: Phase) -> tuple[Float[np.ndarray, "tier ..."], Float[np.ndarray, "tier ..."]]:
    """Bytes sent and received; a copy's traffic stands on both sides."""
    if isinstance(phase.op, AllToAll):
        return phase.op.sent, phase.op.received
    assert isinstance(phase.op, Elementwise), (
        f"a phase is an AllToAll or an Elementwise, not a {type(phase.op).__name__}"
    )
    return phase.op.traffic[None], phase.op.traffic[None]


def _check_phases(phases: tuple[Phase, ...], reach: tuple[tuple[str, int], ...], ranks: int) -> None:
    assert phases or ranks == 1, "nothing is sent"
    for phase in phases:
        assert phase.group in ("", "ep", "node", "rail"), f"an unknown group, `{phase.group}`"
        sent, received = _bytes(phase)
        assert np.all(sent >= 0), "negative bytes"
        assert np.all(received >= 0), "negative bytes"
        assert np.allclose(sent.sum(axis=-1), received.sum(axis=-1), rtol=1e-12), "bytes sent are not bytes received"
        assert sent.shape[-1] == received.shape[-1] == ranks, "bytes must be given for every rank"
        if isinstance(phase.op, AllToAll):
            assert {*phase.op.tiers} <= {name for name, _ in reach}, "a tier that does not exist"
            assert len(phase.op.tiers) == len(sent) == len(received) == len(phase.op.messages), "one row a tier"
            assert np.all((phase.op.messages > 0) | (sent == 0)), "bytes without a message"


def _check_same(phases: tuple[Phase, ...], others: tuple[Phase, ...], complaint: str) -> None:
    assert len(phases) == len(others), complaint
    for phase, other in zip(phases, others, strict=True):
        for one, two in zip(_bytes(phase), _bytes(other), strict=True):
            assert np.allclose(one, two, rtol=1e-9), complaint


def _check_mirrored(there: tuple[Phase, ...], back: tuple[Phase, ...]) -> None:
    assert [phase.group for phase in there] == [phase.group for phase in back[::-1]], "the way back is another way"
    for phase, other in zip(there, back[::-1], strict=True):
        (sent, received), (sent_back, received_back) = _bytes(phase), _bytes(other)
        assert np.allclose(sent, received_back, rtol=1e-12), "the way back carries other bytes"
        assert np.allclose(received, sent_back, rtol=1e-12), "the way back carries other bytes"


def _check_numbering(
    policy: AllToAllPolicy, op: Exchange, reach: tuple[tuple[str, int], ...], phases: tuple[Phase, ...]
) -> None:
    """Number the nodes backwards (within one node, the gpus): each gpu must still move the bytes it moved."""
    node = reach[0][1] if op.ranks > reach[0][1] and op.ranks % reach[0][1] == 0 else 1
    if node == 1 and op.ranks > reach[0][1]:
        return  # no renumbering keeps nodes whole
    number = np.arange(op.ranks).reshape(-1, node)[::-1].ravel()  # its own inverse
    turned = policy(
        replace(op, rows=op.rows[..., number], tokens=op.tokens[..., number], ranks_of_slot=number[op.ranks_of_slot]),
        reach,
    )
    for phase, other in zip(phases, turned, strict=True):
        for one, two in zip(_bytes(phase), _bytes(other), strict=True):
            assert np.allclose(one.sum(axis=0)[..., number], two.sum(axis=0), rtol=1e-9), "depends on node numbers"


def _check_alike(policy: AllToAllPolicy, op: Exchange, reach: tuple[tuple[str, int], ...]) -> None:
    alike = replace(op, rows=op.rows[..., :1], tokens=op.tokens[..., :1])
    spelled = replace(
        alike, rows=np.repeat(alike.rows, op.ranks, axis=-1), tokens=np.repeat(alike.tokens, op.ranks, axis=-1)
    )
    _check_same(policy(alike, reach), policy(spelled, reach), "another answer where one source rank stands for all")


_EXTENSIVE: Mapping[str, tuple[str, ...]] = {
    "Gemm": ("m",),
    "Grouped": ("rows",),
    "Hosted": ("rows",),
    "Attend": ("tokens", "prompts", "pairs", "keys"),
    "Elementwise": ("traffic",),
    "Copy": ("size",),
    "Exchange": ("rows", "tokens"),
    "AllToAll": ("sent", "received"),
    "Reduce": ("size",),
    "Send": ("size",),
    "Host": (),
    "Fixed": ("duration",),
}


def check_overlap(overlap: Overlap) -> None:
    """Check that a rearranged schedule does the same work, in an order that respects what waits for what."""
    layout = _layout()
    width = len(overlap.block(_dense_block(), layout))
    assert width == len(overlap.block(_moe_block(1), layout)), "other numbers of alternatives for dense and MoE blocks"
    for phases in (1, 2):
        block = _moe_block(phases)
        for alternative in overlap.block(block, layout):
            _check_rearranged(block, alternative)
    halves = tuple(_moe_block(1) for _ in range(overlap.halves))
    whole = overlap.whole(halves)
    _check_order(whole)
    _check_conserved(sizes_by_name(*halves), sizes_by_name(whole), "the joined halves do other work")


def sizes_by_name(*schedules: Schedule) -> dict[str, float]:
    """Total every size that splitting must conserve over some schedules, keyed ``task op size``.

    Examples
    --------
    >>> task = Task(name="pack", stream="compute", op=Elementwise(traffic=np.array([3.0, 4.0])))
    >>> sizes_by_name(Schedule(tasks=(task,), out=(0,)))
    {'pack Elementwise traffic': 7.0}
    """
    totals: defaultdict[str, float] = defaultdict(float)
    for task in (task for schedule in schedules for task in schedule.tasks):
        kind = type(task.op).__name__
        for size in _EXTENSIVE[kind]:
            totals[f"{task.name} {kind} {size}"] += np.sum(getattr(task.op, size)).item()
    return dict(totals)


def _check_rearranged(block: Schedule, alternative: Schedule) -> None:
    _check_order(alternative)
    _check_conserved(sizes_by_name(block), sizes_by_name(alternative), "splitting gains or loses rows or bytes")
    assert alternative.groups == block.groups, "the ranks meet otherwise"
    streams = {task.name: task.stream for task in block.tasks}
    assert all(streams[task.name] == task.stream for task in alternative.tasks), "a task has changed its stream"
    before = [_ancestors(alternative, index) for index in range(len(alternative.tasks))]
    for index, task in enumerate(alternative.tasks):
        near = {"experts": "dispatch", "combine": "experts"}.get(task.name)
        if near is not None:
            met = {(alternative.tasks[i].name, alternative.tasks[i].chunk) for i in before[index]}
            assert (near, task.chunk) in met, f"a {task.name} waits for no {near} of its own chunk"
    ended = set(alternative.out).union(*(before[index] for index in alternative.out))
    assert ended == set(range(len(alternative.tasks))), "the result does not wait for all of the work"


def _check_conserved(given: Mapping[str, float], found: Mapping[str, float], complaint: str) -> None:
    assert given.keys() == found.keys(), complaint
    assert all(math.isclose(given[key], found[key], rel_tol=1e-12) for key in given), complaint


def _check_order(schedule: Schedule) -> None:
    assert schedule.out, "nothing is the result"
    for index, task in enumerate(schedule.tasks):
        assert all(0 <= earlier < index for earlier in task.after), f"{task.name} waits for a later task"


def _ancestors(schedule: Schedule, index: int) -> set[int]:
    found: set[int] = set()
    waiting = list(schedule.tasks[index].after)
    while waiting:
        earlier = waiting.pop()
        if earlier not in found:
            found.add(earlier)
            waiting.extend(schedule.tasks[earlier].after)
    return found


def _moe_block(phases: int) -> Schedule:
    """A layer on 4 ranks: attention, pack, dispatch in so many phases, shared expert beside it, experts, combine."""
    exchange = AllToAll(
        tiers=("nvlink",), sent=np.full((1, 4), 4096.0), received=np.full((1, 4), 4096.0), messages=np.full((1, 1), 3.0)
    )
    grouped = Grouped(rows=_rng(5).integers(0, 9, size=(3, 4)), n=np.array([64]), k=np.array([32]), dtype="bf16")
    steps: list[tuple[str, str, Op]] = [
        ("attention", "compute", _dense(24)),
        ("pack", "compute", Elementwise(traffic=np.full(4, 512.0))),
        *[("dispatch", "comm", exchange)] * phases,
        ("experts", "compute", grouped),
        ("experts", "compute", Elementwise(traffic=np.full(4, 2048.0))),
        ("experts", "compute", grouped),
        *[("combine", "comm", exchange)] * phases,
        ("unpack", "compute", Elementwise(traffic=np.full(4, 512.0))),
    ]
    tasks = [
        Task(name=name, stream=stream, op=op, after=(i - 1,) if i else (), group="ep" if stream == "comm" else "")
        for i, (name, stream, op) in enumerate(steps)
    ]
    tasks.append(Task(name="shared", stream="side", op=_dense(24), after=(0,)))
    last = len(tasks)
    tasks.append(
        Task(name="unpack", stream="compute", op=Elementwise(traffic=np.full(4, 64.0)), after=(last - 2, last - 1))
    )
    return Schedule(tasks=tuple(tasks), out=(last,), groups={"ep": np.zeros(4, dtype=int)}, count=np.ones(4))


def _dense_block() -> Schedule:
    return Schedule(tasks=(Task(name="mlp", stream="compute", op=_dense(24)),), out=(0,), count=np.ones(4))


def _dense(rows: int) -> Gemm:
    return Gemm(m=np.array([rows]), n=np.array([64]), k=np.array([32]), dtype="bf16")


def _layout() -> Layout:
    return Layout(
        expert_of_slot=np.arange(12)[None],
        rank_of_slot=np.arange(12) // 3,
        capacity=np.full((1, 12), NO_LIMIT),
        resident=np.ones((1, 12), dtype=bool),
        r=np.ones(1, dtype=int),
        degree=np.ones(1, dtype=int),
        alltoall=("linear",),
    )


def check_adaptation(adaptation: Adaptation) -> None:
    """Check that it asks for other layouts only where it says so, repeats itself, and returns whole layouts."""
    layout, experts = _adaptive_layout(), 12
    sizes = Sizes(tokens=48, topk=2, gpus=4, nodes=1, expert=1e6)
    counts = _rng(13).multinomial(48 * 4 * 2, _rng(14).dirichlet(np.ones(experts)), size=(30, 2))
    asked: list[int] = []

    def steps() -> list[Change | None]:
        state, now, found = adaptation.start(layout, sizes), layout, []
        for step in range(30):

            def cost_of(other: Layout, step: int = step) -> Any:
                asked.append(step)
                return other.degree * 1.0 + other.r

            seen = Seen(
                step=step,
                layout=now,
                counts=counts[step],
                most=counts[step].max(axis=1),
                agreement=0.5,
                cost_of=cost_of,
            )
            state, change = adaptation(state, seen, _rng(step))
            now = now if change is None else change.layout
            found.append(change)
        return found

    changes = steps()
    assert adaptation.profiles or not asked, "asks what other layouts cost, though it says that it does not"
    assert [change is None for change in changes] == [change is None for change in steps()], "two answers for one trace"
    for change in changes:
        if change is not None:
            _check_layout(change.layout, layout)
            assert change.rebuilt >= 0, "fewer than no graphs"
            assert change.moved >= 0, "moves negative bytes"


def _check_layout(changed: Layout, before: Layout) -> None:
    for field in ("expert_of_slot", "rank_of_slot", "capacity", "resident", "r", "degree"):
        shapes = getattr(changed, field).shape, getattr(before, field).shape
        assert shapes[0] == shapes[1], f"{field} has the shape {shapes[0]} and had {shapes[1]}"
    for row in changed.expert_of_slot:
        assert set(row.tolist()) == set(range(before.capacity.shape[1])), "an expert has no slot"
    assert np.all(changed.capacity > 0), "an expert without capacity"


def _adaptive_layout() -> Layout:
    """Two layers of 12 experts on 4 ranks, with a capacity of 4 times the mean."""
    return replace(
        _layout(),
        expert_of_slot=np.tile(np.arange(12), (2, 1)),
        capacity=np.full((2, 12), 32),
        resident=np.ones((2, 12), dtype=bool),
        r=np.ones(2, dtype=int),
        degree=np.ones(2, dtype=int),
        alltoall=("linear", "linear"),
    )


def check_shortcut(shortcut: Shortcut) -> None:
    """Check that the same work is done in an order that respects what waits for what, and that changes are owned up to.

    A block that starts the routed stream early computes the norm before its gate once more.
    """
    moe = Moe(experts=8, topk=2, width=64, input_dim=32)
    assert shortcut.changes_model or shortcut.mixture(moe) == moe, (
        "changes the mixture, but says the model is unchanged"
    )
    assert shortcut.mixture(shortcut.mixture(moe)) == shortcut.mixture(moe), "changes what it has changed before"
    dense = _dense_block()
    assert shortcut(dense, _layout()) == (dense,), "changes a block without experts"
    pair = series((_dense_pair(), relayered(_moe_block(2), 1)))
    for alternative in shortcut(pair, _layout()):
        _check_rearranged(pair, alternative)


def _dense_pair() -> Schedule:
    """A layer of attention and a dense network."""
    tasks = [
        Task(name="attention", stream="compute", op=_dense(24)),
        Task(name="mlp", stream="compute", op=_dense(24), after=(0,)),
    ]
    return Schedule(tasks=tuple(tasks), out=(1,), count=np.ones(4))


def check_buffering(buffering: Buffering) -> None:
    """Check that no more slots are resident than there are, and that a key ranks every expert of every cache alike."""
    for slots in (16, 64):
        assert 1 <= buffering.resident_of(slots) <= slots, f"{buffering.resident_of(slots)} of {slots} slots resident"
    assert buffering.hosted == 0 or buffering.tier == "host", "the host computes what is in its own memory"
    assert buffering.tier in MEMORY_TIERS, f"keeps experts in `{buffering.tier}`, not in {' or '.join(MEMORY_TIERS)}"
    seen = _cache_view()
    key = buffering(seen)
    assert key.shape == seen.used.shape, f"keys of shape {key.shape} for caches and experts of {seen.used.shape}"
    assert not np.isnan(key.astype(float)).any(), "a key that is no number"
    assert np.array_equal(key, buffering(seen)), "two answers for the same caches"
    mirrored = {each.name: getattr(seen, each.name) for each in fields(seen) if each.name != "now"}
    turned = replace(seen, **{name: values[::-1, ::-1] for name, values in mirrored.items()})
    assert np.array_equal(buffering(turned), key[::-1, ::-1]), "depends on how caches or experts are numbered"


def _cache_view() -> CacheView:
    """Three caches of eight experts, some never used."""
    shape, now = (3, 8), 40
    used = _rng(7).integers(-1, now, size=shape)
    return CacheView(
        now=now,
        needed=_rng(8).random(shape) < 0.5,
        used=used,
        inserted=np.minimum(used, _rng(9).integers(-1, now, size=shape)),
        count=np.where(used < 0, 0, _rng(10).integers(1, 9, size=shape)),
        share=_rng(11).random(shape),
        next_use=now + _rng(12).permutation(24).reshape(shape),
    )


def check_prefetch(prefetch: Prefetch) -> None:
    """Check that what is missing is copied in once, early or late, and that nothing is more than free."""
    for missing in (np.array([[0.0, 1e9, 3.5e8]]), np.zeros((2, 1))):
        sorted_out = prefetch(missing)
        parts = (sorted_out.early, sorted_out.wasted, sorted_out.late)
        assert all(part.shape == missing.shape for part in parts), "sizes are shaped like what is missing"
        assert all(np.all(part >= 0) for part in parts), "negative bytes"
        assert np.allclose(sorted_out.early + sorted_out.late, missing, rtol=1e-12), "not all that is missing arrives"
        assert np.all(sorted_out.wasted[missing == 0] == 0), "copies experts where all are resident"


def check_batching(batching: Batching) -> None:
    """Check that a step has room for every decode, and that graphs ascend."""
    assert batching.max_batch >= 1, "no sequence may decode"
    assert batching.speculated >= 0, "a negative number of drafts"
    assert 1 <= batching.emitted <= 1 + batching.speculated, "more tokens out than are verified"
    assert batching.budget >= batching.max_batch * (1 + batching.speculated), "no room for every decode"
    assert list(batching.buckets) == sorted(set(batching.buckets)), "buckets must ascend"
    assert batching.graphs >= 0, "a negative number of graphs"
    assert not (batching.graphs and batching.buckets), "sizes of graphs are chosen, or still to be chosen"


def check_router(router: Router) -> None:
    """Check that a replica that exists is chosen, that none is forgotten for ever, and that no state is hidden."""
    rng = _rng(12)
    for replicas in (1, 2, 7):
        hand, chosen = [0] * replicas, set()
        for turn in range(40 * replicas):
            session = int(rng.integers(-1, 30))
            place = router(turn, session, tuple(hand))
            assert place in range(replicas), f"chooses replica {place} of {replicas}"
            assert place == router(turn, session, tuple(hand)), "two answers for one request"
            hand[place] += 1
            chosen.add(place)
        assert chosen == set(range(replicas)), f"never chooses some of {replicas} replicas"


def check_scaling(scaling: Scaling) -> None:
    """Check that a number that exists is chosen, that a crowd adds replicas, and that no state is hidden."""
    assert min(scaling.every, scaling.lag, scaling.hold) >= 0, "a negative time"
    for replicas in (1, 2, 9):
        for on in range(1, replicas + 1):
            for waiting, working in ((0, 0), (0, 3 * on), (100, 8 * on), (5000, 8 * on)):
                seen = Demand(replicas=replicas, on=on, waiting=waiting, working=working, places=8)
                wanted = scaling(seen)
                assert wanted in range(1, replicas + 1), f"wants {wanted} of {replicas} replicas"
                assert wanted == scaling(seen), "two answers to one question"
                assert wanted >= on or waiting == 0, "takes replicas away while requests wait"
                assert wanted == replicas or waiting < 5000, "leaves a crowd waiting"


_PIPELINES = ((1, 1, 12), (2, 4, 12), (4, 8, 24), (4, 3, 24), (6, 18, 24), (8, 16, 64))
"""Stages, microbatches, layers."""


def check_pipeline(pipeline: Pipeline) -> None:
    """Check that every stage passes every microbatch there and back once, and that no two wait for each other."""
    for stages, microbatches, layers in _PIPELINES:
        problem = pipeline.fault(stages, microbatches, layers)
        if problem:
            assert "; " in problem, f"`{problem}` names no remedy; end it with `; ` and one"
            continue
        for stage in range(stages):
            order = pipeline.order(stage, stages, microbatches)
            there = [unit.forward for unit in order if unit.forward]
            back = [unit.backward or unit.inputs for unit in order if unit.backward or unit.inputs]
            passed = microbatches * (pipeline.chunks if pipeline.lanes == 1 else 1)
            assert len(set(there)) == len(there) == passed, f"stage {stage} of {stages} makes {len(there)} forwards"
            assert sorted(there) == sorted(map(_turn, back)), f"stage {stage} of {stages} takes others back than there"
            late = [unit.inputs for unit in order if unit.inputs]
            weights = [unit.weights for unit in order if unit.weights]
            assert sorted(map(_turn, late)) == sorted(map(_turn, weights)), f"stage {stage} forgets weights' gradients"
        drafts(pipeline, stages, microbatches)


def _turn(turn: Turn | None) -> Turn:
    assert turn is not None
    return turn


def check_sharding(sharding: Sharding) -> None:
    """Check that it names a stage of sharing there is."""
    assert sharding.stage in range(4), f"stage {sharding.stage}; 0 to 3 are known"
    assert isinstance(sharding.behind, bool), "`behind` is true or false"


def check_recompute(recompute: Recompute) -> None:
    """Check that what is run again is what was not kept."""
    block = _moe_block(phases=1)
    again = [task for task in block.tasks if recompute(task)]
    match recompute.keeps:
        case "all":
            assert not again, f"keeps all, and runs {again[0].name} again"
        case "products":
            products = [task.name for task in again if not isinstance(task.op, Elementwise)]
            assert again, "keeps less than all, and runs nothing again"
            assert not products, f"keeps what products need, and runs {products[0]} again"
        case "inputs":
            assert len(again) == len(block.tasks), "keeps its input alone, and does not run all again"


CHECKS: Mapping[str, Callable[[Any], None]] = MappingProxyType(
    {
        "adaptation": check_adaptation,
        "alltoall": check_alltoall,
        "batching": check_batching,
        "buffering": check_buffering,
        "gating": check_gating,
        "overlap": check_overlap,
        "pipeline": check_pipeline,
        "placement": check_placement,
        "prefetch": check_prefetch,
        "recompute": check_recompute,
        "router": check_router,
        "scaling": check_scaling,
        "sharding": check_sharding,
        "shortcut": check_shortcut,
    }
)
"""The suite of each kind."""


def _rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
