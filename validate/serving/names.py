"""Names as files of measurements spell them, put into moesim's words: models, systems, backends and formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moesim.files.checked import check
from moesim.files.models import model_names
from moesim.files.trees import read
from moesim.ground.errors import InputError

RELEASES = Path(__file__).parents[1] / "cases" / "serving" / "releases.yaml"
PATHS = (".json", ".yaml", ".yml")

NODES = {
    "a100_40gb_pcie": "pcie/a100-40gb-x8",
    "a100_40gb_sxm": "nvidia/hgx-a100-40gb",
    "a100_pcie": "pcie/a100-80gb-x8",
    "a100_sxm": "nvidia/hgx-a100",
    "a30": "pcie/a30x8",
    "a800_sxm": "nvidia/hgx-a800",
    "b200_sxm": "nvidia/hgx-b200",
    "b300_sxm": "nvidia/hgx-b300",
    "gb200": "nvidia/gb200-nvl72",
    "gb300": "nvidia/gb300-nvl72",
    "gh200": "nvidia/gh200",
    "gh200_144gb": "nvidia/gh200-144gb",
    "h100_pcie": "pcie/h100-x8",
    "h100_sxm": "nvidia/hgx-h100",
    "h200_sxm": "nvidia/hgx-h200",
    "h20_sxm": "nvidia/hgx-h20",
    "h800_sxm": "nvidia/hgx-h800",
    "l4": "pcie/l4-x8",
    "l40s": "pcie/l40s-x8",
    "mi300x": "amd/mi300x-x8",
    "mi325x": "amd/mi325x-x8",
    "mi355x": "amd/mi355x-x8",
    "rtx_pro_6000": "pcie/rtx-pro-6000-x8",
}
"""Nodes by the systems of such files, whatever else a name says of them (`_sxm`, `_nvl72`, `_server`)."""

FRAMEWORKS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}

FORMATS = {
    "bf16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "int4_wo": "int4",
    "int8_wo": "int8",
    "mxfp4": "mxfp4",
    "native": "native",
    "nvfp4": "nvfp4",
    "w4afp8": "int4",
}
"""Storage formats of the quantization modes of such files; `native` is what the model is published in."""

SAME_MODE = (
    (r"|auto|default|n/?a|nan|none|null|-|unquantized", ""),
    (r"b?float16|[bf]p?16|half|w16a16", "bf16"),
    (r"fp8_?block.*|block_?fp8|deepseek_fp8", "fp8_block"),
    (r"float8.*|e4m3|fp8.*|w8a8_fp8|f8", "fp8"),
    (r"w4a(fp)?8(_awq)?", "w4afp8"),
    (r"(w4a(4|8|16)_)?mxfp4.*", "mxfp4"),
    (r"(w4a(4|8|16)_)?(nv)?fp4.*|w4a4", "nvfp4"),
    (r"int4.*|w4a16|awq.*|gptq.*|4bit|u?4", "int4_wo"),
    (r"int8.*|w8a(8|16)|sq|smoothquant|8bit", "int8_wo"),
)
"""Other spellings of modes; the first that holds wins."""

SAME_BACKEND = {"tensorrtllm": "trtllm", "tensorrt": "trtllm", "trt": "trtllm"}

_DRESS = frozenset(
    ("base", "chat", "exp", "hf", "inst", "instruct", "it", "latest", "mtp", "original", "preview", "pt", "reasoning")
) | {"release", "speciale", "terminus", "text", "thinking"}
_FORMAT = re.compile(
    r"(nv|mx)?fp\d+|bf16|int\d+|w\d+a(fp)?\d+(kv\d+)?|\d+bit|awq|bnb|block|blockwise|channel|dynamic|gptq|gguf|kv\d*"
    r"|modelopt|ptpc|quantized|static|unsloth|[wa]"
)
_DATED = re.compile(r"\d{4}|\d{6}|\d{8}|v0\.\d")


def model_named(name: str) -> str:
    """Find a model of the zoo by what it is called in full or in part, whoever packed or tuned it; empty if none is.

    What names say of formats, tunings and dates does not matter: releases that differ by these have one shape.

    Examples
    --------
    >>> model_named("nvidia/DeepSeek-R1-0528-NVFP4-v2"), model_named("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8")
    ('deepseek-ai/DeepSeek-R1', 'Qwen/Qwen3-235B-A22B-FP8')
    """
    return name.strip() if name.strip().endswith(PATHS) else _named(name.strip())


@cache
def _named(name: str) -> str:
    if name in model_names():
        return name
    release = next((each for each in releases() if each.is_called(name)), None)
    if release is not None:
        return release.like
    parts = _core(name)
    found = [model for model, core in _cores().items() if "".join(core) == "".join(parts)]
    if not found and len(parts) > 1:
        found = [model for model, core in _cores().items() if core[: len(parts)] == parts]
        found = found if len({_cores()[model] for model in found}) == 1 else []
    words, stored = set(_words(name)), _stored(name)
    return min(found, key=lambda model: _apart(model, words, stored), default="")


def _apart(model: str, words: set[str], stored: str) -> tuple[bool, int, bool, str]:
    """How far a model of the right shape is from a name: its format first, then the words they do not share."""
    mine = _stored(model)
    return mine != stored, -len(words.intersection(_words(model))), mine != "", model


@cache
def _cores() -> Mapping[str, tuple[str, ...]]:
    """What is left of the names of the zoo's models."""
    return {model: _core(model) for model in model_names()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Releases of the shape of a model of the zoo, and where that is said."""

    names: tuple[str, ...]
    like: str
    source: str

    def is_called(self, name: str) -> bool:
        """Whether a name is one of these, in any dress."""
        for mine in self.names:
            words = _words(mine)
            if _core(name, spare=frozenset(words)) == tuple(words):
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Releases:
    releases: tuple[Release, ...]


@cache
def releases() -> tuple[Release, ...]:
    """Read what is shipped.

    Raises
    ------
    InputError
        The file was damaged.
    """
    return check(_Releases, read(RELEASES, str(RELEASES), InputError), str(RELEASES)).releases


def _words(name: str) -> list[str]:
    last = re.sub(r"^ds(?=[rv]\d)", "deepseek-", name.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].lower())
    return [word for word in re.split(r"[^a-z0-9.]+|\.(?!\d)|(?<!\d)\.", re.sub(r"^nvidia[-_ ]", "", last)) if word]


def _core(name: str, spare: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Words of a name that tell its shape: no formats, tunings and dates, but those to spare."""
    kept: list[str] = []
    before = False
    for word in _words(name):
        form = bool(_FORMAT.fullmatch(word)) or (before and bool(re.fullmatch(r"v\d", word)))
        if word in spare or not (form or word in _DRESS or _DATED.fullmatch(word)):
            kept.append(word)
        before = form
    return tuple(kept)


def _stored(name: str) -> str:
    """Mode that a model's name speaks of; empty where it does not."""
    for word in _words(name):
        if _FORMAT.fullmatch(word) and (mode := mode_named(word)) in FORMATS:
            return mode
    return ""


def mode_named(text: str) -> str:
    """Put a mode into the words of `FORMATS`; empty where nothing is said, as it is where it is unknown.

    Examples
    --------
    >>> mode_named("FP8-Block"), mode_named("W4A16"), mode_named("n/a"), mode_named("roman")
    ('fp8_block', 'int4_wo', '', 'roman')
    """
    text = text.strip().lower().replace("-", "_")
    return next((mode for pattern, mode in SAME_MODE if re.fullmatch(pattern, text)), text)


def modes_named(gemm: str, moe: str, precision: str, model: str) -> tuple[str, str]:
    """Modes of dense weights and of experts: as their columns say, else `precision`, else the model's name.

    Examples
    --------
    >>> modes_named("", "", "fp8", "a/b"), modes_named("", "nvfp4", "", "a/b-FP8"), modes_named("", "", "", "a/b")
    (('fp8', 'fp8'), ('fp8', 'nvfp4'), ('native', 'native'))
    """
    otherwise = mode_named(precision) or _stored(model) or "native"
    return mode_named(gemm) or otherwise, mode_named(moe) or otherwise


def backend_named(text: str) -> str:
    """Find a backend however it is spelled; its text where it is unknown.

    Examples
    --------
    >>> backend_named("TensorRT-LLM"), backend_named("dynamo-sglang"), backend_named("lmdeploy")
    ('trtllm', 'sglang', 'lmdeploy')
    """
    plain = re.sub(r"[^a-z]", "", text.lower()).removeprefix("dynamo")
    plain = SAME_BACKEND.get(plain, plain)
    return plain if plain in FRAMEWORKS else text.strip()


def system_named(text: str) -> str:
    """Find a system by its device's name, in any dress; its text where it is unknown.

    Examples
    --------
    >>> system_named("NVIDIA H100 80GB HBM3"), system_named("gb200_nvl72"), system_named("H100-PCIe")
    ('h100_sxm', 'gb200', 'h100_pcie')
    """
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    fitting = [name for name in NODES if _device(name) in plain and _told(name, plain)]
    return max(fitting, key=lambda name: (len(_device(name)), len(name)), default=text.strip())


def _device(system: str) -> str:
    return re.sub(r"_(pcie|sxm|\d+gb)|_", "", system)


def _told(system: str, plain: str) -> bool:
    """Whether a text says all that tells a system from others of its device."""
    return all(word in plain for word in re.findall(r"pcie|\d+gb", system))
