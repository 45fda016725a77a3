"""Measuring for real on tiny budgets: end to end, resumed, and with faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from moesim.calibrate import measure, ranks
from moesim.calibrate.machine import Speed
from moesim.calibrate.measure import main
from moesim.calibrate.operation import Operation, bytes_of
from moesim.calibrate.pieces.bench import Bench, Case, Pool
from moesim.calibrate.points import Axis
from moesim.calibrate.raw import FORMAT, read
from moesim.calibrate.session import VISITS, Session, _rounds
from moesim.calibrate.suite import suite
from moesim.calibrate.timing import timed
from moesim.calibrate.writer import Writer

from moesim.cli import app
from moesim.files.profiles import load_profile

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(device=CPU, pool=Pool(device=CPU, size=1 << 20), scratch=tmp_path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw.jsonl"


def test_everything_but_collectives_is_measured_end_to_end(raw: Path) -> None:
    only = "kernels,memory,interference"
    words = ["--device", "cpu", "--out", str(raw), "--budget", "60 s", "--points", "2", "--longest", "1 ms"]
    assert main([*words, "--only", only]) == 0
    found = read(raw)
    assert found.failures == ()
    assert {sample.operation for sample in found.samples} == {
        "gemm", "grouped_gemm", "gate", "choose", "pack", "sort", "permute", "unpermute", "dispatch_mask",
        "dispatch_dense", "combine_dense", "attention_prefill", "attention_decode", "elementwise", "launch", "host",
        "moe_layer", "copy", "interference",
    }  # fmt: skip
    assert list(raw.parent.iterdir()) == [raw]  # nothing else stays


def test_collectives_are_measured_between_two_processes(raw: Path) -> None:
    words = ["--device", "cpu", "--out", str(raw), "--budget", "30 s", "--points", "8", "--longest", "1 ms"]
    assert main([*words, "--only", "collectives", "--ranks", "2"]) == 0
    found = read(raw)
    assert found.failures == ()
    assert {sample.ranks for sample in found.samples} == {2}
    assert {"all_to_all", "all_reduce", "all_gather", "reduce_scatter", "send", "exchange_sizes"} <= {
        sample.operation for sample in found.samples
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own, on Python 3.14's list
def test_compiling_is_measured(raw: Path) -> None:
    assert main(["--device", "cpu", "--out", str(raw), "--budget", "60 s", "--points", "1", "--only", "compile"]) == 0
    found = read(raw)
    assert found.failures == ()
    median = {sample.kernel: sample.median for sample in found.samples}
    assert median["first"] > median["guarded call"]  # by a factor of thousands


def test_a_run_killed_at_any_moment_goes_on_where_it_was(raw: Path) -> None:
    words = ["--device", "cpu", "--out", str(raw), "--budget", "60 s", "--points", "4", "--only", "gemm"]
    words += ["--longest", "5 ms"]
    running = subprocess.Popen([sys.executable, "-m", "calibrate.measure", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if raw.exists() and raw.read_bytes().count(b"\n") > 4:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = raw.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert main(words) == 0
    after = raw.read_bytes()
    assert after.startswith(whole)
    lines = [json.loads(line) for line in after.splitlines()[1:]]
    keys = [json.dumps([line["dtype"], line["inputs"], line["visit"]]) for line in lines]
    assert len(keys) == len(set(keys))  # nothing was measured twice
    assert {line["visit"] for line in lines} == set(range(VISITS))


def test_a_finished_run_measures_nothing_again(raw: Path) -> None:
    words = ["--device", "cpu", "--out", str(raw), "--budget", "60 s", "--points", "1", "--only", "launch,host"]
    assert main(words) == 0
    finished = raw.read_bytes()
    assert main(words) == 0
    assert raw.read_bytes() == finished


def test_a_run_stopped_from_the_keyboard_says_what_is_kept_and_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    words = ["--device", "cpu", "--out", str(out), "--only", "gemm", "--longest", "5 ms"]
    running = subprocess.Popen(
        [sys.executable, "-c", "from moesim.cli import main; main()", "calibrate", *words],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    raw = tmp_path / "mine.jsonl"
    for _ in range(600):
        if raw.exists() and raw.read_bytes().count(b"\n") > 2:
            break
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "moesim: stopped; finished samples are kept. Run the same command again: it goes on from there" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == [raw]


def test_a_run_killed_while_it_wrote_its_first_line_begins_anew(raw: Path) -> None:
    raw.write_text(f'{{"format":"{FORMAT}","device":"Some')
    words = ["--device", "cpu", "--out", str(raw), "--budget", "60 s", "--points", "1", "--only", "launch"]
    assert main(words) == 0
    assert len(read(raw).samples) == 1


def test_the_kernels_of_ranks_that_share_a_cpu_are_measured_side_by_side(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--out", str(raw), "--budget", "20 s", "--points", "2", "--longest", "1 ms"]
    assert main([*words, "--only", "gemm,copy", "--ranks", "2,4"]) == 0
    samples = read(raw).samples
    assert {(sample.operation, sample.ranks) for sample in samples} == {("gemm", 2), ("copy", 1)}
    assert "kernels " in capsys.readouterr().err  # the ranks' progress is passed on


def test_the_command_leaves_a_profile_that_scenarios_name_and_the_samples_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    words = [
        "calibrate",
        "--device",
        "cpu",
        "--out",
        str(out),
        "--budget",
        "60 s",
        "--points",
        "14",
        "--longest",
        "1 ms",
    ]
    assert app([*words, "--ranks", "2"], result_action="return_value") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "mine.yaml"]
    node = load_profile("node", str(out)).profile
    assert node.gpus == 2
    assert {"gemm/bf16", "grouped_gemm/bf16", "elementwise/bf16/pack", "copy/disk"} <= set(node.device.fits)


@pytest.fixture
def session(bench: Bench, raw: Path) -> Iterator[Session]:
    with Writer(raw, {"format": FORMAT, "device": "chip", "machine": {}}) as writer:
        yield Session.resumed(bench, Speed(flop_rate=1e9, bandwidth=1e9, longest=0.01), writer)


def operation(case: object) -> Operation:
    return Operation(name="odd", dtype="fp32", group="kernels", axes=(Axis(name="m", among=(1.0, 2.0, 3.0)),),
                     cost=lambda point: (0.0, 0.0), case=case, number=3)  # type: ignore[arg-type]  # fmt: skip


def test_a_point_that_runs_out_of_memory_is_left_out_and_the_others_are_measured(session: Session, raw: Path) -> None:
    def case(point: dict[str, float], dtype: str, bench: Bench) -> Case:
        if point["m"] == 2.0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 25 GiB")
        return Case(call=lambda: sum(range(1000)))

    session.run([operation(case)], 10.0, 64)
    found = read(raw)
    assert sorted(sample.inputs["m"] for sample in found.samples) == [1.0, 3.0]
    assert [(failure["inputs"]["m"], failure["error"]) for failure in found.failures] == [(2.0, "out of memory")]


def test_a_call_that_fails_is_told_with_its_reason(session: Session, raw: Path) -> None:
    def broken() -> None:
        raise RuntimeError("no kernel for this\nand much more")

    session.run([operation(lambda point, dtype, bench: Case(call=broken))], 10.0, 64)
    assert {failure["error"] for failure in read(raw).failures} == {"RuntimeError: no kernel for this"}


def test_a_time_that_is_no_number_never_reaches_the_file_as_a_sample(
    session: Session, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.calibrate.timing._once", lambda *_: float("nan"))
    session.run([operation(lambda point, dtype, bench: Case(call=lambda: None))], 10.0, 64)
    found = read(raw)
    assert found.samples == ()
    assert {failure["error"] for failure in found.failures} == {"MoesimError: a time is not a positive number"}


def test_a_spent_budget_ends_the_run(session: Session, raw: Path) -> None:
    slow = operation(lambda point, dtype, bench: Case(call=lambda: time.sleep(0.1), warm=0, most=1))
    session.run([slow], 0.15, 64)
    visits = sum(len(sample.visits) for sample in read(raw).samples)
    assert visits in (1, 2)  # one if the machine stood still
    session.run([slow], 0.0, 64)
    assert sum(len(sample.visits) for sample in read(raw).samples) == visits


def test_what_runs_beside_slows_and_both_times_are_kept(bench: Bench) -> None:
    running = [False]

    @contextmanager
    def other() -> object:
        running[0] = True
        yield
        running[0] = False

    timing = timed(Case(call=lambda: time.sleep(0.02 if running[0] else 0.005), beside=other), bench)
    assert len(timing.alone) == len(timing.seconds)
    assert min(timing.seconds) > 0.02
    assert min(timing.alone) > 0.005


def test_ranks_end_with_the_process_that_launched_them(tmp_path: Path) -> None:
    (tmp_path / "ranked.py").write_text(
        "import os, pathlib, time, torch\n"
        "from calibrate import ranks\n"
        "ranks.join(torch.device('cpu'), pathlib.Path(), 1)\n"
        "open(os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    code = "from calibrate import ranks; ranks.launch('ranked', [], 2, 30.0)"
    paths = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=paths)
    told = [tmp_path / rank for rank in "01"]
    waited(lambda: all(path.exists() and path.read_text() for path in told))
    launcher.kill()
    launcher.wait()
    waited(lambda: not any(alive(int(path.read_text())) for path in told))


def waited(done: Callable[[], bool]) -> None:
    for _ in range(600):
        if done():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and ") Z " not in status.read_text()


def test_a_rank_that_dies_is_told_and_no_process_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying.py").write_text(
        "import os, signal, time\n"
        "open(os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(measure.MoesimError, match=r"2 ranks: rank 1 died .*SIGKILL.*finished samples are kept"):
        ranks.launch("dying", [], 2, 30.0)
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "gem"], "--only: `gem` is neither a group nor an operation; did you mean `gemm`?"),
        (["--budget", "5"], "--budget: `5` is no time; write a positive number with a unit, as in --budget 90s"),
        (["--budget", "0 s"], "--budget: `0 s` is no time"),
        (["--longest", "soon"], "--longest: `soon` is no time"),
        (["--points", "0"], "--points: 0 is no number of points; name one or more"),
        (["--ranks", "one"], "--ranks: `one` is not a number of processes"),
        (["--out", "/dev/null/raw.jsonl"], "name another file with --out"),
    ],
)
def test_wrong_words_are_refused_with_what_to_do(
    words: list[str], said: str, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--out", str(raw), *words]) == 2
    assert not raw.exists()
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "Traceback" not in complaint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a gpu")
def test_a_gpu_that_is_not_there_is_refused(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda", "--out", str(raw)]) == 2
    assert "torch sees no gpu" in capsys.readouterr().err
    assert not raw.exists()


def test_measuring_loads_nothing_but_torch_numpy_and_the_library_s_ground() -> None:
    code = (
        "import sys, calibrate.suite, calibrate.session, calibrate.ranks, calibrate.measure\n"
        "print([name for name in ('scipy', 'pandas', 'pydantic', 'simpy', 'cyclopts', 'yaml', 'rich', 'jaxtyping')"
        " if name in sys.modules],"
        " {'.'.join(name.split('.')[:2]) for name in sys.modules if name.startswith('moesim.')})"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[] {'moesim.ground'}"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_no_point_takes_more_memory_or_time_than_it_may(bench: Bench, ranks: int) -> None:
    """A grouped product's weights count all slots, those without rows too."""
    speed = Speed(flop_rate=1e11, bandwidth=1e10, longest=0.05)
    for one in suite(replace(bench, ranks=ranks), speed):
        points = one.points(speed, bench)
        assert points, one.name
        for point in points:
            flop, size = one.cost(point)
            assert one.slow * (flop / 1e11 + size / 1e10) < 0.06
            assert size + one.held(point) < 1 << 28
            if "slots" in point:
                assert point["slots"] * point["n"] * point["k"] * bytes_of(one.dtype) < 1 << 28


def test_a_budget_that_ends_early_has_visited_some_points_twice() -> None:
    seen = list(_rounds(64))
    assert sorted(seen) == sorted((index, visit) for index in range(64) for visit in range(VISITS))
    assert [index for index, visit in seen[:40] if visit == 1] == list(range(8))
    for index in range(64):
        assert [visit for which, visit in seen if which == index] == list(range(VISITS))
