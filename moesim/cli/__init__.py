"""The command line. Commands are named here by where they live, and loaded when first asked for."""

from __future__ import annotations

import os
import sys

from cyclopts import App

from moesim.cli.codes import BAD_INPUT

app = App(
    name="moesim",
    help="Plan and simulate mixture-of-experts deployments.",
    help_format="plaintext",
    help_formatter="plain",
)
app.command("moesim.cli.planning:optimize", help="Rank every plan of a scenario's space and show the best.")
app.command("moesim.cli.planning:estimate", help="Estimate one plan: its step by named parts, its memory, a verdict.")
app.command("moesim.cli.routing:app", name="routing", help="Describe how tokens spread over experts.")
app.command(
    "moesim.cli.simulating:simulate", help="Simulate one plan under its requests: percentiles, queues, goodput."
)
app.command("moesim.cli.runs:report", help="Draw the report of a run folder again.")
app.command("moesim.cli.launching:launch", help="Print the commands that start a plan in a framework.")
app.command("moesim.cli.profiles:app", name="profiles", help="List, show, draw or check hardware.")
app.command("moesim.calibrate.cli:app", name="calibrate", help="Measure this machine and keep the raw samples.")
app.command("moesim.cli.models:app", name="models", help="List the built-in models, show one, start a new one.")
app.command("moesim.validate.cli:app", name="validate", help="Set predictions beside published and measured results.")


def main() -> None:
    """Run a command; a fault of its input, or of where it writes, is printed without a traceback and exits with 2."""
    from moesim.ground.errors import MoesimError

    try:
        sys.exit(app())
    except MoesimError as fault:
        print(f"moesim: {fault}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BAD_INPUT)
    except OSError as fault:
        if fault.filename is None:
            raise
        print(f"moesim: {fault.filename}: {fault.strerror}; name another place", file=sys.stderr)
        sys.exit(BAD_INPUT)
