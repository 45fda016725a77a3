"""Blocks of a replica's cache. Sequences are counted by residue, so that no step has to touch them."""

from __future__ import annotations

from moesim.deployments.serving.limits import Limits


class Cache:
    """Free blocks, and how many of them decoding sequences will take in the steps to come.

    A sequence takes a block when its cached tokens fill the last one. Cached tokens and step numbers grow together, so
    (cached - step) modulo the block stays the same while a sequence decodes: its residue.
    """

    __slots__ = ("_block", "_residues", "_sequences", "_whole", "free")

    def __init__(self, limits: Limits) -> None:
        self.free = limits.blocks
        self._block = limits.block
        self._whole = limits.whole
        self._sequences = 0
        self._residues = [0] * limits.block

    def blocks(self, tokens: int) -> int:
        """Blocks that so many tokens fill or begin."""
        return -(-tokens // self._block)

    def join(self, cached: int, step: int) -> None:
        """Let a sequence decode from this step on."""
        if not self._whole:
            self._sequences += 1
            self._residues[(cached - step) % self._block] += 1

    def leave(self, cached: int, step: int) -> None:
        """Let a sequence decode no more."""
        if not self._whole:
            self._sequences -= 1
            self._residues[(cached - step) % self._block] -= 1

    def taken(self, step: int, steps: int = 1) -> int:
        """Blocks that decoding sequences take in so many steps."""
        if steps == 1:
            return self._residues[-step % self._block]
        if not self._sequences:
            return 0
        turns, rest = divmod(steps, self._block)
        last = -step % self._block + 1  # residues are met downwards, and begin again at the top
        taken = sum(self._residues[max(last - rest, 0) : last])
        if rest > last:
            taken += sum(self._residues[last - rest :])
        return turns * self._sequences + taken

    def enough_for(self, step: int, wanted: int) -> int:
        """Steps for which free blocks are enough: those wanted or more, or fewer where they are not."""
        if (wanted // self._block + 1) * self._sequences <= self.free:
            return wanted
        # Every sequence takes one block in as many steps as a block has tokens.
        turns, rest = divmod(self.free, self._sequences)
        steps = turns * self._block
        while steps < wanted:
            rest -= self._residues[-(step + steps) % self._block]
            if rest < 0:
                break
            steps += 1
        return steps
