"""The JSON Schema of profiles: up to date, true of every file that ships, and untrue of a spoiled one."""

import json
from importlib.resources import files

import pytest
from jsonschema import Draft202012Validator

from moesim.files.profiles import FOLDERS, profile_names
from moesim.files.schemas import profile_schema
from moesim.files.trees import read

ROOT = files("moesim.hardware_profiles")
VALID = Draft202012Validator(profile_schema())


def tree_of(kind, name):
    return read(ROOT.joinpath(FOLDERS[kind], f"{name}.yaml"))


def test_the_file_is_what_the_types_say():
    written = json.loads(ROOT.joinpath("schema.json").read_text())
    assert written == profile_schema(), "run `moesim profiles schema > hardware_profiles/schema.json`"
    Draft202012Validator.check_schema(written)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FOLDERS for name in profile_names(kind)])
def test_it_is_true_of_every_file(kind, name):
    assert not list(VALID.iter_errors(tree_of(kind, name)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("bandwidth", "value"), "3.35 TB"),
        (("bandwidth", "value"), 3.35e12),
        (("bandwidth",), "3.35 TB/s"),
        (("memory",), None),
        (("colour",), "green"),
        (("flop_rate", "bf16", "value"), "989"),
        (("sources", "brief", "kind"), "heard"),
        (("processors", "value"), 1.5),
    ],
)
def test_it_is_untrue_of_a_spoiled_device(path, value):
    tree = tree_of("device", "nvidia/h100-sxm")
    place = tree
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert not VALID.is_valid(tree)


def test_a_network_tier_says_how_far_it_reaches():
    tree = tree_of("node", "nvidia/hgx-h100")
    del tree["tiers"][0]["ranks"]
    assert not VALID.is_valid(tree)
