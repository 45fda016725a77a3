"""Batches about topics: each has its own hot experts, one is in the air for a while, and tokens hang together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Shaped

from moesim.ground.errors import Fault, WorkloadError
from moesim.ground.roots import crossing
from moesim.world.generators.choosing import Limits
from moesim.world.generators.law import SetLaw
from moesim.world.generators.ordering import Links
from moesim.world.generators.recipe import Recipe
from moesim.world.generators.skewed import capped, normal_quantiles, with_shares


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for the cached shares
class Topical:
    """A mixture of equally frequent topics, of which one at a time prevails.

    Attributes
    ----------
    law : a row for each layer of each topic, topic after topic
    topics : how many
    together : share of a step's tokens that are about the step's topic; the others are about any
    hold : steps a topic prevails
    links : what orders the tokens of one topic
    seed : decides which topic prevails when
    recipe : what all of it was made from
    """

    law: SetLaw
    topics: int
    together: float
    hold: int
    links: Links
    seed: int
    recipe: Recipe | None = None

    @property
    def layers(self) -> int:
        """MoE layers described."""
        return len(self.law.weights) // self.topics

    @property
    def experts(self) -> int:
        """Logical experts per layer."""
        return int(self.law.weights.shape[1])

    @property
    def topk(self) -> int:
        """Experts per token."""
        return self.law.topk

    @property
    def alike(self) -> bool:
        """Counts are alike; links may grow with depth and move no count."""
        return True

    @property
    def independent(self) -> bool:
        """Tokens have the step's topic in common, which no draw decides."""
        return True

    @property
    def period(self) -> int:
        """Steps a topic prevails."""
        return self.hold if self.topics > 1 and self.together > 0 else 0

    def only(self, layers: Sequence[int]) -> Topical:
        """Describe some of the layers."""
        rows = (np.arange(self.topics)[:, None] * self.layers + list(layers)).ravel()
        return replace(
            self, law=replace(self.law, weights=self.law.weights[rows]), links=self.links.only(layers), recipe=None
        )

    def topic(self, step: int) -> int:
        """Which topic prevails at a step."""
        key = np.random.SeedSequence(self.seed, spawn_key=(step // self.hold,))
        return int(np.random.Generator(np.random.PCG64(key)).integers(self.topics))

    def shares(self, step: int) -> Float[np.ndarray, "layer expert"]:
        """Return the shares over all topics: what a placement made from a long history knows."""
        return self._shares

    def draw(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer rank expert"]:
        """Deal tokens to topics, draw each topic's counts, and add them up."""
        return np.asarray(self._counts(self._about(tokens, step, rng), rng).sum(axis=0))

    def assign(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "layer token topk"]:
        """Draw each topic's sets and put them in order; a rank's tokens of one topic follow one another."""
        about = self._about(tokens, step, rng)
        counts = self._counts(about, rng)
        topic_of_token = np.repeat(np.tile(np.arange(self.topics), len(tokens)), about.T.ravel())
        chosen = np.empty((self.layers, int(tokens.sum()), self.topk), dtype=np.int64)
        for topic, part in enumerate(about):
            thoughts = self.links.thoughts(part, rng)
            its = topic_of_token == topic
            for layer in range(self.layers):
                sets = self.law.choices(topic * self.layers + layer, counts[topic, layer], part, rng)
                chosen[layer, its] = self.links.ordered(layer, sets, part, thoughts, rng)
        return chosen

    def distinct(self, group_of_expert: Int[np.ndarray, "expert"]) -> Float[np.ndarray, "layer"]:
        """Take the mean over topics."""
        return np.asarray(self._by_topic(self.law.touched(group_of_expert)).mean(axis=0))

    @cached_property
    def _shares(self) -> Float[np.ndarray, "layer expert"]:
        shares = np.asarray(self._by_topic(self.law.inclusion()).mean(axis=0) / self.topk)
        shares.flags.writeable = False
        return shares

    def _about(
        self, tokens: Int[np.ndarray, "rank"], step: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "topic rank"]:
        """Deal each rank's tokens to topics."""
        chance = np.full(self.topics, (1 - self.together) / self.topics)
        chance[self.topic(step)] += self.together
        return np.asarray(rng.multinomial(tokens, chance).T)

    def _counts(
        self, about: Int[np.ndarray, "topic rank"], rng: np.random.Generator
    ) -> Int[np.ndarray, "topic layer rank expert"]:
        """Draw the counts of every topic's tokens."""
        return self._by_topic(self.law.counts(np.repeat(about, self.layers, axis=0), rng))

    def _by_topic(self, rows: Shaped[np.ndarray, "row *of"]) -> Shaped[np.ndarray, "topic layer *of"]:
        """Tell the topics' rows apart."""
        return rows.reshape(self.topics, -1, *rows.shape[1:])


def topical(recipe: Recipe, layers: int, limits: Limits, links: Links) -> Topical:
    """Make topics whose shares have spread `tilt` each and `cv` over all of them.

    Layers are alike but for the experts' names.

    Raises
    ------
    WorkloadError
        No such topics: see `topic_shares`.
    """
    experts, topk = limits.experts, limits.topk
    shares = topic_shares(experts, topk, cv=recipe.cv, tilt=recipe.tilt or recipe.cv, topics=recipe.topics)
    rng = np.random.Generator(np.random.PCG64(recipe.seed))
    names = np.array([rng.permutation(experts) for _ in range(layers)])
    named = shares[:, names].reshape(-1, experts)
    law = with_shares(named, topk, groups=limits.groups, group_topk=limits.group_topk, tolerance=_CLOSE).law
    return Topical(
        law=law,
        topics=recipe.topics,
        together=recipe.together,
        hold=recipe.hold,
        links=links,
        seed=recipe.seed,
        recipe=recipe,
    )


def topic_shares(experts: int, topk: int, *, cv: float, tilt: float, topics: int) -> Float[np.ndarray, "topic expert"]:
    """Lay out shares of spread `tilt` in every topic whose mean over topics has spread `cv`.

    Log popularity is a part that all topics have in common and a part of the topic's own; over the topics an expert
    goes through equally spaced quantiles of the latter, so that what is hot in one is cold in others.

    Raises
    ------
    WorkloadError
        A topic would be less skewed than all together, more than `topk` different experts a token allow, or so skewed
        that so few topics don't average out.

    Examples
    --------
    >>> shares = topic_shares(64, 8, cv=0.5, tilt=0.8, topics=8)
    >>> spread = shares.std(axis=1) / shares.mean(axis=1)
    >>> round(float(spread.mean()), 6), round(float(shares.mean(axis=0).std() * 64), 3)
    (0.8, 0.5)
    """
    lasting = normal_quantiles(experts)
    own = np.random.Generator(np.random.PCG64(experts)).permutation(experts)
    turned = (own + np.arange(topics)[:, None] * experts // topics) % experts
    passing = lasting[turned]

    def shares(strength: float, width: float) -> Float[np.ndarray, "topic expert"]:
        popularity = np.exp(width * (np.sqrt(1 - strength**2) * lasting + strength * passing))
        return capped(popularity * topk / popularity.sum(axis=-1, keepdims=True)) / topk

    def as_tilted(strength: float) -> Float[np.ndarray, "topic expert"]:
        """Give the topics' own part its strength, and find the width that gives them their tilt."""
        return shares(strength, crossing(lambda width: _spread(shares(strength, width)) - tilt, 0.0, _WIDEST))

    def averaged_out(strength: float) -> float:
        return cv - _spread(as_tilted(strength).mean(axis=0))

    most = min(_spread(shares(strength, _WIDEST)) for strength in (0.0, 1.0))
    if not cv <= tilt <= most:
        raise _refused(f"{tilt} can't be reached", f"give at least the cv, {cv}, and at most {most:.2f}")
    if tilt == cv:
        return as_tilted(0.0)
    if averaged_out(1.0) < 0:
        raise _refused(f"{tilt} does not average out to a cv of {cv} over {topics} topics", "give more topics")
    return as_tilted(crossing(averaged_out, 0.0, 1.0, tolerance=1e-6))


_WIDEST = 12.0
"""Largest spread of log popularity tried."""

_CLOSE = 1e-4
"""Relative error of a share that will do for numbers known to a few percent."""


def _spread(shares: Float[np.ndarray, "*of expert"]) -> float:
    """Deviation over mean of the experts' shares, averaged over what they are of."""
    return float((shares.std(axis=-1) * shares.shape[-1]).mean())


def _refused(problem: str, remedy: str) -> WorkloadError:
    return WorkloadError("routing", [Fault(path="tilt", problem=problem, remedy=remedy)])
