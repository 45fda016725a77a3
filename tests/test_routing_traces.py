"""Traces: written and read piece by piece, described exactly, refused in words where they are not what they seem."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.cli import app
from moesim.files.routing_traces import open_trace, write_choices, write_counts
from moesim.ground.errors import WorkloadError
from moesim.views.routing import description_svg, tidy
from moesim.world.generators import skewed

HAND = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 1]], [[3, 0], [2, 3]], [[1, 3], [0, 1]]])
"""Four tokens, two layers, two of four experts each."""


def pieces(choices, *lengths):
    return np.split(choices, np.cumsum(lengths))


@pytest.fixture
def hand(tmp_path):
    write_choices(tmp_path / "hand.parquet", pieces(HAND, 1, 2), experts=4)
    return tmp_path / "hand.parquet"


def test_choices_are_described_as_by_hand(hand):
    found = open_trace(hand).description(batch=2)
    assert (found.shape.layers, found.shape.experts, found.shape.topk) == (2, 4, 2)
    assert (found.batches, found.choices) == (2, 8)
    assert found.shares.tolist() == [[3 / 8, 2 / 8, 1 / 8, 2 / 8], [1 / 8, 2 / 8, 3 / 8, 2 / 8]]
    assert found.cv == pytest.approx([np.std([3, 2, 1, 2]) / 2] * 2)
    assert found.top.tolist() == [3 / 8, 3 / 8]  # the top fifth of four is one
    # Batches have tokens 0-1 and 2-3. Layer 0 uses {0, 1, 2} and {0, 1, 3}; layer 1 {1, 2, 3} and all.
    assert found.idle.tolist() == [1 / 4, 1 / 8]
    # Experts 0-1 against 2-3: layer 0 has 3:1 and 2:2, layer 1 has 1:3 and 2:2.
    assert found.imbalance[2].tolist() == [1.25, 1.25]
    assert found.following.first.tolist() == [1 / 3, 2 / 3]
    assert found.following.any.tolist() == [1.0, 2 / 3]
    assert found.following.first_by_chance.tolist() == [(4 + 1 + 1) / 16, (9 + 1) / 16]
    # First choices go 0 to 2 twice, 3 to 2, 1 to 0: each has one follower.
    assert (found.following.next_one[0], found.following.next_one_by_chance[0]) == (1.0, 0.75)


def test_counts_are_described_as_by_hand(tmp_path):
    counts = np.array([[[4, 0, 2, 2]], [[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    write_counts(tmp_path / "counts.parquet", [counts])
    found = open_trace(tmp_path / "counts.parquet").description(1)
    assert (found.batches, found.choices, found.following) == (2, 12, None)  # an empty batch says nothing
    assert found.shares.tolist() == [[5 / 12, 1 / 12, 3 / 12, 3 / 12]]
    assert found.idle.tolist() == [1 / 8]
    assert found.imbalance[2].tolist() == [1.0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.integers(0, 40), max_size=5), st.integers(1, 50))
def test_how_a_trace_is_cut_does_not_matter(tmp_path, lengths, batch):
    choices = np.moveaxis(skewed(3, 16, 4, cv=0.5, seed=1).assign(np.array([90]), 0, np.random.default_rng(1)), 0, 1)
    write_choices(tmp_path / "cut.parquet", pieces(choices, *lengths), experts=16)
    write_choices(tmp_path / "whole.parquet", [choices], experts=16)
    assert tidy(open_trace(tmp_path / "cut.parquet").description(batch)) == tidy(
        open_trace(tmp_path / "whole.parquet").description(batch)
    )


def test_engines_forms_are_read(tmp_path, hand):
    counts = np.arange(24).reshape(2, 3, 4)
    write_counts(tmp_path / "own.parquet", [counts])
    expected = tidy(open_trace(tmp_path / "own.parquet").description(1))
    np.save(tmp_path / "sglang.npy", counts)
    (tmp_path / "sglang.json").write_text(json.dumps({"logical_count": counts.tolist()}))
    for name in ("sglang.npy", "sglang.json"):
        assert tidy(open_trace(tmp_path / name).description(1)) == expected
    np.save(tmp_path / "eplb.npy", counts[0])
    (tmp_path / "eplb.json").write_text(json.dumps(counts[0].astype(float).tolist()))
    for name in ("eplb.npy", "eplb.json"):
        found = open_trace(tmp_path / name)
        assert (found.rows, found.shape.layers, found.shape.experts) == (1, 3, 4)
    np.save(tmp_path / "vllm.npy", HAND.astype(np.int32))
    assert tidy(open_trace(tmp_path / "vllm.npy", experts=4).description(2)) == tidy(open_trace(hand).description(2))


def test_a_long_trace_is_never_held(tmp_path):
    # Rows come in groups, however many were written at once.
    write_counts(tmp_path / "long.parquet", [np.ones((10_000, 2, 4), dtype=int)])
    assert max(len(piece) for piece in open_trace(tmp_path / "long.parquet").pieces()) <= 4096


def test_a_failed_write_leaves_what_was_there(hand):
    before = hand.read_bytes()

    def broken():
        yield HAND
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_choices(hand, broken(), experts=4)
    assert hand.read_bytes() == before
    assert [file.name for file in hand.parent.iterdir()] == ["hand.parquet"]
    with pytest.raises(WorkloadError, match="nothing to write"):
        write_choices(hand, [], experts=4)


def bad(folder: Path) -> dict[str, str]:
    """Make files that are no traces; return what must be said of each."""
    (folder / "text.parquet").write_text("not parquet")
    (folder / "text.npy").write_text("not an array")
    (folder / "text.json").write_text("{")
    (folder / "other.json").write_text('{"counts": []}')
    (folder / "ragged.json").write_text("[[1, 2], [3]]")
    (folder / "words.json").write_text('[["a", "b"]]')
    (folder / "negative.json").write_text("[[1, -2]]")
    (folder / "half.json").write_text("[[1, 0.5]]")
    np.save(folder / "line.npy", np.arange(3))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    write_choices(folder / "beyond.parquet", [HAND + 1], experts=4)
    pq.write_table(pa.table({"a": [1]}), folder / "table.parquet")
    (folder / "dump.pt").write_text("")
    (folder / "notes.txt").write_text("")
    return {
        "text.parquet": "can't be read as .parquet",
        "text.npy": "can't be read as .npy",
        "text.json": "can't be read as .json",
        "other.json": "has no field `logical_count`",
        "ragged.json": "can't be read as .json",
        "words.json": "holds <U1 of shape (1, 2); give whole numbers",
        "negative.json": "rows 0 on: -2 is no count; counts are 0 or more",
        "half.json": "holds float64 of shape (1, 2); give whole numbers",
        "line.npy": "holds int64 of shape (3,); give whole numbers",
        "objects.npy": "can't be read as .npy",
        "beyond.parquet": "rows 0 on: 4 is no expert; experts go from 0 to 3",
        "table.parquet": "has columns a and lacks the metadata layers, experts, topk",
        "dump.pt": "turn it into .npy where PyTorch is",
        "notes.txt": "is no known form of a trace; give one of .parquet, .npy, .json",
        "missing.npy": "there is no such file",
    }


def test_what_is_no_trace_is_refused_in_words(tmp_path):
    for name, said in bad(tmp_path).items():
        with pytest.raises(WorkloadError) as refusal:
            open_trace(tmp_path / name).description(1)
        assert str(refusal.value).startswith(str(tmp_path / name)), name
        assert said in str(refusal.value), name


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_no_damage_to_a_trace_makes_a_traceback(hand, place, value, cut):
    whole = hand.read_bytes()
    damaged = bytearray(whole)
    damaged[place % len(whole)] = value
    file = hand.with_name("damaged.parquet")
    file.write_bytes(bytes(damaged[: place % len(whole)] if cut else damaged))
    try:
        open_trace(file).description(2)
    except WorkloadError as refusal:
        assert "damaged.parquet" in str(refusal)  # noqa: PT017 - damage need not be noticed


def test_the_command_prints_and_draws(hand, capsys):
    with pytest.raises(SystemExit) as ended:
        app(["routing", "describe", str(hand), "--batch", "2", "--svg", str(hand.with_suffix(".svg"))])
    assert ended.value.code == 0
    assert "repeat_first" in capsys.readouterr().out
    assert hand.with_suffix(".svg").read_text() == description_svg(open_trace(hand).description(2))
    with pytest.raises(SystemExit):
        app(["routing", "describe", str(hand), "--batch", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["mean"]["idle"] == 3 / 16
    with pytest.raises(WorkloadError, match="can't be written"):
        app(["routing", "describe", str(hand), "--svg", str(hand.parent / "nowhere" / "a.svg")])
    with pytest.raises(WorkloadError, match="0 tokens make no batch"):
        app(["routing", "describe", str(hand), "--batch", "0"])


def test_a_drawing_is_well_formed_with_and_without_choices(hand, tmp_path):
    from xml.etree import ElementTree

    write_counts(tmp_path / "one.parquet", [np.ones((1, 1, 3), dtype=int)])
    for file in (hand, tmp_path / "one.parquet"):
        root = ElementTree.fromstring(description_svg(open_trace(file).description(4)))
        assert len(root.findall(".//{http://www.w3.org/2000/svg}polyline")) >= 2
