"""Launch commands for a shell and for a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from textwrap import wrap

from moesim.deployments.launching.commands import Command, Launch, Said

WIDTH = 118


def launch_json(found: Launch) -> str:
    """Write a launch as JSON."""
    return json.dumps({**asdict(found), "commands": [_command_tree(command) for command in found.commands]}, indent=2)


def _command_tree(command: Command) -> dict[str, object]:
    line = " ".join([*command.env, command.start, *command.flags])
    return {"title": command.title, "host": command.host, "command": line, "file": command.file, **_content(command)}


def _content(command: Command) -> dict[str, object]:
    return {"content": yaml_of(command.settings)} if command.settings else {}


def launch_script(found: Launch) -> str:
    """Write a launch as a commented script, one block for each node."""
    lines = [f"# {found.title} {found.version}"]
    lines += [f"# Flags as in {found.sources[name]}" for name in _used(found)]
    lines += ["", "# Fill in, on every node:"]
    lines += [f"{name}={_quoted(value)}" for name, value in found.blanks.items()]
    for command in found.commands:
        lines += ["", *_block(command)]
    return "\n".join([*lines, *_remarks(found), ""])


def _used(found: Launch) -> list[str]:
    """List the sources of what is set, each once."""
    every = [one for said in found.said.values() for one in said]
    return list(dict.fromkeys(one.source for one in every if one.how == "set"))


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value or not value else value


def _block(command: Command) -> Iterator[str]:
    """Write one command, its file first."""
    yield f"# {command.title}" + (f": on {command.host}" if command.start else "")
    if command.settings:
        yield f"cat > {command.file} <<END"
        yield yaml_of(command.settings).rstrip()
        yield "END"
    if command.start:
        yield " \\\n  ".join([" ".join([*command.env, command.start]), *command.flags])


def yaml_of(settings: Mapping[str, str]) -> str:
    """Write fields by dotted path as YAML.

    Examples
    --------
    >>> print(yaml_of({"a.b": "1", "c": "x", "a.d": "2"}), end="")
    a:
      b: 1
      d: 2
    c: x
    """
    groups: dict[str, dict[str, str] | str] = {}
    for path, value in settings.items():
        top, _, rest = path.partition(".")
        if rest:
            inner = groups.setdefault(top, {})
            assert isinstance(inner, dict)
            inner[rest] = value
        else:
            groups[top] = value
    lines = []
    for name, content in groups.items():
        if isinstance(content, str):
            lines.append(f"{name}: {content}\n")
        else:
            lines.append(f"{name}:\n" + "".join(f"  {line}\n" for line in yaml_of(content).splitlines()))
    return "".join(lines)


def _remarks(found: Launch) -> Iterator[str]:
    """Say what needs no flag, what differs, and what the framework cannot do."""
    for where, said in found.said.items():
        about = "the plan" if where == "plan" else f"pool {where}"
        for how, head in (("cannot", f"{found.title} cannot, of {about}:"), ("usual", f"By itself, of {about}:")):
            kept = [one for one in said if one.how == how]
            if kept:
                yield from ("", f"# {head}", *(line for one in kept for line in _remark(one, one.text)))
        notes = [one for one in said if one.note]
        if notes:
            yield from ("", f"# To know, of {about}:")
            yield from (line for one in notes for line in _remark(one, one.note))


def _remark(said: Said, text: str) -> list[str]:
    line = f"{said.decision} {said.value}".rstrip() + f": {text}"
    return wrap(line, WIDTH, initial_indent="#   ", subsequent_indent="#     ", break_on_hyphens=False)
