"""Every hardware profile, framework and routing preset that ships: it loads, and each number has a source."""

import re
import shutil
from importlib.resources import files

import pytest
import yaml

from moesim.files import profiles
from moesim.files.fits import FITS, load_fits
from moesim.files.frameworks import built_in_frameworks
from moesim.files.profiles import FOLDERS, load_profile, profile_names
from moesim.files.routings import load_preset, preset_names
from moesim.files.sources import is_number
from moesim.files.trees import read
from moesim.ground.errors import ProfileError
from moesim.world.hardware import network

PROFILES = [(kind, name) for kind in FOLDERS for name in profile_names(kind)]
ROOT = files("moesim.hardware_profiles")


def tree_of(kind: str, name: str) -> dict:
    return read(ROOT.joinpath(FOLDERS[kind], f"{name}.yaml"))


def sourced(tree, path=()):
    """List the paths of the numbers of a tree that are written with a source."""
    if isinstance(tree, dict) and "value" in tree:
        yield path
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from sourced(value, (*path, name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from sourced(value, (*path, number))


def test_every_file_is_listed_once():
    fitted = list(ROOT.joinpath(FITS).rglob("*.yaml"))
    assert len(PROFILES) + len(fitted) == len(list(ROOT.rglob("*.yaml")))
    names = {str(file.relative_to(ROOT.joinpath(FITS)).with_suffix("")) for file in fitted}
    assert names <= set(profile_names("device"))
    assert len(set(PROFILES)) == len(PROFILES)


@pytest.mark.parametrize(("kind", "name"), PROFILES)
def test_a_profile_loads_under_its_own_name(kind, name):
    found = load_profile(kind, name)
    assert found.profile.name == name
    assert found.sources


@pytest.mark.parametrize(("kind", "name"), PROFILES)
def test_every_number_has_a_source_and_every_source_a_use(kind, name):
    tree = tree_of(kind, name)
    numbers = list(sourced(tree))
    used = set()
    for path in numbers:
        pair = tree
        for step in path:
            pair = pair[step]
        assert is_number(pair["value"])
        used.add(pair["from"])
    assert used == set(tree.get("sources", ()))
    own = [path for path in load_profile(kind, name).sources if not path.startswith("device.") or kind == "device"]
    assert len(own) == len(numbers) if "like" not in tree else len(own) > len(numbers)


@pytest.mark.parametrize(("kind", "name"), PROFILES)
def test_a_number_without_its_source_is_refused(kind, name, tmp_path):
    tree = tree_of(kind, name)
    paths = list(sourced(tree))
    for path in paths:
        place = tree
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = place[path[-1]]["value"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree))
    if not paths:
        return  # it says nothing of its own
    with pytest.raises(ProfileError) as refusal:
        load_profile(kind, str(file))
    bare = [fault.path for fault in refusal.value.faults if "has no source" in fault.problem]
    assert sorted(bare) == sorted(".".join(map(str, path)) for path in paths)


@pytest.mark.parametrize("name", profile_names("node"))
def test_a_node_is_plausible(name):
    node = load_profile("node", name).profile
    assert network(node, ())[-1].ranks == node.gpus
    assert node.device.bandwidth > max(tier.bandwidth for tier in node.tiers)
    assert node.gpus % node.numa == 0 or node.numa == 1
    rates = node.device.flop_rate
    half = rates.get("bf16", rates.get("fp16"))
    assert half <= rates.get("fp8", half) <= rates.get("fp4", rates.get("fp8", half))


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "bf16"),
    [
        ("nvidia/a100-40gb-pcie", 42.7e9, 1.555e12, 312e12),
        ("nvidia/a800-80gb-sxm", 85.4e9, 2.039e12, 312e12),
        ("nvidia/h100-pcie", 85e9, 2e12, 756e12),
        ("nvidia/h800-sxm", 85e9, 3.35e12, 989e12),
        ("nvidia/h20", 102e9, 4e12, 148e12),
        ("nvidia/gh200-144gb", 153e9, 4.9e12, 989e12),
        ("nvidia/b300", 287.2e9, 8e12, 2250e12),
        ("nvidia/gb300", 296.8e9, 8e12, 2500e12),
        ("nvidia/l40s", 48e9, 864e9, 362e12),
        ("nvidia/l4", 24e9, 300e9, 121e12),
        ("nvidia/rtx-pro-6000", 102e9, 1.792e12, 468e12),
        ("amd/mi300x", 192e9, 5.3e12, 1307e12),
        ("amd/mi325x", 256e9, 6e12, 1307e12),
        ("amd/mi355x", 288e9, 8e12, 2517e12),
        ("nvidia/a100-80gb-sxm", 85.4e9, 2.039e12, 312e12),
        ("nvidia/h100-sxm", 85e9, 3.35e12, 989e12),
        ("nvidia/h200-sxm", 149.9e9, 4.8e12, 989e12),
        ("nvidia/b200", 191.5e9, 8e12, 2250e12),
        ("nvidia/gb200", 197.9e9, 8e12, 2500e12),
        ("nvidia/a30", 24e9, 933e9, 165e12),
    ],
)
def test_a_device_has_the_memory_that_drivers_report_and_its_datasheets_rates(name, memory, bandwidth, bf16):
    device = load_profile("device", name).profile
    assert device.memory == pytest.approx(memory)
    assert device.bandwidth == pytest.approx(bandwidth)
    assert device.flop_rate["bf16"] == pytest.approx(bf16, rel=1e-3)


FITTED = """
fits:
  gemm/bf16:
    form: gemm
    params: {rate: 0.8, launch: 3.0e-6}
    shared: 0.05
    point: 0.03
    box: {m: [1, 32768]}
    source: %s
sources:
  sweep: {kind: fitted, title: a sweep of shapes}
"""


def test_fits_of_a_file_of_their_own(tmp_path):
    file = tmp_path / "fits.yaml"
    file.write_text(FITTED % "sweep")
    (fit,) = load_fits(file, str(file)).values()
    assert (fit.form, fit.params["launch"], fit.box["m"], fit.source.kind) == ("gemm", 3e-6, (1, 32768), "fitted")


def test_a_fit_of_an_unknown_source_is_refused(tmp_path):
    file = tmp_path / "fits.yaml"
    file.write_text(FITTED % "swept")
    with pytest.raises(ProfileError, match="no source is called `swept`"):
        load_fits(file, str(file))


def test_a_device_gets_the_fits_written_for_it(tmp_path, monkeypatch):
    shutil.copytree(str(ROOT), tmp_path / "profiles")
    own = tmp_path / "profiles" / FITS / "nvidia" / "b200.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(FITTED % "sweep")
    monkeypatch.setattr(profiles, "packaged", lambda name: tmp_path / "profiles" / name.partition("/")[2])
    profiles._built_in.cache_clear()
    assert "gemm/bf16" in load_profile("node", "nvidia/hgx-b200").profile.device.fits
    profiles._built_in.cache_clear()


NODE = "name: mine\nlike: {like}\n{more}"


def load_like(tmp_path, like, more=""):
    file = tmp_path / "mine.yaml"
    file.write_text(NODE.format(like=like, more=more))
    return load_profile("node", str(file))


def test_a_profile_like_another_takes_what_it_does_not_say(tmp_path):
    more = "power: {value: 5 kW, from: us}\nsources: {us: {kind: measured, title: our meter, read: 2026-11-01}}"
    found, model = load_like(tmp_path, "nvidia/hgx-h100", more), load_profile("node", "nvidia/hgx-h100")
    assert (found.profile.power, found.sources["power"].kind) == (5e3, "measured")
    assert found.profile.tiers == model.profile.tiers
    assert found.sources["gpus"].title.startswith("as nvidia/hgx-h100: ")
    assert model.sources["gpus"].kind == "published"
    assert found.sources["gpus"].kind == "derived"  # taken over, so no better than that
    assert found.sources["tiers.nvlink.latency"].kind == "assumed"
    assert found.sources.keys() == model.sources.keys()


@pytest.mark.parametrize(
    ("like", "problem"),
    [
        ("nvidia/hgx-h101", "no node is called `nvidia/hgx-h101`; did you mean `nvidia/hgx-h100`"),
        ("mine.yaml", "itself like another"),
        ("nvidia/hgx-h800", "itself like another; name that one: `nvidia/hgx-h100`"),
        ("[1]", "no node is called `[1]`"),
    ],
)
def test_a_profile_cannot_be_like_just_anything(tmp_path, like, problem):
    with pytest.raises(ProfileError, match=re.escape(problem)):
        load_like(tmp_path, like)


def test_two_roots_are_two_tiers():
    pcie, socket = network(load_profile("node", "pcie/l40s-x8").profile, ())
    assert (pcie.ranks, socket.ranks) == (4, 8)
    assert socket.bandwidth / socket.sharers == pytest.approx(16e9)  # three UPI links for four gpus


def test_an_oversubscribed_fabric_halves_the_spine_alone():
    even = {tier.name: tier for tier in load_profile("fabric", "infiniband/rail-400g").profile.tiers}
    over = {tier.name: tier for tier in load_profile("fabric", "infiniband/oversubscribed-400g").profile.tiers}
    assert over["rail"].bandwidth == even["rail"].bandwidth == 2 * over["spine"].bandwidth


def test_frameworks_ship_with_sources_the_plain_one_first():
    frameworks = built_in_frameworks()
    assert list(frameworks) == ["plain", "sglang", "tensorrt_llm", "vllm"]
    for name, (framework, sources) in frameworks.items():
        assert framework.name == name
        assert set(sources) >= {"reserve", "utilization", "step", "block", "workspace"}
    assert frameworks["vllm"][0].utilization == 0.9
    assert frameworks["vllm"][0].reserve == pytest.approx(3.85e9)


def test_routing_presets_ship_with_sources():
    found = {name: load_preset(name) for name in preset_names()}
    assert {name: preset.recipe.cv for name, preset in found.items() if preset.recipe.cv} == {
        "affinity": 0.1,
        "deepseek": 0.25,
        "early_training": 1.06,
        "mixtral": 0.11,
        "nllb_decoder": 1.36,
        "nllb_encoder": 1.12,
        "olmoe": 0.54,
        "qwen3": 0.51,
    }
    assert all(preset.sources for preset in found.values())
