from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.ground.errors import PolicyError
from moesim.policies.alltoall.deduplicated import Deduplicated
from moesim.policies.alltoall.gathered import Gathered
from moesim.policies.alltoall.linear import Linear
from moesim.policies.alltoall.reduce import Replicated
from moesim.policies.alltoall.two_dh import TwoDimensional
from moesim.schedules.ops import AllToAll, Exchange
from moesim.world.generators import skewed
from moesim.world.hardware import tier_between

NODES = (("nvlink", 4), ("rail", 64))
LEAVES = (("nvlink", 4), ("leaf", 8), ("spine", 64))


def exchange(rows, ranks, *, copies=1, tokens=None, reverse=False, distinct=None):
    """An exchange of rows[slot, ..., source], slots spread evenly over ranks (or over groups of `copies` ranks)."""
    owner = np.arange(len(rows)) * (ranks // copies) // len(rows)
    return Exchange(
        rows=rows,
        ranks_of_slot=owner[:, None] * copies + np.arange(copies),
        ranks=ranks,
        row=7392.0,
        reverse=reverse,
        tokens=np.full((1, ranks), 32) if tokens is None else tokens,
        distinct=distinct or {},
    )


def random_exchange(seed, ranks, slots_per_rank=3, lead=(2,), **settings):
    rng = np.random.default_rng(seed)
    return exchange(rng.integers(0, 30, size=(ranks * slots_per_rank, *lead, ranks)), ranks, **settings)


def by_hand(op, reach):
    """Bytes of every (source, owner) pair, one by one: {tier: (sent, received)} of draw 0."""
    table = {name: (np.zeros(op.ranks), np.zeros(op.ranks)) for name, _ in reach}
    for slot, owners in enumerate(op.ranks_of_slot.tolist()):
        for source in range(op.ranks):
            for owner in owners:
                if owner != source:
                    sent, received = table[tier_between(reach, source, owner)]
                    sent[source] += op.rows[slot, 0, source] * op.row
                    received[owner] += op.rows[slot, 0, source] * op.row
    return table


def transfers(phases):
    return [phase.op for phase in phases if isinstance(phase.op, AllToAll)]


@pytest.mark.parametrize("reach", [NODES, LEAVES], ids=["nodes", "leaves"])
@pytest.mark.parametrize(("ranks", "copies"), [(8, 1), (12, 1), (16, 2)])
def test_linear_sends_every_row_over_its_innermost_tier(reach, ranks, copies):
    op = random_exchange(1, ranks, copies=copies)
    (phase,) = Linear()(op, reach)
    assert (phase.group, phase.stream) == ("ep", "comm")
    for index, name in enumerate(phase.op.tiers):
        sent, received = by_hand(op, reach)[name]
        assert np.array_equal(phase.op.sent[index, 0], sent)
        assert np.array_equal(phase.op.received[index, 0], received)


def test_linear_posts_one_message_a_peer():
    (phase,) = Linear()(random_exchange(1, 16), LEAVES)
    assert phase.op.messages.tolist() == [[[3.0]], [[4.0]], [[8.0]]]
    (phase,) = Linear()(random_exchange(1, 6), NODES)
    assert phase.op.messages[:, 0].tolist() == [[3, 3, 3, 3, 1, 1], [2, 2, 2, 2, 4, 4]]


def test_one_rank_sends_nothing():
    op = exchange(np.array([[5], [6]]), 1)
    for policy in (Linear(), Deduplicated(), Replicated()):
        assert policy(op, NODES) == ()


def test_reduce_keeps_tokens_in_place():
    assert Replicated().replicated
    assert Replicated()(random_exchange(1, 8), NODES) == ()
    assert not any(policy.replicated for policy in (Linear(), TwoDimensional(), Deduplicated()))


def test_all_tokens_to_one_expert_arrive_at_its_rank():
    rows = np.zeros((8, 1, 8), dtype=int)
    rows[5] = 32
    (phase,) = Linear()(exchange(rows, 8), NODES)
    received = phase.op.received.sum(axis=0)[0]
    assert received.tolist() == [0, 0, 0, 0, 0, 32 * 7 * 7392.0, 0, 0]


@pytest.mark.parametrize(
    "policy", [Linear(), TwoDimensional(), Deduplicated(), Gathered()], ids=lambda policy: type(policy).__name__
)
@pytest.mark.parametrize("reach", [NODES, LEAVES], ids=["nodes", "leaves"])
@given(seed=st.integers(0, 2**32 - 1), alike=st.booleans(), reverse=st.booleans())
def test_bytes_sent_are_bytes_received(policy, reach, seed, alike, reverse):
    op = random_exchange(seed, 16, reverse=reverse, distinct={1: 3.5, 4: 2.5})
    if alike:
        op = replace(op, rows=op.rows[..., :1])
    exact = not isinstance(policy, Deduplicated)
    for transfer in transfers(policy(op, reach)):
        sent, received = transfer.sent.sum(axis=-1), transfer.received.sum(axis=-1)
        assert np.array_equal(sent, received) if exact else np.allclose(sent, received, rtol=1e-13)


@pytest.mark.parametrize("ranks", [8, 16, 64])
def test_two_dh_follows_the_table_of_tutel(ranks):
    node, size = 4, 640
    op = exchange(np.full((ranks, 1, ranks), size // 16), ranks)
    held = op.row * ranks * (size // 16)  # S: what a rank sends in all, its own part included
    before, inside, between, along = TwoDimensional()(op, NODES)
    assert [phase.group for phase in (before, inside, between, along)] == ["", "node", "", "rail"]
    assert {phase.stream for phase in (before, inside, between, along)} == {"comm"}
    assert np.allclose(inside.op.sent, held * (1 - 1 / node))
    assert np.allclose(along.op.sent, held * (1 - node / ranks))
    assert np.allclose(along.op.sent.sum(axis=0), Linear()(op, NODES)[0].op.sent[1])
    assert inside.op.messages.item() == node - 1
    assert along.op.messages.item() == ranks // node - 1
    assert np.allclose(before.op.traffic + between.op.traffic, 4 * held)


def test_two_dh_moves_every_row_to_its_owner():
    # Follow the rows by hand: source (a, j) -> (a, i) inside the node -> owner (b, i).
    op, node = random_exchange(7, 16, lead=(1,)), 4
    stays = np.zeros((16, 16))
    for slot, (owner,) in enumerate(op.ranks_of_slot.tolist()):
        stays[owner] += op.rows[slot, 0] * op.row
    _, inside, _, along = (phase.op for phase in TwoDimensional()(op, LEAVES))
    gathered = np.zeros((16, 16))  # rank, owner
    for owner in range(16):
        for source in range(16):
            gathered[source // node * node + owner % node, owner] += stays[owner, source]
    kept = sum(stays[owner, source] for owner in range(16) for source in range(16) if owner % node == source % node)
    assert inside.sent.sum() == stays.sum() - kept
    for index, name in enumerate(along.tiers, start=1):
        on_tier = np.array([[tier_between(LEAVES, r, o) == LEAVES[index][0] for o in range(16)] for r in range(16)])
        assert name == LEAVES[index][0]
        assert np.array_equal(along.sent[index - 1, 0], (gathered * on_tier).sum(axis=1))
        assert np.array_equal(along.received[index - 1, 0], (gathered * on_tier).sum(axis=0))


def test_two_dh_posts_few_large_messages():
    (flat,) = transfers(Linear()(random_exchange(1, 64), NODES))
    inside, along = transfers(TwoDimensional()(random_exchange(1, 64), NODES))
    assert flat.messages.sum() == 63
    assert inside.messages.sum() + along.messages.sum() == 3 + 15


@pytest.mark.parametrize("ranks", [2, 4, 6, 10])
def test_two_dh_needs_whole_nodes(ranks):
    with pytest.raises(PolicyError, match=rf"two or more whole nodes of 4 gpus, not {ranks} ranks; use `linear`"):
        TwoDimensional()(random_exchange(1, ranks), NODES)


def test_gathered_sends_every_token_once_to_every_rank():
    """By hand, 2 nodes of 4: along the rail to one other node, then what the rail holds to 3 neighbours."""
    tokens = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    op = random_exchange(1, 8, tokens=tokens)
    (phase,) = Gathered()(op, NODES)
    sent, received = (side[:, 0] / op.row for side in (phase.op.sent, phase.op.received))
    rails = np.array([8, 10, 6, 7] * 2)
    assert np.allclose(sent, [3 * rails, tokens[0]])
    assert np.allclose(received, [31 - rails, np.roll(tokens[0], 4)])
    assert np.allclose(tokens[0] + received.sum(axis=0), 31)  # nothing is missing, nothing comes twice
    assert phase.op.messages[:, 0, 0].tolist() == [3, 1]


def test_gathered_moves_no_counts():
    assert Gathered.everywhere
    assert not any(policy.everywhere for policy in (Linear(), Deduplicated(), TwoDimensional(), Replicated()))


def test_deduplicated_needs_whole_nodes():
    with pytest.raises(PolicyError, match="whole nodes of 4 gpus, not 6 ranks; use `linear`"):
        Deduplicated()(random_exchange(1, 6, distinct={1: 2.0, 4: 1.5}), NODES)
    with pytest.raises(PolicyError, match="whole nodes of 4 gpus, not 6 ranks; use `linear`"):
        Gathered()(random_exchange(1, 6), NODES)


@pytest.mark.parametrize(
    "policy", [Linear(), TwoDimensional(), Deduplicated()], ids=lambda policy: type(policy).__name__
)
def test_the_way_back_swaps_sent_and_received(policy):
    op = random_exchange(3, 16, distinct={1: 3.5, 4: 2.5})
    there, back = transfers(policy(op, NODES)), transfers(policy(replace(op, reverse=True), NODES))
    for one, other in zip(there, back[::-1], strict=True):
        assert np.array_equal(one.sent, other.received)
        assert np.array_equal(one.received, other.sent)


def routed_exchange(cv, ranks=32, tokens=64, experts=64, topk=8):
    """Tokens routed by one law on every rank, with the exact means of blocks touched."""
    routing = skewed(1, experts, topk, cv=cv, seed=3)
    counts = routing.draw(np.full(ranks, tokens), 0, np.random.default_rng(4))[0]
    rank_of_expert = np.arange(experts) * ranks // experts
    distinct = {size: float(routing.distinct(rank_of_expert // size)[0]) for size in (1, 4)}
    chosen = routing.assign(np.full(ranks, tokens), 0, np.random.default_rng(4))[0]
    return exchange(counts.T, ranks, tokens=np.full((ranks,), tokens), distinct=distinct), chosen, rank_of_expert


@pytest.mark.parametrize("cv", [0.0, 0.5])
def test_deduplicated_bytes_match_tokens_followed_one_by_one(cv):
    op, chosen, rank_of_expert = routed_exchange(cv)
    (transfer,) = transfers(Deduplicated()(op, NODES))
    node, home = 4, np.repeat(np.arange(32), 64)
    inner = outer = 0
    for token, experts in enumerate(chosen):
        owners = set(rank_of_expert[experts].tolist())
        nodes = {owner // node for owner in owners} - {home[token] // node}
        outer += len(nodes)
        landed = {place * node + home[token] % node for place in nodes} | {int(home[token])}
        inner += len(owners - landed)
    assert transfer.sent[0].sum() / op.row == pytest.approx(inner, rel=0.02)
    assert transfer.sent[1].sum() / op.row == pytest.approx(outer, rel=0.02)


def test_deduplicated_never_sends_more_than_linear():
    op, _, _ = routed_exchange(0.5)
    (flat,), (once,) = transfers(Linear()(op, NODES)), transfers(Deduplicated()(op, NODES))
    assert np.all(once.sent[1] <= flat.sent[1])
    assert once.sent[1].sum() < 0.75 * flat.sent[1].sum()


def test_deduplicated_sends_a_block_a_token_once():
    rows = np.zeros((16, 16), dtype=int)
    rows[5] = 32  # all 32 tokens of every rank choose slot 5, the only one
    (transfer,) = transfers(Deduplicated()(exchange(rows, 16, distinct={1: 1.0, 4: 1.0}), NODES))
    assert transfer.received[0].sum() / 7392 == 4 * 32 * 3  # handed on by the node's other three ranks
    assert transfer.received[1].sum() / 7392 == 12 * 32


def test_deduplicated_in_one_node_sends_a_rank_a_token_once():
    op = exchange(np.full((8, 4), 16), 4, tokens=np.full((4,), 32), distinct={1: 2.5})
    (transfer,) = transfers(Deduplicated()(op, NODES))
    assert np.allclose(transfer.sent[0] / 7392, 32 * 2.5 * 3 / 4)
    assert not transfer.sent[1].any()
    assert transfer.messages.ravel().tolist() == [3.0, 0.0]


def test_plans_and_draws_lead():
    op = random_exchange(2, 16, lead=(5, 3), distinct={1: 3.5, 4: 2.5})
    for policy in (Linear(), TwoDimensional(), Deduplicated()):
        for transfer in transfers(policy(op, NODES)):
            assert transfer.sent.shape[1:] == transfer.received.shape[1:] == (5, 3, 16)
            assert transfer.messages.ndim == transfer.sent.ndim


def test_means_are_exchanged_like_whole_rows():
    op = random_exchange(2, 8)
    for policy in (Linear(), TwoDimensional()):
        halves = policy(replace(op, rows=op.rows / 2), NODES)
        for whole, half in zip(transfers(policy(op, NODES)), transfers(halves), strict=True):
            assert np.allclose(whole.sent, 2 * half.sent)
