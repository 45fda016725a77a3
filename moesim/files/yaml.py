"""The doors: load a study, a scenario, a plan, a model or hardware from files, and write them."""

from __future__ import annotations

from pathlib import Path

from moesim.files import models
from moesim.files.offers import read_hardware
from moesim.files.plans import plan_tree, read_plan
from moesim.files.profiles import load_profile
from moesim.files.resolved import scenario_tree, study_tree
from moesim.files.studies import read_study
from moesim.files.trees import read, write
from moesim.ground.errors import PlanError, ProfileError
from moesim.plans.plan import Plan
from moesim.search.study import Study
from moesim.world.hardware import Hardware, Offer
from moesim.world.model import Model
from moesim.world.scenario import Scenario


def load_study(path: str | Path) -> Study:
    """Load a scenario file with the question it asks: goal, frontier and space.

    Parameters
    ----------
    path : str or Path
        A YAML file; paths in it are relative to its folder.

    Raises
    ------
    InputError
        With every fault of the file, each with its dotted path and what to do.
    """
    return read_study(read(Path(path)), str(path), Path(path).parent)


def load_scenario(path: str | Path) -> Scenario:
    """Load what the world is like from a scenario file; goal, frontier and space are checked and left aside."""
    return load_study(path).scenario


def load_plan(path: str | Path, scenario: Scenario) -> Plan:
    """Load a plan and check it against the scenario it is for.

    Raises
    ------
    PlanError
        With every fault: names that are not on offer, degrees that do not divide, pools that do not go together.
    """
    return read_plan(read(Path(path), error=PlanError), str(path), scenario)


def dump_plan(plan: Plan) -> str:
    """Write a plan as YAML text that loads back equal."""
    return write(plan_tree(plan))


def dump_study(study: Study) -> str:
    """Write a scenario and its question as YAML text in full: it loads back equal, with nothing shipped looked up."""
    return write(study_tree(study))


def dump_scenario(scenario: Scenario) -> str:
    """Write a scenario as YAML text in full: every number with its source, nothing left to look up.

    Raises
    ------
    InputError
        The routing was made in Python from a table, which a file has no place for.
    """
    return write(scenario_tree(scenario))


def load_model(name: str | Path) -> Model:
    """Load a model by its built-in name (``deepseek-ai/DeepSeek-V3``) or from a ``config.json`` or a YAML file.

    Raises
    ------
    ModelError
        No such model, an unknown architecture, or missing or wrong fields.
    """
    return models.load(name)


def load_hardware(source: str | Path, *, nodes: int = 1, fabric: str = "none/ethernet") -> Hardware:
    """Load what is on offer from a file, or make an offer of one built-in node type.

    Parameters
    ----------
    source : str or Path
        A YAML file (of hardware alone, or a scenario's), or a node's name such as ``nvidia/hgx-h200``.
    nodes : int
        How many nodes are on offer, where a name is given.
    fabric : str
        What joins them, where a name is given.

    Raises
    ------
    InputError
        No such node or file, or a file with faults.
    """
    if not str(source).endswith((".yaml", ".yml")):
        joined = load_profile("fabric", fabric).profile.tiers
        return Hardware(offers=(Offer(node=load_profile("node", str(source)).profile, max_nodes=nodes),), fabric=joined)
    tree = read(Path(source), error=ProfileError)
    found = read_hardware(tree.get("hardware", tree), str(source), Path(source).parent)
    hardware: Hardware = found.profile
    return hardware
