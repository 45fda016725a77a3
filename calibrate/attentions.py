"""Attention to measure: prompts and single tokens, grouped-query heads and latent ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from .operation import Operation, Prepare, bytes_of
from .pieces import attention
from .points import Axis, Inputs

NOPE, ROPE, VALUE, LORA = 128, 64, 128, 512
"""Dimensions of latent attention: DeepSeek-V2, arXiv 2405.04434, section 3.1.2."""


SLOW = {"fp32": 2.0, "bf16": 6.0}
"""Times that attention takes on a CPU beyond its cost at the speed of products, at a guess."""


def attentions(dtypes: Sequence[str], cuda: bool) -> list[Operation]:
    """Return prefill and decode of both kinds in each dtype; `kernel` is the kind."""
    made = [make(dtype) for dtype in dtypes for make in (_gqa_prefill, _mla_prefill, _gqa_decode, _mla_decode)]
    return made if cuda else [replace(one, slow=SLOW[one.dtype], number=32) for one in made]


def _gqa_prefill(dtype: str) -> Operation:
    axes = (
        Axis(name="batch", among=(1, 2, 4, 8)),
        Axis(name="context", low=16, high=16384),
        Axis(name="heads", among=(8, 16, 32, 64)),
        Axis(name="sharing", among=(1, 4, 8)),
        Axis(name="head_dim", among=(64, 128)),
    )
    return _operation("attention_prefill", dtype, "gqa", axes, attention.prefill_case, _gqa)


def _gqa_decode(dtype: str) -> Operation:
    axes = (
        Axis(name="batch", low=1, high=256),
        Axis(name="context", low=16, high=32768),
        Axis(name="heads", among=(8, 16, 32, 64)),
        Axis(name="sharing", among=(1, 4, 8)),
        Axis(name="head_dim", among=(64, 128)),
    )
    return _operation("attention_decode", dtype, "gqa", axes, attention.decode_case, _gqa)


def _mla_prefill(dtype: str) -> Operation:
    axes = (
        Axis(name="batch", among=(1, 2, 4, 8)),
        Axis(name="context", low=16, high=16384),
        Axis(name="heads", among=(4, 8, 16, 32, 64, 128)),
    )
    return _operation("attention_prefill", dtype, "mla", axes, attention.prefill_case, _expanded)


def _mla_decode(dtype: str) -> Operation:
    axes = (
        Axis(name="batch", low=1, high=256),
        Axis(name="context", low=16, high=32768),
        Axis(name="heads", among=(4, 8, 16, 32, 64, 128)),
    )
    return _operation("attention_decode", dtype, "mla", axes, attention.latent_decode_case, _latent)


def _operation(
    name: str, dtype: str, kernel: str, axes: tuple[Axis, ...], case: Prepare, dims: Callable[[Inputs], Inputs]
) -> Operation:
    """Build an operation whose anchors are one token, a short and a long context."""
    common = {axis.name: axis.among[0] for axis in axes if axis.among}
    anchors = [{**common, "batch": 1.0, "context": context} for context in (16.0, 1024.0, 4096.0)]
    prompt = name == "attention_prefill"
    return Operation(
        name=name,
        dtype=dtype,
        kernel=kernel,
        group="kernels",
        axes=axes,
        anchors=tuple(anchors),
        cost=partial(_cost, size=bytes_of(dtype)),
        case=case,
        complete=partial(_complete, dims=dims, prompt=prompt),
    )


def _complete(point: Inputs, dims: Callable[[Inputs], Inputs], prompt: bool) -> Inputs:
    """Add head dimensions, and the sizes that an `Attend` op has: tokens, prompts, pairs and keys."""
    batch, context = point["batch"], point["context"]
    return {
        **point,
        **dims(point),
        "tokens": batch * context if prompt else batch,
        "prompts": batch,
        "pairs": batch * context * (context + 1) / 2 if prompt else batch * context,
        "keys": batch * context,
    }


def _gqa(point: Inputs) -> Inputs:
    few = max(point["heads"] / point["sharing"], 1.0)
    return {"kv_heads": few, "key_dim": point["head_dim"], "value_dim": point["head_dim"]}


def _expanded(point: Inputs) -> Inputs:
    return {"kv_heads": point["heads"], "key_dim": NOPE + ROPE, "value_dim": VALUE}


def _latent(point: Inputs) -> Inputs:
    return {"kv_heads": 1.0, "key_dim": LORA + ROPE, "value_dim": LORA}


def _cost(point: Inputs, size: int) -> tuple[float, float]:
    dims = point["key_dim"] + point["value_dim"]
    work = 2 * point["heads"] * point["pairs"] * dims
    return work, size * dims * (point["keys"] * point["kv_heads"] + point["tokens"] * point["heads"])
