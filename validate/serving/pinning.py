"""Plug-ins that make a framework route as a recorded trace says, so that the routing measured is the one simulated.

What a token computes is then meaningless; how long it takes is not. vLLM offers a registry of simulated routings,
SGLang hooks around any function; both find a plug-in by its entry point once it is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Integer

from moesim.ground.errors import Fault, InputError, nearest

VERSIONS: Mapping[str, str] = MappingProxyType({"vllm": "0.24.0", "sglang": "0.5.14"})
"""What the plug-ins were written against."""

_COMMON = '''"""Routes tokens as a recorded trace says ({framework} {version}). Written by moesim."""

from pathlib import Path

import numpy as np
import torch

CHOICES = torch.from_numpy(np.load(Path(__file__).with_name("choices.npy")).astype(np.int64))  # [layer token topk]
TABLES = {{}}
CALLS = [0]


def chosen(layer, tokens, topk, device, dtype):
    """Experts of the first tokens of a layer; the trace begins again where it ends."""
    if topk != CHOICES.shape[2]:
        raise ValueError(f"the trace chooses {{CHOICES.shape[2]}} experts a token, the model {{topk}}")
    if (layer, device) not in TABLES:
        TABLES[layer, device] = CHOICES[layer % CHOICES.shape[0]].to(device)
    table = TABLES[layer, device]
    return table[torch.arange(tokens, device=device) % table.shape[0]].to(dtype)
'''

_VLLM = """

def register():
    from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulator, RoutingStrategy

    class Recorded(RoutingStrategy):
        def route_tokens(self, hidden_states, router_logits, top_k, indices_type=None):
            layer, CALLS[0] = CALLS[0] % CHOICES.shape[0], CALLS[0] + 1  # layers ask in turn
            tokens, dtype = hidden_states.shape[0], indices_type or torch.int64
            ids = chosen(layer, tokens, top_k, hidden_states.device, dtype)
            return torch.full_like(ids, 1.0 / top_k, dtype=torch.float32), ids

    RoutingSimulator.register_strategy("moesim", Recorded())
"""

_SGLANG = """

def register():
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def recorded(original, *args, **kwargs):
        if kwargs.get("expert_location_dispatch_info") is not None:
            raise RuntimeError("recorded routing names experts, not their copies: run without --enable-eplb")
        found = original(*args, **kwargs)
        layer = kwargs.get("layer_id")
        if layer is None:
            layer, CALLS[0] = CALLS[0], CALLS[0] + 1  # layers ask in turn
        ids = found.topk_ids
        tokens, topk = ids.shape
        return found._replace(topk_ids=chosen(layer, tokens, topk, ids.device, ids.dtype))

    HookRegistry.register("sglang.srt.layers.moe.topk.select_experts", recorded, HookType.AROUND)
"""

_PROJECT = """[project]
name = "moesim-recorded-routing"
version = "1"

[project.entry-points."{group}"]
moesim_recorded_routing = "moesim_recorded_routing:register"

[tool.setuptools]
packages = ["moesim_recorded_routing"]

[tool.setuptools.package-data]
moesim_recorded_routing = ["choices.npy"]
"""

_PARTS = {
    "vllm": (_VLLM, "vllm.general_plugins", "VLLM_MOE_ROUTING_SIMULATION_STRATEGY=moesim"),
    "sglang": (_SGLANG, "sglang.srt.plugins", "SGLANG_PLUGINS=moesim_recorded_routing"),
}


def read_choices(trace: Path) -> Integer[np.ndarray, "layer token topk"]:
    """Read a trace of choices, an .npy array of [token layer topk], as layers want it.

    Raises
    ------
    InputError
        It cannot be read, or is no array of choices.
    """
    try:
        found = np.load(trace, allow_pickle=False)
    except (OSError, ValueError) as flaw:
        raise _fault(str(trace), f"cannot be read ({flaw})", "give an .npy array of [token layer topk]") from None
    if found.ndim != 3 or not np.issubdtype(found.dtype, np.integer) or 0 in found.shape or found.min() < 0:
        problem = f"holds {found.dtype} of shape {found.shape}, not whole numbers of [token layer topk]"
        raise _fault(str(trace), problem, "give the experts that each token chose in each layer")
    return np.ascontiguousarray(found.transpose(1, 0, 2))


def plug_in(framework: str) -> tuple[dict[str, str], str]:
    """Return a plug-in's files, by name, and what to put before the command that starts the framework.

    Raises
    ------
    InputError
        There is no plug-in for it.
    """
    if framework not in _PARTS:
        problem = f"there is no plug-in for `{framework}`"
        raise _fault("--framework", problem, nearest(framework, _PARTS))
    code, group, before = _PARTS[framework]
    common = _COMMON.format(framework=framework, version=VERSIONS[framework])
    files = {"pyproject.toml": _PROJECT.format(group=group), "moesim_recorded_routing/__init__.py": common + code}
    return files, before


def _fault(file: str, problem: str, remedy: str) -> InputError:
    return InputError(file, [Fault(path="", problem=problem, remedy=remedy)])
