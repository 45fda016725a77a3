"""Running expert caches over recorded accesses: all caches at once, batch after batch, experts in order of number."""

from __future__ import annotations

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
class _Caches:
    """The state of all caches while they run: plain arrays over (cache, expert)."""

    resident: Bool[np.ndarray, "cache expert"]
    used: Int[np.ndarray, "cache expert"]
    inserted: Int[np.ndarray, "cache expert"]
    count: Int[np.ndarray, "cache expert"]
    filled: Int[np.ndarray, "cache"]


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
    steps, caches, experts = accessed.shape
    if not 1 <= slots <= experts:
        raise PolicyError(f"a cache of {slots} slots for {experts} experts; give 1 to {experts}")
    state = _Caches(
        resident=np.zeros((caches, experts), bool),
        used=np.full((caches, experts), -1),
        inserted=np.full((caches, experts), -1),
        count=np.zeros((caches, experts), int),
        filled=np.zeros(caches, int),
    )
    share = accessed.mean(axis=0)
    later = _next_steps(accessed)
    missed = np.zeros_like(accessed)
    for step in range(steps):
        for expert in np.flatnonzero(accessed[step].any(axis=0)):
            users = accessed[step, :, expert]
            rows = np.flatnonzero(users & ~state.resident[:, expert])
            now = step * experts + int(expert)
            if rows.size:
                missed[step, rows, expert] = True
                full = rows[state.filled[rows] == slots]
                if full.size:
                    _make_room(policy, state, full, accessed[step], share, later[step], now)
                state.filled[rows] += 1
                state.resident[rows, expert] = True
                state.inserted[rows, expert] = now
            state.used[users, expert] = now
            state.count[users, expert] += 1
    return CacheRun(accessed=accessed, missed=missed)


def _make_room(
    policy: Buffering,
    state: _Caches,
    rows: Int[np.ndarray, "full"],
    needed: Bool[np.ndarray, "cache expert"],
    share: Float[np.ndarray, "cache expert"],
    later: Int[np.ndarray, "cache expert"],
    now: int,
) -> None:
    """Let one expert of each full cache go: the resident one with the smallest key."""
    experts = needed.shape[1]
    numbers = np.arange(experts)
    due = needed[rows] & (numbers > now % experts)
    seen = CacheView(
        now=now,
        needed=needed[rows],
        used=state.used[rows],
        inserted=state.inserted[rows],
        count=state.count[rows],
        share=share[rows],
        next_use=np.where(due, now - now % experts + numbers, later[rows]),
    )
    key = np.where(state.resident[rows], policy(seen).astype(float), np.inf)
    state.resident[rows, key.argmin(axis=1)] = False
    state.filled[rows] -= 1


def _next_steps(accessed: Bool[np.ndarray, "step cache expert"]) -> Int[np.ndarray, "step cache expert"]:
    """Number of the first use of each expert in a later step than each."""
    steps, _, experts = accessed.shape
    numbers = np.arange(experts)
    later = np.full(accessed.shape, NEVER)
    for step in reversed(range(steps - 1)):
        later[step] = np.where(accessed[step + 1], (step + 1) * experts + numbers, later[step + 1])
    return later
