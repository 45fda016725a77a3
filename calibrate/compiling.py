"""What compiling costs, to measure: by the number of layers of the graph."""

from __future__ import annotations

from functools import partial

from .operation import Operation, Prepare
from .pieces import compilation
from .points import Axis


def compiling(cuda: bool) -> list[Operation]:
    """Return compiling for the first time, again and from the cache; calls with guards that hold and that fail."""
    ways: dict[str, Prepare] = {
        "first": compilation.first_case,
        "again": compilation.again_case,
        "cached": compilation.cached_case,
        "guarded call": partial(compilation.guards_case, fail=False),
        "guard failure": partial(compilation.guards_case, fail=True),
        "eager call": compilation.eager_case,
    }
    graphs: dict[str, Prepare] = {"capture": compilation.capture_case, "replay": compilation.replay_case}
    made = [_operation("compile", kernel, case, (4.0, 1.0, 8.0)) for kernel, case in ways.items()]
    return made + [_operation("graph", kernel, case, (4.0, 1.0, 16.0, 64.0)) for kernel, case in graphs.items() if cuda]


def _operation(name: str, kernel: str, case: Prepare, layers: tuple[float, ...]) -> Operation:
    return Operation(
        name=name,
        dtype="fp32",
        kernel=kernel,
        group="compilation",
        axes=(Axis(name="layers", among=layers),),
        anchors=tuple({"layers": number} for number in layers),
        cost=lambda point: (0.0, 0.0),
        case=case,
        number=len(layers),
    )
