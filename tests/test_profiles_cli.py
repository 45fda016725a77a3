"""`moesim profiles`: names, numbers with sources, drawings, checks and the schema, as a stranger sees them."""

import json

import pytest

from moesim.cli.profiles import app
from moesim.files.profiles import FOLDERS, profile_names
from moesim.ground.errors import MoesimError


def said(capsys, *words):
    """Run a command; what it printed."""
    with pytest.raises(SystemExit) as end:
        app([*words], exit_on_error=False)
    assert end.value.code in (0, None)
    return capsys.readouterr().out


def test_names_of_every_kind(capsys):
    assert json.loads(said(capsys, "--json")) == {kind: list(profile_names(kind)) for kind in FOLDERS}


def test_a_node_shows_its_own_numbers_its_device_and_the_price(capsys):
    shown = json.loads(said(capsys, "show", "nvidia/hgx-h200", "--json"))
    numbers = {number["path"]: number for number in shown["numbers"]}
    assert shown["kind"] == "node"
    assert numbers["tiers.nvlink.bandwidth"]["value"] == 450e9
    assert numbers["device.memory"]["unit"] == "B"
    assert all(number["source"]["title"] for number in shown["numbers"])
    assert [number["path"] for number in shown["price"]][:3] == ["rent.low", "rent.mid", "rent.high"]


def test_tables_say_values_at_a_human_scale_and_where_a_price_is_missing(capsys):
    shown = said(capsys, "show", "nvidia/l4")
    assert "24.0 GB" in shown
    assert "No dated price of nvidia/l4 is known" in " ".join(shown.split())


def test_a_node_is_drawn_into_a_file(capsys, tmp_path):
    file = tmp_path / "boxes.svg"
    said(capsys, "show", "nvidia/hgx-h200", "--fabric", "infiniband/rail-400g", "--nodes", "3", "--svg", str(file))
    assert file.read_text().count('class="gpu"') == 24


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("show", "h200"), "known: .*nvidia/hgx-h200"),
        (("show", "nvidia/l4", "--svg", "l4.svg"), "a device alone has no topology"),
        (
            ("show", "nvidia/gh200", "--fabric", "infiniband/rail-400g", "--nodes", "0", "--svg", "x.svg"),
            "give 1 or more",
        ),
        (("show", "nvidia/gh200", "--fabric", "infiniband/rail", "--svg", "x.svg"), "no fabric is called"),
        (("check", "nowhere.yaml"), "there is no such file"),
    ],
)
def test_what_cannot_be_done_is_said(words, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoesimError, match=problem):
        app([*words], exit_on_error=False)
    assert not list(tmp_path.iterdir())


def test_a_file_of_ones_own_is_checked(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nlike: nvidia/hgx-h100\n")
    assert "the node mine, 28 numbers:" in said(capsys, "check", str(file))


def test_the_schema_is_printed(capsys):
    assert json.loads(said(capsys, "schema"))["anyOf"]
