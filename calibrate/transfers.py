"""Bytes to move: passes over memory, copies between memories, collectives; and what each does to work beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .operation import Operation, Prepare, bytes_of
from .pieces import collectives, copies, overlap, passes, products
from .pieces.bench import Bench, Case
from .points import Axis, Inputs

KIB, MIB = 1024.0, 1024.0**2


def elementwise(dtypes: Sequence[str]) -> list[Operation]:
    """Return sums with their norms, and activations; `traffic` is bytes read and written."""
    return [one for dtype in dtypes for one in _passes(dtype)]


def _passes(dtype: str) -> list[Operation]:
    axes = (Axis(name="rows", low=1, high=65536), Axis(name="width", low=64, high=16384, step=64))
    tensors = {"norm": (passes.add_norm_case, 4), "swiglu": (passes.swiglu_case, 3)}
    anchor = {"rows": 1.0, "width": 64.0}

    def complete(each: float, point: Inputs) -> Inputs:
        return {**point, "traffic": each * point["rows"] * point["width"]}

    return [
        Operation(
            name="elementwise",
            dtype=dtype,
            kernel=kernel,
            group="kernels",
            axes=axes,
            anchors=(anchor,),
            cost=lambda point: (0.0, 4 * point["traffic"]),
            case=case,
            number=20,
            complete=partial(complete, float(number * bytes_of(dtype))),
        )
        for kernel, (case, number) in tensors.items()
    ]


def calls() -> list[Operation]:
    """Return what takes time though it does next to nothing: a launch, and reading back."""
    return [_launch(), _read_back()]


def _move() -> Operation:
    """The plainest copy inside the device."""
    return Operation(
        name="elementwise",
        dtype="bytes",
        kernel="copy",
        group="memory",
        axes=(Axis(name="size", low=4 * KIB, high=4096 * MIB, step=4096),),
        anchors=({"size": 4 * KIB}, {"size": 64 * MIB}, {"size": 2048 * MIB}),
        cost=lambda point: (0.0, point["traffic"]),
        case=passes.move_case,
        number=20,
        complete=lambda point: {**point, "traffic": 2 * point["size"]},
    )


def _launch() -> Operation:
    return Operation(
        name="launch",
        dtype="fp32",
        group="kernels",
        axes=(Axis(name="calls", among=(1.0,)),),
        cost=lambda point: (0.0, 4.0),
        case=passes.touch_case,
        anchors=({"calls": 1.0},),
        number=1,
    )


def _read_back() -> Operation:
    return Operation(
        name="host",
        dtype="int64",
        kernel="read back",
        group="kernels",
        axes=(Axis(name="numbers", among=(1.0, 8.0, 64.0, 256.0)),),
        cost=lambda point: (0.0, 8 * point["numbers"]),
        case=passes.read_back_case,
        anchors=({"numbers": 1.0},),
        number=4,
        complete=lambda point: {**point, "calls": 1.0},
    )


def memory(cuda: bool) -> list[Operation]:
    """Return copies within the device and between tiers; `kernel` is the tier, the way out where it is, and how."""
    ways: dict[str, Prepare] = {"disk": copies.disk_case}
    if cuda:
        ways |= {
            "host pinned": partial(copies.inward_case, pinned=True),
            "host out pinned": partial(copies.outward_case, pinned=True),
            "host pageable": partial(copies.inward_case, pinned=False),
            "host out pageable": partial(copies.outward_case, pinned=False),
        }
    return [_move(), *(_copy(kernel, case) for kernel, case in ways.items())]


def _copy(kernel: str, case: Prepare) -> Operation:
    return Operation(
        name="copy",
        dtype="bytes",
        kernel=kernel,
        group="memory",
        axes=(Axis(name="size", low=4 * KIB, high=256 * MIB, step=4096),),
        anchors=({"size": 4 * KIB}, {"size": 1 * MIB}, {"size": 32 * MIB}),
        cost=lambda point: (0.0, (20 if kernel.startswith("disk") else 100) * point["size"]),
        case=case,
        number=20,
    )


def interference(cuda: bool) -> list[Operation]:
    """Return each kind of work timed with and without another beside it, as `slowed beside other`."""
    size = {"m": 2048.0, "n": 4096.0, "k": 4096.0} if cuda else {"m": 256.0, "n": 512.0, "k": 512.0}
    moved = 64 * MIB if cuda else 4 * MIB
    product = partial(_product, size)
    others: dict[str, Prepare] = {"disk": partial(_sized, copies.disk_case, moved)}
    if cuda:
        others |= {
            "host pinned": partial(_sized, partial(copies.inward_case, pinned=True), moved),
            "host out pinned": partial(_sized, partial(copies.outward_case, pinned=True), moved),
        }
        del others["disk"]  # its reads are the host's, timed by the host's clock
    dtype = "bf16" if cuda else "fp32"
    pairs: list[tuple[str, Prepare, Prepare]] = [
        (f"gemm beside {name}", product, other) for name, other in others.items()
    ]
    pairs += [(f"{name} beside gemm", other, product) for name, other in others.items()]
    return [_pair(kernel, dtype, timed, other, {**size, "size": moved}) for kernel, timed, other in pairs]


def _product(size: Inputs, inputs: Inputs, dtype: str, bench: Bench) -> Case:
    return products.gemm_case(size, dtype, bench)


def _sized(prepare: Prepare, size: float, inputs: Inputs, dtype: str, bench: Bench) -> Case:
    return prepare({"size": size}, "bytes", bench)


def _pair(kernel: str, dtype: str, timed: Prepare, other: Prepare, inputs: Inputs) -> Operation:
    def case(point: Inputs, dtype: str, bench: Bench) -> Case:
        return overlap.beside(timed(point, dtype, bench), other(point, dtype, bench), bench)

    return _beside(kernel, "interference", dtype, case, inputs)


def _beside(kernel: str, group: str, dtype: str, case: Prepare, inputs: Inputs) -> Operation:
    return Operation(
        name="interference",
        dtype=dtype,
        kernel=kernel,
        group=group,
        axes=tuple(Axis(name=name, among=(value,)) for name, value in inputs.items()),
        anchors=(inputs,),
        cost=lambda point: (0.0, 0.0),
        case=case,
        number=1,
    )


def between_ranks(ranks: int, slow: float) -> list[Operation]:
    """Return the collectives over so many ranks; `slow` is a device's bandwidth over that between ranks, at a guess."""
    width = 2 if ranks % 2 == 0 and ranks > 2 else 0
    plain: dict[str, tuple[str, Prepare]] = {
        "all_to_all even": ("all_to_all", collectives.all_to_all_case),
        "all_reduce": ("all_reduce", collectives.all_reduce_case),
        "all_gather": ("all_gather", collectives.all_gather_case),
        "reduce_scatter": ("reduce_scatter", collectives.reduce_scatter_case),
        "send": ("send", collectives.send_case),
    }
    if ranks > 2:
        del plain["send"]  # between two: a rank without a part would only blur when both were ready
    if width:
        case = partial(collectives.hierarchical_case, width=width)
        plain[f"all_to_all hierarchical {ranks // width}x{width}"] = ("all_to_all", case)
    made = [
        _collective(name, title.partition(" ")[2], case, _size_axes(), partial(_wire, ranks), slow)
        for title, (name, case) in plain.items()
    ]
    skewed = (*_size_axes(), Axis(name="skew", among=(0.5, 1.0, 2.0)))
    made.append(
        _collective("all_to_all", "uneven", collectives.uneven_case, skewed, partial(_uneven_wire, ranks), slow)
    )
    return [*made, _sizes(ranks), *_beside_collective(slow)]


def _size_axes() -> tuple[Axis, ...]:
    return (Axis(name="size", low=256, high=256 * MIB, step=256),)


def _collective(
    name: str, kernel: str, case: Prepare, axes: tuple[Axis, ...], complete: Callable[[Inputs], Inputs], slow: float
) -> Operation:
    skew = {"skew": 1.0} if len(axes) > 1 else {}
    sizes = (1 * KIB, 64 * KIB, 1 * MIB, 16 * MIB)
    return Operation(
        name=name,
        dtype="bytes",
        kernel=kernel,
        group="collectives",
        axes=axes,
        anchors=tuple({"size": size, **skew} for size in sizes),
        cost=lambda point: (0.0, slow * point["size"]),
        case=case,
        number=24,
        complete=complete,
    )


def _wire(ranks: int, point: Inputs) -> Inputs:
    """Add what an even exchange sends: a rank keeps its own part."""
    away = point["size"] * (ranks - 1) / ranks
    return {**point, "ranks": ranks, "sent": away, "received": away, "messages": ranks - 1.0}


def _uneven_wire(ranks: int, point: Inputs) -> Inputs:
    """Add what the busiest ranks send and receive, their own parts left out."""
    given = collectives.splits(int(point["size"]), ranks, point["skew"])
    most = {"sent": float(sum(given) - min(given)), "received": float(max(given) * (ranks - 1))}
    return {**point, "ranks": ranks, "messages": ranks - 1.0, **most}


def _sizes(ranks: int) -> Operation:
    return Operation(
        name="exchange_sizes",
        dtype="int64",
        group="collectives",
        axes=(Axis(name="experts", among=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0)),),
        anchors=({"experts": 64.0},),
        cost=lambda point: (0.0, 8 * point["experts"]),
        case=collectives.sizes_case,
        number=6,
        complete=lambda point: {**point, "ranks": ranks, "size": 8 * point["experts"]},
    )


def _beside_collective(slow: float) -> list[Operation]:
    """Return a product timed while an all-to-all is under way, and an all-to-all beside products."""
    size = {"m": 256.0, "n": 512.0, "k": 512.0} if slow > 1 else {"m": 2048.0, "n": 4096.0, "k": 4096.0}
    moved = 4 * MIB if slow > 1 else 64 * MIB

    def product(point: Inputs, dtype: str, bench: Bench) -> Case:
        return overlap.beside_collective(products.gemm_case(size, dtype, bench), int(moved), bench)

    def exchange(point: Inputs, dtype: str, bench: Bench) -> Case:
        exchanged = collectives.all_to_all_case({"size": moved}, "bytes", bench)
        return overlap.beside(exchanged, products.gemm_case(size, dtype, bench), bench)

    inputs = {**size, "size": moved}
    return [
        _beside("gemm beside all_to_all", "collectives", "fp32", product, inputs),
        _beside("all_to_all beside gemm", "collectives", "fp32", exchange, inputs),
    ]
