"""From raw samples to a machine that scenarios name: what it holds, that plans accept it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moesim.calibrate import own_accuracy
from moesim.calibrate.among import among_work
from moesim.calibrate.cases import Cases
from moesim.calibrate.cli import measure
from moesim.calibrate.compiled import fit_compiling
from moesim.calibrate.fit import Bench, fit_cases, predict
from moesim.calibrate.fitting import fit_samples
from moesim.calibrate.manners import best_fit
from moesim.calibrate.measured import Profile, profile_of, slowed
from moesim.calibrate.nodes import write_node
from moesim.calibrate.raw import FORMAT, Sample, read
from moesim.calibrate.settings import settings_of
from moesim.calibrate.spread import fit_with_spread
from moesim.calibrate.sums import ops_of, predicted

from moesim.cli import app
from moesim.files.profiles import load_profile
from moesim.ground.errors import InputError, MoesimError
from moesim.policies.alltoall.two_dh import TwoDimensional
from moesim.schedules.costs.fits import machine_of
from moesim.schedules.costs.forms import floor, form_of
from moesim.schedules.costs.rebuilding import rebuilding
from moesim.schedules.ops import AllToAll, Elementwise, Exchange, Grouped
from moesim.world.hardware import Node, reach

HEADER = {
    "format": FORMAT,
    "device": "Some CPU (R)",
    "machine": {"cores": 2, "memory": 8e9, "cache": 16e6, "torch": "2.13"},
    "started": "2026-11-23 04:00 UTC",
}
RATE, MEMORY, LINK, DISK = 1e11, 1e10, 1e9, 2e9
"""What the machine of these tests does, FLOP/s and B/s."""


def line(
    operation: str, seconds: float, kernel: str = "", dtype: str = "bytes", ranks: int = 1, **inputs: float
) -> str:
    point = {"operation": operation, "dtype": dtype, "kernel": kernel, "ranks": ranks, "inputs": inputs}
    return json.dumps(point | {"seconds": [seconds * (1 + 0.01 * turn) for turn in range(3)]})


def sampled() -> list[str]:
    """A machine's samples: everything at its rate, and a little for each call."""
    rng = np.random.default_rng(0)
    lines = []
    for m, n, k in np.round(2 ** rng.uniform(5, 10, (24, 3))):
        lines.append(line("gemm", 1e-5 + 2 * m * n * k / RATE, dtype="bf16", ranks=2, m=m, n=n, k=k))
    for slots in (2.0, 4.0, 8.0):
        for rows in (64.0, 256.0, 1024.0, 4096.0, 8192.0):
            seconds = slots * 2e-5 + 2 * rows * 256 * 128 / RATE
            sizes = {"slots": slots, "rows": rows, "skew": 0.0, "n": 256.0, "k": 128.0, "fullest": rows / slots}
            lines.append(line("grouped_gemm", seconds, "looped", "bf16", 2, **sizes))
            lines.append(line("grouped_gemm", 0.9 * seconds, "batched", "bf16", 2, **sizes))
    for size in 4096 * 4.0 ** np.arange(7):
        for operation, kernel in (("elementwise", "norm"), ("pack", ""), ("unpermute", ""), ("choose", "")):
            slow = 5 if operation == "choose" else 1
            lines.append(line(operation, 1e-5 + slow * size / MEMORY, kernel, "bf16", 2, traffic=size))
        lines.append(line("elementwise", 1e-6 + size / MEMORY, "copy", size=size, traffic=2 * size))
        lines.append(line("copy", 5e-5 + size / DISK, "disk", size=size))
        for ranks in (2, 4):
            sizes = {"sent": size, "received": size, "messages": ranks - 1.0}
            lines.append(
                line("all_to_all", ranks * 1e-4 + ranks * size / LINK, "even", ranks=ranks, size=size, **sizes)
            )
    lines += [line("host", 2e-6, "read back", "int64", 2, numbers=float(number), calls=1.0) for number in range(1, 5)]
    for layers in (1.0, 4.0, 8.0):
        lines.append(line("compile", 1.0 + 0.05 * layers, "first", "fp32", layers=layers))
        lines.append(line("compile", 0.07, "cached", "fp32", layers=layers))
    for size in 4096 * 4.0 ** np.arange(7):  # two phases of two ranks, and two copies that sort
        seconds = 2 * (5e-4 + size / 2 / (LINK / 4)) + 2 * (2 * size / MEMORY)
        lines.append(line("all_to_all", seconds, "hierarchical 2x2", ranks=4, size=size))
    beside = [
        json.loads(line("interference", more * 2e-3, "gemm beside all_to_all", "fp32", ranks, size=1.0))
        for ranks, more in ((2, 1.5), (4, 9.0))
    ]
    return [*lines, *(json.dumps(one | {"alone": [2e-3]}) for one in beside)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("machine") / "raw.jsonl"
    path.write_text("\n".join([json.dumps(HEADER), *sampled()]) + "\n")
    return path


@pytest.fixture(scope="module")
def made(raw: Path) -> Profile:
    return profile_of(read(raw))


def test_a_machine_is_described_by_its_best_points_and_its_fits(made: Profile) -> None:
    node, device = made.node, made.node.device
    assert (node.name, node.gpus, device.processors, device.memory) == ("measured/some-cpu-r", 2, 1, 4e9)
    assert device.flop_rate["bf16"] == pytest.approx(RATE, rel=0.05)
    assert [(tier.name, tier.ranks, tier.sharers) for tier in node.tiers] == [
        ("loopback", 2, 1), ("host", 1, 1), ("disk", 1, 2),
    ]  # fmt: skip
    assert device.fits["elementwise/bf16/pack"].params["bandwidth"] == pytest.approx(MEMORY, rel=0.05)
    assert device.fits["elementwise/bf16/gate"].params["bandwidth"] == pytest.approx(MEMORY / 5, rel=0.05)
    assert device.interference == {"compute": {"collective": pytest.approx(0.515)}}
    assert made.left_out == ()


def test_what_compiling_takes_is_a_line_over_the_layers_of_the_graph(made: Profile) -> None:
    device = made.node.device
    fit = device.fits["compile"]
    assert fit.params == {"launch": pytest.approx(1.01, rel=0.02), "per_layer": pytest.approx(0.05, rel=0.1)}
    assert (fit.box["layers"], fit.source.kind) == ((1.0, 8.0), "fitted")
    assert rebuilding(device, 20.0) == pytest.approx(2.02, rel=0.03)
    graph = replace(fit, params={"launch": 0.25, "per_layer": 0.0})
    assert rebuilding(replace(device, fits={"compile": fit, "graph": graph}), 20.0) == pytest.approx(2.27, rel=0.03)
    with pytest.raises(MoesimError, match=r"of form `gemm` with launch; write `form: compile` with launch and per_l"):
        rebuilding(replace(device, fits={"compile": replace(fit, form="gemm", params={"launch": 1.0})}), 20.0)


def test_compiling_that_was_hardly_measured_is_left_out_with_what_to_measure(raw: Path) -> None:
    few = [one for one in read(raw).samples if one.inputs.get("layers", 1.0) == 1.0]
    assert fit_compiling(few, "raw.jsonl") == (
        {},
        [
            "compile: 1 points of graphs of 1 sizes; a line needs 3 points of 2 sizes: "
            "measure longer, or --only compilation"
        ],
    )


def test_an_exchange_by_levels_has_a_fit_of_its_own_that_plans_with_two_levels_use(made: Profile) -> None:
    node = made.node
    device = node.device
    machine = machine_of(node, ())
    moved = np.array([[2.0**20]])
    plain = AllToAll(tiers=("loopback",), sent=moved, received=moved, messages=np.ones((1, 1)))
    phase = replace(plain, way="hierarchical")
    assert form_of(phase).price(phase, machine)[0] == pytest.approx(5e-4 + 2.0**20 / (LINK / 4), rel=0.1)
    assert form_of(plain).price(plain, machine)[0] == pytest.approx(2e-4 + 2.0**20 / (LINK / 2), rel=0.1)
    (mine,) = [key for key in device.fits if key.startswith("hierarchical")]
    exchange = Exchange(rows=np.ones((4, 4)), ranks_of_slot=np.arange(4)[:, None], ranks=4, row=8.0, reverse=False,
                        tokens=np.ones(4))  # fmt: skip
    fabric = (replace(node.tiers[0], name="rail", ranks=4),)
    phases = TwoDimensional()(exchange, reach(node, fabric))
    used = [form_of(one.op).fits(one.op, machine_of(node, fabric)) for one in phases if isinstance(one.op, AllToAll)]
    assert [fit for fits in used for fit in fits.values() if fit.source.kind == "fitted"] == [device.fits[mine]]


def test_padded_experts_are_kept_by_name_and_never_the_default_however_fast(made: Profile) -> None:
    fits = made.node.device.fits
    assert fits["grouped_gemm/bf16"] != fits["grouped_gemm/bf16/batched"]
    assert fits["grouped_gemm/bf16"].params["per_expert"] > fits["grouped_gemm/bf16/batched"].params["per_expert"] > 0


def test_ranks_that_share_a_core_take_turns_and_talk_as_so_many_did(raw: Path, made: Profile) -> None:
    two, four = made.node, profile_of(read(raw), ranks=4).node
    slow, quick = (node.device.fits["elementwise/bf16/pack"].params for node in (four, two))
    assert slow["launch"] == pytest.approx(2 * quick["launch"])
    assert slow["bandwidth"] == pytest.approx(quick["bandwidth"] / 2)
    talk = [
        node.device.fits["all_to_all/loopback"].params["efficiency"] * node.tiers[0].bandwidth for node in (two, four)
    ]
    assert talk == [pytest.approx(LINK / 2, rel=0.1), pytest.approx(LINK / 4, rel=0.1)]
    assert slowed(two.device.fits["copy/disk"], 2.0) == two.device.fits["copy/disk"]


def test_a_profile_is_a_node_that_scenarios_name(
    raw: Path, made: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "mine.yaml"
    app(["calibrate", "fit", str(raw), "--out", str(out)], result_action="return_value")
    assert "gemm/bf16: within" in capsys.readouterr().out
    back = load_profile("node", str(out))
    assert dict(back.profile.device.fits["gemm/bf16"].params) == pytest.approx(
        dict(made.node.device.fits["gemm/bf16"].params), rel=1e-3
    )
    assert back.sources["device.flop_rate.bf16"].raw == "raw.jsonl"
    assert back.sources["power"].kind == "assumed"
    assert [path.name for path in out.parent.iterdir()] == ["mine.yaml"]


def test_nothing_stays_of_a_profile_that_cannot_be_written(raw: Path, made: Profile, tmp_path: Path) -> None:
    (tmp_path / "taken.yaml").mkdir()
    samples = read(raw)
    with pytest.raises(MoesimError, match=r"taken.yaml: .* name another file with --out"):
        write_node(tmp_path / "taken.yaml", made, samples.header, "raw.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.yaml"]


@pytest.mark.parametrize("missing", ["gemm", "elementwise", "copy"])
def test_a_machine_that_was_measured_in_part_is_refused_with_what_to_measure(
    raw: Path, tmp_path: Path, missing: str
) -> None:
    part = tmp_path / "part.jsonl"
    part.write_text("\n".join(text for text in raw.read_text().splitlines() if f'"operation": "{missing}"' not in text))
    with pytest.raises(MoesimError, match=r"was(n't| not)? .*measured.*; measure without --only"):
        profile_of(read(part))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "RAW", "--ranks", "0"], "--ranks: 0 is no number of ranks"),
        (["fit", "."], "Is a directory; name a file of raw samples"),
        (["--out", "FOLDER"], "is a folder; name a file in it"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_done(
    raw: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    places = {"RAW": str(raw), "FOLDER": str(folder)}
    with pytest.raises(MoesimError, match=said):
        app(["calibrate", *(places.get(word, word) for word in words)], result_action="return_value")
    assert list(folder.iterdir()) == []


def test_a_truncated_line_and_a_foreign_file_are_refused(raw: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.jsonl"
    torn.write_text(raw.read_text().replace('"seconds": [', '"seconds": [0.0, ', 1))
    with pytest.raises(InputError, match="has a time that is not a positive number"):
        read(torn)
    torn.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="is not the header of a raw file"):
        read(torn)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"operation": "gemm"', '"operation": ["gemm"]', r"line \d+\.operation: \['gemm'\] is no text"),
        ('"ranks": 1', '"ranks": "one"', r"line \d+\.ranks: 'one' is no number of processes"),
        ('"m": ', '"m": "many", "was": ', r"line \d+\.inputs\.m: 'many' is no number"),
        ('"m": ', '"m": NaN, "was": ', r"line \d+\.inputs\.m: nan is no number"),
    ],
)
def test_a_field_that_holds_no_such_thing_is_refused_by_its_line(
    raw: Path, tmp_path: Path, before: str, after: str, said: str
) -> None:
    bad, text = tmp_path / "bad.jsonl", raw.read_text()
    assert before in text
    bad.write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match=said):
        read(bad)


def test_a_header_without_the_size_of_its_machine_is_refused(raw: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(raw.read_text().replace('"memory": ', '"memories": ', 1))
    with pytest.raises(InputError, match=r"machine\.memory: is missing or no number"):
        profile_of(read(bad))


def layers_of(node: Node, more: float, number: int = 6) -> list[Sample]:
    """Layers whose experts are exchanged, each as long as its parts and so much more."""
    bare = Sample(operation="moe_layer", dtype="bf16", kernel="exchanged", inputs={}, seconds=(), device="", ranks=2)
    shapes = [{"tokens": 64.0 * one, "dim": 256.0, "width": 128.0, "experts": 4.0, "topk": 2.0} for one in range(1, 9)]
    layers = [replace(bare, inputs=shape) for shape in shapes[:number]]
    return [replace(one, seconds=(predicted(one, node) + more,)) for one in layers]


def test_what_layers_take_beyond_their_parts_is_charged_to_their_exchanges(made: Profile) -> None:
    node = made.node
    alone = node.device.fits["all_to_all/loopback"]
    found = among_work(layers_of(node, 2e-3), node, "loopback")
    assert set(found) == {"dispatch/loopback", "combine/loopback"}
    for fit in found.values():
        assert fit.params["latency"] - alone.params["latency"] == pytest.approx(1e-3, rel=0.01)
    assert "points, in 6 layers" in found["dispatch/loopback"].source.title
    later = replace(node, device=replace(node.device, fits={**node.device.fits, **found}))
    (one, *_) = layers_of(node, 2e-3)
    assert predicted(one, later) == pytest.approx(one.median, rel=1e-3)


@pytest.mark.parametrize(("more", "number"), [(2e-3, 3), (-1e-5, 6)])
def test_few_layers_and_layers_as_quick_as_their_parts_say_nothing(made: Profile, more: float, number: int) -> None:
    assert among_work(layers_of(made.node, more, number), made.node, "loopback") == {}


@pytest.mark.parametrize("cached", [True, False])
def test_passes_are_told_with_a_cache_and_without(made: Profile, cached: bool) -> None:
    node = replace(made.node, device=replace(made.node.device, cache=4e6, fits={}))
    traffic = 4096 * 2.0 ** np.arange(16)
    hot = 4e6 / (4e6 + traffic) if cached else 0.0
    noise = np.random.default_rng(0).normal(0.0, 0.03, 16)
    true = 1e-5 + traffic * (hot / (8 * MEMORY) + (1 - hot) / MEMORY)
    seconds = true * np.exp(noise)
    cases = Cases(operation="elementwise", dtype="", kind="", kernel="", inputs={"traffic": traffic}, seconds=seconds,
                  family=np.arange(16))  # fmt: skip
    bench = Bench(device=node.device)
    fit, plain = best_fit(cases, bench, node, title="made up"), fit_cases(cases, bench, certainty=0.1)
    assert np.abs(predict(cases, bench, fit) / true - 1).max() < 0.12
    assert (np.abs(predict(cases, bench, plain) / true - 1).max() < 0.12) != cached
    op = Elementwise(traffic=traffic)
    machine = machine_of(replace(node, device=replace(node.device, fits={"elementwise": fit})), ())
    assert (floor(op, machine) <= form_of(op).price(op, machine)[0]).all()


def test_what_a_form_leaves_over_is_kept_where_it_tells_of_other_points(made: Profile) -> None:
    node = replace(made.node, device=replace(made.node.device, fits={}))
    rng = np.random.default_rng(1)
    m, n, k = np.round(2 ** rng.uniform(5, 10, (3, 40)))
    habit = np.exp(0.25 * np.sin(2.0 * np.log(n)))  # of the library, by the width
    cases = Cases(operation="gemm", dtype="bf16", kind="", kernel="", inputs={"m": m, "n": n, "k": k},
                  seconds=(1e-5 + 2 * m * n * k / RATE) * habit, family=np.arange(40))  # fmt: skip
    bench = Bench(device=node.device)
    fit = best_fit(cases, bench, node, title="made up")
    assert fit.residual is not None
    alone = fit_with_spread(cases, bench, certainty=0.5, title="made up")
    assert np.hypot(fit.shared, fit.point) < 0.8 * np.hypot(alone.shared, alone.point)
    generic = replace(node, device=replace(node.device, name="generic/cpu"))
    assert best_fit(cases, bench, generic, title="made up").residual is None


def test_a_whole_layer_is_written_as_the_ops_of_its_parts(raw: Path, tmp_path: Path) -> None:
    sizes = {"tokens": 64.0, "dim": 128.0, "width": 64.0, "experts": 8.0, "topk": 2.0}
    path = tmp_path / "layers.jsonl"
    layers = [line("moe_layer", 1e-3, kernel, "bf16", 2, **sizes) for kernel in ("local", "exchanged")]
    path.write_text("\n".join([json.dumps(HEADER), *layers]) + "\n")
    local, exchanged = read(path).samples
    slots = [[op.rows.shape[0] for op in ops_of(one) if isinstance(op, Grouped)] for one in (local, exchanged)]
    assert slots == [[8, 8], [4, 4]]
    assert all(op.rows.sum() == 128 for one in (local, exchanged) for op in ops_of(one) if isinstance(op, Grouped))
    sent = [float(op.sent.sum()) for op in ops_of(exchanged) if isinstance(op, AllToAll)]
    assert sent == [32.0, 16384.0, 16384.0]
    node = profile_of(read(raw)).node
    assert predicted(exchanged, node) > predicted(local, node) + 3e-4  # three exchanges


def test_fits_are_scored_on_points_they_have_not_seen_beside_the_repeat_spread(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesim.calibrate.own_accuracy.FEWEST", 15)
    again = tmp_path / "again.jsonl"
    slower = [json.loads(text) for text in sampled()]
    for point in slower:
        point["seconds"] = [1.1 * time for time in point["seconds"]]
    again.write_text("\n".join([json.dumps(HEADER), *map(json.dumps, slower)]) + "\n")
    found = list(own_accuracy.rows(read(raw), read(again)))
    assert [(row.name, row.fitted, row.scored) for row in found] == [
        ("gemm/bf16", 16, 8), ("grouped_gemm/bf16/looped", 10, 5), ("grouped_gemm/bf16/batched", 10, 5),
    ]  # fmt: skip
    assert all(row.repeat == pytest.approx(0.1) for row in found)
    assert all(row.reached == (row.mean <= 0.2) for row in found)  # twice the spread
    assert own_accuracy.page(found).count("\n") == 5


def test_an_operation_that_no_plan_looks_up_is_told(raw: Path) -> None:
    """A misspelt or foreign one among them."""
    samples = read(raw).samples
    node = load_profile("node", "generic/cpu").profile
    foreign = replace(next(one for one in samples if one.operation == "gemm"), operation="gem")
    told = [fit_samples(some, node).left_out for some in (samples, (*samples, foreign))]
    assert [any("gem:" in why or "gem," in why for why in found) for found in told] == [False, True]


def test_a_file_that_lacks_a_kind_of_work_is_named(raw: Path) -> None:
    whole = read(raw)
    kept = tuple(sample for sample in whole.samples if sample.operation != "elementwise")
    with pytest.raises(MoesimError, match=r"short\.jsonl: elementwise was not measured"):
        profile_of(replace(whole, samples=kept), title="short.jsonl")


def test_a_budget_below_zero_is_refused_by_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("moesim.calibrate.cli._waited", lambda words: started.append(words) or 2)
    assert measure(budget="-5s", out=tmp_path / "machine.yaml") == 2
    with pytest.raises(MoesimError, match="--budget: `-5s` is no time"):
        settings_of(started[0][3:])


def test_samples_of_nothing_are_refused() -> None:
    with pytest.raises(MoesimError, match="nothing could be fitted; it has no samples"):
        fit_samples([], load_profile("node", "generic/cpu").profile)
