"""`moesim models`: the list, one model in tables and JSON, and a start for an unknown one."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from moesim.cli import main
from moesim.files.models import load, model_names
from moesim.passes.anatomy import cache_per_rank, core_work, experts, kinds, token_work
from moesim.views.models import attention_in_words
from moesim.world.attention import Cross, Gqa, Indexer, Linear, Mla, Unmodelled, Window
from moesim.world.model import active_parameters, parameters

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # main() reads sys.argv

UNKNOWN = {
    "model_type": "soundwave_moe",
    "hidden_size": 2560,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "moe_num_experts": 64,
    "moe_k": 6,
    "moe_intermediate_size": 1536,
    "vocab_size": 103424,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture
def moesim(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["moesim", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out or err

    return run


def test_the_list_has_every_model(moesim):
    code, out = moesim("models")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:] if line] == list(model_names())
    code, out = moesim("models", "--json")
    assert json.loads(out) == list(model_names())


@pytest.mark.parametrize("name", model_names())
def test_every_model_is_shown(moesim, name):
    model = load(name)
    code, out = moesim("models", "show", name, "--json")
    shown = json.loads(out)
    assert (code, shown["parameters"], shown["active_parameters"]) == (0, parameters(model), active_parameters(model))
    assert sorted(number for kind in shown["layers"] for number in kind["numbers"]) == list(range(len(model.layers)))
    not_modelled = any(isinstance(layer.attention, Unmodelled) for layer in model.layers)
    assert (shown["flop_per_token"] is None) == not_modelled
    assert moesim("models", "show", name)[0] == 0


def test_a_model_is_shown_as_a_reader_wants_it(moesim):
    _, out = moesim("models", "show", "deepseek-ai/DeepSeek-V3")
    for expected in (
        "deepseek-ai/DeepSeek-V3: 61 layers, 8 of 256 experts",
        "parameters   671B in all, 36.6B active (head counted)",
        "per token at a context of 4,096",
        "config.json of the release",
        "671B in all, 37B active (head counted): DeepSeek-V3 report",
        "3-60",
        "latent 512 + 64, 128 heads",
        "8 of 256 x 2048 + 2048 shared",
        "1,152 B",
        "fp8_block (its own)     44.1 MB   654 GB",
        "nvfp4                   24.8 MB   368 GB",
    ):
        assert expected in out


ODD = """
name: odd
vocab: 1000
embedding_dim: 64
mtp: 0
others: 0
tied: false
dtype_of: {experts: bf16, dense: bf16, attention: bf16, embedding: bf16, kv: bf16}
layers:
  - dim: 64
    part: decoder
    tokens: 1.0
    attention: {kind: unmodelled, name: hyena, heads: 4, parameters: 1000}
    ffn: {kind: dense, width: 64}
"""


def test_what_is_not_modelled_is_said(moesim, tmp_path):
    (tmp_path / "odd.yaml").write_text(ODD)
    _, out = moesim("models", "show", str(tmp_path / "odd.yaml"))
    assert "hyena" in out
    assert "work         not modelled\n" in out


def test_a_figure_that_is_unclear_is_said(moesim):
    _, out = moesim("models", "show", "MiniMaxAI/MiniMax-M3")
    assert "unclear      the card gives both with a tilde" in out


def test_sparse_and_compressed_attention_are_told_by_what_they_read():
    words = {attention_in_words(layer.attention) for layer in load("deepseek-ai/DeepSeek-V4-Flash").layers}
    assert words == {
        "window of 128, 64 heads of 512",
        "window of 128 and compressed 4:1, 512 picked, 64 heads of 512",
        "window of 128 and compressed 128:1, 64 heads of 512",
    }
    assert attention_in_words(load("MiniMaxAI/MiniMax-M3").layers[3].attention).endswith(", 2048 picked")


def test_an_unknown_name_is_refused_in_one_line(moesim):
    code, out = moesim("models", "show", "deepseek-ai/DeepSeek-V33")
    assert code == 2
    assert out.splitlines() == [
        "moesim: deepseek-ai/DeepSeek-V33: no built-in model is called `deepseek-ai/DeepSeek-V33`; "
        "did you mean `deepseek-ai/DeepSeek-V3`? Or give the path of a config.json"
    ]
    assert "`moesim models` lists those there are" in moesim("models", "show", "zzz")[1]


def test_an_unknown_architecture_gets_a_start_that_loads_once_it_is_filled_in(moesim, tmp_path):
    file, start = tmp_path / "config.json", tmp_path / "model.yaml"
    file.write_text(json.dumps(UNKNOWN))
    code, out = moesim("models", "show", str(file))
    assert code == 2
    assert "`soundwave_moe` is an unknown architecture" in out
    assert f"`moesim models skeleton {file}` writes its layers in YAML for you to complete" in out

    code, out = moesim("models", "skeleton", str(file))
    assert code == 0
    start.write_text(out)
    code, refused = moesim("models", "show", str(start))
    assert code == 2
    assert [line.split(": ")[-2].split(".")[-1] for line in refused.splitlines()] == ["head_dim", "value_dim"]
    filled = out.replace("head_dim:   # give it", "head_dim: 128").replace("value_dim:   # give it", "value_dim: 128")
    start.write_text(filled)
    model = load(start)
    assert (len(model.layers), model.vocab, model.tied) == (28, 103424, True)
    assert (model.moe(0).experts, model.moe(0).topk, model.moe(0).width) == (64, 6, 1536)


def test_a_start_of_nothing_is_all_blanks(moesim, tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "odd"}')
    _, out = moesim("models", "skeleton", str(file))
    (layer,) = yaml.safe_load(out)["layers"][0]["layers"]
    assert set(layer["attention"].values()) == {"gqa", None}
    assert layer["ffn"] == {"kind": "dense", "width": None}


@pytest.mark.parametrize(
    ("attention", "work"),
    [
        (None, 0),
        (Gqa(heads=8, kv_heads=2, head_dim=64, value_dim=32), 2 * 8 * 1000 * 96),
        (Window(heads=8, kv_heads=2, head_dim=64, value_dim=32, window=100), 2 * 8 * 100 * 96),
        (Cross(heads=8, kv_heads=8, head_dim=64, value_dim=64), 2 * (2 * 8 * 500 * 128)),
        (Mla(heads=8, q_lora=1, kv_lora=512, rope=64, nope=128, value_dim=128), 2 * 8 * 1000 * (576 + 512)),
        (
            Mla(
                heads=8,
                q_lora=1,
                kv_lora=512,
                rope=64,
                nope=128,
                value_dim=128,
                indexer=Indexer(heads=4, dim=32, topk=300),
            ),
            2 * 4 * 1000 * 32 + 2 * 8 * 300 * (576 + 512),
        ),
        (Linear(key_heads=2, value_heads=8, key_dim=64, value_dim=32, conv=4), 6 * 8 * 64 * 32),
        (Linear(key_heads=2, value_heads=8, key_dim=64, value_dim=32, conv=4, delta=False), 4 * 8 * 64 * 32),
    ],
)
def test_work_of_attention_for_one_token(attention, work):
    assert core_work(attention, 1000.0) == work


def test_work_of_a_token_is_twice_its_parameters_and_its_attention():
    model = load("mistralai/Mixtral-8x7B-v0.1")
    found = kinds(model, 4096.0)
    assert token_work(model, found) == 2 * active_parameters(model) + 32 * 2 * 32 * 4096 * 256
    assert cache_per_rank(found, 1) == (32 * 4096, 0)
    assert cache_per_rank(found, 16) == (32 * 4096 / 8, 0)
    assert experts(model)["bf16"] == (2 * 176_160_768, 2 * 176_160_768 * 8 * 32)


def test_a_dense_model_has_no_experts_and_an_encoder_no_cache():
    assert experts(load("Qwen/Qwen3-32B")) == {}
    swin = load("microsoft/SwinV2-MoE-S")
    assert cache_per_rank(kinds(swin, 100.0), 1) == (0, 0)
