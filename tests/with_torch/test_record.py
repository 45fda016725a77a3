"""The recorder finds routers by what they are and reads what they return, whoever wrote them."""

import importlib
import sys

import numpy as np
import pytest

from moesim.files.routing_traces import open_trace
from moesim.ground.errors import WorkloadError

torch = pytest.importorskip("torch")

from moesim.calibrate.record import Recorder, convert  # noqa: E402 - needs torch

HIDDEN, EXPERTS, TOPK = 8, 6, 2


class Logits(torch.nn.Linear):
    """As Mixtral's gate: a number for every expert."""

    def __init__(self):
        super().__init__(HIDDEN, EXPERTS, bias=False)


class Chosen(Logits):
    """As DeepSeek's gate: choices in any order, and their weights."""

    def forward(self, hidden):
        best = super().forward(hidden.reshape(-1, HIDDEN)).softmax(dim=-1).topk(TOPK)
        return best.indices.flip(-1), best.values.flip(-1)


class All(Logits):
    """As newer routers: logits, weights and choices."""

    def forward(self, hidden):
        logits = super().forward(hidden)
        best = logits.softmax(dim=-1).topk(TOPK)
        return logits, best.values, best.indices


class Block(torch.nn.Module):
    def __init__(self, router, name):
        super().__init__()
        self.top_k = TOPK
        self.experts = torch.nn.ModuleList([torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(EXPERTS)])
        setattr(self, name, router)
        self.name = name

    def forward(self, hidden):
        getattr(self, self.name)(hidden)
        return hidden + 0.1 * self.experts[0](hidden)


def model(router=Logits, name="gate"):
    torch.manual_seed(1)
    return torch.nn.Sequential(*(Block(router(), name) for _ in range(3)))


def expected(network, hidden):
    """The choices in the order of their logits."""
    found = []
    for block in network:
        weight = getattr(block, block.name).weight
        found.append((hidden.reshape(-1, HIDDEN) @ weight.T).topk(TOPK).indices.numpy())
        hidden = hidden + 0.1 * block.experts[0](hidden)
    return np.stack(found, axis=1)


@pytest.mark.parametrize(("router", "name"), [(Logits, "gate"), (Chosen, "gate"), (All, "router")])
def test_what_routers_choose_is_written_first_choice_first(router, name, tmp_path):
    network, batches = model(router, name), [torch.randn(2, 5, HIDDEN), torch.randn(1, 3, HIDDEN)]
    with torch.no_grad(), Recorder(network, tmp_path / "run.parquet"):
        for hidden in batches:
            network(hidden)
    trace = open_trace(tmp_path / "run.parquet")
    assert (trace.shape.layers, trace.shape.experts, trace.shape.topk, trace.rows) == (3, EXPERTS, TOPK, 13)
    with torch.no_grad():
        wanted = np.concatenate([expected(network, hidden) for hidden in batches])
    assert np.array_equal(np.concatenate(list(trace.pieces())), wanted)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_model_without_routers_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match="no router was found in the model; name the routers"):
        Recorder(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "run.parquet")
    with pytest.raises(WorkloadError, match=r"no module `0\.gat`"):
        Recorder(model(), tmp_path / "run.parquet", routers=["0.gat"])


def test_what_is_neither_choices_nor_logits_is_refused(tmp_path):
    network = model()
    with torch.no_grad(), pytest.raises(WorkloadError, match=r"`0\.gate` returns neither choices nor a number"):
        record(network, tmp_path / "run.parquet", experts=7)
    assert list(tmp_path.iterdir()) == []
    assert not any(module._forward_hooks for module in network.modules())


def record(network, path, **known):
    with Recorder(network, path, **known):
        network(torch.randn(4, HIDDEN))


def test_a_layer_that_saw_nothing_is_named(tmp_path):
    network = model()
    with torch.no_grad(), pytest.raises(WorkloadError, match=r"`2\.gate` saw nothing of a pass"):
        record_part(network, tmp_path / "run.parquet")
    assert list(tmp_path.iterdir()) == []


def record_part(network, path):
    with Recorder(network, path):
        network[:2](torch.randn(4, HIDDEN))


def test_sglang_s_counts_are_converted(tmp_path):
    counts = torch.arange(12).reshape(1, 3, 4)
    torch.save({"logical_count": counts, "rank": 0}, tmp_path / "dump.pt")
    convert(tmp_path / "dump.pt", tmp_path / "dump.npy")
    assert np.array_equal(next(open_trace(tmp_path / "dump.npy").pieces()), counts.numpy())
    torch.save({"rank": 0}, tmp_path / "other.pt")
    for name, said in [("other.pt", "has no tensor"), ("missing.pt", "no such file")]:
        with pytest.raises(WorkloadError, match=said):
            convert(tmp_path / name, tmp_path / "out.npy")
    (tmp_path / "text.pt").write_text("no tensors here")
    with pytest.raises(WorkloadError, match="can't be loaded"):
        convert(tmp_path / "text.pt", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("lacking", ["torch", "pyarrow"])
def test_a_machine_that_can_only_measure_is_told_what_recording_needs(lacking, monkeypatch):
    monkeypatch.setitem(sys.modules, lacking, None)
    for name in ("moesim.calibrate.record", "moesim.files.routing_traces"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=rf"recording routing needs `{lacking}`, .*: pip install 'moesim\[torch\]'"):
        importlib.import_module("moesim.calibrate.record")
