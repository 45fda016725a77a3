"""What `moesim launch` prints for a few plans: run as a script, writes the files that `test_launch` compares with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moesim.deployments.launching.commands import launch
from moesim.files.launching import dialect_for
from moesim.files.yaml import load_plan, load_scenario
from moesim.views.launch import launch_script

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "launch"
SERVING = ("vllm", "sglang", "tensorrt_llm", "dynamo")
CASES = (
    *((FOLDER / "one_node.yaml", "qwen", name) for name in SERVING),
    *((ROOT / "examples" / "deepseek_v3_plan.yaml", "deepseek", name) for name in SERVING),
    *((FOLDER / "disaggregated.yaml", "deepseek", name) for name in SERVING),
    (FOLDER / "training.yaml", "mixtral", "megatron"),
)
SCENARIOS = {
    "deepseek": ROOT / "examples" / "deepseek_v3_serving.yaml",
    "qwen": FOLDER / "qwen_serving.yaml",
    "mixtral": ROOT / "examples" / "mixtral_pretraining.yaml",
}


def printed(plan: Path, scenario: str, framework: str) -> str:
    """Print a plan in a framework's words."""
    world = load_scenario(SCENARIOS[scenario])
    chosen = load_plan(plan, world)
    dialect = dialect_for(framework, chosen.pools[0].framework, training=scenario == "mixtral")
    return launch_script(launch(world, chosen, dialect))


def golden(plan: Path, framework: str) -> Path:
    """Name the file that holds what is printed."""
    return FOLDER / f"{plan.stem}.{framework}.txt"


def pages() -> Iterator[tuple[Path, str]]:
    """Print all cases, each with its file."""
    for plan, scenario, framework in CASES:
        yield golden(plan, framework), printed(plan, scenario, framework)


if __name__ == "__main__":
    for file, text in pages():
        file.write_text(text, encoding="utf-8")
