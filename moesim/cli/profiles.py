"""`moesim profiles`: list the built-in hardware, show or draw one, check a file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from moesim.cli.codes import MET

if TYPE_CHECKING:
    from moesim.files.profiles import Sourced

app = App(name="profiles", help="List the built-in hardware, show or draw one, check a file of your own.")


@app.default
def names(*, json: bool = False) -> int:
    """List the built-in devices, nodes and fabrics.

    Parameters
    ----------
    json
        Print the names as JSON.
    """
    from json import dumps

    from moesim.files.profiles import FOLDERS, profile_names
    from moesim.views.profiles import show_names

    listed = {kind: profile_names(kind) for kind in FOLDERS}
    if json:
        print(dumps(listed))
    else:
        show_names(listed)
    return MET


@app.command
def show(
    name: str,
    /,
    *,
    fabric: str = "",
    nodes: int = 2,
    json: bool = False,
    svg: Path | None = None,
    png: Path | None = None,
) -> int:
    """Show a device, a node or a fabric: every number with its source, and the price of the device.

    Parameters
    ----------
    name
        A built-in name, or a YAML file.
    fabric
        Draw this many nodes joined by this fabric, where a node is drawn.
    nodes
        How many nodes are drawn with a fabric.
    json
        Print JSON for a pipe instead of tables.
    svg
        Draw the topology of a node into this file.
    png
        The same as a picture of pixels; needs the library vl-convert-python.
    """
    from moesim.files.prices import load_price
    from moesim.files.profiles import find_profile
    from moesim.views.profiles import profile_json, show_price, show_profile, shown_numbers

    kind, found = find_profile(name)
    device = found.profile if kind == "device" else getattr(found.profile, "device", None)
    priced = load_price(device.name) if device else None
    numbers = shown_numbers(found.profile, found.sources)
    price = shown_numbers(priced.price, priced.sources) if priced else []
    if svg or png:
        _draw(kind, found, fabric, nodes, svg, png)
    if json:
        print(profile_json(kind, found.profile.name, numbers, price))
    else:
        show_profile(kind, found.profile.name, numbers)
        if device:
            show_price(device.name, price)
    return MET


@app.command
def check(file: Path, /) -> int:
    """Check a file of your own: a device, a node, a fabric, or what is on offer.

    Parameters
    ----------
    file
        A YAML file.
    """
    from moesim.files.profiles import find_profile
    from moesim.views.profiles import checked, shown_numbers

    kind, found = find_profile(str(file))
    print(checked(str(file), kind, found.profile.name, shown_numbers(found.profile, found.sources)))
    return MET


@app.command
def schema() -> int:
    """Print the JSON Schema of profile files, for an editor."""
    from json import dumps

    from moesim.files.schemas import profile_schema

    print(dumps(profile_schema(), indent=1))
    return MET


def _draw(kind: str, found: Sourced, fabric: str, nodes: int, svg: Path | None, png: Path | None) -> None:
    from moesim.files.profiles import load_profile
    from moesim.ground.errors import MoesimError
    from moesim.views.topology import draw_topology, write_png, write_svg
    from moesim.world.hardware import Offer, graph

    if kind != "node":
        raise MoesimError(
            f"{found.profile.name}: a {kind} alone has no topology; draw a node, with `--fabric` if you like"
        )
    if nodes < 1:
        raise MoesimError(f"--nodes: {nodes} nodes cannot be drawn; give 1 or more")
    many = nodes if fabric else 1
    tiers = load_profile("fabric", fabric).profile.tiers if fabric else ()
    drawn = draw_topology(graph(Offer(node=found.profile, max_nodes=many), tiers, many), found.profile.name)
    if svg:
        write_svg(svg, drawn)
    if png:
        write_png(png, drawn)
