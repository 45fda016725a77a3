"""One replica: a state machine over whole ticks that knows no engine. Its events are changes of its batch, not tokens.

Two things make it fast, besides the cache's residues. *Counters*: a request that starts to decode at step s ends at
step s + n, so one heap keyed by step numbers replaces touching every request in every step. *Runs*: steps between
changes have a closed form.
"""

from __future__ import annotations

from array import array
from collections import deque
from heapq import heappop, heappush
from math import isqrt
from struct import Struct

from moesim.deployments.serving.book import Book
from moesim.deployments.serving.cache import Cache
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.prefixes import Prefixes
from moesim.deployments.serving.ticks import NEVER
from moesim.deployments.steps import GRAIN, StepTable

_SHIFT = 32
_MASK = (1 << _SHIFT) - 1

_NO_RUN = (0, 0, 0)

_LOGGED = Struct("6q").pack
"""A run for the log: an array takes bytes in three times as fast as numbers."""

Chunks = list[tuple[int, int]]
"""Requests, and how many tokens of their prompts a step works on."""


class Replica:
    """A replica's batch and queue.

    `add` queues a request; `start` plans the next steps and says when they end; `interrupt` cuts them at the first step
    that ends at or after a time; `end` carries them out and returns the requests that are done. `fail` loses all there
    is, and `swap` changes the step table between two steps.

    `log` holds six numbers per run: start, steps, ticks, decoding sequences, prompt tokens, and how many gaps between
    two tokens were as long as a step. `gaps` holds the others, as pairs of ticks and how many gaps had them.
    """

    __slots__ = (
        "_advancing",
        "_chunks",
        "_copied",
        "_heap",
        "_late",
        "_paused",
        "_prompt",
        "_prompts",
        "_run",
        "_running",
        "_stall",
        "_started",
        "_swapped",
        "book",
        "cache",
        "context",
        "decoding",
        "gaps",
        "limits",
        "log",
        "prefixes",
        "step",
        "table",
        "waiting",
    )

    def __init__(self, table: StepTable, limits: Limits, book: Book) -> None:
        self.table = table
        self.limits = limits
        self.book = book
        self.cache = Cache(limits)
        self.prefixes = Prefixes(limits.prefixes)
        self.waiting: deque[int] = deque()
        self.step = 0  # decode steps so far
        self.decoding = 0  # sequences that decode
        self.context = 0  # what they have cached, grains
        self.log = array("q")
        self.gaps = array("q")
        self._heap: list[int] = []  # (step at which it ends, request); entries of preempted requests are stale
        self._running: dict[int, int] = {}  # admitted requests, oldest first: the step each ends at, -1 in its prompt
        self._prompts: dict[int, int] = {}  # admitted requests whose prompt is not done: its tokens to go
        self._chunks: Chunks = []
        self._prompt = 0  # tokens in them
        self._advancing = 0  # sequences that decode in this run
        self._run = _NO_RUN  # its steps, and the intercept and slope of their ticks
        self._started = 0
        self._stall = 0  # ticks of copying before the next step
        self._swapped: tuple[StepTable, int] | None = None  # the next step's table, and ticks to wait for it
        self._copied: set[int] = set()  # preempted requests whose cache is on the host
        self._late: list[tuple[int, int]] = []  # when sequences last gave a token, and how many, if not a step ago
        self._paused = 0  # how many of them wait for prompts

    @property
    def busy(self) -> bool:
        """Whether it is at work."""
        return self._run[0] > 0

    def add(self, request: int) -> None:
        """Queue a request that fits."""
        self.waiting.append(request)

    def start(self, now: int) -> int:
        """Plan what comes next, and say when it ends; `NEVER` where there is nothing to do."""
        if self._swapped is not None:
            self._take_table()
        changing = self.waiting or self._prompts or self.cache.free < self.decoding
        chunks = self._chunks = self._planned(now) if changing else []
        self._advancing = self.decoding
        if chunks:
            if self.limits.prompts_first:
                self._pause(now)
            duration = self._prompt_step(chunks) + self._stall
            self._run = (1, duration, 0)
        elif self.decoding:
            self._run = self._decode_run()
            duration = self._ticks(self._run[0])
        else:
            return NEVER
        self._stall = 0
        self._started = now
        return now + duration

    def interrupt(self, now: int) -> int:
        """Cut a run for a request that has come; say when it ends now, `NEVER` where that is as before."""
        if self._run[0] == 1 or self._shut():
            return NEVER
        cut = self._steps_until(now)
        return self._cut(cut + -(self.step + cut) % self.limits.poll)

    def swap(self, table: StepTable, stall: int, now: int) -> int:
        """Take another step table after the step that runs, and wait so many ticks before the one that follows.

        One that is idle waits for nothing; one that is to wait already waits for both.
        """
        if not self._running and not self.waiting:
            self.table, self._swapped = table, None
            return NEVER
        self._swapped = (table, stall + (self._swapped[1] if self._swapped else 0))
        return self._cut(self._steps_until(now)) if self._run[0] > 1 else NEVER

    def fail(self, now: int) -> list[int]:
        """Lose all caches, and the step that runs; list the requests in hand, which are worked on again elsewhere."""
        if self.busy:
            self._lose(now)
        last = self._late[0][0] if self._paused else self._started
        lost = [*self._running, *self.waiting]
        for request, ends in self._running.items():
            if ends >= 0:
                self._again(request, self.book.left[request] - (ends - self.step), last)
        for request in self.waiting:
            if self.book.ready[request]:
                self._again(request, 0, last)
        self._copied.clear()
        self.waiting.clear()
        self._running.clear()
        self._prompts.clear()
        self._heap.clear()
        self._late.clear()
        self.decoding = self.context = self._stall = self._paused = 0
        self.cache = Cache(self.limits)
        self.prefixes = Prefixes(self.limits.prefixes)
        return lost

    def end(self, now: int) -> list[int]:
        """Carry out what was planned; list the requests that are done."""
        steps, advancing, chunks = self._run[0], self._advancing, self._chunks
        late = self._end_gaps() if advancing and self._late else 0
        prompt = self._prompt if chunks else 0
        started = self._started
        self.log.frombytes(_LOGGED(started, steps, now - started, advancing, prompt, steps * advancing - late))
        done: list[int] = []
        if advancing:
            cache, before = self.cache, self.step
            cache.free -= cache.taken(before, steps)
            self.step = before + steps
            self.context += steps * advancing * self.limits.growth
            if self._heap[0] >> _SHIFT <= self.step:
                done = self._ended()
        self._run = _NO_RUN
        for request, size in chunks:
            if self._prompt_done(request, size, now):
                done.append(request)
        for request in done:
            self.book.done[request] = now
        return done

    def _take_table(self) -> None:
        """Begin to work by another step table."""
        assert self._swapped is not None
        self.table, stall = self._swapped
        self._stall += stall
        self._swapped = None

    def _steps_until(self, now: int) -> int:
        """Steps of the run up to the first that ends at or after a time."""
        _, intercept, slope = self._run
        elapsed, growth = now - self._started, slope * self.decoding * self.limits.growth
        if growth:
            linear = 2 * (intercept + slope * self.context) - growth
            cut = (isqrt(linear * linear + 8 * growth * elapsed) - linear) // (2 * growth)
        else:
            cut = elapsed // (intercept + slope * self.context)
        while self._ticks(cut) < elapsed:
            cut += 1
        return cut

    def _cut(self, cut: int) -> int:
        """Cut the run to so many steps, one at least; when it ends now, `NEVER` where it is no longer than that."""
        steps, intercept, slope = self._run
        if cut >= steps:
            return NEVER
        self._run = (max(cut, 1), intercept, slope)
        return self._started + self._ticks(self._run[0])

    def _lose(self, now: int) -> None:
        """End the run with the last step that is over by now; prompts in a step that is not are worked on again."""
        self._chunks = []
        steps = self._steps_until(now) if self._advancing and self._run[0] > 1 else 0
        if steps and self._started + self._ticks(steps) > now:
            steps -= 1
        if steps:
            self._cut(steps)
            over = self._started + self._ticks(steps)
            self.end(over)
            self._started = over
        self._run = _NO_RUN

    def _again(self, request: int, past: int, last: int) -> None:
        """Let a request's prompt hold what it has given: in the steps since it joined, and the token given last."""
        book, growth = self.book, self.limits.growth
        book.ready[request] = False
        book.held[request] += past * growth // GRAIN + 1
        book.left[request] -= past + (growth == GRAIN)  # where a step gives more than a token, a prompt gives less
        book.stalled.setdefault(request, last)

    def _ticks(self, steps: int) -> int:
        """Duration of the first steps of the run."""
        _, intercept, slope = self._run
        if not slope:
            return steps * intercept
        grown = self.decoding * self.limits.growth * (steps * (steps - 1) // 2)
        return steps * intercept + slope * (steps * self.context + grown)

    def _planned(self, now: int) -> Chunks:
        """Make room for what decodes, then list the prompt tokens of this step: of prompts begun, then of new ones."""
        limits, cache = self.limits, self.cache
        short = cache.free < self.decoding and self._make_room(now)  # a step takes at most a block for each
        if not self._prompts and (short or not self.waiting):
            return []
        if limits.prompts_first:
            each, left = limits.budget, self.table.groups * limits.budget
        else:
            each, left = self._room()
        chunks: Chunks = []
        for request, size in self._prompts.items():
            part = min(size, each, left)
            if part <= 0:
                break
            chunks.append((request, part))
            left -= part
        if not self.waiting or short or (self.decoding and self.step % limits.poll):
            return chunks
        free = cache.free - cache.taken(self.step)
        while self.waiting and left > 0 < each and len(self._running) < limits.sequences:
            request = self.waiting[0]
            needed = self._needed(request)
            if needed > free:
                break
            free -= needed
            size = self._admit(self.waiting.popleft(), needed, now)
            if size:
                part = min(size, each, left)
                chunks.append((request, part))
                left -= part
        return chunks

    def _room(self) -> tuple[int, int]:
        """New tokens that a step has room for besides those of decoding sequences: in a dp group, and in all."""
        groups, width, budget = self.table.groups, self.table.width, self.limits.budget
        return budget - -(-self.decoding // groups) * width, groups * budget - self.decoding * width

    def _needed(self, request: int) -> int:
        """Blocks to be free for a request's admission: also for its next step, where its cache is there already."""
        book = self.book
        if self.limits.whole:
            return self.cache.blocks(book.last[request])
        return self.cache.blocks(book.held[request] + book.ready[request])

    def _owned(self, request: int, cached: int) -> int:
        """Blocks of an admitted request."""
        return self.cache.blocks(self.book.last[request] if self.limits.whole else cached)

    def _admit(self, request: int, needed: int, now: int) -> int:
        """Take a request in that needs so many blocks; how many tokens of its prompt are to be worked on."""
        book = self.book
        if book.admitted[request] == NEVER:
            book.admitted[request] = now
        if book.ready[request]:
            book.ready[request] = False
            self.cache.free -= self._owned(request, book.held[request])
            if request in self._copied:
                self._copied.remove(request)
                self._stall += self.limits.swap * book.held[request]
            self._late.append((book.stalled.pop(request), 1))
            self._join(request)
            return 0
        self.cache.free -= needed
        self._running[request] = -1
        session, cached = book.session[request], book.shared[request]
        if session >= 0:
            cached = self.prefixes.hit(session, cached)
        book.cached[request] = cached
        self._prompts[request] = size = book.held[request] - cached
        return size

    def _shut(self) -> bool:
        """Whether the head of the queue has to wait for a request to end, however many steps pass."""
        if len(self._running) >= self.limits.sequences or self._needed(self.waiting[0]) > self.cache.free:
            return True
        return not self.limits.prompts_first and self._room()[0] <= 0

    def _prompt_step(self, chunks: Chunks) -> int:
        """Ticks of a step with these chunks of prompts."""
        total, pairs, largest = 0, 0.0, 0
        held, to_go, groups = self.book.held, self._prompts, self.table.groups
        for request, size in chunks:
            total += size
            pairs += size * (held[request] - to_go[request] + size / 2)
            if size > largest:
                largest = size
        self._prompt = total
        fullest = largest if largest * groups > total else total / groups
        return self.table.mixed(self._advancing, self.context, total, pairs, fullest)

    def _decode_run(self) -> tuple[int, int, int]:
        """Steps until a request ends, its cache runs out or the step's law changes, with that law."""
        edge, intercept, slope = self.table.piece(self.decoding, self.context)
        if self._stall:
            return 1, intercept + slope * self.context + self._stall, 0
        grown = self.decoding * self.limits.growth
        steps = self._next_end() - self.step
        if self.context + steps * grown > edge:
            steps = -(-(edge - self.context) // grown)
        if self.waiting and self.limits.poll > 1:
            steps = min(steps, self.limits.poll - self.step % self.limits.poll)
        return min(steps, self.cache.enough_for(self.step, steps)), intercept, slope

    def _pause(self, now: int) -> None:
        """Leave the decoding sequences where they are while prompts are worked on."""
        if self.decoding > self._paused:
            self._late.append((now, self.decoding - self._paused))
            self._paused = self.decoding
        self._advancing = 0

    def _end_gaps(self) -> int:
        """Note the gaps that end with the first step of this run and began before it; how many there are."""
        first, number = self._started + self._ticks(1), 0
        for since, count in self._late:
            self.gaps.extend((first - since, count))
            number += count
        self._late.clear()
        self._paused = 0
        return number

    def _next_end(self) -> int:
        """Step at which the first decoding request ends; forgets those that were preempted."""
        heap, running = self._heap, self._running
        while running.get(heap[0] & _MASK) != heap[0] >> _SHIFT:
            heappop(heap)
        return heap[0] >> _SHIFT

    def _ended(self) -> list[int]:
        """Let the requests go whose last step this was, by number."""
        done, heap, step, running = [], self._heap, self.step, self._running
        left, session = self.book.left, self.book.session
        while heap and heap[0] >> _SHIFT <= step:
            entry = heappop(heap)
            request = entry & _MASK
            if running.get(request) == entry >> _SHIFT:
                self._leave(request, left[request])
                del running[request]
                if session[request] >= 0:
                    self._keep(request)
                done.append(request)
        return done

    def _leave(self, request: int, steps: int) -> None:
        """Take a request that has decoded so many steps out of the batch, and its cache with it."""
        held, cache = self.book.held[request], self.cache
        self.decoding -= 1
        self.context -= held * GRAIN + steps * self.limits.growth
        cache.leave(held + steps, self.step)
        cache.free += self._owned(request, held + steps)

    def _keep(self, request: int) -> None:
        """Keep a request's tokens for later ones of its session."""
        self.prefixes.keep(self.book.session[request], self.book.last[request])

    def _prompt_done(self, request: int, size: int, now: int) -> bool:
        """Work off a part of a prompt; whether the request is done with it."""
        self._prompts[request] -= size
        if self._prompts[request]:
            return False
        del self._prompts[request]
        book = self.book
        if book.first[request] == NEVER:
            book.first[request] = now
        if request in book.stalled:
            self.gaps.extend((now - book.stalled.pop(request), 1))
        if book.left[request] and not self.limits.hands_over:
            self._join(request)
            return False
        self.cache.free += self._owned(request, book.held[request])
        del self._running[request]
        if book.session[request] >= 0:
            self._keep(request)
        return True

    def _join(self, request: int) -> None:
        """Let a request decode from the next step on."""
        held, ends = self.book.held[request], self.step + self.book.left[request]
        self._running[request] = ends
        heappush(self._heap, ends << _SHIFT | request)
        self.decoding += 1
        self.context += held * GRAIN
        self.cache.join(held, self.step)

    def _make_room(self, now: int) -> bool:
        """Take cache from the youngest until what decodes has enough for a step; whether any had to be taken."""
        short = False
        while self.cache.taken(self.step) > self.cache.free:
            self._preempt(*self._running.popitem(), now)
            short = True
        return short

    def _preempt(self, request: int, ends: int, now: int) -> None:
        """Take a request's cache away; it waits first in line."""
        book = self.book
        book.preempted[request] += 1
        self.waiting.appendleft(request)
        if ends < 0:
            del self._prompts[request]
            self.cache.free += self._owned(request, book.held[request])
            return
        past = book.left[request] - (ends - self.step)
        self._leave(request, past)
        book.stalled[request] = now
        if self.limits.swap:
            book.ready[request] = True
            self._copied.add(request)
            self._stall += self.limits.swap * (book.held[request] + past)
        else:
            past += 1  # the token it gave last is part of its prompt now
        book.held[request] += past
        book.left[request] -= past
