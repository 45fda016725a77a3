"""Wrong files: one clear message for each fault, all of them at once, and never a traceback."""

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moesim.files.yaml import load_hardware, load_model, load_plan, load_scenario, load_study
from moesim.ground.errors import InputError, MoesimError, PlanError, ProfileError

EXAMPLES = Path(__file__).parents[1] / "examples"
SERVING = EXAMPLES / "deepseek_v3_serving.yaml"
PLAN = Path(__file__).parent / "data" / "disaggregated_plan.yaml"

STUDY = """
name: chat
model: deepseek-ai/DeepSeek-V3
hardware:
  offers:
    - {node: nvidia/hgx-h200, max_nodes: 8, rent: {value: 3.50 USD/h, from: list}}
  fabric: infiniband/rail-400g
  sources: {list: {kind: published, title: price list, read: 2026-05-20}}
workload:
  kind: serving
  requests:
    arrivals: {generator: gamma, rate: 12 /s, burstiness: 2.0}
    input: {generator: lognormal, mean: 2000 tokens, cv: 0.8}
    output: {generator: lognormal, mean: 300 tokens, cv: 0.6}
    prefix_hits: 0.3
  targets: {ttft.p99: 2 s, tpot.p99: 50 ms}
  horizon: {requests: 20000, warm_up: 2000}
routing: {preset: deepseek}
failures: {interval: 50700 h, repair: 30 min, checkpoint: 2 TB}
goal: price_per_token
frontier: [price_per_token, tpot.p99]
space:
  parallel.ep: [8, 16]
  placement: [contiguous, {name: eplb, redundant: [0, 32]}]
  framework: [vllm]
"""

POOL = """
pools:
  - role: all
    node: nvidia/hgx-h200
    replicas: 1
    parallel: {pp: 1, dp: 8, tp: 1, cp: 1, ep: 8, etp: 1}
    framework: vllm
    precision: {dispatch: fp8}
    policies:
      placement: {name: eplb, redundant: 32}
      alltoall: linear
spare_nodes: 0
"""

TRAINING = """
name: pre-training
model: mistralai/Mixtral-8x7B-v0.1
hardware: {offers: [{node: nvidia/hgx-a100, max_nodes: 4}], fabric: infiniband/hdr-200g}
workload: {kind: training, sequence: 4096, sequences: 1024, tokens: 300 Gtokens}
routing: {cv: 0.2}
"""


def cases(name: str) -> list[tuple[str, str, str]]:
    """Read what is replaced by what, and the one line that must come of it."""
    blocks = (Path(__file__).parent / "bad_input" / f"{name}.txt").read_text().strip().split("\n\n")
    return [tuple(line[2:] for line in block.splitlines()) for block in blocks]


def faults(load, text: str, file: Path) -> list[str]:
    file.write_text(text)
    with pytest.raises(InputError) as refusal:
        load(file)
    assert refusal.value.file == str(file)
    return [line.removeprefix(f"{file}: ") for line in str(refusal.value).splitlines()]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    file = tmp_path_factory.mktemp("scenario") / "study.yaml"
    file.write_text(STUDY)
    return load_scenario(file)


def test_the_files_that_are_broken_below_are_right_before(scenario, tmp_path):
    (tmp_path / "plan.yaml").write_text(POOL)
    (tmp_path / "training.yaml").write_text(TRAINING)
    load_plan(tmp_path / "plan.yaml", scenario)
    load_study(tmp_path / "training.yaml")


@pytest.mark.parametrize(("right", "wrong", "message"), cases("serving"))
def test_a_wrong_scenario_is_refused_in_one_line(right, wrong, message, tmp_path):
    assert STUDY.count(right) >= 1
    assert faults(load_study, STUDY.replace(right, wrong, 1), tmp_path / "study.yaml") == [message]


def test_all_faults_of_a_scenario_are_told_at_once(tmp_path):
    text = STUDY.replace("rate: 12 /s", "rate: 12 GB").replace("hgx-h200", "hgx-h2000").replace("goal:", "gaol:")
    text = text.replace("framework: [vllm]", "framework: [vlm]").replace("30 min", "-30 min").replace("2 s,", "2,")
    found = faults(load_study, text, tmp_path / "study.yaml")
    assert [line.split(": ")[0] for line in found] == [
        "hardware.offers.0.node",
        "workload.requests.arrivals.rate",
        "workload.targets.ttft.p99",
        "failures.repair",
        "space.framework.0",
        "gaol",
    ]


@pytest.mark.parametrize(("right", "wrong", "message"), cases("training"))
def test_a_wrong_training_scenario_is_refused_in_one_line(right, wrong, message, tmp_path):
    assert faults(load_study, TRAINING.replace(right, wrong, 1), tmp_path / "study.yaml") == [message]


@pytest.mark.parametrize(("right", "wrong", "message"), cases("plan"))
def test_a_wrong_plan_is_refused_in_one_line(right, wrong, message, tmp_path, scenario):
    assert POOL.count(right) >= 1
    text = POOL.replace(right, wrong, 1)
    assert faults(lambda file: load_plan(file, scenario), text, tmp_path / "plan.yaml") == [message]


def test_all_faults_of_a_plan_are_told_at_once(tmp_path, scenario):
    text = POOL.replace("role: all", "role: al").replace("dp: 8, tp: 1", "dp: 4, tp: 6").replace("eplb", "eplbb")
    found = faults(lambda file: load_plan(file, scenario), text.replace("fp8", "fp9"), tmp_path / "plan.yaml")
    assert [line.split(": ")[0] for line in found] == [
        "pools.0.role",
        "pools.0.parallel.tp",
        "pools.0.precision.dispatch",
        "pools.0.policies.placement",
    ]


def test_a_model_without_experts_takes_no_expert_parallelism(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY.replace("deepseek-ai/DeepSeek-V3", "Qwen/Qwen3-32B"))
    dense = load_scenario(tmp_path / "study.yaml")
    assert faults(lambda file: load_plan(file, dense), POOL, tmp_path / "plan.yaml") == [
        "pools.0.parallel.ep: 8, but the model has no experts; give 1"
    ]


BROKEN_FILES = [
    ("", "is empty; write its fields as `name: value` lines"),
    ("# nothing\n", "is empty; write its fields as `name: value` lines"),
    ("- a\n- b\n", "holds no fields, only a bare value or a list; start the file with a field, as in `name: ...`"),
    ("name: [a, b\nmodel: c\n", "is not valid YAML at line 2, column 6: "),
    ("name: a\n model: b\n", "is not valid YAML at line 2, column 7: mapping values are not allowed"),
    ("name: a\n\tmodel: b\n", "is not valid YAML at line 2, column 1: "),
    ("name: a\nname: b\n", "is not valid YAML at line 2, column 1: field `name` is given twice; keep one of the two"),
    ("name: !!python/object:os.system x\n", "is not valid YAML at line 1, column 7: "),
]


@pytest.mark.parametrize(("text", "message"), BROKEN_FILES)
def test_a_broken_file_is_refused_with_its_place(text, message, tmp_path):
    (found,) = faults(load_study, text, tmp_path / "study.yaml")
    assert found.startswith(message)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"study\.yaml: is not text; save it as UTF-8"):
        load_study(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    with pytest.raises(InputError, match=r"studdy\.yaml: there is no such file; did you mean `study\.yaml`\?"):
        load_study(tmp_path / "studdy.yaml")
    with pytest.raises(InputError, match=r"there is no such file; check the path"):
        load_study(tmp_path / "nowhere" / "study.yaml")
    with pytest.raises(InputError, match=r"is a folder; name a file in it"):
        load_study(tmp_path)


def test_broken_json_is_refused_with_its_place(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "mixtral",\n "hidden_size": 3,}')
    with pytest.raises(InputError, match=r"config\.json: is not valid JSON at line 2, column \d+: "):
        load_model(file)


def test_unknown_names_outside_files_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="no node is called `nvidia/hgx-h2000`; did you mean `nvidia/hgx-h200`"):
        load_hardware("nvidia/hgx-h2000")
    with pytest.raises(InputError, match="no built-in model is called `Qwen/Qwen3-32`; did you mean `Qwen/Qwen3-32B`"):
        load_model("Qwen/Qwen3-32")


def test_the_error_says_which_kind_of_file_is_wrong(tmp_path, scenario):
    with pytest.raises(PlanError):
        load_plan(tmp_path / "plan.yaml", scenario)
    with pytest.raises(ProfileError):
        load_hardware(tmp_path / "hardware.yaml")


def test_a_fault_of_a_file_that_is_named_says_both(tmp_path):
    (tmp_path / "box.yaml").write_text("name: box\ndevice: nvidia/h200-sxm\ntiers: []\nsources: {}\n")
    text = STUDY.replace("node: nvidia/hgx-h200", "node: box.yaml")
    found = faults(load_study, text, tmp_path / "study.yaml")
    assert found[0] == f"hardware.offers.0.node: in {tmp_path / 'box.yaml'}: gpus: is missing; give it"
    assert len(found) == 3


WRONG_LAYERS = [
    ("kind: gqa", "kind: gqqa", "layers.0.layers.0.attention.kind: `gqqa` is unknown; did you mean `gqa`?"),
    ("heads: 2, ", "", "layers.0.layers.0.attention.heads: is missing; give it"),
    ("topk: 2", "topk: 5", "layers.1.ffn.topk: 5 of 4 experts; choose 1 to 4"),
    ("part: decoder", "part: decodr", "layers.0.layers.0.part: `decodr` is unknown; did you mean `decoder`?"),
    ("experts: bf16, ", "", "dtype_of.experts: is missing; give its storage format, such as `bf16`"),
    ("repeat: 2", "repat: 2", "layers.0.part: is missing; give it"),
]
LAYERS = """
name: tiny
vocab: 10
dtype_of: {experts: bf16, attention: bf16, dense: bf16, embedding: bf16, kv: bf16}
layers:
  - repeat: 2
    layers:
      - part: decoder
        dim: 8
        tokens: 1.0
        attention: {kind: gqa, heads: 2, kv_heads: 1, head_dim: 4, value_dim: 4}
        ffn: none
  - {part: decoder, dim: 8, tokens: 1.0, attention: none, ffn: {kind: moe, experts: 4, topk: 2, width: 8, input_dim: 8}}
"""


@pytest.mark.parametrize(("right", "wrong", "message"), WRONG_LAYERS)
def test_a_wrong_list_of_layers_is_refused(right, wrong, message, tmp_path):
    assert faults(load_model, LAYERS.replace(right, wrong, 1), tmp_path / "model.yaml")[0] == message


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.floats(),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.just([[1]]),
)


def paths(tree, path=()):
    """List the place of every value in a tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, value in children:
        yield (*path, step)
        yield from paths(value, (*path, step))


def damaged(text: str, path, value) -> str:
    tree = yaml.safe_load(text)
    place = tree
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return yaml.safe_dump(tree)


def test_no_damage_to_a_value_makes_a_traceback(tmp_path, scenario):
    file = tmp_path / "file.yaml"
    loaders = {STUDY: load_study, POOL: lambda path: load_plan(path, scenario), LAYERS: load_model}
    places = [(text, path) for text in loaders for path in paths(yaml.safe_load(text))]

    @given(st.sampled_from(places), LEAVES)
    def refused_or_loaded(place, value):
        text, path = place
        file.write_text(damaged(text, path, value))
        with suppress(MoesimError):
            loaders[text](file)

    refused_or_loaded()


@given(st.text(max_size=40))
def test_no_text_makes_a_traceback(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        load_study(file)
