"""Real configuration files, and what is wrong with broken ones."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.files.huggingface import read_config
from moesim.files.yaml import load_model
from moesim.ground.errors import ModelError
from moesim.world.attention import Window
from moesim.world.model import active_parameters, embedding_parameters, parameters

SHARED = Path(__file__).parents[2] / "shared" / "data" / "model_configs"
FILES = sorted(SHARED.glob("*.json"))

FORMATS_ELSEWHERE = ("nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8",)
"""Releases that keep their storage formats in another file than `config.json`."""

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}


def fields_of(config: dict) -> str:
    with pytest.raises(ModelError) as refusal:
        read_config(config, "mine", "config.json")
    return str(refusal.value)


@pytest.mark.skipif(not FILES, reason=f"no real configuration files in {SHARED}")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_real_file_loads(file):
    model = load_model(file)
    assert parameters(model) >= active_parameters(model) + (0 if model.tied else embedding_parameters(model)) > 1e9


@pytest.mark.skipif(not FILES, reason=f"no real configuration files in {SHARED}")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_built_in_copy_is_the_real_file(file):
    real, built_in = load_model(file), load_model(file.stem.replace("--", "/"))
    assert (real.layers, real.vocab, real.tied, real.mtp) == (
        built_in.layers,
        built_in.vocab,
        built_in.tied,
        built_in.mtp,
    )
    if file.stem not in FORMATS_ELSEWHERE:
        assert real.dtype_of == built_in.dtype_of


def test_fields_that_say_nothing_about_the_architecture_are_passed_over():
    assert read_config(MIXTRAL | {"rope_theta": 1e6, "bos_token_id": 1}, "mine", "config.json").name == "mine"


def test_a_sliding_window_holds_in_every_layer():
    model = read_config(MIXTRAL | {"sliding_window": 4096}, "mine", "config.json")
    assert all(isinstance(layer.attention, Window) for layer in model.layers)


def test_block_fp8_is_told_from_plain_fp8():
    def formats(**quantization):
        return read_config(MIXTRAL | {"quantization_config": quantization}, "mine", "config.json").dtype_of

    assert formats(quant_method="fp8", weight_block_size=[128, 128])["experts"] == "fp8_block"
    assert formats(quant_method="fp8")["experts"] == "fp8"
    kept = formats(quant_method="fp8", modules_to_not_convert=["model.layers.0.self_attn"])
    assert (kept["experts"], kept["attention"], kept["dense"]) == ("fp8", "bf16", "fp8")


GROUP = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}}}


@pytest.mark.parametrize(
    ("section", "experts", "attention", "dense"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4_128", "int4_128", "int4_128"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8", "int8", "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", "nvfp4", "nvfp4"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["*self_attn*"]},
            "nvfp4",
            "bf16",
            "nvfp4",
        ),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "fp8", "fp8", "fp8"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["re:.*self_attn.*"]} | GROUP,
            "int4",
            "bf16",
            "int4",
        ),
        (  # an indexer's norm is kept, which says nothing of attention's own matrices
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.7.self_attn.indexer.k_norm", "lm_head"]},
            "fp8",
            "fp8",
            "fp8",
        ),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3.mlp.shared_experts"]},
            "fp8",
            "fp8",
            "bf16",
        ),
    ],
)
def test_formats_of_quantized_releases(section, experts, attention, dense):
    formats = read_config(MIXTRAL | {"quantization_config": section}, "mine", "config.json").dtype_of
    assert (formats["experts"], formats["attention"], formats["dense"]) == (experts, attention, dense)
    assert (formats["embedding"], formats["kv"]) == ("bf16", "bf16")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"quant_method": "awq", "bits": 4, "group_size": 64},
            "group_size: 4 bits in groups of 64 are unknown; known: 8 bits, and 4 bits in groups of 32, 128",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP5"}, "quant_algo: `NVFP5` is unknown; did you mean `NVFP4`?"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "config_groups: has no group with `weights`; give their bits and group size",
        ),
    ],
)
def test_an_unknown_format_is_refused(section, message):
    assert fields_of(MIXTRAL | {"quantization_config": section}) == f"config.json: quantization_config.{message}"


def test_an_unknown_architecture_names_its_fields():
    message = fields_of({"model_type": "mixtrall", "hidden_size": 12, "num_experts": 3, "norm_topk_prob": True})
    assert message == (
        "config.json: model_type: `mixtrall` is an unknown architecture, so its fields could not be placed:"
        " hidden_size = 12, num_experts = 3; did you mean `mixtral`?"
        " `moesim models skeleton config.json` writes its layers in YAML for you to complete"
    )


def test_a_file_of_something_else_is_refused():
    assert fields_of({"vocab": 3}) == (
        "config.json: model_type: is missing; give the `config.json` of a model, with its type"
    )


def test_all_missing_and_wrong_fields_are_named_at_once():
    config = MIXTRAL | {"hidden_size": "4096", "num_local_experts": -8, "torch_dtype": "bfloat17"}
    del config["vocab_size"]
    assert fields_of(config).splitlines() == [
        "config.json: torch_dtype: `bfloat17` is unknown; did you mean `bfloat16`?",
        "config.json: vocab_size: is missing; give it",
        "config.json: hidden_size: '4096' is text, not a whole number; write a plain count without a unit, such as 8",
        "config.json: num_local_experts: -8 is negative; write a count, such as 8",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: 9 of 8 experts; choose at most 8"),
        ({"num_attention_heads": 0}, "num_attention_heads: is zero; give more than zero"),
        (
            {"quantization_config": {"quant_method": "awqq"}},
            "quantization_config.quant_method: `awqq` is unknown; did you mean `awq`?",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [1, 32]}},
            "quantization_config.weight_block_size: blocks of [1, 32] are unknown; known: [128, 128]",
        ),
        ({"quantization_config": 3}, "quantization_config: is not a section; give its `quant_method`"),
    ],
)
def test_an_impossible_field_is_refused(change, message):
    assert fields_of(MIXTRAL | change) == f"config.json: {message}"


def test_a_list_of_layers_must_be_as_long_as_the_model():
    config = {
        "model_type": "gpt_oss",
        "hidden_size": 64,
        "intermediate_size": 64,
        "head_dim": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "sliding_window": 16,
        "vocab_size": 100,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    assert fields_of(config) == "config.json: layer_types: names 2 layers of 3; name every layer's"


HUNYUAN = {
    "model_type": "hunyuan_v1_moe",
    "hidden_size": 4096,
    "intermediate_size": 3072,
    "moe_intermediate_size": [3072] * 32,
    "moe_topk": [8] * 32,
    "num_attention_heads": 32,
    "num_experts": 64,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_shared_expert": [1] * 32,
    "tie_word_embeddings": True,
    "vocab_size": 128167,
}


def test_counts_by_layer_are_counts_for_all():
    listed = read_config(HUNYUAN, "mine", "config.json")
    once = HUNYUAN | {"moe_intermediate_size": 3072, "moe_topk": 8, "num_shared_expert": 1}
    assert listed == read_config(once, "mine", "config.json")
    assert parameters(listed) == pytest.approx(80.4e9, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"moe_topk": [8] * 31}, "names 31 layers of 32"),
        ({"moe_topk": 65}, "65 of 64 experts"),
        ({"moe_topk": [8] * 31 + [65]}, "65 of 64 experts"),
        ({"moe_topk": 0}, "is zero"),
        ({"moe_topk": -1}, "moe_topk"),
        ({"moe_intermediate_size": [0] * 32}, "is zero"),
    ],
)
def test_impossible_counts_by_layer_are_refused(change, word):
    assert word in fields_of(HUNYUAN | change)


@pytest.mark.parametrize(("end", "mixtures"), [(27, 27), (None, 27), (20, 20)])
def test_mixtures_reach_from_a_layer_to_a_layer(end, mixtures):
    config = {
        "model_type": "ernie4_5_moe",
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_layer_end_index": end,
        "moe_layer_start_index": 1,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "num_attention_heads": 20,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "vocab_size": 103424,
    }
    model = read_config(config, "mine", "config.json")
    assert len(model.moe_layers) == mixtures
    assert model.moe_layers[0] == 1


LEAF = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=5), st.just([1]))


@given(st.dictionaries(st.sampled_from([*MIXTRAL, "quantization_config", "dtype", "text_config"]), LEAF))
def test_no_damage_to_a_file_makes_a_traceback(change):
    with suppress(ModelError):
        read_config(MIXTRAL | change, "mine", "config.json")
