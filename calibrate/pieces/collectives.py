"""Collectives of torch.distributed, over gloo or NCCL alike.

What a dynamic gate must do before its uneven all-to-all, telling peers how many rows come and reading the answer back
on the host, are pieces of their own. What moves rows or weights can be differentiated: its gradient is the collective
that runs the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .bench import Bench, Case, Inputs

Group = Any
"""A process group; None is all ranks."""


def all_to_all(
    rows: Tensor, taken: Sequence[int] | None = None, given: Sequence[int] | None = None, group: Group = None
) -> Tensor:
    """Send rows to all ranks of a group and return theirs: `given` rows to each, `taken` from each; evenly if None."""
    if torch.is_grad_enabled() and rows.requires_grad:
        return Flight(taken=taken, given=given, group=group).land_now(rows)
    out = torch.empty_like(rows) if taken is None else rows.new_empty(sum(taken), *rows.shape[1:])
    work = all_to_all_start(out, rows, taken, given, group)
    work.wait()
    return out


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """One all-to-all under way: `start` sends rows and returns at once, `land` waits for those of the others.

    In a backward pass, `land` sends the gradients back, and `start` waits for them: what is computed between the two
    runs beside the exchange there as well. All ranks start and land in one order.

    Attributes
    ----------
    taken, given : rows from and to each rank; evenly if None
    """

    taken: Sequence[int] | None = None
    given: Sequence[int] | None = None
    group: Group = None
    _work: Any = None
    _rows: Tensor | None = None
    _back: Tensor | None = None

    def start(self, rows: Tensor) -> Tensor:
        """Send rows; what is returned holds nothing before it has landed."""
        out: Tensor = _Start.apply(rows, self)
        return out

    def land(self, out: Tensor) -> Tensor:
        """Wait for what `start` returned."""
        landed: Tensor = _Land.apply(out, self)
        return landed

    def land_now(self, rows: Tensor) -> Tensor:
        """Start and land."""
        return self.land(self.start(rows))

    def send(self, rows: Tensor, *, back: bool = False) -> Tensor:
        """Start the exchange, or the one that runs `back`; both tensors are kept alive until `wait`."""
        taken, given = (self.given, self.taken) if back else (self.taken, self.given)
        self._rows = rows.contiguous()
        out = torch.empty_like(self._rows) if taken is None else rows.new_empty(sum(taken), *rows.shape[1:])
        self._work = all_to_all_start(out, self._rows, taken, given, self.group)
        return out

    def wait(self) -> None:
        """Wait for what was sent last."""
        self._work.wait()
        self._work = self._rows = None


class _Start(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not seen here
    @staticmethod
    def forward(ctx: Any, rows: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        return flight.send(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        flight = ctx.flight
        flight.wait()
        returned, flight._back = flight._back, None
        return returned, None


class _Land(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not seen here
    @staticmethod
    def forward(ctx: Any, out: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        flight.wait()
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.flight._back = ctx.flight.send(gradient, back=True)
        return gradient, None  # only so that `_Start` is next: what it returns is what was sent back


def all_to_all_start(
    out: Tensor, rows: Tensor, taken: Sequence[int] | None, given: Sequence[int] | None, group: Group = None
) -> Any:
    """Start an all-to-all into `out` and return at once; `wait` of what is returned ends it."""
    splits = [None if sizes is None else list(sizes) for sizes in (taken, given)]
    return dist.all_to_all_single(out, rows, *splits, group=group, async_op=True)


def exchange_sizes(counts: Tensor, group: Group = None) -> Tensor:
    """Tell every rank how many rows it will get: counts [rank x experts of one rank], int64; gives theirs."""
    out = torch.empty_like(counts)
    dist.all_to_all_single(out, counts, group=group)
    return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """The two groups of this rank in a hierarchical all-to-all.

    Attributes
    ----------
    inner : the ranks of this rank's node
    outer : the ranks with this rank's place in every node
    width : ranks of a node
    """

    inner: Group
    outer: Group
    width: int


@cache
def levels(ranks: int, width: int, first: int = 0) -> Levels:
    """Make the groups of nodes of `width` ranks among `ranks` from `first` on; all of these call it together."""
    own = dist.get_rank() - first
    node, rail = own // width, own % width
    return Levels(
        inner=group_of(tuple(range(first + node * width, first + (node + 1) * width))),
        outer=group_of(tuple(range(first + rail, first + ranks, width))),
        width=width,
    )


@cache
def group_of(members: tuple[int, ...]) -> Group:
    """Make the group of some ranks, which all of them ask for in one order; the others need not know."""
    return dist.new_group(list(members), use_local_synchronization=True)


def hierarchical(rows: Tensor, groups: Levels) -> Tensor:
    """Send equal parts of rows to all ranks in two phases: inside nodes first, then between them.

    A rank hands its neighbours what goes to their places in all nodes, so that a message between nodes carries the rows
    of a whole node: [rank, ...] of equal parts gives the same as an even all-to-all (Tutel's 2DH, arXiv 2206.03382).
    """
    nodes = rows.shape[0] // groups.width
    by_place = rows.unflatten(0, (nodes, groups.width)).transpose(0, 1).contiguous()
    inside = all_to_all(by_place, group=groups.inner)
    by_node = inside.transpose(0, 1).contiguous()
    return all_to_all(by_node, group=groups.outer).flatten(0, 1)


def all_reduce(buffer: Tensor, group: Group = None, *, largest: bool = False) -> Tensor:
    """Sum a buffer over ranks, in place, or keep the largest of each number."""
    dist.all_reduce(buffer, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return buffer


def all_gather(part: Tensor, ranks: int, group: Group = None) -> Tensor:
    """Gather the parts of all ranks, in the order of ranks."""
    if torch.is_grad_enabled() and part.requires_grad:
        gathered: Tensor = _Gather.apply(part, ranks, group)
        return gathered
    out = part.new_empty(ranks * part.shape[0], *part.shape[1:])
    _newest("all_gather_single", "all_gather_into_tensor")(out, part, group=group)
    return out


class _Gather(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not seen here
    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: int, group: Group) -> Tensor:
        ctx.ranks, ctx.group = ranks, group
        return all_gather(part.detach(), ranks, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(gradient.contiguous(), ctx.ranks, ctx.group), None, None


def reduce_scatter(buffer: Tensor, ranks: int, group: Group = None) -> Tensor:
    """Sum a buffer over ranks and keep this rank's part of it."""
    out = buffer.new_empty(buffer.shape[0] // ranks, *buffer.shape[1:])
    _newest("reduce_scatter_single", "reduce_scatter_tensor")(out, buffer, group=group)
    return out


def _newest(name: str, before: str) -> Callable[..., Any]:
    """Return a collective by the name that torch 2.13 gave it, or by the one it had before."""
    found: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, before)
    return found


def send_on(buffer: Tensor, rank: int) -> Tensor:
    """Send a buffer from rank 0 to rank 1."""
    if rank == 0:
        dist.send(buffer, 1)
    else:
        dist.recv(buffer, 0)
    return buffer


def splits(rows: int, ranks: int, skew: float) -> list[int]:
    """Return how many rows go to each rank: by a power law, the first rank the hottest, all rows dealt.

    Examples
    --------
    >>> splits(12, 3, 0.0), splits(11, 2, 1.0)
    ([4, 4, 4], [8, 3])
    """
    weights = [(rank + 1.0) ** -skew for rank in range(ranks)]
    dealt = [int(rows * weight / sum(weights)) for weight in weights]
    return [dealt[0] + rows - sum(dealt), *dealt[1:]]


def all_to_all_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make an even all-to-all ready."""
    rows = _buffer(inputs, bench)
    return Case(call=all_to_all, args=lambda: (rows,), joint=True)


def uneven_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make an all-to-all ready in which all ranks send more to some."""
    given = splits(int(inputs["size"]), bench.ranks, inputs["skew"])
    taken = [given[bench.rank]] * bench.ranks
    rows = bench.pool.cut("bytes", sum(given))
    return Case(call=all_to_all, args=lambda: (rows, taken, given), joint=True)


def hierarchical_case(inputs: Inputs, dtype: str, bench: Bench, width: int) -> Case:
    """Make an all-to-all in two phases ready, between nodes of `width` ranks."""
    groups = levels(bench.ranks, width)
    rows = _buffer(inputs, bench).view(bench.ranks, -1)
    return Case(call=hierarchical, args=lambda: (rows, groups), joint=True)


def sizes_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make the exchange of sizes ready."""
    counts = torch.ones(int(inputs["experts"]) // bench.ranks * bench.ranks, dtype=torch.int64, device=bench.device)
    return Case(call=exchange_sizes, args=lambda: (counts,), joint=True)


def all_reduce_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make an all-reduce ready; the sum is of zeros, lest repeated sums overflow."""
    buffer = torch.zeros(int(inputs["size"]) // 4, device=bench.device)
    return Case(call=all_reduce, args=lambda: (buffer,), joint=True)


def all_gather_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make an all-gather ready: `size` is what every rank holds in the end."""
    part = bench.pool.cut("fp32", inputs["size"] // 4 // bench.ranks)
    return Case(call=all_gather, args=lambda: (part, bench.ranks), joint=True)


def reduce_scatter_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a reduce-scatter ready: `size` is what every rank holds at first."""
    buffer = bench.pool.cut("fp32", inputs["size"] // 4 // bench.ranks * bench.ranks)
    return Case(call=reduce_scatter, args=lambda: (buffer, bench.ranks), joint=True)


def send_case(inputs: Inputs, dtype: str, bench: Bench) -> Case:
    """Make a message from the first rank to the second ready."""
    buffer = _buffer(inputs, bench)
    return Case(call=send_on, args=lambda: (buffer, bench.rank), joint=True)


def _buffer(inputs: Inputs, bench: Bench) -> Tensor:
    """Bytes of the whole buffer, a multiple of the ranks."""
    return bench.pool.cut("bytes", inputs["size"] // bench.ranks * bench.ranks)
