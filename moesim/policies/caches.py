"""Running expert caches over recorded accesses: all caches at once, batch after batch, experts in order of number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from moesim.ground.errors import PolicyError
from moesim.policies.protocols import Buffering, CacheView

NEVER = np.iinfo(np.int64).max // 2
"""Number of the next use of what is never used again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CacheRun:
    """What caches did with a record of accesses.

    Attributes
    ----------
    missed : whether each access had to copy its expert in; False where there was no access
    """

    accessed: Bool[np.ndarray, "step cache expert"]
    missed: Bool[np.ndarray, "step cache expert"]

    @property
    def misses(self) -> int:
        """Copies in all."""
        return int(self.missed.sum())

    @property
    def hit_rate(self) -> float:
        """Share of the accesses that found their expert; 1 where there was none."""
        return 1.0 - self.misses / max(int(self.accessed.sum()), 1)


@dataclass(slots=True, kw_only=True, eq=False)
class Caches:
    """Caches while they run, from empty: arrays over (cache, expert). Simulated and executed layers step the same ones.

    Attributes
    ----------
    slots : experts a cache holds
    """

    policy: Buffering
    slots: int
    resident: Bool[np.ndarray, "cache expert"]
    used: Int[np.ndarray, "cache expert"]
    inserted: Int[np.ndarray, "cache expert"]
    count: Int[np.ndarray, "cache expert"]
    filled: Int[np.ndarray, "cache"]
    steps: int = 0

    @classmethod
    def empty(cls, policy: Buffering, caches: int, experts: int, slots: int) -> Caches:
        """Begin with nothing resident.

        Raises
        ------
        PolicyError
            There are more slots than experts, or none.
        """
        if not 1 <= slots <= experts:
            raise PolicyError(f"a cache of {slots} slots for {experts} experts; give 1 to {experts}")
        return cls(
            policy=policy,
            slots=slots,
            resident=np.zeros((caches, experts), bool),
            used=np.full((caches, experts), -1),
            inserted=np.full((caches, experts), -1),
            count=np.zeros((caches, experts), int),
            filled=np.zeros(caches, int),
        )

    def step(
        self,
        accessed: Bool[np.ndarray, "cache expert"],
        share: Float[np.ndarray, "cache expert"],
        later: Int[np.ndarray, "cache expert"],
    ) -> Iterator[tuple[int, Int[np.ndarray, "miss"], Int[np.ndarray, "miss"]]]:
        """Use experts in order of their number.

        Parameters
        ----------
        accessed : which experts each cache uses
        share : of the steps of a whole history that use each, for policies that know one
        later : number of the next use in a later step, for those that know the future

        Yields
        ------
        expert, the caches it missed in, and which expert left each of these for it; -1 where a slot was free
        """
        experts = accessed.shape[1]
        for expert in np.flatnonzero(accessed.any(axis=0)):
            users = accessed[:, expert]
            rows = np.flatnonzero(users & ~self.resident[:, expert])
            now = self.steps * experts + int(expert)
            left = np.full(rows.size, -1)
            if rows.size:
                full = self.filled[rows] == self.slots
                if full.any():
                    left[full] = self._make_room(rows[full], accessed, share, later, now)
                self.filled[rows] += 1
                self.resident[rows, expert] = True
                self.inserted[rows, expert] = now
            self.used[users, expert] = now
            self.count[users, expert] += 1
            yield int(expert), rows, left
        self.steps += 1

    def _make_room(
        self,
        rows: Int[np.ndarray, "full"],
        needed: Bool[np.ndarray, "cache expert"],
        share: Float[np.ndarray, "cache expert"],
        later: Int[np.ndarray, "cache expert"],
        now: int,
    ) -> Int[np.ndarray, "full"]:
        """Let one expert of each full cache go, and say which: the resident one with the smallest key."""
        experts = needed.shape[1]
        numbers = np.arange(experts)
        due = needed[rows] & (numbers > now % experts)
        seen = CacheView(
            now=now,
            needed=needed[rows],
            used=self.used[rows],
            inserted=self.inserted[rows],
            count=self.count[rows],
            share=share[rows],
            next_use=np.where(due, now - now % experts + numbers, later[rows]),
        )
        key = np.where(self.resident[rows], self.policy(seen).astype(float), np.inf)
        leaving = key.argmin(axis=1)
        self.resident[rows, leaving] = False
        self.filled[rows] -= 1
        return np.asarray(leaving)


def run_caches(policy: Buffering, accessed: Bool[np.ndarray, "step cache expert"], slots: int) -> CacheRun:
    """Run caches of so many slots from empty; in each step a cache's experts are used in order of their number.

    Every miss copies its expert in (Huang et al., arXiv 2303.06182: experts run in increasing id), and where all slots
    are taken the policy's key says who leaves.

    Parameters
    ----------
    accessed : which experts each step uses; a cache is a MoE layer of a rank
    slots : experts a cache holds

    Raises
    ------
    PolicyError
        There are more slots than experts, or none.
    """
    caches = Caches.empty(policy, accessed.shape[1], accessed.shape[2], slots)
    share = accessed.mean(axis=0)
    later = next_steps(accessed)
    missed = np.zeros_like(accessed)
    for step, used in enumerate(accessed):
        for expert, rows, _ in caches.step(used, share, later[step]):
            missed[step, rows, expert] = True
    return CacheRun(accessed=accessed, missed=missed)


def next_steps(accessed: Bool[np.ndarray, "step cache expert"]) -> Int[np.ndarray, "step cache expert"]:
    """Number of the first use of each expert in a later step than each."""
    steps, _, experts = accessed.shape
    numbers = np.arange(experts)
    later = np.full(accessed.shape, NEVER)
    for step in reversed(range(steps - 1)):
        later[step] = np.where(accessed[step + 1], (step + 1) * experts + numbers, later[step + 1])
    return later
