"""`moesim validate frameworks`: logs read back, and routing pinned."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

app = App(name="frameworks", help="Read benchmarks' logs back, or make a framework route as a trace says.")


@app.command
def read(*logs: Path, setup: Path | None = None, out: Path) -> None:
    """Read results of vllm bench serve, sglang.bench_serving or trtllm-bench into rows of serving measurements.

    Parameters
    ----------
    logs
        JSON, or JSON lines, as the benchmarks write them.
    setup
        YAML with the columns that logs do not say: system, gemm_quant_mode, moe_quant_mode, degrees, gpus.
    out
        CSV that `moesim validate serving` and `moesim calibrate anchor` read.
    """
    from rich.console import Console

    from moesim.ground.errors import Fault, InputError

    from .logs import rows_of

    if not logs:
        raise InputError("frameworks read", [Fault(path="", problem="no log is named", remedy="name one or more")])
    text = rows_of(logs, setup)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(out.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(out)
    Console().print(f"wrote {len(text.splitlines()) - 1} rows to {out}", soft_wrap=True)


@app.command
def pin(trace: Path, /, *, framework: str, out: Path) -> None:
    """Write a plug-in that makes a framework route as a recorded trace says.

    Parameters
    ----------
    trace
        An .npy array of [token layer topk]: the experts that each token chose.
    framework
        vllm or sglang.
    out
        A new folder for the plug-in, to be installed with pip.
    """
    import numpy as np
    from rich.console import Console

    from moesim.ground.errors import Fault, InputError

    from .pinning import VERSIONS, plug_in, read_choices

    files, before = plug_in(framework)
    choices = read_choices(trace)
    if out.exists():
        raise InputError(str(out), [Fault(path="", problem="exists", remedy="name a new folder")])
    draft = out.with_name(f".{out.name}.part")
    for name, text in files.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_text(text, encoding="utf-8")
    np.save(draft / "moesim_recorded_routing" / "choices.npy", choices.astype(np.int32))
    draft.replace(out)
    told = f"For {framework} {VERSIONS[framework]}: pip install {out}, then start it as `{before} ...`"
    Console().print(told, soft_wrap=True)
