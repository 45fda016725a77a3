"""Each piece computes what it says, beside a plain reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from moesim.calibrate.pieces import attention, layers, passes, products, routing
from moesim.calibrate.pieces.bench import Pool
from torch.nn import functional

CPU = torch.device("cpu")


@pytest.fixture
def pool() -> Pool:
    return Pool(device=CPU, size=1 << 20)


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [1, 0, 0, 0]])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_way_of_multiplying_experts_gives_the_same(pool: Pool, counts: list[int], dtype: str) -> None:
    rows, weights = pool.cut(dtype, sum(counts), 32), pool.cut(dtype, 4, 32, 48)
    expert = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    wanted = torch.einsum("rk,rkn->rn", rows.double(), weights.double()[expert])
    padded = rows.new_zeros(4, max(counts), 32)
    place = [slot for count in counts for slot in range(count)]
    padded[expert, place] = rows
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    found = (
        products.looped(rows, weights, counts),
        products.batched(padded, weights)[expert, place],
        products.grouped(rows, weights, ends),
    )
    for result in found:
        torch.testing.assert_close(result.double(), wanted, rtol=0.02, atol=0.1 if dtype == "bf16" else 1e-4)


def test_a_gate_chooses_the_highest_scores_and_its_shares_add_up(pool: Pool) -> None:
    tokens, weights = pool.cut("fp32", 20, 16), pool.cut("fp32", 8, 16)
    shares, experts = routing.gate(tokens, weights, 3)
    scores = tokens @ weights.t()
    assert torch.equal(experts.sort(dim=1).values, scores.argsort(dim=1, descending=True)[:, :3].sort(dim=1).values)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(20))
    torch.testing.assert_close(
        shares[:, 0] / shares[:, 1], (scores.gather(1, experts)[:, :2] @ torch.tensor([1.0, -1])).exp()
    )


def test_rows_come_sorted_by_expert_and_return_to_their_tokens(pool: Pool) -> None:
    tokens = pool.cut("fp32", 20, 16)
    shares, experts = routing.gate(tokens, pool.cut("fp32", 8, 16), 3)
    order, counts = routing.sort_rows(experts, 8)
    assert counts.tolist() == [int((experts == expert).sum()) for expert in range(8)]
    sorted_experts = experts.flatten()[order]
    assert torch.equal(sorted_experts, sorted_experts.sort().values)
    rows = routing.permute(tokens, order, 3)
    packed = routing.pack(tokens, experts, 8)
    assert all(torch.equal(one, other) for one, other in zip(packed, (rows, order, counts), strict=True))
    scaled = rows * (sorted_experts + 1).unsqueeze(1)  # an expert that multiplies by its number
    wanted = tokens * (shares * (experts + 1)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(routing.unpermute(scaled, order, shares), wanted)


@pytest.mark.parametrize("capacity", [1, 4, 60])
def test_dense_dispatch_is_the_sparse_one_less_what_is_dropped(pool: Pool, capacity: int) -> None:
    tokens = pool.cut("fp32", 20, 16)
    shares, experts = routing.gate(tokens, pool.cut("fp32", 8, 16), 3)
    mask = routing.dispatch_mask(shares, experts, 8, capacity)
    seen = [0] * 8
    wanted = torch.zeros_like(tokens)
    for token in range(20):
        for share, expert in zip(shares[token], experts[token].tolist(), strict=True):
            wanted[token] += tokens[token] * share * (expert + 1) * (seen[expert] < capacity)
            seen[expert] += 1
    buffers = routing.dispatch_dense(mask.ne(0).float(), tokens)
    scaled = buffers * torch.arange(1.0, 9.0).view(8, 1, 1)
    torch.testing.assert_close(routing.combine_dense(mask, scaled), wanted)


def test_a_layer_of_pieces_is_every_token_through_its_experts(pool: Pool) -> None:
    tokens, router = pool.cut("fp32", 12, 16), pool.cut("fp32", 4, 16)
    inner, outer = pool.cut("fp32", 4, 16, 16) / 4, pool.cut("fp32", 4, 8, 16) / 4
    experts = (torch.arange(24) % 4).view(12, 2)
    shares, _ = routing.gate(tokens, router, 2)
    wanted = torch.zeros_like(tokens)
    for token in range(12):
        for share, expert in zip(shares[token], experts[token].tolist(), strict=True):
            gate, up = (tokens[token] @ inner[expert]).chunk(2)
            wanted[token] += share * ((functional.silu(gate) * up) @ outer[expert])
    torch.testing.assert_close(layers.local_layer(tokens, router, inner, outer, experts), wanted, rtol=1e-4, atol=1e-4)


def test_attention_with_shared_keys_is_attention_with_them_repeated(pool: Pool) -> None:
    query, key, value = pool.cut("fp32", 2, 8, 5, 16), pool.cut("fp32", 2, 2, 5, 16), pool.cut("fp32", 2, 2, 5, 16)
    repeated = [shared.repeat_interleave(4, dim=1) for shared in (key, value)]
    wanted = functional.scaled_dot_product_attention(query, *repeated, is_causal=True)
    torch.testing.assert_close(attention.prefill(query, key, value), wanted)
    torch.testing.assert_close(attention.decode(query[:, :, -1:], key, value), wanted[:, :, -1:])


def test_latent_attention_reads_one_key_head_for_all(pool: Pool) -> None:
    query, latent = pool.cut("fp32", 2, 4, 24), pool.cut("fp32", 2, 7, 24)
    shares = torch.softmax(torch.einsum("bhd,bsd->bhs", query, latent) / 24**0.5, dim=-1)
    torch.testing.assert_close(
        attention.latent_decode(query, latent, 16), torch.einsum("bhs,bsd->bhd", shares, latent[..., :16])
    )


def test_passes_compute_what_they_say(pool: Pool) -> None:
    rows, other = pool.cut("fp32", 4, 32), pool.cut("fp32", 4, 32)
    wanted = rows / rows.square().mean(dim=1, keepdim=True).add(torch.finfo().eps).sqrt() * other[0]
    torch.testing.assert_close(passes.norm(rows, other[0]), wanted)
    assert torch.equal(passes.residual(rows, other), rows + other)
    total, normed = passes.add_norm(rows, other, other[0])
    assert torch.equal(total, rows + other)
    assert torch.equal(normed, passes.norm(rows + other, other[0]))
    gate, up = rows[:, :16], rows[:, 16:]
    torch.testing.assert_close(passes.swiglu(rows), gate * torch.sigmoid(gate) * up)


def test_what_is_cut_from_the_pool_is_random_and_elsewhere_each_time(pool: Pool) -> None:
    cuts = [pool.cut("fp32", 100, 100) for _ in range(20)]
    places = [cut.data_ptr() for cut in cuts]
    assert all(here != there for here, there in pairwise(places))
    number = 100 * 100
    assert abs(float(cuts[0].mean())) < 5 / number**0.5
    assert abs(float(cuts[0].var()) - 1) < 5 * (2 / number) ** 0.5
    assert pool.cut("bf16", 1000, 1000).shape == (1000, 1000)  # larger than the pool, which grows
