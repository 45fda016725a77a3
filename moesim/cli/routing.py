"""Routing commands: what a recorded trace shows."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from moesim.cli.codes import MET

app = App(
    name="routing",
    help="Describe how tokens spread over experts.",
    help_format="plaintext",
    help_formatter="plain",
)


@app.command
def describe(
    trace: Path, /, *, experts: int = 0, batch: int = 4096, json: bool = False, svg: Path | None = None
) -> int:
    """Describe a trace: skew, imbalance by expert parallelism, idle experts, repeats, affinity.

    Parameters
    ----------
    trace
        A trace: moesim's own .parquet, an .npy array, or a .json of counts.
    experts
        How many experts there are, where the file holds choices as a bare .npy array.
    batch
        Tokens that are routed together, where the file holds choices.
    json
        Print JSON for a pipe instead of a table.
    svg
        Also draw it, to this file.
    """
    from moesim.files.routing_traces import open_trace
    from moesim.ground.errors import Fault, WorkloadError
    from moesim.views.routing import description_json, description_svg, show_description

    if batch < 1:
        raise WorkloadError(
            "--batch", [Fault(path="", problem=f"{batch} tokens make no batch", remedy="give at least 1")]
        )
    found = open_trace(trace, experts=experts).description(batch)
    if svg is not None:
        _draw(svg, description_svg(found))
    if json:
        print(description_json(found))
    else:
        show_description(found)
    return MET


def _draw(file: Path, text: str) -> None:
    """Write a drawing to a temporary name, then give it its own."""
    from moesim.ground.errors import Fault, WorkloadError

    part = file.with_name(file.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as flaw:
        fault = Fault(path="", problem=f"can't be written: {flaw.strerror}", remedy="name a file in a folder of yours")
        raise WorkloadError(str(file), [fault]) from None
