"""Studies written in full: they read back equal, look nothing up, and write the same bytes again."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.files import frameworks, models, profiles, routings
from moesim.files.models import model_names
from moesim.files.resolved import model_tree, space_tree
from moesim.files.sources import split
from moesim.files.spaces import read_space
from moesim.files.written import UNSOURCED
from moesim.files.yaml import dump_scenario, dump_study, load_hardware, load_scenario, load_study
from moesim.ground.errors import InputError
from moesim.ground.units import Source
from moesim.plans.plan import Policy, Space
from moesim.world.attention import Compressed, Gqa, Indexer, Linear, Mla, Unmodelled, Window
from moesim.world.generators import Balanced, Skewed, skewed
from moesim.world.hardware import Fit, Hardware
from moesim.world.model import Dense, Layer, Model, Moe
from moesim.world.scenario import Failures
from moesim.world.workload import Arrivals, Lengths, Requests, Serving, Target, Training

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))
STUDIES = [path for path in EXAMPLES if "model:" in path.read_text()]
SERVING = next(path for path in STUDIES if path.stem == "deepseek_v3_serving")


LENGTH = Lengths(generator="constant", mean=300.0)
LOAD = Serving(requests=Requests(arrivals=Arrivals(generator="poisson", rate=12.0), input=LENGTH, output=LENGTH))


def world(name="deepseek-ai/DeepSeek-V3", *, workload=LOAD, **others):
    return worlds.scenario(name, workload=workload, **others)


@pytest.fixture
def again(tmp_path):
    """Write a study or a scenario in full, and load it."""

    def load(text):
        file = tmp_path / "scenario.yaml"
        file.write_text(text)
        return load_study(file)

    return load


def same(one, other, but=()):
    """Compare scenarios field by field; routings by the law they follow."""
    for field in fields(one):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if field.name == "routing":
            assert type(first) is type(second)
            assert (first.shares(0) == second.shares(0)).all()
            assert first.topk == second.topk
        elif field.name not in but:
            assert first == second, field.name


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_example_reads_back_equal_and_writes_the_same_bytes(path, again):
    study = load_study(path)
    text = dump_study(study)
    loaded = again(text)
    same(study.scenario, loaded.scenario)
    assert (study.space, study.goal, study.frontier) == (loaded.space, loaded.goal, loaded.frontier)
    assert dump_study(loaded) == text


def test_nothing_shipped_is_looked_up(again, monkeypatch):
    study = load_study(SERVING)
    text = dump_study(study)
    for module, name in (
        (models, "read"),
        (profiles, "read"),
        (frameworks, "read"),
        (routings, "read"),
        (models, "_built_in"),
        (profiles, "_built_in"),
        (frameworks, "_built_in"),
        (routings, "load_preset"),
    ):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was asked for something shipped"))
    same(study.scenario, again(text).scenario)


@pytest.mark.parametrize("name", model_names())
def test_every_shipped_model_reads_back_equal(name):
    entry = models.load_entry(name)
    tree = model_tree(entry.model, entry.source)
    assert models.read_layers(tree, "model") == replace(entry, published=None)


@pytest.mark.parametrize("name", profiles.profile_names("node"))
def test_every_shipped_node_reads_back_equal(name, again):
    scenario = replace(world(), hardware=load_hardware(name, fabric="infiniband/rail-400g"))
    same(scenario, again(dump_scenario(scenario)).scenario, but=("sources", "frameworks"))


def test_numbers_from_python_are_said_to_be_assumed(again):
    scenario = world(cv=0.3, seed=4)
    loaded = again(dump_scenario(scenario)).scenario
    same(scenario, loaded, but=("sources", "frameworks"))
    assert loaded.sources["hardware.offers.nvidia/hgx-h200.node.device.memory"] == UNSOURCED
    assert "routing.cv" not in loaded.sources  # there the user gives what the question is, as in any scenario
    assert replace(loaded.frameworks["plain"], source=worlds.PLAIN.source) == worlds.PLAIN


def test_what_was_calibrated_is_kept(again):
    """Fits with their own sources, interference with its sources, and nothing of the prior sources lost."""
    run = Source(kind="fitted", title="our calibration", raw="samples.csv")
    fit = Fit(form="gemm", params={"peak": 9.1e13}, shared=0.02, point=0.05, box={"m": (1.0, 8192.0)}, source=run)
    study = load_study(SERVING)
    offer = study.scenario.hardware.offers[0]
    device = replace(offer.node.device, fits={"gemm/bf16/mine": fit}, interference={"compute": {"collective": 0.1}})
    own = replace(offer, node=replace(offer.node, device=device))
    sources = dict(study.scenario.sources)
    sources[f"hardware.offers.{own.node.name}.node.device.interference.compute.collective"] = run
    hardware = replace(study.scenario.hardware, offers=(own, *study.scenario.hardware.offers[1:]))
    scenario = replace(study.scenario, hardware=hardware, sources=sources)
    same(scenario, again(dump_scenario(scenario)).scenario)


def test_a_table_of_weights_has_no_place_in_a_file():
    scenario = world(cv=0.3)
    assert isinstance(scenario.routing, Skewed)
    part = scenario.routing.only([0])
    with pytest.raises(InputError, match=r"routing: Skewed routing was made in Python"):
        dump_scenario(replace(scenario, routing=part))


NUMBERS = st.floats(1e-3, 1e15, allow_nan=False)
COUNTS = st.integers(1, 512)
FLAGS = st.booleans()
FEW, MANY = st.sampled_from([1, 2, 4]), st.sampled_from([8, 12, 64])  # of heads: the few divide the many
INDEXERS = st.none() | st.builds(Indexer, heads=COUNTS, dim=COUNTS, topk=COUNTS)
ATTENTIONS = st.one_of(
    st.none(),
    st.builds(Gqa, heads=MANY, kv_heads=FEW, head_dim=COUNTS, value_dim=COUNTS, gated=FLAGS, tied_values=FLAGS),
    st.builds(Window, heads=MANY, kv_heads=FEW, head_dim=COUNTS, value_dim=COUNTS, window=COUNTS, chunked=FLAGS),
    st.builds(
        Mla, heads=COUNTS, q_lora=COUNTS, kv_lora=COUNTS, rope=COUNTS, nope=COUNTS, value_dim=COUNTS, indexer=INDEXERS
    ),
    st.builds(
        Compressed,
        heads=MANY,
        head_dim=COUNTS,
        q_lora=COUNTS,
        o_lora=COUNTS,
        o_groups=FEW,
        window=COUNTS,
        ratio=COUNTS,
        streams=COUNTS,
        indexer=INDEXERS,
    ),
    st.builds(Linear, key_heads=FEW, value_heads=MANY, key_dim=COUNTS, value_dim=COUNTS, conv=COUNTS, delta=FLAGS),
    st.builds(Unmodelled, name=st.text("abc", min_size=1), heads=COUNTS, parameters=COUNTS),
)
FFNS = st.one_of(
    st.none(),
    st.builds(Dense, width=COUNTS, gated=st.booleans()),
    st.builds(Moe, experts=st.just(16), topk=st.integers(1, 16), width=COUNTS, input_dim=COUNTS, groups=st.just(4)),
)
LAYERS = st.builds(
    Layer, part=st.just("decoder"), dim=COUNTS, tokens=st.sampled_from([1.0, 0.25]), attention=ATTENTIONS, ffn=FFNS
)
FORMATS = {"experts": "fp8", "attention": "bf16", "dense": "bf16", "embedding": "bf16", "kv": "bf16"}


@given(st.lists(LAYERS, min_size=1, max_size=3), st.integers(1, 6), st.lists(LAYERS, max_size=2), st.booleans())
def test_any_pattern_of_layers_reads_back_equal(repeated, turns, rest, tied):
    model = Model(name="m", layers=(*repeated * turns, *rest), vocab=10, dtype_of=FORMATS, tied=tied, mtp=int(tied))
    source = Source(kind="derived", title="drawn")
    assert models.read_layers(model_tree(model, source), "model") == models.Entry(model=model, source=source)


LENGTHS = st.builds(Lengths, generator=st.just("lognormal"), mean=st.floats(1, 1e6), cv=st.floats(0, 3))
OPEN = st.builds(Arrivals, generator=st.just("gamma"), rate=NUMBERS, burstiness=st.floats(0, 9))
CLOSED = st.builds(Arrivals, generator=st.just("closed"), concurrency=COUNTS)
LOADS = st.one_of(
    st.builds(
        Serving,
        requests=st.builds(
            Requests, arrivals=st.one_of(OPEN, CLOSED), input=LENGTHS, output=LENGTHS, prefix_hits=st.floats(0, 0.99)
        ),
        targets=st.lists(
            st.builds(Target, metric=st.sampled_from(["ttft.p99", "tpot", "price"]), limit=NUMBERS),
            unique_by=lambda target: target.metric,
        ).map(tuple),
        horizon=st.just(2000),
        warm_up=st.integers(0, 1999),
    ),
    st.builds(Training, sequence=COUNTS, sequences=COUNTS, tokens=NUMBERS, optimizer=st.sampled_from(["adam", "sgd"])),
)


@settings(max_examples=10)
@given(load=LOADS, rent=st.floats(0, 1), memory=NUMBERS, cv=st.sampled_from([0.0, 0.3]), repair=st.floats(0, 1e6))
def test_any_numbers_read_back_to_the_same_bits(tmp_path_factory, load, rent, memory, cv, repair):
    offer = worlds.offer()
    node = replace(offer.node, device=replace(offer.node.device, memory=memory), host_memory=memory)
    scenario = replace(
        world("mistralai/Mixtral-8x7B-v0.1", cv=cv, short=True, workload=load),
        hardware=Hardware(offers=(replace(offer, node=node, rent=rent),), fabric=()),
        failures=Failures(interval=repair * 7, repair=repair),
    )
    scenario = replace(
        scenario, hardware=replace(scenario.hardware, offers=(replace(scenario.hardware.offers[0], max_nodes=1),))
    )
    file = tmp_path_factory.mktemp("drawn") / "scenario.yaml"
    file.write_text(dump_scenario(scenario))
    loaded = load_scenario(file)
    same(scenario, loaded, but=("sources", "frameworks"))
    assert dump_scenario(loaded) == file.read_text()


SETTINGS = st.one_of(st.integers(1, 64), st.just("adaptive"), st.lists(st.integers(1, 8), min_size=1).map(tuple))


@given(
    st.lists(SETTINGS, min_size=1, max_size=3),
    st.lists(st.sampled_from([8, 16, 32]), min_size=1, unique=True),
)
def test_any_space_reads_back_equal(degrees, eps):
    overlap = tuple(Policy(name="pipeline", settings={"degree": degree}) for degree in degrees)
    space = Space(axes={"parallel.ep": tuple(eps), "overlap": (Policy(name="none"), *overlap), "framework": ("vllm",)})
    assert read_space(space_tree(space), "space", frameworks=["vllm"], nodes=[]) == space


def test_a_written_out_part_may_stand_beside_named_ones(again):
    text = SERVING.read_text()
    fabric = "fabric: [{name: rail, ranks: {value: 512, from: me}, bandwidth: {value: 50 GB/s, from: me}, "
    fabric += "latency: {value: 5 us, from: me}}]\n  sources:\n    me: {kind: assumed, title: mine}"
    inline = text.replace("fabric: infiniband/rail-400g\n  sources:", fabric)
    scenario = again(inline).scenario
    assert [tier.ranks for tier in scenario.hardware.fabric] == [512]
    assert scenario.sources["hardware.fabric.rail.latency"].title == "mine"
    assert scenario.hardware.offers == load_scenario(SERVING).hardware.offers


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("memory: {value: 85 GB, from: published_1}", "memory: 85 GB", r"node\.device\.memory: 85 GB has no source"),
        ("gpus: {value: 8, from: published", "gpus: {value: 8, from: nobody", r"0\.node\.gpus\.from: no source"),
        ("processors: {value: 132", "procesors: {value: 132", r"offers\.0\.node\.device\.procesors: unknown field"),
        ("ranks: {value: 256", "ranks: {value: 4096", r"hardware\.fabric\.tiers: `spine` reaches 2048 gpus"),
        ("heads: 128, q_lora", "head: 128, q_lora", r"model\.layers\.0\.layers\.0\.attention\.head: unknown"),
        ("utilization: {value: 0.9,", "utilization: {value: 9.0,", r"frameworks\.vllm\.utilization: 9\.0 is not"),
        ("cv: {value: 0.25,", "cv: {value: -0.25,", r"routing\.cv: -0\.25 is negative"),
        ("cv: {value: 0.25, from: published_1}", "cv: 0.25", r"routing\.cv: 0\.25 has no source"),
    ],
)  # fmt: skip
def test_faults_inside_are_told_by_their_place(before, after, message, again):
    text = dump_study(load_study(SERVING))
    assert before in text
    with pytest.raises(InputError, match=message):
        again(text.replace(before, after, 1))


def test_a_framework_that_is_no_section_is_refused(again):
    text = dump_study(load_study(SERVING))
    head, _, _ = text.partition("frameworks:")
    with pytest.raises(InputError, match=r"frameworks\.vllm: 'fast' is not a section; write its fields"):
        again(head + "frameworks: {vllm: fast}\n")


def test_items_are_called_by_their_names():
    tree = {
        "offers": [{"node": {"name": "a/box", "gpus": {"value": 8, "from": "me"}}, "max_nodes": 2}],
        "sources": {"me": {"kind": "assumed", "title": "mine"}},
    }
    assert list(split(tree, "file", bare=("max_nodes",)).sources) == ["offers.a/box.node.gpus"]


def test_balanced_and_skewed_are_told_apart(again):
    dense = world("Qwen/Qwen3-32B")
    assert "routing" not in dump_scenario(dense)
    balanced = world("mistralai/Mixtral-8x7B-v0.1")
    assert isinstance(again(dump_scenario(balanced)).scenario.routing, Balanced)
    made = replace(balanced, routing=skewed(32, 8, 2, cv=0.4, seed=9))
    assert again(dump_scenario(made)).scenario.routing.recipe == made.routing.recipe
