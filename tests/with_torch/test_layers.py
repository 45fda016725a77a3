"""Every layer computes the plain reference's function, with its gradients, for any routing, up to documented drops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from layer_ranks import Case, Found, Ranks, found, ranks
from moesim.validate.layers import reference
from moesim.validate.layers.clock import PARTS
from moesim.validate.layers.spec import BlockSpec, CacheSpec, LayerSpec, Reaction

SEED = 5
TOKENS = 12
SMALL = LayerSpec(hidden=16, intermediate=24, experts=4, topk=2, tokens=TOKENS, shared=8)
ROUTINGS = ("random", "one takes all", "one gets none", "one token", "empty rank")


def routing_of(kind: str, spec: LayerSpec, rank: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and choices of a rank, the same each time."""
    generator = torch.Generator().manual_seed(100 * rank + number)
    tokens = {"one token": 1, "empty rank": spec.tokens if rank == spec.ranks - 1 else 0}.get(kind, spec.tokens)
    scores = torch.rand(tokens, spec.experts, generator=generator)
    if kind == "one takes all":
        scores[:, 1 % spec.experts] += 2
    if kind == "one gets none":
        scores[:, 2 % spec.experts] -= 2
    dtype = torch.bfloat16 if spec.dtype == "bf16" else torch.float32
    rows = torch.randn(tokens, spec.hidden, generator=generator).to(dtype)
    return rows, scores.topk(spec.topk, dim=1).indices


def room_of(spec: LayerSpec) -> int | None:
    """Rows each expert takes from a rank, by the formula in the docs; None where nothing is dropped."""
    if not spec.static or spec.factor == 0:
        return None
    rows = spec.fraction * spec.tokens if spec.fraction else abs(spec.factor) * spec.topk * spec.tokens / spec.experts
    return -int(-rows // 1)


def check(spec: LayerSpec, steps: list[list[tuple[torch.Tensor, torch.Tensor]]], answers: list[Found]) -> None:
    """Compare the outputs of every step, and the gradients of the last, of all ranks with the reference's."""
    weights = reference.weights_of(spec, SEED)
    close = {"rtol": 0.05, "atol": 0.06} if spec.dtype == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
    for number in range(len(steps[0])):
        last = number == len(steps[0]) - 1
        entered = []
        for rank, answer in enumerate(answers):
            tokens, routing = steps[rank][number]
            entered.append(tokens.double().requires_grad_())
            (kept,) = reference.kept(spec, [routing], room_of(spec))
            wanted = reference.layer(spec, weights, entered[-1], routing, kept)
            torch.testing.assert_close(answer.outputs[number].double(), wanted.detach(), **close)
            if last and spec.backward:
                wanted.backward(tokens.double())
    if not spec.backward:
        return
    loose = {"rtol": 0.1, "atol": 0.3} if spec.dtype == "bf16" else {"rtol": 1e-4, "atol": 1e-4}
    for answer, tokens in zip(answers, entered, strict=True):
        torch.testing.assert_close(answer.tokens.double(), tokens.grad, **loose)
    for name, gradient in gradients(spec, answers).items():
        torch.testing.assert_close(gradient, weights[name].grad, **loose, msg=lambda text, name=name: f"{name}: {text}")


def gradients(spec: LayerSpec, answers: list[Found]) -> dict[str, torch.Tensor]:
    """Add up the gradients of all ranks: of an expert, those of its copies and slices; of the rest, those of ranks."""
    total: dict[str, torch.Tensor] = {}
    for rank, answer in enumerate(answers):
        for name, gradient in answer.gradients.items():
            part = gradient.double()
            if name.startswith("experts."):
                part = by_expert(spec, name, rank, part)
            total[name] = total.get(name, 0) + part
    return total


def by_expert(spec: LayerSpec, name: str, rank: int, part: torch.Tensor) -> torch.Tensor:
    """Lay a rank's gradients out as [expert, ...] of whole experts."""
    inner = name.endswith("inner")
    width = spec.intermediate * (2 if spec.gated and inner else 1)
    whole = torch.zeros(spec.experts, *((spec.hidden, width) if inner else (width, spec.hidden)), dtype=torch.float64)
    if spec.r is None:
        local = len(spec.placement) // spec.ep
        first = rank % spec.ep * local
        for slot, expert in enumerate(spec.placement[first : first + local]):
            whole[expert] += part[slot]
        return whole
    if spec.shards == 1:
        local = spec.experts // spec.ranks
        whole[rank * local : (rank + 1) * local] = part
        return whole
    expert, number = divmod(rank, spec.shards)
    each = spec.intermediate // spec.shards
    here = slice(number * each, (number + 1) * each)
    if inner:
        whole[expert].unflatten(1, (-1, spec.intermediate))[:, :, here] = part[0].unflatten(1, (-1, each))
    else:
        whole[expert, here] = part[0]
    return whole


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(2, tmp_path_factory.mktemp("two")) as group:
        yield group


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(4, tmp_path_factory.mktemp("four")) as group:
        yield group


def hold(spec: LayerSpec, group: Ranks | None, kinds: tuple[str, ...] = ROUTINGS, *, emulated: bool = False) -> None:
    """Hold a layer to the reference on all kinds of routing, one after another."""
    steps = [[routing_of(kind, spec, rank, n) for n, kind in enumerate(kinds)] for rank in range(spec.ranks)]
    for direction, chosen in (
        ("forward", slice(None)),
        *(("forward+backward", slice(n, n + 1)) for n in range(len(kinds))),
    ):
        if direction != "forward" and spec.cache is not None:
            continue  # forward passes only
        each = replace(spec, direction=direction)
        some = [own[chosen] for own in steps]
        record = chosen == slice(0, 1)
        cases = [Case(spec=each.json(), steps=tuple(own), record=record, emulated=emulated) for own in some]
        answers = [found(cases[0], 0)] if group is None else group.run(cases)
        check(each, some, answers)
        assert all(answer.parts <= set(PARTS) for answer in answers)


ALONE = {
    "static": {"gating": "static", "factor": 1.0},
    "static, roomy": {"gating": "static", "fraction": 1.0},
    "sparse": {"gating": "sparse", "factor": 0.75},
    "sparse, as needed": {"gating": "sparse", "factor": 0.0},
    "static, as needed up to": {"gating": "static", "factor": -1.25},
    "dynamic": {"gating": "dynamic"},
    "grouped": {"gating": "grouped"},
    "without a gate": {"gating": "dynamic", "gated": False, "shared": 0},
    "top 1": {"gating": "sparse", "topk": 1},
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gating_on_one_rank(name: str, dtype: str) -> None:
    hold(replace(SMALL, dtype=dtype, **ALONE[name]), None)


TOGETHER = {
    **{f"{name}, ep": {**fields, "ep": 2} for name, fields in ALONE.items()},
    "data parallel": {"ep": 1},
    "placed": {"ep": 2, "expert_of_slot": (3, 0, 2, 1)},
    "placed, static": {"ep": 2, "expert_of_slot": (3, 0, 2, 1), "gating": "static"},
    "copies": {"ep": 2, "expert_of_slot": (0, 1, 2, 1, 3, 2)},
    "copies, static": {"ep": 2, "expert_of_slot": (0, 1, 2, 1, 3, 2), "gating": "static"},
    "copies, sparse": {"ep": 2, "expert_of_slot": (0, 1, 2, 1, 3, 2), "gating": "sparse"},
    "copies in chunks": {"ep": 2, "expert_of_slot": (0, 1, 2, 1, 3, 2), "degree": 4},
    **{f"degree {d}": {"ep": 2, "degree": d, "gating": "dynamic"} for d in (2, 4, 8)},
    "degree 2, static": {"ep": 2, "degree": 2, "gating": "static"},
    "degree 8, sparse": {"ep": 2, "degree": 8, "gating": "sparse"},
    "degree 2, grouped": {"ep": 2, "degree": 2, "gating": "grouped"},
    "shared beside dispatch": {"ep": 2, "overlap": "shared_expert", "shared_slot": 1},
    "shared beside combine": {"ep": 2, "overlap": "shared_expert", "shared_slot": 0},
    "bf16": {"ep": 2, "dtype": "bf16", "degree": 2},
    "bf16, static": {"ep": 2, "dtype": "bf16", "gating": "static"},
    "cache": {"ep": 2, "cache": CacheSpec(resident=1, tier="disk")},
    "cache, static": {"ep": 2, "cache": CacheSpec(resident=1), "gating": "static", "fraction": 1.0},
    "cache, copies": {"ep": 2, "cache": CacheSpec(resident=2, eviction="lfu"), "expert_of_slot": (0, 1, 2, 1, 3, 2)},
    "cache, data parallel": {"ep": 1, "cache": CacheSpec(resident=3, eviction="lifo")},
    "r 0": {"r": 0},
    "r 1": {"r": 1},
    "r 0, one expert": {"r": 0, "experts": 1, "topk": 1},
    "r 1, one expert": {"r": 1, "experts": 1, "topk": 1},
    "r 2, one expert": {"r": 2, "experts": 1, "topk": 1, "gating": "sparse"},
}


@pytest.mark.parametrize("name", TOGETHER)
def test_two_ranks(two: Ranks, name: str) -> None:
    hold(replace(SMALL, ranks=2, **TOGETHER[name]), two)


@pytest.mark.parametrize("gating", ["dynamic", "static"])
def test_two_ranks_over_an_emulated_link(two: Ranks, gating: str) -> None:
    hold(replace(SMALL, ranks=2, ep=2, degree=2, gating=gating), two, emulated=True)


FOUR = {
    "hierarchical": {"ep": 4, "alltoall": "two_dh", "width": 2},
    "hierarchical, static": {"ep": 4, "alltoall": "two_dh", "width": 2, "gating": "static"},
    "hierarchical in chunks": {"ep": 4, "alltoall": "two_dh", "width": 2, "degree": 2},
    "hierarchical, static, in chunks": {"ep": 4, "alltoall": "two_dh", "width": 2, "degree": 2, "gating": "sparse"},
    "hierarchical, copies": {
        "ep": 4,
        "alltoall": "two_dh",
        "width": 2,
        "expert_of_slot": (0, 1, 2, 3, 1, 0, 3, 1),
        "experts": 4,
    },
    "two sets of experts": {"ep": 2, "degree": 2},
    "copies among nodes": {"ep": 4, "width": 2, "expert_of_slot": (0, 1, 1, 2, 3, 1, 2, 1)},
    **{
        f"r {r}": {"experts": 2, "r": r, "gating": gating}
        for r, gating in ((0, "dynamic"), (1, "dynamic"), (2, "static"))
    },
    "r 1, sparse": {"experts": 2, "r": 1, "gating": "sparse"},
    "r 2 of 4": {"experts": 1, "topk": 1, "r": 2},
    "r 4 of 4": {"experts": 1, "topk": 1, "r": 4, "degree": 2},
}


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks(four: Ranks, name: str) -> None:
    hold(replace(SMALL, ranks=4, **FOUR[name]), four)


def test_ranks_alter_capacities_together(two: Ranks) -> None:
    """Both see the counts of both, so that they agree, and rows go where they are waited for."""
    settings = {"memory": 0.9, "threshold": 0.6, "room": 1.2}
    spec = replace(SMALL, ranks=2, ep=2, gating="sparse", reactions=(Reaction(name="dynamoe", settings=settings),))
    kinds = ("random", "random", "one takes all", "one takes all", "one gets none")
    steps = [[routing_of(kind, spec, rank, n) for n, kind in enumerate(kinds)] for rank in range(2)]
    first, second = two.run([Case(spec=spec.json(), steps=tuple(own)) for own in steps])
    assert first.changes == second.changes
    assert first.changes[-1] > 0


BLOCKS = [(0, 0), (0, 3), (0, 4), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (3, 4)]


@pytest.mark.parametrize(("position", "slot"), BLOCKS)
@pytest.mark.parametrize("topk", [1, 2])
def test_shortcuts(two: Ranks, position: int, slot: int, topk: int) -> None:
    block = BlockSpec(heads=2, sequence=4, dense=20, position=position, slot=slot)
    spec = replace(SMALL, ranks=2, ep=2, topk=topk, block=block)
    hold(spec, two, ("random", "one takes all", "empty rank"))
