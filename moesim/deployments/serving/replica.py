"""One replica: a state machine over whole ticks that knows no engine. Its events are changes of its batch, not tokens.

Three things make it fast. *Counters*: a request that starts to decode at step s ends at step s + n, so one heap keyed
by step numbers replaces touching every request in every step. *Runs*: steps between changes have a closed form.
*Residues*: sequences are counted by their cached tokens modulo the block, so the step at which cache runs out is known
ahead.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import isqrt

from moesim.deployments.serving.book import Book
from moesim.deployments.serving.ticks import NEVER
from moesim.deployments.steps import GRAIN, StepTable

_SHIFT = 32
_MASK = (1 << _SHIFT) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a replica may hold, over all its dp groups; sequences are dealt evenly to them.

    Attributes
    ----------
    sequences : most sequences admitted
    budget : most new tokens of one dp group in one step
    blocks : blocks of cache
    block : tokens in a block
    largest : most tokens that one sequence may have cached: a sequence lives in one dp group
    whole : cache is set aside to a request's end when it is admitted; otherwise it is taken as needed, and where none
        is left the youngest sequence loses its own and starts again
    growth : tokens a sequence's cache grows by in a step, grains
    """

    sequences: int
    budget: int
    blocks: int
    block: int
    largest: int
    whole: bool = False
    growth: int = GRAIN


class Replica:
    """A replica's batch and queue.

    `add` queues a request; `start` plans the next steps and says when they end; `interrupt` cuts them at the first step
    that ends at or after a time; `end` carries them out and returns the requests that are done.

    `log` holds five numbers per run: start, steps, ticks, decoding sequences, prompt tokens. `gaps` holds the ticks
    between two tokens of a request that was preempted there.
    """

    __slots__ = (
        "_chunks",
        "_heap",
        "_prompts",
        "_residues",
        "_run",
        "_running",
        "_stalled",
        "_started",
        "blocked",
        "book",
        "context",
        "decoding",
        "free",
        "gaps",
        "limits",
        "log",
        "number",
        "step",
        "table",
        "waiting",
    )

    def __init__(self, number: int, table: StepTable, limits: Limits, book: Book) -> None:
        self.number = number
        self.table = table
        self.limits = limits
        self.book = book
        self.waiting: deque[int] = deque()
        self.step = 0
        self.decoding = 0
        self.context = 0
        self.free = limits.blocks
        self.log = array("q")
        self.gaps = array("q")
        self._heap: list[int] = []  # (step at which it ends, request); entries of preempted requests are stale
        self._running: dict[int, int] = {}  # admitted requests, oldest first: the step each ends at, -1 in its prompt
        self._prompts: dict[int, int] = {}  # admitted requests whose prompt is not done: its tokens to go
        self._residues = [0] * limits.block  # decoding sequences by (cached tokens - step) modulo block
        self._chunks: list[tuple[int, int]] = []
        self._run = (0, 0, 0)  # steps, intercept, slope of what is running
        self._started = 0
        self._stalled: dict[int, int] = {}  # preempted requests: when they last gave a token

    @property
    def busy(self) -> bool:
        """Whether it is at work."""
        return self._run[0] > 0

    def add(self, request: int) -> bool:
        """Queue a request; False where its cache can never fit."""
        if self.book.last[request] > self.limits.largest:
            return False
        self.waiting.append(request)
        return True

    def start(self, now: int) -> int:
        """Plan what comes next, and say when it ends; `NEVER` where there is nothing to do."""
        chunks = self._chunks = self._planned(now)
        if chunks:
            self._run = (1, self._prompt_step(chunks), 0)
        elif self.decoding:
            self._run = self._decode_run()
        else:
            return NEVER
        self._started = now
        return now + self._ticks(self._run[0])

    def interrupt(self, now: int) -> int:
        """Cut a run for a request that has come; say when it ends now, `NEVER` where that is as before."""
        steps, intercept, slope = self._run
        if steps == 1 or self._shut():
            return NEVER
        elapsed, growth = now - self._started, slope * self.decoding * self.limits.growth
        linear = 2 * (intercept + slope * self.context) - growth
        cut = (
            (isqrt(linear * linear + 8 * growth * elapsed) - linear) // (2 * growth) if growth else elapsed // intercept
        )
        while self._ticks(cut) < elapsed:
            cut += 1
        if cut >= steps:
            return NEVER
        self._run = (max(cut, 1), intercept, slope)
        return self._started + self._ticks(self._run[0])

    def end(self, now: int) -> list[int]:
        """Carry out what was planned; list the requests that are done."""
        steps, chunks = self._run[0], self._chunks
        self.log.extend((self._started, steps, now - self._started, self.decoding, sum(size for _, size in chunks)))
        if not self.limits.whole:
            self.free -= self._taken(steps)
        self.step += steps
        self.context += steps * self.decoding * self.limits.growth
        self._run = (0, 0, 0)
        done = self._ended()
        done += [request for request, size in chunks if self._prompt_done(request, size, now)]
        for request in done:
            self.book.done[request] = now
        return done

    def _ticks(self, steps: int) -> int:
        """Duration of the first steps of the run."""
        _, intercept, slope = self._run
        if not slope:
            return steps * intercept
        grown = self.decoding * self.limits.growth * (steps * (steps - 1) // 2)
        return steps * intercept + slope * (steps * self.context + grown)

    def _planned(self, now: int) -> list[tuple[int, int]]:
        """Make room for what decodes, then list the prompt tokens of this step: of prompts begun, then of new ones."""
        short = not self.limits.whole and self._make_room(now)
        if not self._prompts and (short or not self.waiting):
            return []
        groups, width = self.table.groups, self.table.width
        each = self.limits.budget - -(-self.decoding // groups) * width
        left = groups * self.limits.budget - self.decoding * width
        chunks: list[tuple[int, int]] = []
        for request, size in self._prompts.items():
            part = min(size, each, left)
            if part <= 0:
                break
            chunks.append((request, part))
            left -= part
        free = self.free - self._taken(1)
        while not short and self.waiting and left > 0 < each and len(self._running) < self.limits.sequences:
            request = self.waiting[0]
            needed = self._blocks(request)
            if needed > free:
                break
            self._admit(self.waiting.popleft(), needed, now)
            free -= needed
            size = self._prompts[request]
            part = min(size, each, left)
            chunks.append((request, part))
            left -= part
        return chunks

    def _admit(self, request: int, blocks: int, now: int) -> None:
        self.free -= blocks
        self._running[request] = -1
        self._prompts[request] = self.book.new[request]
        if self.book.admitted[request] == NEVER:
            self.book.admitted[request] = now

    def _shut(self) -> bool:
        """Whether the head of the queue has to wait for a request to end, however many steps pass."""
        head = self.waiting[0]
        each = self.limits.budget - -(-self.decoding // self.table.groups) * self.table.width
        return len(self._running) >= self.limits.sequences or each <= 0 or self._blocks(head) > self.free

    def _blocks(self, request: int) -> int:
        """Blocks to be free for a request's admission."""
        tokens = self.book.last[request] if self.limits.whole else self.book.held[request]
        return -(-tokens // self.limits.block)

    def _prompt_step(self, chunks: list[tuple[int, int]]) -> int:
        """Ticks of a step with these chunks of prompts."""
        total, pairs, largest = 0, 0.0, 0
        for request, size in chunks:
            before = self.book.held[request] - self._prompts[request]
            total += size
            pairs += size * (before + size / 2)
            largest = max(largest, size)
        fullest = max(largest, total / self.table.groups)
        return self.table.mixed(self.decoding, self.context, total, pairs, fullest)

    def _decode_run(self) -> tuple[int, int, int]:
        """Steps until a request ends, its cache runs out or the step's law changes, with that law."""
        steps = self._next_end() - self.step
        growth = self.decoding * self.limits.growth
        edge, intercept, slope = self.table.piece(self.decoding, self.context)
        steps = min(steps, -(-(edge - self.context) // growth))
        if not self.limits.whole:
            steps = min(steps, self._roomy(steps))
        return steps, intercept, slope

    def _next_end(self) -> int:
        """Step at which the first decoding request ends; forgets those that were preempted."""
        while True:
            step, request = self._heap[0] >> _SHIFT, self._heap[0] & _MASK
            if self._running.get(request) == step:
                return step
            heappop(self._heap)

    def _roomy(self, wanted: int) -> int:
        """Decode steps, up to those wanted at least, for which free cache suffices."""
        block, free = self.limits.block, self.free
        turns, rest = divmod(
            free, self.decoding
        )  # every sequence takes one block in as many steps as a block has tokens
        steps = turns * block
        while steps < wanted:
            rest -= self._residues[-(self.step + steps) % block]
            if rest < 0:
                break
            steps += 1
        return steps

    def _taken(self, steps: int) -> int:
        """Blocks that decoding sequences take in the next steps: one each time their cached tokens fill the last."""
        if self.limits.whole or not self.decoding:
            return 0
        block, residues = self.limits.block, self._residues
        if steps == 1:
            return residues[-self.step % block]
        turns, rest = divmod(steps, block)
        return turns * self.decoding + sum(residues[-(self.step + past) % block] for past in range(rest))

    def _ended(self) -> list[int]:
        """Let the requests go whose last step this was, by number."""
        done = []
        while self._heap and self._heap[0] >> _SHIFT <= self.step:
            entry = heappop(self._heap)
            request = entry & _MASK
            if self._running.get(request) == entry >> _SHIFT:
                self._leave(request, self.book.left[request])
                del self._running[request]
                done.append(request)
        return done

    def _leave(self, request: int, steps: int) -> None:
        """Take a request that has decoded so many steps out of the batch, and its cache with it."""
        book, block = self.book, self.limits.block
        self.decoding -= 1
        self.context -= book.held[request] * GRAIN + steps * self.limits.growth
        if self.limits.whole:
            self.free += self._blocks(request)
        else:
            cached = book.held[request] + steps
            self._residues[(cached - self.step) % block] -= 1
            self.free += -(-cached // block)

    def _prompt_done(self, request: int, size: int, now: int) -> bool:
        """Work off a part of a prompt; whether that was the request's last token."""
        self._prompts[request] -= size
        if self._prompts[request]:
            return False
        del self._prompts[request]
        book = self.book
        if book.first[request] == NEVER:
            book.first[request] = now
        if request in self._stalled:
            self.gaps.append(now - self._stalled.pop(request))
        if not book.left[request]:
            self.free += self._blocks(request)
            del self._running[request]
            return True
        self._join(request)
        return False

    def _join(self, request: int) -> None:
        """Let a request decode from the next step on."""
        held = self.book.held[request]
        ends = self.step + self.book.left[request]
        self._running[request] = ends
        heappush(self._heap, ends << _SHIFT | request)
        self.decoding += 1
        self.context += held * GRAIN
        if not self.limits.whole:
            self._residues[(held - self.step) % self.limits.block] += 1

    def _make_room(self, now: int) -> bool:
        """Take cache from the youngest until what decodes has enough for a step; whether any had to be taken."""
        short = False
        while self._taken(1) > self.free:
            self._preempt(*self._running.popitem(), now)
            short = True
        return short

    def _preempt(self, request: int, ends: int, now: int) -> None:
        """Throw a request's cache away; it waits first in line, and its prompt now holds the tokens it has given."""
        book = self.book
        book.preempted[request] += 1
        self.waiting.appendleft(request)
        if request in self._prompts:
            del self._prompts[request]
            self.free += self._blocks(request)
            return
        past = book.left[request] - (ends - self.step)
        self._leave(request, past)
        self._stalled[request] = now
        book.held[request] += past + 1
        book.new[request] += past + 1
        book.left[request] -= past + 1
