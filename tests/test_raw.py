"""The raw file and the choice of points: what needs no torch."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moesim.calibrate.points import Axis, design, rows_of
from moesim.calibrate.raw import FORMAT, read
from moesim.calibrate.writer import Writer

from moesim.ground.errors import InputError, MoesimError

HEADER = {"format": FORMAT, "device": "chip", "machine": {"torch": "2.13"}}


def line(m: float = 1.0, seconds: tuple[float, ...] = (1.0, 2.0, 3.0), **more: Any) -> dict[str, Any]:
    point = {"operation": "gemm", "dtype": "fp32", "kernel": "", "ranks": 1, "inputs": {"m": m}}
    return point | {"seconds": list(seconds)} | more


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raw.jsonl"


def test_a_compressed_file_is_read_as_it_was_and_a_damaged_one_is_refused(path: Path) -> None:
    with Writer(path, HEADER) as writer:
        writer.append(line())
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == read(path)
    for damaged in (packed.read_bytes()[:-9], b"no gzip"):
        packed.write_bytes(damaged)
        with pytest.raises(InputError, match="name a file of raw samples"):
            read(packed)


def test_what_is_written_is_read_back(path: Path) -> None:
    with Writer(path, HEADER) as writer:
        writer.append(line(issue=1e-6, alone=[0.5]))
    raw = read(path)
    (sample,) = raw.samples
    assert raw.header == HEADER
    assert (sample.operation, sample.inputs, sample.seconds) == ("gemm", {"m": 1.0}, (1.0, 2.0, 3.0))
    assert (sample.median, sample.issue, sample.alone, sample.device) == (2.0, 1e-6, (0.5,), "chip")
    assert sample.spread == pytest.approx(0.68)  # of the line from 1 to 3: (2.68 - 1.32) / 2


def test_visits_of_a_point_are_one_sample_that_knows_their_medians(path: Path) -> None:
    with Writer(path, HEADER) as writer:
        for visit in (line(), line(m=2.0), line(seconds=(5.0, 5.0))):
            writer.append(visit)
    first, second = read(path).samples
    assert (first.visits, first.seconds) == ((2.0, 5.0), (1.0, 2.0, 3.0, 5.0, 5.0))
    assert second.visits == (2.0,)


def test_noise_is_how_far_identical_visits_lie_apart(path: Path) -> None:
    with Writer(path, HEADER) as writer:
        for m, seconds in ((1.0, 1.0), (2.0, 1.0), (3.0, 1.0), (1.0, 1.2), (2.0, 1 / 1.1), (3.0, 1.0 + 1e-9)):
            writer.append(line(m, (seconds,)))
    raw = read(path)
    assert raw.noise() == pytest.approx(0.1)  # of 20%, 10% and 0%
    assert raw.summary() == "3 points of 1 operations on chip, 6 times; identical visits differ by 10%"


def test_a_point_that_failed_is_kept_apart(path: Path) -> None:
    with Writer(path, HEADER) as writer:
        writer.append({name: value for name, value in line().items() if name != "seconds"} | {"error": "out of memory"})
    raw = read(path)
    assert raw.samples == ()
    assert [failure["error"] for failure in raw.failures] == ["out of memory"]


@given(cut=st.integers(min_value=0))
def test_a_file_cut_anywhere_goes_on_from_its_last_whole_line(tmp_path_factory: Any, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "raw.jsonl"
    with Writer(path, HEADER) as writer:
        for m in range(3):
            writer.append(line(float(m)))
    whole = path.read_bytes()
    kept = whole[: cut % len(whole)]
    path.write_bytes(kept)
    with Writer(path, HEADER) as writer:
        assert len(writer.lines) == max(kept.count(b"\n") - 1, 0)
        writer.append(line(9.0))
    assert [sample.inputs["m"] for sample in read(path).samples][-1] == 9.0
    assert len(read(path).samples) == max(kept.count(b"\n") - 1, 0) + 1


def test_a_torn_last_line_is_left_out_on_reading(path: Path) -> None:
    with Writer(path, HEADER) as writer:
        writer.append(line())
    with path.open("ab") as file:
        file.write(b'{"operation": "ge')
    assert len(read(path).samples) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: its first line is not the header of a raw file"),
        ("m,n,k\n1,2,3\n", "line 1: its first line is not the header of a raw file"),
        ('{"format": "moesim raw 0", "device": "x"}\n', "header of a raw file (moesim raw 1) but of `moesim raw 0`"),
    ],
)
def test_a_foreign_file_is_refused(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    assert said in str(caught.value)


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read(path)


def test_every_bad_line_is_told_at_once(path: Path) -> None:
    lines = [HEADER, line(), line(seconds=(1.0, 0.0)), line(seconds=()), {"operation": "gemm"}, line(seconds=(-1.0,))]
    bad = json.dumps(line()).replace("1.0, 2.0", "NaN, 2.0")
    path.write_text("".join(f"{json.dumps(one)}\n" for one in lines) + bad + "\nnot json\n")
    with pytest.raises(InputError) as caught:
        read(path)
    assert [fault.path for fault in caught.value.faults] == [
        "line 3.seconds",
        "line 4.seconds",
        "line 5",
        "line 6.seconds",
        "line 7.seconds",
        "line 8",
    ]


def test_a_line_that_was_copied_is_no_second_visit(path: Path) -> None:
    lines = [HEADER, line(), line(), line(seconds=(1.0, 2.5))]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    (sample,) = read(path).samples
    assert len(sample.visits) == 2


def test_a_file_of_another_machine_is_not_gone_on_with(path: Path) -> None:
    Writer(path, HEADER).close()
    with pytest.raises(MoesimError, match=r"holds samples of another machine .* name another file with --out"):
        Writer(path, HEADER | {"machine": {"torch": "2.6"}})


def test_a_file_that_is_no_raw_file_is_never_overwritten(path: Path) -> None:
    path.write_text("dear diary")
    with pytest.raises(InputError):
        Writer(path, HEADER)
    assert path.read_text() == "dear diary"


@pytest.mark.parametrize("room", [0, 10])
def test_a_full_disk_keeps_what_was_finished(path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A disk takes part of a line, and fails the next time; or it fails on making sure."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Writer(path, HEADER) as writer:
        writer.append(line())
        whole = path.read_bytes()
        if room:
            file = writer._file
            monkeypatch.setattr(writer, "_file", Mock(wraps=file, write=lambda text: file.write(text[:room])))
        else:
            monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(MoesimError, match="No space left on device; the 1 finished samples are kept"):
            writer.append(line(2.0))
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MoesimError, match="name another file with --out"):
        Writer(tmp_path / "file" / "raw.jsonl", HEADER)


AXES = (Axis(name="m", low=1, high=4096), Axis(name="k", low=64, high=8192, step=64), Axis(name="s", among=(0.0, 1.0)))


@given(number=st.integers(1, 40), ceiling=st.floats(1e4, 1e8))
def test_points_are_in_range_affordable_and_distinct(number: int, ceiling: float) -> None:
    points = design(AXES, [{"m": 1, "k": 64, "s": 0.0}], number, allowed=lambda p: p["m"] * p["k"] < ceiling, seed="x")
    assert 0 < len(points) <= number
    assert len({tuple(point.values()) for point in points}) == len(points)
    for point in points:
        assert 1 <= point["m"] <= 4096
        assert point["k"] % 64 == 0
        assert 64 <= point["k"] <= 8192
        assert point["s"] in (0.0, 1.0)
        assert point["m"] * point["k"] < ceiling


def test_fewer_points_are_the_beginning_of_more() -> None:
    few, many = (design(AXES, [], number, allowed=lambda point: True, seed="x")[:4] for number in (4, 4))
    assert few == many
    assert design(AXES, [], 8, allowed=lambda point: True, seed="x") != design(
        AXES, [], 8, allowed=lambda point: True, seed="y"
    )


def test_points_fill_the_space_better_than_random_ones() -> None:
    """The largest hole, seen from 500 random places, is smaller than that of all of 20 random sets."""
    axes = (Axis(name="x", low=1, high=1e6), Axis(name="y", low=1, high=1e6))
    rng = np.random.default_rng(0)
    seen = rng.uniform(0, 1, (500, 2))

    def hole(places: np.ndarray) -> float:
        return float(np.sqrt(((seen[:, None] - places[None]) ** 2).sum(-1)).min(1).max())

    points = design(axes, [], 32, allowed=lambda point: True, seed="fill")
    ours = np.log10([[point["x"], point["y"]] for point in points]) / 6
    assert hole(ours) < min(hole(rng.uniform(0, 1, (32, 2))) for _ in range(20))


@given(slots=st.integers(1, 64), rows=st.integers(0, 5000), skew=st.floats(0, 3))
def test_rows_are_all_dealt_the_first_slots_the_fullest(slots: int, rows: int, skew: float) -> None:
    dealt = rows_of(slots, rows, skew)
    assert sum(dealt) == rows
    assert min(dealt) >= 0
    assert max(dealt) == dealt[0]
