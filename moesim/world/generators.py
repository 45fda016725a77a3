"""Routing distributions made from few numbers: balanced, skewed, and recorded from a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from moesim.ground.errors import Fault, WorkloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class Balanced:
    """Every expert gets the same: counts of a draw differ by at most one, per rank and over all ranks.

    Which experts get the odd rows turns with layer and step, and nothing is random but who goes where.
    """

    layers: int
    experts: int
    topk: int

    def __post_init__(self) -> None:
        """Check that a token finds enough experts."""
        _check_topk(self.experts, self.topk)

    @property
    def alike(self) -> bool:
        """One layer stands for all."""
        return True

    def only(self, layers: Sequence[int]) -> Balanced:
        """Describe some of the layers."""
        return replace(self, layers=len(layers))

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Give each expert the same share."""
        return np.full((self.layers, self.experts), 1 / self.experts)

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Deal each layer's assignments to the experts in turn, rank after rank."""
        turn = (np.arange(self.layers) + step * self.layers) * self.topk % self.experts
        place = (np.arange(self.experts) - turn[:, None]) % self.experts  # of each expert in the first round
        ends = np.concatenate([[0], np.cumsum(tokens)]) * self.topk
        dealt = (ends[:, None] + self.experts - 1 - place[:, None, :]) // self.experts  # so far, by the end of a rank
        return np.diff(dealt, axis=1)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Deal the counts out to tokens at random."""
        return dealt_choices(self.draw(tokens, step, rng), tokens, self.topk, rng)

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Count groups among `topk` experts drawn evenly without replacement."""
        even = np.ones((1, self.experts))
        return np.repeat(touched_groups(even, self.topk, group_of_expert), self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a skewed routing was made from, so that a file can say it in two numbers instead of a table."""

    cv: float
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for the cached tables
class Skewed:
    """Tokens choose independently of one another, `topk` different experts each, by fixed popularity.

    A set of experts is chosen with a probability proportional to the product of its weights: the fixed-size law of
    largest entropy (conditional Poisson sampling; Chen, Dempster and Liu, Biometrika 1994). Weights enter only by their
    ratios within a layer.

    Attributes
    ----------
    weights : positive
    topk : experts per token
    alike : whether the layers differ only by the experts' names
    recipe : how `skewed` made all of it; None where the weights came from elsewhere
    """

    weights: Float[np.ndarray, "layer expert"]
    topk: int
    alike: bool
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        """Check that a token finds enough experts, and protect the weights."""
        _check_topk(self.experts, self.topk)
        self.weights.flags.writeable = False

    @property
    def layers(self) -> int:
        """MoE layers described."""
        return int(self.weights.shape[0])

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        return int(self.weights.shape[1])

    def only(self, layers: Sequence[int]) -> Skewed:
        """Describe some of the layers."""
        return replace(self, weights=self.weights[list(layers)], recipe=None)

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Return exact inclusion probabilities over `topk`."""
        return self._shares

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Draw counts without drawing tokens: expert by expert, how many of the tokens with j picks left take it."""
        left = np.zeros((self.topk + 1, self.layers, len(tokens)), dtype=np.int64)  # tokens by picks left
        left[self.topk] = tokens
        counts = np.empty((self.experts, self.layers, len(tokens)), dtype=np.int64)
        for expert in range(self.experts):
            taking = rng.binomial(left[1:], self._chance[expert, :, :, None])
            left[1:] -= taking
            left[:-1] += taking
            counts[expert] = taking.sum(axis=0)
        return np.moveaxis(counts, 0, -1)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Draw counts and deal them out to tokens."""
        return dealt_choices(self.draw(tokens, step, rng), tokens, self.topk, rng)

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Sum over groups the chance that a token has an expert there."""
        return touched_groups(self.weights, self.topk, group_of_expert)

    @cached_property
    def _shares(self) -> Float[np.ndarray, "layer expert"]:
        shares = inclusion(self.weights, self.topk) / self.topk
        shares.flags.writeable = False
        return shares

    @cached_property
    def _chance(self) -> Float[np.ndarray, "expert pick layer"]:
        """Chance that a token takes expert e when it has j picks left among e and those after it, j = 1, 2, ..."""
        weights = _scaled(self.weights, self.topk)
        sums = _sums_from(weights, self.topk)
        taken, any_way = weights.T[:, None] * sums[1:, :-1], sums[:-1, 1:]
        chance = np.divide(taken, any_way, out=np.zeros_like(taken), where=any_way > 0)
        return np.asarray(np.minimum(chance, 1.0))


def skewed(layers: int, experts: int, topk: int, *, cv: float, seed: int) -> Skewed:
    """Make lognormal popularity whose realized shares have the coefficient of variation asked for.

    The popularity of the experts is laid at the quantiles of a lognormal; each layer gives it to other experts, so
    layers are alike but for the experts' names. Choosing `topk` experts without replacement flattens the shares, hence
    the lognormal's own spread is solved for.

    Parameters
    ----------
    layers, experts, topk : int
        Sizes; `topk` below `experts`, unless cv is 0.
    cv : float
        Standard deviation over mean of one layer's `shares`.
    seed : int
        Decides which experts are popular where.

    Raises
    ------
    WorkloadError
        No popularity gives that `cv`: with `topk` different experts a token, none can have a share above 1 / topk.

    Examples
    --------
    >>> shares = skewed(2, 64, 8, cv=0.5, seed=1).shares(0)
    >>> (shares.std(axis=1) / shares.mean(axis=1)).round(9).tolist()
    [0.5, 0.5]
    """
    popularity = _popularity(experts, topk, cv)
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = rng.permuted(np.tile(popularity, (layers, 1)), axis=1)
    return Skewed(weights=weights, topk=topk, alike=True, recipe=Recipe(cv=cv, seed=seed))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """Choices recorded in a run: replayed exactly at their own size, thinned or resampled at another.

    Steps beyond the last begin again at the first. Each token keeps its choices of all layers together.

    Attributes
    ----------
    choices : the experts of each token
    experts : how many there are, chosen or not
    """

    choices: Int[np.ndarray, "step layer token topk"]
    experts: int

    def __post_init__(self) -> None:
        """Protect the record."""
        _check_topk(self.experts, self.topk)
        self.choices.flags.writeable = False

    @property
    def layers(self) -> int:
        """MoE layers recorded."""
        return int(self.choices.shape[1])

    @property
    def topk(self) -> int:
        """Experts per token."""
        return int(self.choices.shape[3])

    @property
    def alike(self) -> bool:
        """Recorded layers differ."""
        return False

    def only(self, layers: Sequence[int]) -> Recorded:
        """Keep some of the layers."""
        return replace(self, choices=self.choices[:, list(layers)])

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Return the step's own shares."""
        chosen = self.choices[step % len(self.choices)].reshape(self.layers, -1)
        counts = np.stack([np.bincount(row, minlength=self.experts) for row in chosen])
        return np.asarray(counts / chosen.shape[1])

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Count the choices of `assign`."""
        chosen = self.assign(tokens, step, rng)
        rank = np.repeat(np.arange(len(tokens)), tokens)
        cells = (np.arange(self.layers)[:, None] * len(tokens) + rank)[..., None] * self.experts + chosen
        size = self.layers * len(tokens) * self.experts
        return np.bincount(cells.ravel(), minlength=size).reshape(self.layers, len(tokens), self.experts)

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Return the step's tokens in order; fewer are picked without and more with replacement."""
        recorded, wanted = self.choices.shape[2], int(tokens.sum())
        if wanted == recorded:
            picked = np.arange(recorded)
        elif wanted < recorded:
            picked = np.sort(rng.choice(recorded, wanted, replace=False))
        else:
            picked = rng.integers(recorded, size=wanted)
        return np.asarray(self.choices[step % len(self.choices)][:, picked], dtype=np.int64)

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Count the groups of the recorded tokens, all steps together."""
        groups = np.sort(group_of_expert[self.choices], axis=-1)
        changes = (np.diff(groups, axis=-1) != 0).sum(axis=-1)
        return np.asarray(1.0 + changes.mean(axis=(0, 2)))

    def note(self, tokens: int) -> str:
        """Say how a step of so many tokens is made from the record.

        Examples
        --------
        >>> Recorded(choices=np.zeros((1, 1, 4096, 1), dtype=int), experts=8).note(512)
        'routing thinned from 4096 recorded tokens to 512'
        """
        recorded = self.choices.shape[2]
        if tokens == recorded:
            return f"routing replayed exactly, {recorded} recorded tokens"
        change = "thinned" if tokens < recorded else "resampled with replacement"
        return f"routing {change} from {recorded} recorded tokens to {tokens}"


def dealt_choices(
    counts: Int[np.ndarray, "layer rank expert"], tokens: Int[np.ndarray, "rank"], topk: int, rng: np.random.Generator
) -> Int[np.ndarray, "layer token topk"]:
    """Deal counts out so that every token gets `topk` different experts and every expert its count, exactly.

    Token by token, an expert with c assignments left among t tokens is taken with chance c / t, by systematic sampling
    in a fresh order of the experts; one with c = t is always taken, so nothing is ever left over (Madow, Annals of
    Mathematical Statistics 1949). Single choices follow the counts exactly; pairs come close to those of independent
    tokens.
    """
    layers, _, experts = counts.shape
    left = counts.copy()
    start = np.cumsum(tokens) - tokens
    chosen = np.empty((layers, int(tokens.sum()), topk), dtype=np.int64)
    for token in range(int(tokens.max(initial=0))):
        active = np.flatnonzero(tokens > token)
        waiting = (tokens[active] - token)[:, None]
        order = rng.permutation(experts)
        laid = np.cumsum(left[:, active][..., order], axis=-1)
        first = (rng.random((layers, len(active), 1)) * waiting).astype(np.int64)
        passed = (laid - first + waiting - 1) // waiting  # of the points first, first + waiting, ...
        taken = np.diff(passed, axis=-1, prepend=0)
        experts_taken = order[np.nonzero(taken)[-1]].reshape(layers, len(active), topk)
        chosen[:, start[active] + token] = experts_taken
        left[np.arange(layers)[:, None, None], active[:, None], experts_taken] -= 1
    return chosen


def inclusion(weights: Float[np.ndarray, "layer expert"], topk: int) -> Float[np.ndarray, "layer expert"]:
    """Chance that a token's `topk` experts include each one; rows sum to `topk`.

    Examples
    --------
    >>> inclusion(np.array([[2.0, 1.0, 1.0]]), 2).round(9).tolist()  # sets weigh 2, 2 and 1
    [[0.8, 0.6, 0.6]]
    """
    weights = _scaled(weights, topk)
    after = _sums_from(weights, topk)
    before = _sums_from(weights[:, ::-1], topk)[::-1]  # before[e]: experts below e
    others = sum(before[:-1, j] * after[1:, topk - 1 - j] for j in range(topk))
    return np.asarray(weights * (others / after[0, topk]).T)


def touched_groups(
    weights: Float[np.ndarray, "layer expert"], topk: int, group_of_expert: Int[np.ndarray, "expert"]
) -> Float[np.ndarray, "layer"]:
    """Mean number of different groups among a token's experts: each group counts unless all experts lie outside it.

    Examples
    --------
    >>> touched_groups(np.ones((1, 4)), 2, np.array([0, 0, 1, 1])).round(9).tolist()  # 2 of 6 pairs share a group
    [1.666666667]
    """
    weights = _scaled(weights, topk)
    outside = group_of_expert != np.unique(group_of_expert)[:, None]
    nowhere = _sums(weights[:, None, :] * outside, topk)[topk] / _sums(weights, topk)[topk][:, None]
    return np.asarray((1 - nowhere).sum(axis=1))


def _check_topk(experts: int, topk: int) -> None:
    if not 1 <= topk <= experts:
        raise WorkloadError("routing", [Fault(path="topk", problem=f"{topk} experts a token, of {experts}")])


def _scaled(weights: Float[np.ndarray, "layer expert"], topk: int) -> Float[np.ndarray, "layer expert"]:
    """Make weights sum to `topk`, where the sums below neither overflow nor vanish."""
    return np.asarray(weights * (topk / weights.sum(axis=1, keepdims=True)))


def _sums(weights: Float[np.ndarray, "... expert"], topk: int) -> Float[np.ndarray, "pick ..."]:
    """Elementary symmetric polynomials: the total weight of all sets of j experts, j = 0..topk."""
    sums = np.zeros((topk + 1, *weights.shape[:-1]))
    sums[0] = 1.0
    for weight in np.moveaxis(weights, -1, 0):
        sums[1:] += weight * sums[:-1]
    return sums


def _sums_from(weights: Float[np.ndarray, "layer expert"], topk: int) -> Float[np.ndarray, "start pick layer"]:
    """Total weight of all sets of j experts among those from `start` on."""
    layers, experts = weights.shape
    sums = np.zeros((experts + 1, topk + 1, layers))
    sums[experts, 0] = 1.0
    for expert in reversed(range(experts)):
        sums[expert] = sums[expert + 1]
        sums[expert, 1:] += weights[:, expert] * sums[expert + 1, :-1]
    return sums


_WIDEST = 12.0
"""Largest spread of log popularity tried; beyond it the tail's weights are lost in rounding."""


def _popularity(experts: int, topk: int, cv: float) -> Float[np.ndarray, "expert"]:
    """Find the lognormal popularity that gives shares of spread `cv`, by bisection: the spread grows with it."""
    quantiles = ndtri((np.arange(experts) + 0.5) / experts)

    def spread(width: float) -> float:
        chance = inclusion(np.exp(width * quantiles)[None], topk)
        return float(chance.std() / chance.mean())

    if cv < 0 or cv > spread(_WIDEST):
        most = f"at most {spread(_WIDEST):.2f} with {topk} of {experts} experts"
        raise WorkloadError(
            "routing", [Fault(path="cv", problem=f"{cv} can't be reached", remedy=f"give 0 or more, {most}")]
        )
    low, high = 0.0, _WIDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spread(middle) < cv else (low, middle)
    return np.asarray(np.exp(high * quantiles))
