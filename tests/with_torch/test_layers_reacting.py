"""What layers decide between steps is what the simulator decides: evictions, capacities, assignments; and it is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moesim.validate.layers import reference
from moesim.validate.layers.building import build
from moesim.validate.layers.cache import Decisions
from moesim.validate.layers.clock import Recorder
from moesim.validate.layers.faults import EVICTIONS, TIERS
from moesim.validate.layers.spec import BlockSpec, CacheSpec, LayerSpec, Reaction, from_json
from moesim.validate.run.stalls import Stalls

from moesim.ground.errors import InputError
from moesim.plans.plan import Policy
from moesim.policies.caches import run_caches
from moesim.policies.finding import make

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SEED = 5
SPEC = LayerSpec(hidden=16, intermediate=24, experts=6, topk=2, tokens=8)


def batch(number: int, among: int = 6, tokens: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that use some of the experts only."""
    generator = torch.Generator().manual_seed(number)
    first = number % (7 - among)
    chosen = torch.rand(tokens, among, generator=generator).topk(2, dim=1).indices + first
    return torch.randn(tokens, 16, generator=generator), chosen


def wanted(tokens: torch.Tensor, routing: torch.Tensor, spec: LayerSpec, room: int | None = None) -> torch.Tensor:
    (kept,) = reference.kept(spec, [routing], room)
    return reference.layer(spec, reference.weights_of(spec, SEED), tokens.double(), routing, kept).detach()


def alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eviction", EVICTIONS)
@given(data=st.data())
@settings(max_examples=30)
def test_a_cache_that_is_run_decides_as_the_simulated_one(eviction: str, data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, 6))
    resident = data.draw(st.integers(1, slots))
    steps = data.draw(st.lists(st.lists(st.booleans(), min_size=slots, max_size=slots), min_size=1, max_size=12))
    accessed = np.array(steps, bool)
    policy = make("buffering", Policy(name=eviction, settings={"resident": resident}))
    simulated = run_caches(policy, accessed[:, None], resident)
    run = Decisions(spec=CacheSpec(resident=resident, eviction=eviction), slots=slots, history=accessed)
    for step, used in enumerate(accessed):
        uses = run.step(used)
        assert [use.slot for use in uses] == np.flatnonzero(used).tolist()
        assert [use.missed for use in uses] == simulated.missed[step, 0, used].tolist()
        assert all(0 <= use.place < resident for use in uses)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("gating", ["dynamic", "static"])
@pytest.mark.parametrize("resident", [1, 2, 6])
def test_cached_experts_compute_the_layer_and_miss_as_simulated(tier: str, gating: str, resident: int) -> None:
    cache = CacheSpec(resident=resident, tier=tier)
    spec = replace(SPEC, gating=gating, fraction=float(gating == "static"), cache=cache)
    batches = [batch(number, among=3) for number in range(8)]
    layer = build(spec, None, 0, CPU, SEED)
    try:
        for tokens, routing in batches:
            alike(layer.step(tokens, routing), wanted(tokens, routing, spec))
        accessed = np.ones((8, 1, 6), bool) if gating == "static" else np.zeros((8, 1, 6), bool)
        for step, (_, routing) in enumerate(batches):
            accessed[step, 0, routing.unique().numpy()] = True
        policy = make("buffering", Policy(name="lru", settings={"resident": resident}))
        assert layer.cache.misses == run_caches(policy, accessed, resident).misses
        assert layer.cache.hits + layer.cache.misses == accessed.sum()
        layer.restart()
        layer.step(*batches[0])
        assert layer.cache.hits + layer.cache.misses == accessed[0].sum()
    finally:
        layer.close()


def test_a_clairvoyant_cache_asks_for_the_record() -> None:
    spec = replace(SPEC, cache=CacheSpec(resident=2, eviction="belady"))
    with pytest.raises(InputError, match=r"belady.*give build the history"):
        build(spec, None, 0, CPU, SEED)


def dynamoe(compiled: bool) -> LayerSpec:
    settings = {"memory": 0.9, "threshold": 0.6, "room": 1.2, "largest": 6.0}
    reaction = Reaction(name="dynamoe", settings=settings)
    return replace(SPEC, gating="static", factor=1.5, compiled=compiled, reactions=(reaction,))


@pytest.mark.parametrize("gating", ["static", "sparse"])
def test_capacities_follow_a_routing_that_drifts(gating: str) -> None:
    """Two experts take all: each has to grow from 4 rows to 8; the layer computes what has room at every step."""
    layer = build(replace(dynamoe(compiled=False), gating=gating), None, 0, CPU, SEED)
    rooms = []
    for number in range(6):
        tokens, routing = batch(number, among=6 if number < 2 else 2)
        out = layer.step(tokens, routing)
        rooms.append(int(layer.reacting.layout.capacity[0, 0]))
        alike(out, wanted(tokens, routing, layer.spec, rooms[-1]))
    assert rooms[0] == 4
    assert rooms[-1] >= 8
    assert layer.reacting.changes >= 1
    layer.restart()
    assert layer.reacting.layout.capacity[0, 0] == 4


def test_cached_assignments_are_used_once_they_agree() -> None:
    reaction = Reaction(name="caching", settings={"memory": 1.0, "cool_down": 0})
    spec = replace(SPEC, shared=8, reactions=(reaction,), direction="forward+backward")
    layer = build(spec, None, 0, CPU, SEED)
    tokens, routing = batch(0)
    other = batch(1)[1]
    assert not torch.allclose(wanted(tokens, other, spec), wanted(tokens, routing, spec))
    for chosen, cached in ((routing, False), (routing, False), (routing, True), (other, True), (routing, False)):
        alike(layer.step(tokens, chosen), wanted(tokens, routing, spec))  # the others' turn is run on the cached ones
        assert layer.reacting.layout.cached == cached


COMPILER = pytest.mark.filterwarnings("ignore")  # the compiler's own, of what it imports and looks at


@COMPILER
def test_compiled_layers_compute_the_same_and_compile_anew_when_capacities_change() -> None:
    layer = build(dynamoe(compiled=True), None, 0, CPU, SEED)
    stalls = Stalls()
    compiled = []
    for number in range(5):
        tokens, routing = batch(number, among=6 if number < 2 else 2)
        out = layer.step(tokens, routing, stalls)
        room = int(layer.reacting.layout.capacity[0, 0])
        alike(out, wanted(tokens, routing, layer.spec, room))
        compiled.append(stalls.taken() > 0)
    assert compiled[0]
    assert not all(compiled)
    assert sum(compiled) == 1 + layer.reacting.changes > 1


@COMPILER
def test_a_compiled_layer_has_gradients() -> None:
    spec = replace(SPEC, gating="sparse", compiled=True, direction="forward+backward")
    plain = replace(spec, compiled=False)
    tokens, routing = batch(3)
    found = []
    for each in (spec, plain):
        layer, own = build(each, None, 0, CPU, SEED), tokens.clone()
        layer.step(own, routing)
        found.append({"tokens": own.grad} | {name: weight.grad for name, weight in layer.weights.items()})
    for name, gradient in found[0].items():
        alike(gradient, found[1][name])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a gpu")
def test_what_this_machine_cannot_run_is_refused() -> None:
    with pytest.raises(InputError, match="device: torch sees no gpu here; use cpu"):
        build(SPEC, None, 0, torch.device("cuda"), SEED)
    with pytest.raises(InputError, match="graphed: CUDA graphs need a gpu"):
        build(replace(SPEC, gating="static", graphed=True), None, 0, CPU, SEED)
    with pytest.raises(InputError, match="ranks: 2 in a group of 1; start as many, with torchrun"):
        build(replace(SPEC, ranks=2), None, 0, CPU, SEED)


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from moesim.validate.layers.pieces import compilation

    def none(device: torch.device) -> None:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(compilation, "load_compiler", none)
    with pytest.raises(InputError, match=r"compiled: .*\(No working C\+\+ compiler found\); install a C\+\+ compiler"):
        build(replace(SPEC, gating="static", compiled=True), None, 0, CPU, SEED)


BLOCK = BlockSpec(heads=2, sequence=4, dense=8)
WRONG = {
    "hidden: 0 is not a positive": {"hidden": 0},
    "topk: 7 of 6 experts; give at most 6": {"topk": 7},
    "gating: no such choice: 'dens'": {"gating": "dens"},
    "ep: 2 does not divide 3 ranks": {"ranks": 3, "ep": 2},
    "expert_of_slot: experts \\[5\\]": {"expert_of_slot": (0, 1, 2, 3, 4, 4)},
    "two copies of an expert on one rank": {"expert_of_slot": (0, 1, 2, 3, 4, 5, 5)},
    "width: nodes of 1 in exchanges of 1": {"alltoall": "two_dh"},
    "r: 2 with 1 ranks an expert; give one of \\[0, 1\\]": {"r": 2},
    "cache.resident: 9 of a rank's 6 slots": {"cache": CacheSpec(resident=9)},
    "cache: experts that come and go": {"cache": CacheSpec(resident=2), "direction": "forward+backward"},
    "cache.eviction: no such choice: 'lur'; did you mean `lru`": {"cache": CacheSpec(resident=2, eviction="lur")},
    "block.slot: 1 after a tap at 2; give 3 to 4": {"block": replace(BLOCK, position=1, slot=1), "shared": 8},
    "block: 2 heads of width 15": {"block": BLOCK, "shared": 8, "hidden": 15},
    "gating: dynamic with factor 1.0 has no fixed shapes": {"compiled": True},
    "dynamoe alters capacities": {"reactions": (Reaction(name="dynamoe"),)},
    "degree: 0 chunks": {"degree": 0},
    "fraction: 0.5 beside factor 2.0": {"gating": "static", "fraction": 0.5, "factor": 2.0},
}


@pytest.mark.parametrize("said", WRONG)
def test_specs_that_no_layer_can_have_are_refused(said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(SPEC, **WRONG[said])


def test_all_faults_come_at_once_and_json_brings_a_spec_back() -> None:
    with pytest.raises(InputError) as refused:
        replace(SPEC, topk=9, degree=0, overlap="shared_expert")
    assert len(refused.value.faults) == 3
    spec = replace(dynamoe(compiled=True), cache=None, expert_of_slot=(5, 4, 3, 2, 1, 0))
    assert from_json(spec.json()) == spec
    with pytest.raises(InputError, match=r"cache\.residnt: no such field; did you mean `resident`"):
        from_json(SPEC.json() | {"cache": {"residnt": 3}})
    with pytest.raises(InputError, match="missing 1 required"):
        from_json({key: value for key, value in SPEC.json().items() if key != "hidden"})


def test_parts_are_recorded_both_ways_and_add_up_to_no_more_than_the_step() -> None:
    layer = build(replace(SPEC, shared=8, direction="forward+backward"), None, 0, CPU, SEED)
    clock = Recorder(device=CPU)
    layer.step(*batch(0), clock)
    both = {name for name, backward, _, _ in clock._spans if backward}
    assert both == {"norm", "gate", "shared", "pack", "experts", "unpack"}
    assert set(clock.seconds()) == both
    assert clock.seconds() == {}


BARE = """
import sys
for name in ("jaxtyping", "pydantic", "simpy", "cyclopts", "scipy", "joblib", "pyarrow", "pandas", "yaml", "rich"):
    sys.modules[name] = None
import importlib.util as util
real = util.find_spec
util.find_spec = lambda name, package=None: None if name == "jaxtyping" else real(name, package)
del sys.modules["jaxtyping"]
import torch
from validate.layers.building import build
from validate.layers.spec import CacheSpec, LayerSpec
spec = LayerSpec(hidden=16, intermediate=24, experts=4, topk=2, tokens=4, cache=CacheSpec(resident=2, tier="disk"))
layer = build(spec, None, 0, torch.device("cpu"), 1)
print(tuple(layer.step(torch.ones(4, 16), torch.tensor([[0, 1]] * 4)).shape), layer.cache.misses)
layer.close()
"""


def test_a_bare_machine_runs_layers_from_a_checkout() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "(4, 16) 2"


def test_the_guide_s_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/guides/run-real-layers.md").read_text()
    (example,) = re.findall(r"^```py\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(example, "run-real-layers.md", "exec"), {})
    assert "'experts'" in capsys.readouterr().out
