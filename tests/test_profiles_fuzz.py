"""Spoiled profile files and offers: an error that names the file, never a traceback, never a silent default."""

import copy

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moesim.files.fits import load_fits
from moesim.files.profiles import FOLDERS, find_profile, load_profile, profile_names
from moesim.files.trees import packaged, read
from moesim.files.yaml import load_hardware
from moesim.ground.errors import InputError, ProfileError

TREES = [
    (kind, read(packaged("moesim.hardware_profiles").joinpath(FOLDERS[kind], f"{name}.yaml")))
    for kind in FOLDERS
    for name in profile_names(kind)
]
OFFERS = yaml.safe_load("""
offers:
  - {node: nvidia/hgx-h200, max_nodes: 8, rent: {value: 3.50 USD/h, low: 2 USD/h, high: 7 USD/h, from: list}}
  - {node: pcie/l40s-x8, max_nodes: 2, rent: list}
  - {node: nvidia/gh200, max_nodes: 1, rent: owned}
fabric: infiniband/rail-400g
sources: {list: {kind: published, title: price list, read: 2026-05-20}}
""")
FITS = yaml.safe_load("""
fits: {gemm/bf16: {form: gemm, params: {rate: 0.8}, shared: 0.05, point: 0.03, box: {m: [1, 9]}, source: sweep}}
sources: {sweep: {kind: fitted, title: a sweep}}
""")
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["3 GB", "-1 GB/s", "1e999 W", "nan s", "list", "owned", "mine.yaml", "nvidia/hgx-h100", "0 B"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["value", "from", "name", "x"]), st.text(max_size=3), max_size=2),
)
FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(tree, path=()):
    """List where something can be spoiled."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def spoiled(draw, tree):
    """Replace, remove or rename something somewhere."""
    tree = copy.deepcopy(tree)
    *way, last = draw(st.sampled_from(list(places(tree))))
    place = tree
    for step in way:
        place = place[step]
    how = draw(st.sampled_from(["replace", "remove", "rename"]))
    if how == "remove":
        del place[last]
    elif how == "rename" and isinstance(place, dict):
        place[draw(st.text(max_size=5))] = place.pop(last)
    else:
        place[last] = draw(JUNK)
    return tree


def written(tmp_path, tree, name="mine.yaml"):
    file = tmp_path / name
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return str(file)


def refused(load, file):
    """Load; where that is refused, the message names a file and at least one fault."""
    refusal = refusal_of(load, file)
    if refusal:
        assert refusal.file
        assert refusal.faults
        assert all(fault.problem for fault in refusal.faults)


def refusal_of(load, file):
    """Load; anything but a refusal is let through."""
    try:
        load(file)
    except InputError as refusal:
        return refusal
    return None


@FILES
@given(chosen=st.sampled_from(TREES).flatmap(lambda pair: st.tuples(st.just(pair[0]), spoiled(pair[1]))))
def test_a_spoiled_profile_is_refused_in_words(tmp_path, chosen):
    kind, tree = chosen
    file = written(tmp_path, tree)
    refused(lambda path: load_profile(kind, path), file)
    refused(find_profile, file)


@FILES
@given(tree=spoiled(OFFERS))
def test_a_spoiled_offer_is_refused_in_words(tmp_path, tree):
    refused(load_hardware, written(tmp_path, {"hardware": tree}))


@FILES
@given(tree=spoiled(FITS))
def test_spoiled_fits_are_refused_in_words(tmp_path, tree):
    refused(lambda path: load_fits(tmp_path / "mine.yaml", path), written(tmp_path, tree))


@FILES
@given(text=st.text(max_size=40))
@example(text="like: mine.yaml")
@example(text="device: mine.yaml\ngpus: 1")
@example(text="fits: 3")
@example(text="? [a]\n: b")
def test_any_text_at_all_is_refused_in_words(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    for kind in FOLDERS:
        with pytest.raises(InputError):
            load_profile(kind, str(file))
    with pytest.raises(ProfileError):
        find_profile(str(file))
