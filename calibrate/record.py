"""Record real routing: a hook on the routers of a PyTorch model that writes a trace, and a converter of SGLang's.

Routers are found by what they are, not by whose: a module called `gate` or `router` beside `experts`, or anything
given by name. What one returns is read likewise: whole numbers are choices (the heaviest first, where weights come with
them), numbers for every expert are logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.ground.errors import Fault, WorkloadError

if TYPE_CHECKING:
    from jaxtyping import Int

try:
    import torch

    from moesim.files.routing_traces import TraceWriter
except ModuleNotFoundError as flaw:
    raise ImportError(
        f"recording routing needs `{flaw.name}`, which is not installed: pip install 'moesim[torch]' brings torch and "
        "all that writes traces; the packages that measuring makes do with are not enough",
        name=flaw.name,
    ) from None

_NAMES = ("gate", "router")
_TOPK = ("top_k", "topk", "num_experts_per_tok", "moe_topk", "k")


class Recorder:
    """Writes a trace of all tokens that pass a model's routers while its block lasts.

    A forward pass is written when the next one begins, so memory holds one. Tokens of padding are recorded too: record
    without padding, one sequence at a time, where repeats matter.

    Parameters
    ----------
    model : torch.nn.Module
        Any mixture of experts.
    path : Path
        The trace to write, a .parquet file; it appears when the block ends well.
    experts, topk : int
        Experts per layer and per token; read from the routers where 0.
    routers : sequence of str
        Names of the routers' modules, in the order of the layers; found where empty.

    Raises
    ------
    WorkloadError
        No router is found, or one returns what is neither choices nor logits.

    Examples
    --------
    ``with Recorder(model, Path("trace.parquet")): model(tokens)``
    """

    def __init__(self, model: Any, path: Path, *, experts: int = 0, topk: int = 0, routers: Sequence[str] = ()) -> None:
        modules = dict(model.named_modules())
        names = tuple(routers) or tuple(_found(modules))
        unknown = [name for name in names if name not in modules]
        if unknown or not names:
            problem = f"the model has no module `{unknown[0]}`" if unknown else "no router was found in the model"
            raise _refused(str(path), problem, "name the routers: Recorder(..., routers=[...])")
        self.model, self.path, self.names = model, path, names
        parents = [modules[name.rpartition(".")[0]] for name in names]
        self.modules = [modules[name] for name in names]
        self.experts = experts or _size(self.modules[0], parents[0])
        self.topk = topk or _first([self.modules[0], parents[0], getattr(model, "config", None)], _TOPK)
        if not self.experts:
            raise _refused(str(path), "how many experts there are can't be seen", "say so: Recorder(..., experts=8)")
        self.writer = TraceWriter(path, self.experts)
        self.handles: list[Any] = []
        self.passing: dict[int, Int[np.ndarray, "token topk"]] = {}

    def __enter__(self) -> Recorder:
        """Hang the hooks."""
        self.writer.__enter__()
        for layer, module in enumerate(self.modules):
            self.handles.append(module.register_forward_hook(self._hook(layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, flaw: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks off, write the last pass, and give the file its name."""
        for handle in self.handles:
            handle.remove()
        if kind is None:
            try:
                self._flush()
            except WorkloadError as refusal:
                self.writer.__exit__(type(refusal), refusal, None)
                raise
        self.writer.__exit__(kind, flaw, trace)

    def _hook(self, layer: int) -> Any:
        def seen(module: Any, given: Any, returned: Any) -> None:
            if layer in self.passing:
                self._flush()
            self.passing[layer] = self._choices(layer, returned)

        return seen

    def _flush(self) -> None:
        """Write the pass that is over."""
        if not self.passing:
            return
        tokens = {len(chosen) for chosen in self.passing.values()}
        if len(self.passing) < len(self.names) or len(tokens) > 1:
            silent = [name for layer, name in enumerate(self.names) if layer not in self.passing]
            problem = f"`{silent[0]}` saw nothing of a pass" if silent else "layers saw different numbers of tokens"
            raise _refused(str(self.path), problem, "record layers that all tokens pass: Recorder(..., routers=[...])")
        self.writer.add(np.stack([self.passing[layer] for layer in range(len(self.names))], axis=1))
        self.passing = {}

    def _choices(self, layer: int, returned: Any) -> Int[np.ndarray, "token topk"]:
        """Read what a router returned."""
        tensors = [each.detach() for each in _tensors(returned)]
        whole = [each for each in tensors if not each.is_floating_point() and 1 <= each.shape[-1] < self.experts]
        if whole:
            chosen = whole[-1].reshape(-1, whole[-1].shape[-1])
            weights = [each for each in tensors if each.is_floating_point() and each.shape == whole[-1].shape]
            if weights:
                order = weights[0].reshape(chosen.shape).argsort(dim=-1, descending=True)
                chosen = chosen.gather(-1, order)
            return np.asarray(chosen.cpu().numpy(), dtype=np.int16)
        logits = [each for each in tensors if each.is_floating_point() and each.shape[-1] == self.experts]
        if not logits or not self.topk:
            problem = f"`{self.names[layer]}` returns neither choices nor a number for each of {self.experts} experts"
            remedy = "say how many: Recorder(..., experts=8, topk=2), or name other modules"
            raise _refused(str(self.path), problem, remedy)
        best = logits[0].reshape(-1, self.experts).topk(self.topk, dim=-1).indices
        return np.asarray(best.cpu().numpy(), dtype=np.int16)


def convert(source: Path, target: Path) -> None:
    """Turn the counts of SGLang's expert recorder (a .pt file with `logical_count`) into .npy, for `open_trace`.

    Raises
    ------
    WorkloadError
        The file holds no such counts.
    """
    try:
        tree = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _refused(str(source), "there is no such file", "check the path") from None
    except Exception as flaw:
        raise _refused(str(source), f"can't be loaded: {str(flaw).splitlines()[0]}", "is it whole?") from None
    counts = tree.get("logical_count") if isinstance(tree, dict) else tree
    if not isinstance(counts, torch.Tensor):
        raise _refused(str(source), "has no tensor `logical_count`", "record with the mode `stat`")
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        np.save(file, counts.to(torch.int64).numpy())
    part.replace(target)


def _found(modules: dict[str, Any]) -> Iterator[str]:
    """Find routers: called so, and beside experts."""
    for name in modules:
        above, _, last = name.rpartition(".")
        if last in _NAMES and hasattr(modules[above], "experts"):
            yield name


def _size(router: Any, parent: Any) -> int:
    """Tell how many experts a router chooses from."""
    said = _first([router, parent], ("num_experts", "n_routed_experts", "num_local_experts", "out_features"))
    weight = getattr(router, "weight", None)
    return said or (int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.ndim == 2 else 0)


def _first(owners: Sequence[Any], names: Sequence[str]) -> int:
    """Return the first of some attributes that is a count, 0 where there is none."""
    found = (getattr(owner, name, None) for owner in owners for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), 0)


def _tensors(returned: Any) -> Iterator[torch.Tensor]:
    """Walk through what a module returned."""
    if isinstance(returned, torch.Tensor):
        yield returned
    elif isinstance(returned, list | tuple):
        for each in returned:
            yield from _tensors(each)


def _refused(file: str, problem: str, remedy: str) -> WorkloadError:
    return WorkloadError(file, [Fault(path="", problem=problem, remedy=remedy)])
