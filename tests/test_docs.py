"""The documentation: its Python runs, its files load, its links lead somewhere, and its tables are the code's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from moesim.deployments.metrics import METRICS
from moesim.files.frameworks import load_framework
from moesim.files.profiles import load_profile
from moesim.files.routings import read_routing
from moesim.files.trees import read
from moesim.files.yaml import load_model, load_plan, load_scenario, load_study
from moesim.policies.finding import find, kinds, names, settings
from moesim.schedules.costs import priors
from moesim.search.naming import COLUMNS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "hardware_profiles" / "README.md"])
SCENARIO = "examples/deepseek_v3_serving.yaml"
"""What plans on a page are checked against."""

LOADERS: dict[str, Callable[[str], Any]] = {
    "scenario": load_study,
    "plan": lambda path: load_plan(path, load_scenario(ROOT / SCENARIO)),
    "device": lambda path: load_profile("device", path),
    "node": lambda path: load_profile("node", path),
    "fabric": lambda path: load_profile("fabric", path),
    "model": load_model,
    "framework": lambda path: load_framework(Path(path)),
    "routing": lambda path: read_routing(read(Path(path)), path),
}

BLOCK = re.compile(
    r"(?:^<!-- loads: (?P<kind>\w+)(?: as (?P<name>[\w.-]+))? -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OTHER_SITE = ("http://", "https://", "mailto:")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page: its language, and which kind of file it holds, if any, under which name."""

    text: str
    language: str
    kind: str
    name: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        yield Block(
            text=found["text"],
            language=found["language"],
            kind=found["kind"] or "",
            name=found["name"] or "snippet.yaml",
            line=text.count("\n", 0, found.start("text")) + 1,
        )


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def titled(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def having(wanted: Callable[[Block], bool]) -> list[Any]:
    return [pytest.param(page, id=titled(page)) for page in PAGES if any(map(wanted, blocks(page)))]


every_page = pytest.mark.parametrize("page", [pytest.param(page, id=titled(page)) for page in PAGES])


@pytest.mark.parametrize("page", having(lambda block: block.language == "python"))
def test_the_python_of_a_page_runs(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    shared = ModuleType("page")  # a dataclass looks its module up
    monkeypatch.setitem(sys.modules, "page", shared)
    for block in blocks(page):
        if block.language == "python":
            lines = "\n" * (block.line - 1) + block.text  # so that a traceback names the page's own line
            exec(compile(lines, str(page), "exec", dont_inherit=True), shared.__dict__)
    capsys.readouterr()


@pytest.mark.parametrize("page", having(lambda block: bool(block.kind)))
def test_the_files_of_a_page_load(page, tmp_path):
    for block in blocks(page):
        if block.kind:
            file = tmp_path / block.name
            file.write_text(block.text)
            assert LOADERS[block.kind](str(file))


def test_every_kind_of_file_is_shown_in_the_reference():
    assert {block.kind for block in blocks(ROOT / "docs/reference/files.md")} >= set(LOADERS)


@every_page
def test_every_fence_is_closed(page):
    assert page.read_text().count("\n```") % 2 == 0


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(prose(page)):
        if target.startswith(OTHER_SITE):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as a code host makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page != "README.md" and f"({page})" not in index] == []


def test_the_tree_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"<!-- tree -->\n```text\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    listed, above = set(), [""]
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth + 1 :] = [above[depth] + name]
        listed.add(above[depth] + name)
    assert [path for path in sorted(listed) if not (ROOT / path).exists()] == []
    tops = ("moesim", "calibrate", "validate", "hardware_profiles")
    packages = {
        f"{file.parent.relative_to(ROOT).as_posix()}/" for top in tops for file in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(packages - listed) == []


def test_the_readme_opens_with_the_two_commands():
    head = (ROOT / "README.md").read_text()[:600]
    assert head.index("make plan") < head.index("make test")


def test_every_policy_and_setting_is_in_the_reference():
    text = (ROOT / "docs/reference/policies.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for kind in kinds():
        assert any(line.startswith(f"| `{kind}` ") for line in rows), kind
        for name in names(kind):
            (row,) = [line for line in rows if re.match(rf"\| (`{kind}`)? ?\| \**`{name}`\** \|", line)]
            for setting in settings(find(kind, name)):
                assert f"`{setting}`" in row, f"{kind}/{name}: {setting}"


def test_every_metric_and_column_is_explained():
    metrics = (ROOT / "docs/reference/metrics.md").read_text()
    assert [name for name in METRICS if f"| `{name}` |" not in metrics] == []
    from moesim.views.tables import _HEADINGS

    output = (ROOT / "docs/guides/read-the-output.md").read_text()
    columns = [
        _HEADINGS.get(name, name) for name in ("rank", "cluster", "pools", "replicas", "layout", *COLUMNS, "source")
    ]
    assert [name for name in columns if f"| `{name}` |" not in output] == []


def test_every_cost_form_is_explained():
    text = (ROOT / "docs/reference/costs.md").read_text()
    assert [form for form in priors.PARAMETERS if f"`{form}`" not in text] == []
    for form, parameters in priors.PARAMETERS.items():
        plain = [name for name in parameters if not name.startswith(("ll_", "ll128_", "simple_"))]
        assert [name for name in plain if name not in text] == [], form


def test_the_prior_values_in_the_reference_are_the_code_s():
    text = (ROOT / "docs/reference/costs.md").read_text()
    rows = re.findall(r"^\| `([A-Z][A-Z0-9_]*)` \| ([\d.e-]+) \|", text, flags=re.MULTILINE)
    assert {name: float(value) for name, value in rows} == {
        name: value for name, value in vars(priors).items() if name.isupper() and name[0] != "_" and np.isscalar(value)
    }
    for name in ("fp32", "bf16", "fp16"):
        assert priors.PEAK[name] == 0.86
    assert (priors.PEAK["fp8"], priors.PEAK["int8"], priors.PEAK["fp4"]) == (0.81, 0.81, 0.70)
    for family, reached in priors._REACHED.items():
        label = {"nvlink": "`nvlink`", "pcie": "`pcie`", "network": "any other network"}[family]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {label}")]
        assert [float(cell) for cell in row.split("|")[2:5]] == [reached[op] for op in ("all_to_all", "reduce", "send")]
