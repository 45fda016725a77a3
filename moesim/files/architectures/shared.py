"""Architectures of grouped-query attention and mixtures with shared experts, under names of their own."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.files.architectures.common import GroupedDecoder, Parts
from moesim.world.model import Dense, Moe


@dataclass(frozen=True, slots=True, kw_only=True)
class Ernie(GroupedDecoder):
    """ERNIE-4.5: dense layers first, then a mixture in every `moe_layer_interval`-th layer."""

    intermediate_size: int
    moe_intermediate_size: int
    moe_num_experts: int
    moe_k: int
    moe_layer_start_index: int
    moe_layer_end_index: int | None = None
    moe_layer_interval: int = 1
    moe_num_shared_experts: int = 0

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        attention = self.grouped()
        moe = Moe(
            experts=self.moe_num_experts,
            topk=self.moe_k,
            width=self.moe_intermediate_size,
            input_dim=self.hidden_size,
            shared_width=self.moe_num_shared_experts * self.moe_intermediate_size,
        )
        dense = Dense(width=self.intermediate_size)
        layers = self.stack(lambda _: attention, lambda number: moe if self.is_sparse(number) else dense)
        return tuple(layers), 0

    def is_sparse(self, number: int) -> bool:
        """Tell whether a layer has a mixture; no end is the last layer."""
        end = self.moe_layer_end_index
        last = self.num_hidden_layers - 1 if end is None else end
        return self.moe_layer_start_index <= number <= last and (number + 1) % self.moe_layer_interval == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan(GroupedDecoder):
    """Hunyuan-A13B: a mixture with a shared expert in every layer; counts are one for all or listed by layer."""

    intermediate_size: int
    moe_intermediate_size: int | tuple[int, ...]
    num_experts: int
    moe_topk: int | tuple[int, ...]
    num_shared_expert: int | tuple[int, ...]

    def parts(self) -> Parts:
        """Return the layers, and how many prediction modules follow."""
        attention = self.grouped()
        return tuple(self.stack(lambda _: attention, self.mixture)), 0

    def mixture(self, number: int) -> Moe:
        """Return the mixture of a layer."""
        width = _of(self.moe_intermediate_size, number)
        return Moe(
            experts=self.num_experts,
            topk=_of(self.moe_topk, number),
            width=width,
            input_dim=self.hidden_size,
            shared_width=_of(self.num_shared_expert, number) * width,
        )


def _of(given: int | tuple[int, ...], layer: int) -> int:
    return given[layer] if isinstance(given, tuple) else given
