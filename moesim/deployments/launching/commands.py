"""The commands that start a plan: one for each node of each replica, and one for the router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moesim.deployments.launching.decisions import decided, decided_by_plan, facts_of
from moesim.deployments.launching.dialect import Dialect, Rule, chosen, filled, rule_for
from moesim.deployments.launching.places import Place, places
from moesim.ground.errors import Fault, PlanError
from moesim.plans.plan import Plan, Pool
from moesim.world.scenario import Scenario
from moesim.world.workload import Training

PORT = 8000
ROUTER_PORT = 30000


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What became of one decision: words or fields that set it, or a sentence on why there are none.

    `how` is ``set``, ``usual`` (the framework does so by itself) or ``cannot``.
    """

    decision: str
    value: str
    how: str
    text: str
    source: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command, where to run it, and the file it reads, if any, as fields by dotted path.

    A node that another one starts has no command of its own: its `start` is empty.
    """

    title: str
    host: str
    env: tuple[str, ...] = ()
    start: str = ""
    flags: tuple[str, ...] = ()
    file: str = ""
    settings: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All commands of a plan in one framework, what is to be filled in, and what became of every decision."""

    title: str
    version: str
    sources: Mapping[str, str]
    blanks: Mapping[str, str]
    commands: tuple[Command, ...]
    said: Mapping[str, tuple[Said, ...]]


def launch(scenario: Scenario, plan: Plan, dialect: Dialect) -> Launch:
    """Put a plan into a framework's words.

    Raises
    ------
    PlanError
        The framework serves and the plan trains, or the reverse.
    """
    training = isinstance(scenario.workload, Training)
    if training != (dialect.task == "training"):
        kind = "training" if training else "serving"
        problem = f"{dialect.title} is for {dialect.task}, and this plan is for {kind}"
        raise PlanError("--framework", [Fault(path="", problem=problem, remedy=f"name a framework for {kind}")])
    pools = [_pool(scenario, plan, pool, dialect) for pool in plan.pools]
    front = {**facts_of(scenario, plan, plan.pools[0], dialect.engine), **_fronted(scenario, plan)}
    said = {pool.role: each[1] for pool, each in zip(plan.pools, pools, strict=True)}
    return Launch(
        title=dialect.title,
        version=dialect.version,
        sources={name: source.title for name, source in dialect.sources.items()},
        blanks=dict(_blanks(scenario, plan, dialect, front)),
        commands=(*(command for each in pools for command in each[0]), *_router(dialect, front)),
        said={**said, "plan": tuple(_said(dialect, dialect.plan, decided_by_plan(plan), front))},
    )


def _pool(scenario: Scenario, plan: Plan, pool: Pool, dialect: Dialect) -> tuple[tuple[Command, ...], tuple[Said, ...]]:
    """Put one pool into words: its commands, and what became of its decisions."""
    facts = facts_of(scenario, plan, pool, dialect.engine)
    names = decided(pool, training=isinstance(scenario.workload, Training))
    extra = {name: facts[name] for name in dialect.pool if name in facts and name not in names}
    rules = {name: rule_for(dialect.pool, name, facts) for name in (*names, *extra)}
    kept = [rule for rule in rules.values() if rule is not None]
    node = scenario.hardware.offer(pool.node).node
    spots = places(pool, node.gpus)
    commands = tuple(_command(dialect, kept, {**facts, **_place(pool, spots, at, node.gpus)}, at, pool) for at in spots)
    first = {**facts, **_place(pool, spots, spots[0], node.gpus)}
    return commands, tuple(_said(dialect, dialect.pool, {**names, **extra}, first))


def _said(
    dialect: Dialect, table: Mapping[str, tuple[Rule, ...]], names: Mapping[str, str], facts: Mapping[str, str]
) -> Iterator[Said]:
    """Tell what became of each decision."""
    for name, value in names.items():
        rule = rule_for(table, name, facts)
        if rule is None:
            reason = f"moesim knows no words for it in {dialect.title} {dialect.version}"
            yield Said(decision=name, value=value, how="cannot", text=reason)
            continue
        words = [rule.env, rule.flags, *(f"{path}: {what}" for path, what in rule.settings.items())]
        done = filled(" ".join(filter(None, words)), facts) if any(words) else ""
        how = "set" if done else "cannot" if rule.cannot else "usual"
        told = done or filled(rule.cannot or rule.usual, facts)
        note = filled(rule.note, facts)
        yield Said(decision=name, value=value, how=how, text=told, source=rule.source, note=note)


def _command(dialect: Dialect, rules: list[Rule], facts: Mapping[str, str], place: Place, pool: Pool) -> Command:
    """Write the command of one node."""
    here = [rule for several in dialect.across if (rule := chosen(several, facts)) is not None]
    nodes = f", node {place.index} of {facts['nodes']}" if int(facts["nodes"]) > 1 else ""
    title = f"pool {pool.role}, replica {place.replica}{nodes} ({pool.node})"
    left = [filled(rule.usual, facts) for rule in here if rule.usual]
    if left:
        return Command(title=f"{title}: {left[0]}", host=facts["host"])
    settings = {path: filled(value, facts) for rule in (*rules, *here) for path, value in rule.settings.items()}
    words = [filled(rule.flags, facts) for rule in (*rules, *here) if rule.flags]
    file = f"{pool.role}.yaml" if settings else ""
    if file:
        words.append(f"{dialect.file} {file}")
    return Command(
        title=title,
        host=facts["host"],
        env=tuple(filled(rule.env, facts) for rule in (*rules, *here) if rule.env),
        start=filled(dialect.start, facts),
        flags=tuple(dict.fromkeys(words)),
        file=file,
        settings=settings or None,
    )


def _host(pool: Pool, node: int) -> str:
    """Name the variable that holds a node's address."""
    return f"{pool.role.upper()}_{node}"


def _place(pool: Pool, spots: list[Place], place: Place, gpus: int) -> dict[str, str]:
    """Collect the facts of one node of one replica."""
    head = next(spot for spot in spots if spot.replica == place.replica)
    slot = sum(spot.node == head.node and spot.index == 0 and spot.replica < place.replica for spot in spots)
    group = pool.parallel.tp * pool.parallel.cp * pool.parallel.pp
    own = [spot for spot in spots if spot.replica == place.replica and spot.index < place.index]
    return {
        "host": _host(pool, place.node),
        "head": _host(pool, head.node),
        "port": str(PORT + slot),
        "slot": str(slot),
        "node.index": str(place.index),
        "local.gpus": str(place.gpus),
        "local.groups": str(place.gpus // group),
        "first.group": str(sum(spot.gpus for spot in own) // group),
        "devices": place.devices,
        "hosts": ",".join(f"${_host(pool, spot.node)}:{spot.gpus}" for spot in spots if spot.replica == place.replica),
        "partial": str(place.gpus < gpus).lower(),
        "first.host": _host(pool, spots[0].node),
        "all.index": str(place.node),
        "all.nodes": str(spots[-1].node + 1),
    }


def _fronted(scenario: Scenario, plan: Plan) -> dict[str, str]:
    """List the addresses that a router sends to, all together and by role."""
    urls: dict[str, list[str]] = {}
    for pool in plan.pools:
        gpus = scenario.hardware.offer(pool.node).node.gpus
        spots = places(pool, gpus)
        heads = [_place(pool, spots, spot, gpus) for spot in spots if spot.index == 0]
        urls[pool.role] = [f"${facts['head']}:{facts['port']}" for facts in heads]
    every = [url for some in urls.values() for url in some]
    return {
        "servers": str(len(every)),
        "urls": " ".join(f"http://{url}" for url in every),
        "router.port": str(ROUTER_PORT),
        **{f"{role}.flags": " ".join(f"--{role} http://{url}" for url in some) for role, some in urls.items()},
        **{f"{role}.list": "[" + ", ".join(f'"{url}"' for url in some) + "]" for role, some in urls.items()},
        **{f"{role}.servers": str(len(some)) for role, some in urls.items()},
    }


def _blanks(scenario: Scenario, plan: Plan, dialect: Dialect, facts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """List what must be filled in: the dialect's own, and an address for each node."""
    for name, value in dialect.blanks.items():
        yield name, filled(value, facts)
    for pool in plan.pools:
        spots = places(pool, scenario.hardware.offer(pool.node).node.gpus)
        for node in sorted({spot.node for spot in spots}):
            yield _host(pool, node), f"address-of-{pool.role}-{node}"


def _router(dialect: Dialect, facts: Mapping[str, str]) -> Iterator[Command]:
    """Write the router's command, where one is needed."""
    rule = chosen(dialect.router, facts)
    if rule is not None:
        start, *flags = filled(rule.flags, facts).split(" --")
        settings = {path: filled(value, facts) for path, value in rule.settings.items()}
        yield Command(
            title="router",
            host="any node",
            env=(rule.env,) if rule.env else (),
            start=start,
            flags=tuple(f"--{flag}" for flag in flags),
            file="router.yaml" if settings else "",
            settings=settings or None,
        )
