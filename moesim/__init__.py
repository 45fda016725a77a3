"""A simulator and planner for mixture-of-experts deployments."""

from importlib import import_module
from typing import TYPE_CHECKING

from moesim.ground.showing import show_with

if TYPE_CHECKING:
    from moesim.deployments.estimation import estimate
    from moesim.deployments.simulation import simulate
    from moesim.files.yaml import load_hardware, load_model, load_plan, load_scenario, load_study
    from moesim.search.optimization import optimize
    from moesim.search.sweeping import sweep

__all__ = [
    "estimate",
    "load_hardware",
    "load_model",
    "load_plan",
    "load_scenario",
    "load_study",
    "optimize",
    "simulate",
    "sweep",
]

__version__ = "0.1.0"

_HOMES = {
    "estimate": "moesim.deployments.estimation",
    "load_hardware": "moesim.files.yaml",
    "load_model": "moesim.files.yaml",
    "load_plan": "moesim.files.yaml",
    "load_scenario": "moesim.files.yaml",
    "load_study": "moesim.files.yaml",
    "optimize": "moesim.search.optimization",
    "simulate": "moesim.deployments.simulation",
    "sweep": "moesim.search.sweeping",
}

show_with("moesim.views.notebook")


def __getattr__(name: str) -> object:
    """Import a public name's home when the name is first asked for, so that `import moesim` loads no NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
