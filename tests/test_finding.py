import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from moesim.ground.errors import PolicyError
from moesim.plans.plan import KINDS, TRAINING_POLICIES, Policy
from moesim.policies.finding import find, kinds, make, names, settings
from moesim.testing import check

REVERSED = '''
"""Reversed placement: experts in falling order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversed:
    balances: ClassVar[bool] = False

    shift: int = 0

    def slots(self, experts, ranks):
        return -(-experts // ranks) * ranks

    def __call__(self, load, slots, ranks, nodes, rng):
        layers, experts = load.shape[1:]
        return np.tile((np.arange(slots)[::-1] + self.shift) % experts, (layers, 1))


policy = Reversed
'''

HALF = '''
"""Half of the slots resident; the lowest expert leaves."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    tier: ClassVar[str] = "host"
    hosted: ClassVar[int] = 0

    def resident_of(self, slots):
        return -(-slots // 2)

    def __call__(self, seen):
        return seen.used


policy = Half
'''


@pytest.fixture
def folder(tmp_path):
    """A user's own folder with one new placement and one new buffering policy."""
    (tmp_path / "placement").mkdir()
    (tmp_path / "placement" / "reversed.py").write_text(REVERSED)
    (tmp_path / "placement" / "_draft.py").write_text("raise RuntimeError")
    (tmp_path / "buffering").mkdir()
    (tmp_path / "buffering" / "half.py").write_text(HALF)
    return tmp_path


def test_kinds_are_those_a_pool_and_a_plan_name():
    assert set(kinds()) == {*KINDS, *TRAINING_POLICIES, "router", "scaling", "adaptation"}


def test_names_are_file_names():
    assert names("alltoall") == ("deduplicated", "gathered", "linear", "reduce", "two_dh")
    assert names("placement") == ("anti_correlation", "contiguous", "eplb", "exact", "greedy")


def test_a_new_policy_is_one_new_file(folder):
    assert "reversed" in names("placement", [folder])
    placement = make("placement", Policy(name="reversed", settings={"shift": 3}), [folder])
    assert placement(np.ones((1, 2, 6)), 6, 2, 1, np.random.default_rng(0)).tolist() == [[2, 1, 0, 5, 4, 3]] * 2
    check("placement", "reversed", [folder])
    check("buffering", "half", [folder])
    assert make("buffering", Policy(name="half"), [folder]).resident_of(9) == 5


def test_a_folder_is_searched_only_when_given(folder):
    find("placement", "reversed", [folder])
    assert "reversed" not in names("placement")
    with pytest.raises(
        PolicyError, match="no placement policy `reversed`; known: anti_correlation, contiguous, eplb, exact, greedy"
    ):
        find("placement", "reversed")


def test_a_folder_never_replaces_one_of_ours(folder):
    (folder / "placement" / "eplb.py").write_text("policy = None")
    assert find("placement", "eplb", [folder]) is find("placement", "eplb")


def test_equal_names_in_two_folders_are_told_apart(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "buffering").mkdir()
    (other / "buffering" / "half.py").write_text(HALF.replace("-(-slots // 2)", "slots // 2 + 1"))
    for _ in range(2):
        assert find("buffering", "half", [folder, other])().resident_of(9) == 5
        assert find("buffering", "half", [other, folder])().resident_of(8) == 5
        assert find("buffering", "half", [folder])().resident_of(8) == 4


def test_a_file_with_an_underscore_is_no_policy(folder):
    assert "_draft" not in names("placement", [folder])
    assert "_settings" not in names("batching")
    with pytest.raises(PolicyError):
        find("placement", "_draft", [folder])


def test_found_policies_travel_to_other_processes(folder):
    mine = make("placement", Policy(name="reversed", settings={"shift": 3}), [folder])
    assert pickle.loads(pickle.dumps(mine)) == mine
    ours = make("placement", Policy(name="eplb", settings={"redundant": 3}))
    assert pickle.loads(pickle.dumps(ours)) == ours


@pytest.mark.parametrize(
    ("kind", "policy", "message"),
    [
        ("placment", Policy(name="eplb"), "no kind of policy `placment`; did you mean `placement`?"),
        ("gating", Policy(name="dynamik"), "no gating policy `dynamik`; did you mean `dynamic`?"),
        (
            "placement",
            Policy(name="eplb", settings={"redundent": 3}),
            "placement policy `eplb` has no setting `redundent`; did you mean `redundant`?",
        ),
        (
            "placement",
            Policy(name="eplb", settings={"redundant": "many"}),
            "placement policy `eplb`: redundant = 'many' is not a whole number;"
            " its settings are redundant (a whole number), groups (a whole number)",
        ),
        (
            "placement",
            Policy(name="eplb", settings={"redundant": True}),
            "redundant = True is not a whole number",
        ),
        ("placement", Policy(name="eplb", settings={"redundant": -1}), "redundant = -1; give 0 or more"),
        ("placement", Policy(name="eplb", settings={"groups": 0}), "groups = 0; give at least 1"),
        ("placement", Policy(name="greedy", settings={"redundant": -1}), "redundant = -1; give 0 or more"),
        ("placement", Policy(name="contiguous", settings={"redundant": 1.5}), "1.5 is not a whole number"),
        ("placement", Policy(name="contiguous", settings={"redundant": -1}), "give 0 or more"),
        (
            "gating",
            Policy(name="dynamic", settings={"factor": 1.0}),
            "policy `dynamic` has no settings; remove `factor`",
        ),
        ("gating", Policy(name="static", settings={"fraction": -0.1}), "give a positive share of the tokens"),
        (
            "gating",
            Policy(name="static", settings={"fraction": 0}),
            "fraction = 0 is a capacity of zero rows or less; give a positive share of the tokens, or leave it out",
        ),
        ("gating", Policy(name="static", settings={"fraction": float("nan")}), "give a positive share of the tokens"),
        (
            "gating",
            Policy(name="static", settings={"fraction": "half"}),
            "fraction = 'half' is not a number; its settings are factor (a number), fraction (a number), sparse",
        ),
        ("gating", Policy(name="static", settings={"factor": 2.0, "fraction": 0.1}), "two rules; give one of them"),
        ("gating", Policy(name="static", settings={"sparse": 1}), "sparse = 1 is not true or false"),
        (
            "overlap",
            Policy(name="pipeline", settings={"degree": "two"}),
            "degree = 'two' is not a whole number or a list, each item a whole number or `adaptive`",
        ),
        ("overlap", Policy(name="pipeline", settings={"degree": (2, "x")}), "is not a whole number or a list"),
        ("overlap", Policy(name="pipeline", settings={"degree": 0}), "give 1 or more chunks"),
        ("overlap", Policy(name="pipeline", settings={"degree": ()}), "give 1 or more chunks"),
        ("buffering", Policy(name="resident", settings={"slots": 3}), "policy `resident` has no settings"),
        ("batching", Policy(name="chunked", settings={"max_batch": 0}), "max_batch = 0; give at least 1"),
        ("batching", Policy(name="chunked", settings={"budget": 8}), "no room for 256 decoded tokens"),
        ("batching", Policy(name="continuous", settings={"speculated": -1}), "give 0 or more"),
        (
            "batching",
            Policy(name="continuous", settings={"speculated": 1}),
            "give the chance that a draft token is right",
        ),
        ("batching", Policy(name="continuous", settings={"acceptance": 1.0}), "below 1"),
        ("batching", Policy(name="continuous", settings={"buckets": (4, 2)}), "ascending order"),
    ],
    ids=str,
)
def test_bad_names_and_settings_are_refused(kind, policy, message):
    with pytest.raises(PolicyError) as refusal:
        make(kind, policy)
    assert message in str(refusal.value)


def test_whole_numbers_are_accepted_for_ratios():
    assert make("gating", Policy(name="static", settings={"factor": 2})).factor == 2


def test_settings_are_listed_with_their_types():
    assert settings(find("placement", "eplb")) == {"redundant": int, "groups": int}
    assert settings(find("buffering", "resident")) == {}
    assert settings(SimpleNamespace()) == {}
