"""Launch commands: the very text for a few plans, and for any plan every decision is a flag or a named remark."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cli import main
from moesim.deployments.launching.commands import Launch, launch
from moesim.deployments.launching.decisions import decided, decided_by_plan
from moesim.deployments.launching.dialect import Dialect, Rule, filled, rule_for
from moesim.deployments.launching.fitting import refuse_unfit
from moesim.files.launching import dialect_for, dialect_names, load_dialect
from moesim.files.trees import packaged
from moesim.files.yaml import load_plan, load_scenario
from moesim.ground.errors import PlanError
from moesim.plans.plan import DEFAULT_POLICIES, Parallel, Plan, Policy, Pool
from moesim.policies.finding import names
from moesim.views.launch import launch_json, launch_script, yaml_of
from moesim.world.scenario import Scenario
from tests.launched import CASES, FOLDER, ROOT, SCENARIOS, SERVING, golden, pages, printed

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # main() reads sys.argv

DEEPSEEK = load_scenario(ROOT / "examples" / "deepseek_v3_serving.yaml")
MIXTRAL = load_scenario(ROOT / "examples" / "mixtral_pretraining.yaml")


@pytest.mark.parametrize(("plan", "scenario", "framework"), CASES, ids=lambda case: getattr(case, "stem", case))
def test_text_is_as_kept(plan: Path, scenario: str, framework: str) -> None:
    """To write these files again after a change: ``python -m tests.launched``; then read what has changed."""
    assert printed(plan, scenario, framework) == golden(plan, framework).read_text(encoding="utf-8")


def sums(total: int) -> st.SearchStrategy[tuple[int, int]]:
    """Split a power of two into two."""
    return st.sampled_from([(2**k, total // 2**k) for k in range(total.bit_length())])


@st.composite
def pools(draw: st.DrawFn, role: str, *, training: bool = False) -> Pool:
    """Draw a pool over the built-in policies, on up to four nodes."""
    ranks = draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    dp, tp = draw(sums(ranks).filter(lambda pair: pair[1] <= 16))
    block = draw(st.sampled_from([2**k for k in range(ranks.bit_length())]))
    ep, etp = draw(sums(block).filter(lambda pair: pair[0] <= 8 if training else pair[1] <= 8))
    policies = dict(DEFAULT_POLICIES)
    for kind in ("placement", "gating", "overlap", "shortcut", "prefetch", "buffering"):
        policies[kind] = Policy(name=draw(st.sampled_from(names(kind))))
    policies["placement"] = Policy(name=policies["placement"].name, settings={"redundant": draw(st.integers(0, 40))})
    policies["alltoall"] = Policy(name=draw(st.sampled_from(names("alltoall"))))
    buckets, graphs = draw(st.sampled_from([((), 0), ((1, 2, 4), 0), ((), 3)]))
    policies["batching"] = Policy(
        name=draw(st.sampled_from(names("batching"))),
        settings={
            "max_batch": draw(st.integers(1, 64)),
            "buckets": buckets,
            "graphs": graphs,
            "speculated": 1,
            "acceptance": 0.5,
        },
    )
    reactions = draw(st.lists(st.sampled_from(names("adaptation")), max_size=2, unique=True))
    tensors = st.sampled_from(["experts", "attention", "dense", "embedding", "kv", "dispatch", "combine"])
    return Pool(
        role=role,
        node="nvidia/hgx-a100" if training else "nvidia/hgx-h200",
        replicas=draw(st.integers(1, 3)),
        parallel=Parallel(pp=draw(st.sampled_from([1, 2])), dp=dp, tp=tp, ep=ep, etp=etp),
        framework=draw(st.sampled_from(["plain", "vllm", "sglang", "tensorrt_llm"])),
        precision=draw(st.dictionaries(tensors, st.sampled_from(["bf16", "fp8", "fp8_block", "mxfp4", "nvfp4"]))),
        policies=policies,
        adaptation=tuple(Policy(name=name) for name in reactions),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan of one pool, or of two."""
    roles = draw(st.sampled_from([("all",), ("prefill", "decode")]))
    return Plan(
        pools=tuple(draw(pools(role)) for role in roles),
        router=Policy(name=draw(st.sampled_from(names("router")))),
        spare_nodes=draw(st.integers(0, 2)),
    )


def told(found: Launch, where: str) -> dict[str, str]:
    """Map what was decided to what became of it; every decision has one answer."""
    answers = [said.decision for said in found.said[where]]
    assert len(answers) == len(set(answers))
    return {said.decision: said.how for said in found.said[where]}


def check(scenario: Scenario, plan: Plan, dialect: Dialect, *, training: bool) -> None:
    """Every decision is a flag or field that stands in each command of its pool, or a remark that says why not."""
    found = launch(scenario, plan, dialect)
    assert told(found, "plan").keys() == decided_by_plan(plan).keys()
    for pool in plan.pools:
        assert told(found, pool.role).keys() >= decided(pool, training=training).keys()
        mine = [each for each in found.commands if each.title.startswith(f"pool {pool.role},") and each.start]
        for said in found.said[pool.role]:
            assert said.how in ("set", "usual", "cannot")
            assert said.text
            assert "knows no words" not in said.text
            if said.how != "set":
                assert said.text in launch_script(found).replace("\n#     ", " ")
        for command in mine:
            words = " ".join([*command.env, *command.flags, yaml_of(command.settings or {})]).split()
            for said in found.said[pool.role]:
                last = said.text.split()[-1]
                assert said.how != "set" or last in words or said.text in words or f"HOST=${command.host}" in words[0]


@settings(max_examples=25, deadline=None)
@given(plan=plans(), framework=st.sampled_from(SERVING))
def test_every_decision_of_a_serving_plan_is_told(plan: Plan, framework: str) -> None:
    check(DEEPSEEK, plan, dialect_for(framework, plan.pools[0].framework, training=False), training=False)


@settings(max_examples=10, deadline=None)
@given(pool=pools("all", training=True))
def test_every_decision_of_a_training_plan_is_told(pool: Pool) -> None:
    check(MIXTRAL, Plan(pools=(pool,)), load_dialect("megatron"), training=True)


@pytest.mark.parametrize("name", dialect_names())
def test_every_flag_has_a_source_that_was_read(name: str) -> None:
    """What sets something is backed by a published source, never by the word of moesim."""
    dialect = load_dialect(name)
    across = [rule for rules in dialect.across for rule in rules]
    every = [rule for table in (dialect.pool, dialect.plan) for rules in table.values() for rule in rules]
    for rule in (*every, *across, *dialect.router):
        source = dialect.sources[rule.source]
        assert source.kind == "published" or rule.env.startswith("CUDA") or not (rule.flags or rule.settings)
        assert sum(map(bool, (rule.flags or rule.settings or rule.env, rule.usual, rule.cannot))) == 1, rule


def test_two_replicas_share_a_node_and_a_router_sends_to_both() -> None:
    text = golden(FOLDER / "one_node.yaml", "vllm").read_text(encoding="utf-8")
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7 vllm serve" in text
    assert "--worker-urls http://$ALL_0:8000 http://$ALL_0:8001" in text


def test_scripts_are_shell(tmp_path: Path) -> None:
    """No unbalanced quote, and every address that is used is to be filled in."""
    for plan, _, framework in CASES:
        text = golden(plan, framework).read_text(encoding="utf-8")
        shlex.split(text, comments=True)
        used = set(re.findall(r"\$([A-Z0-9_]+)", text))
        assert used <= {line.partition("=")[0] for line in text.splitlines()}


def test_settings_files_are_yaml() -> None:
    assert yaml.safe_load(yaml_of({"a.b.c": "[1, 2]", "a.d": "true", "e": "x"})) == {
        "a": {"b": {"c": [1, 2]}, "d": True},
        "e": "x",
    }


def test_json_has_commands_and_reasons() -> None:
    plan = load_plan(ROOT / "examples" / "deepseek_v3_plan.yaml", DEEPSEEK)
    tree = json.loads(launch_json(launch(DEEPSEEK, plan, load_dialect("sglang"))))
    assert "--enable-dp-attention" in tree["commands"][0]["command"]
    assert {"decision", "how", "text", "source"} <= tree["said"]["all"][0].keys()


def test_a_rule_of_its_own_goes_before_one_of_its_group() -> None:
    table = {"a.b": (Rule(when={"x": "1"}, usual="own"),), "a.*": (Rule(usual="group"),)}
    assert [rule.usual for x in "12" if (rule := rule_for(table, "a.b", {"x": x}))] == ["own", "group"]
    assert rule_for(table, "c", {}) is None


def test_a_rule_that_asks_for_an_unknown_fact_is_at_fault() -> None:
    with pytest.raises(PlanError, match=r"no\.such: no such fact of a plan"):
        filled("--x <no.such>", {})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--framework", "vlm"], "moesim has no words for `vlm`; did you mean `vllm`?"),
        (["--framework", "megatron"], "Megatron-LM is for training, and this plan is for serving"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(ROOT / "examples" / name) for name in ("deepseek_v3_serving.yaml", "deepseek_v3_plan.yaml")]
    monkeypatch.setattr(sys, "argv", ["moesim", "launch", *files, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_files_build_on_files_that_are_there() -> None:
    assert packaged("moesim/data/launch/common").joinpath("serving.yaml").is_file()


def test_a_plan_that_does_not_fit_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a node holds Qwen3-235B and not DeepSeek-V3, whose share of memory would be above 1."""
    plan = FOLDER / "one_node.yaml"
    qwen = load_scenario(SCENARIOS["qwen"])
    refuse_unfit(qwen, load_plan(plan, qwen))
    monkeypatch.setattr(sys, "argv", ["moesim", "launch", str(SCENARIOS["deepseek"]), str(plan)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert not said.out
    assert re.search(r"pools\[0\]: does not fit: expert weights .* spread it over more gpus", said.err, re.DOTALL)


def test_no_share_of_memory_is_above_what_there_is() -> None:
    """Shares of what is printed are of plans that fit."""
    shares = [
        float(share)
        for _, text in pages()
        for share in re.findall(r"(?:static|fraction|utilization):? (\d\.\d+)", text)
    ]
    assert len(shares) > len(SERVING)
    assert all(0 < share < 1 for share in shares)


def overlapped(role: str, alltoall: str, framework: str, **batching: object) -> Launch:
    """Launch DeepSeek-V3 on one node with two-batch overlap."""
    policies = {
        "alltoall": Policy(name=alltoall),
        "overlap": Policy(name="two_batch"),
        "batching": Policy(name="chunked", settings=batching),
    }
    parallel = Parallel(dp=8, ep=8)
    pool = Pool(
        role=role, node="nvidia/hgx-h200", replicas=1, parallel=parallel, framework=framework, policies=policies
    )
    return launch(DEEPSEEK, Plan(pools=(pool,)), load_dialect(framework))


def test_what_an_engine_refuses_at_its_start_is_not_asked_of_it() -> None:
    """vLLM: dual batch overlap without DeepEP. SGLang: mixed chunks with drafts, graphs for prompts alone."""
    assert told(overlapped("all", "gathered", "vllm"), "all")["policies.overlap"] == "cannot"
    assert told(overlapped("all", "linear", "vllm"), "all")["policies.overlap"] == "set"
    drafts = {"speculated": 1, "acceptance": 0.5}
    assert told(overlapped("all", "linear", "sglang", **drafts), "all")["policies.batching"] == "cannot"
    assert told(overlapped("all", "linear", "sglang"), "all")["policies.batching"] == "set"
    for role, how in (("prefill", "cannot"), ("all", "set")):
        assert told(overlapped(role, "linear", "sglang", buckets=(1, 8)), role)["policies.batching.buckets"] == how
