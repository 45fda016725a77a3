"""How a framework is told what a plan decides: rules, each with a version and a source, held in data files.

A rule says what a decision becomes where all of its conditions hold: words of the command (``flags``), fields of the
server's own file (``settings``), nothing because the framework does so by itself (``usual``), or nothing because it
cannot (``cannot``). ``<name>`` in any of them stands for a fact of the plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from moesim.ground.errors import Fault, PlanError
from moesim.ground.units import Source


def _none() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a decision becomes where every fact of `when` has one of the values named (``a|b``, or ``>1``).

    `env` is put before the command, `note` says how what is set differs from what the plan means, `source` is a key of
    the dialect's sources.
    """

    when: Mapping[str, str] = field(default_factory=_none)
    env: str = ""
    flags: str = ""
    settings: Mapping[str, str] = field(default_factory=_none)
    usual: str = ""
    cannot: str = ""
    note: str = ""
    source: str = ""

    def holds(self, facts: Mapping[str, str]) -> bool:
        """Whether all conditions hold; a fact that is not known is the empty text."""
        return all(_suits(facts.get(name, ""), wanted) for name, wanted in self.when.items())


def _suits(value: str, wanted: str) -> bool:
    """Hold a fact against a condition.

    Examples
    --------
    >>> _suits("8", ">1"), _suits("prefill", "all|prefill"), _suits("1", "2")
    (True, True, False)
    """
    if wanted.startswith(">"):
        return float(value or "nan") > float(wanted[1:])
    return value in wanted.split("|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A framework's words.

    Attributes
    ----------
    title, version : what the rules were read from
    engine : the framework that runs the model, by moesim's name
    task : what it can run
    start : the command that starts one server or worker
    file : the option that takes the server's own file; empty where everything is a flag
    blanks : what is left to fill in by hand, and how it starts out
    pool : rules by what is decided of a pool; a name that ends in ``.*`` is for what has no rule of its own
    across : rules for each node that a replica is on; the first that holds of each list. A node that another one
        starts has a rule of what is usual
    plan : rules by what is decided of the plan
    router : how the router is started
    sources : where the names come from
    """

    name: str
    title: str
    version: str
    engine: str
    task: Literal["serving", "training"]
    start: str
    sources: Mapping[str, Source]
    file: str = ""
    blanks: Mapping[str, str] = field(default_factory=_none)
    pool: Mapping[str, tuple[Rule, ...]] = field(default_factory=lambda: MappingProxyType({}))
    across: tuple[tuple[Rule, ...], ...] = ()
    plan: Mapping[str, tuple[Rule, ...]] = field(default_factory=lambda: MappingProxyType({}))
    router: tuple[Rule, ...] = ()


def chosen(rules: tuple[Rule, ...], facts: Mapping[str, str]) -> Rule | None:
    """Find the first rule whose conditions hold."""
    return next((rule for rule in rules if rule.holds(facts)), None)


def rule_for(table: Mapping[str, tuple[Rule, ...]], name: str, facts: Mapping[str, str]) -> Rule | None:
    """Find the rule for a decision by its name, or by those of its group.

    Examples
    --------
    >>> rule_for({"policies.*": (Rule(usual="so"),)}, "policies.gating", {}).usual
    'so'
    """
    parts = name.split(".")
    groups = [".".join([*parts[:end], "*"]) for end in range(len(parts), 0, -1)]
    found = (chosen(table[key], facts) for key in (name, *groups) if key in table)
    return next((rule for rule in found if rule is not None), None)


_NAME = re.compile(r"<([a-z][a-z0-9_.]*)>")


def filled(text: str, facts: Mapping[str, str]) -> str:
    """Put facts in their places.

    Raises
    ------
    PlanError
        A rule asks for a fact that there is not: a fault of the data file.

    Examples
    --------
    >>> filled("--tensor-parallel-size <parallel.tp>", {"parallel.tp": "8"})
    '--tensor-parallel-size 8'
    """
    return _NAME.sub(_lookup(facts), text)


def _lookup(facts: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    def look(match: re.Match[str]) -> str:
        if match[1] not in facts:
            fault = Fault(path=match[1], problem="no such fact of a plan", remedy="correct the rule that names it")
            raise PlanError("launch", [fault])
        return facts[match[1]]

    return look
