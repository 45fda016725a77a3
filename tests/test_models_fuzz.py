"""Damaged configurations: refused with the file and the field, or read as a model whose sizes can be told."""

from __future__ import annotations

import copy
import json
from dataclasses import MISSING, fields
from functools import cache

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moesim.files.architectures.table import ARCHITECTURES
from moesim.files.models import ZOO, load, model_names
from moesim.files.trees import packaged
from moesim.ground.errors import ModelError
from moesim.passes.anatomy import kinds
from moesim.world.model import parameters


@cache
def tree(name: str) -> dict:
    return yaml.safe_load(packaged(ZOO).joinpath(f"{name}.yaml").read_text())


CONFIGS = {name: tree(name)["config"] for name in model_names() if "model_type" in tree(name).get("config", {})}
LAYERED = [name for name in model_names() if "layers" in tree(name)]

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.integers(-(10**18), 10**18),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from([[], {}, [[1]], [None], {"a": 1}, ["full_attention"], "MEM*", [0] * 61]),
)


def places(value, path=()):
    """List the path of every value in a tree, those within long lists by their first items only."""
    children = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for step, inner in children:
        yield (*path, step)
        yield from places(inner, (*path, step))


def damaged(whole, path, value, *, remove: bool):
    changed = copy.deepcopy(whole)
    place = changed
    for step in path[:-1]:
        place = place[step]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def read_or_refused(file) -> None:
    """Load a file; what loads must have sizes, what does not must name the file."""
    try:
        model = load(file)
    except ModelError as refusal:
        named = [str(file) in line for line in str(refusal).splitlines()]
    else:
        named = [parameters(model) > 0]
        assert sum(len(kind.numbers) for kind in kinds(model, 4096.0)) == len(model.layers)
    assert all(named)


CONFIG_PLACES = [(name, path) for name, config in CONFIGS.items() for path in places(config)]
LAYER_PLACES = [(name, path) for name in LAYERED for path in places(tree(name))]


@given(st.sampled_from(CONFIG_PLACES), LEAVES, st.booleans())
def test_no_damage_to_a_real_configuration_makes_a_traceback(tmp_path_factory, place, value, remove):
    name, path = place
    file = tmp_path_factory.getbasetemp() / "config.json"
    file.write_text(json.dumps(damaged(CONFIGS[name], path, value, remove=remove)))
    read_or_refused(file)


@given(st.sampled_from(LAYER_PLACES), LEAVES, st.booleans())
def test_no_damage_to_a_list_of_layers_makes_a_traceback(tmp_path_factory, place, value, remove):
    name, path = place
    file = tmp_path_factory.getbasetemp() / "model.yaml"
    file.write_text(yaml.safe_dump(damaged(tree(name), path, value, remove=remove)))
    read_or_refused(file)


@given(st.sampled_from(sorted(CONFIGS)), st.integers(0, 10**4), st.binary(max_size=4))
def test_no_damage_to_the_bytes_of_a_file_makes_a_traceback(tmp_path_factory, name, place, junk):
    text = json.dumps(CONFIGS[name]).encode()
    file = tmp_path_factory.getbasetemp() / "config.json"
    place %= len(text)
    file.write_bytes(text[:place] + junk + text[place + len(junk) :])
    read_or_refused(file)


ONE_OF_EACH = {config["model_type"]: name for name, config in sorted(CONFIGS.items())}


@pytest.mark.parametrize("kind", sorted(ONE_OF_EACH))
def test_a_missing_field_of_the_architecture_is_never_filled_in(kind, tmp_path):
    """Without any one field that must be given, a file is refused by that field's name."""
    config, file = CONFIGS[ONE_OF_EACH[kind]], tmp_path / "config.json"
    needed = [field.name for field in fields(ARCHITECTURES[kind]) if field.default is MISSING]
    for field in needed:
        file.write_text(json.dumps({name: value for name, value in config.items() if name != field}))
        with pytest.raises(ModelError, match=rf"config\.json: {field}: is missing; give it"):
            load(file)


@pytest.mark.parametrize("name", LAYERED)
def test_a_missing_field_of_a_layer_is_never_filled_in(name, tmp_path):
    file = tmp_path / "model.yaml"
    whole = tree(name)
    inside = [path for path in places(whole) if len(path) > 3 and path[-2] in ("attention", "ffn")]
    optional = {"gated", "shared_width"}
    for path in inside:
        if path[-1] in optional:
            continue
        file.write_text(yaml.safe_dump(damaged(whole, path, None, remove=True)))
        with pytest.raises(ModelError, match=r"is missing; give it|has no `kind`"):
            load(file)


HOSTILE = [
    ("deep.json", "[" * 100_000, "is nested more than 100 deep; close its brackets"),
    ("deep.json", '{"a":' * 100_000 + "1" + "}" * 100_000, "is nested more than 100 deep; close its brackets"),
    ("deep.yaml", "a: " + "[" * 100_000, "is nested more than 100 deep; close its brackets"),
    ("dashes.yaml", "- " * 100_000 + "a", "is nested more than 100 deep; close its brackets"),
    ("long.json", f'{{"hidden_size": {"9" * 5000}}}', "holds a value that cannot be read: Exceeds the limit"),
    ("long.yaml", f"vocab: {'9' * 5000}", "holds a value that cannot be read: Exceeds the limit"),
]


@pytest.mark.parametrize(("name", "text", "message"), HOSTILE)
def test_a_file_made_to_crash_a_parser_is_refused(name, text, message, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ModelError) as refusal:
        load(file)
    assert str(refusal.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("kind", "field"),
    [("mixtral", "num_hidden_layers"), ("kimi_k3", "num_hidden_layers"), ("nllb-moe", "encoder_layers")],
)
def test_a_depth_that_would_fill_the_memory_is_refused(kind, field, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIGS[ONE_OF_EACH[kind]] | {field: 10**15}))
    with pytest.raises(ModelError, match=rf"{field}: 1000000000000000 layers; give at most 10000"):
        load(file)
