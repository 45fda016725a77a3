"""Serving token by token, as plainly as it can be written: the oracle of the run-length replicas.

It shares nothing with them but the step table and the limits: sequences are objects, every step touches each of them,
and time goes from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.limits import Limits
from moesim.deployments.serving.ticks import NEVER
from moesim.deployments.steps import GRAIN, StepTable


@dataclass
class Sequence:
    """One request and all that has happened to it."""

    number: int
    prompt: int
    output: int
    prefix: int
    session: int
    arrived: int = NEVER
    admitted: int = NEVER
    emitted: list[int] = field(default_factory=list)
    cached: int = 0
    target: int = 0  # tokens its cache must hold before it decodes
    saved: int = 0  # tokens of its cache that are elsewhere, and come along when it is admitted
    swapped: bool = False
    preempted: int = 0
    found: int = 0

    @property
    def decodes(self) -> bool:
        return self.cached >= self.target

    @property
    def finished(self) -> bool:
        return len(self.emitted) == self.output


@dataclass
class Naive:
    """A replica that works one step at a time."""

    table: StepTable
    limits: Limits
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    advancing: list[Sequence] = field(default_factory=list)
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    prefixes: list[tuple[int, int]] = field(default_factory=list)  # sessions and tokens, the last used at the end
    ends: int = NEVER
    steps: int = 0
    most_blocks: int = 0
    coming: tuple[StepTable, int] | None = None
    gaps: list[int] = field(default_factory=list)

    def needed(self, sequence: Sequence) -> int:
        if self.limits.whole:
            tokens = sequence.prompt + sequence.output - 1
        elif sequence.saved:
            tokens = sequence.saved + 1
        else:
            tokens = sequence.prompt + len(sequence.emitted)
        return -(-tokens // self.limits.block)

    def blocks(self, sequence: Sequence) -> int:
        if self.limits.whole:
            return self.needed(sequence)
        return -(-max(sequence.cached, sequence.target) // self.limits.block)

    @property
    def used(self) -> int:
        return sum(map(self.blocks, self.running))

    @property
    def decoding(self) -> list[Sequence]:
        return [each for each in self.running if each.decodes]

    def wanted(self) -> int:
        if self.limits.whole:
            return 0
        return sum(one.cached % self.limits.block == 0 for one in self.decoding)

    def start(self, now: int) -> None:
        groups, width, limits = self.table.groups, self.table.width, self.limits
        waits = 0
        if self.coming:
            (self.table, waits), self.coming = self.coming, None
        stall = self.make_room() + waits
        busy = 0 if limits.prompts_first else len(self.decoding)
        each = limits.budget - -(-busy // groups) * width
        left = groups * limits.budget - busy * width
        free = limits.blocks - self.used - self.wanted()
        self.chunks = []
        for sequence in self.running:
            if not sequence.decodes and min(each, left) > 0:
                left -= self.chunk(sequence, min(each, left))
        looks = not self.decoding or self.steps % limits.poll == 0
        while self.short == 0 and looks and self.waiting and min(each, left) > 0:
            head = self.waiting[0]
            if len(self.running) >= limits.sequences or self.needed(head) > free:
                break
            free -= self.needed(head)
            self.running.append(self.waiting.pop(0))
            head.admitted = min(head.admitted, now)
            if head.saved:
                head.cached = head.target = head.saved
                stall += head.saved * limits.swap * head.swapped
                head.saved, head.swapped = 0, False
            else:
                head.target, head.cached = head.prompt + len(head.emitted), self.hit(head)
                left -= self.chunk(head, min(each, left))
        self.advancing = [] if self.chunks and limits.prompts_first else self.decoding
        context = sum(one.cached for one in self.advancing) * GRAIN
        if self.chunks:
            prompt = sum(size for _, size in self.chunks)
            pairs = sum(size * (one.cached + size / 2) for one, size in self.chunks)
            fullest = max(*(size for _, size in self.chunks), prompt / groups)
            self.ends = now + stall + self.table.mixed(len(self.advancing), context, prompt, pairs, fullest)
        elif self.advancing:
            self.ends = now + stall + self.table.decoding(len(self.advancing), context)

    def hit(self, sequence: Sequence) -> int:
        sequence.found = sequence.prefix
        if sequence.session >= 0:
            kept = [tokens for session, tokens in self.prefixes if session == sequence.session]
            if kept:
                self.prefixes.remove((sequence.session, kept[0]))
                self.prefixes.append((sequence.session, kept[0]))
            sequence.found = min(sum(kept), sequence.prefix)
        return sequence.found

    def keep(self, sequence: Sequence) -> None:
        if sequence.session >= 0:
            kept = [tokens for session, tokens in self.prefixes if session == sequence.session]
            self.prefixes = [entry for entry in self.prefixes if entry[0] != sequence.session]
            self.prefixes.append((sequence.session, max([sequence.prompt + sequence.output - 1, *kept])))
            while sum(tokens for _, tokens in self.prefixes) > self.limits.prefixes:
                self.prefixes.pop(0)

    def chunk(self, sequence: Sequence, room: int) -> int:
        size = min(room, sequence.target - sequence.cached)
        self.chunks.append((sequence, size))
        return size

    def make_room(self) -> int:
        """Take caches from the youngest; ticks of copying them away."""
        self.short, stall = 0, 0
        while self.used + self.wanted() > self.limits.blocks:
            victim = self.running.pop()
            if self.limits.swap and victim.decodes:
                victim.saved, victim.swapped = victim.cached, True
                stall += victim.cached * self.limits.swap
            victim.cached = victim.target = 0
            victim.preempted += 1
            self.waiting.insert(0, victim)
            self.short += 1
        return stall

    def fail(self) -> list[Sequence]:
        """Lose everything, the step that runs too."""
        lost = self.running + self.waiting
        for each in lost:
            each.cached = each.target = each.saved = 0
            each.swapped = False
        self.running, self.waiting, self.prefixes, self.ends = [], [], [], NEVER
        return lost

    def swap(self, table: StepTable, stall: int) -> None:
        """Take another table before the next step, and wait for it; what is idle does not wait."""
        if self.running or self.waiting:
            self.coming = table, stall + (self.coming[1] if self.coming else 0)
        else:
            self.table = table

    def end(self, now: int) -> list[Sequence]:
        advancing, ended = self.advancing, []
        for each in advancing:
            each.cached += 1
            each.target = each.cached
            self.gaps.append(now - each.emitted[-1])
            each.emitted.append(now)
        self.steps += bool(advancing)
        for sequence, size in self.chunks:
            sequence.cached += size
            if sequence.decodes:
                if sequence.emitted:
                    self.gaps.append(now - sequence.emitted[-1])
                sequence.emitted.append(now)
                if sequence.finished or self.limits.hands_over:
                    ended.append(sequence)
        self.most_blocks = max(self.most_blocks, self.used)
        done = sorted((each for each in advancing if each.finished), key=lambda each: each.number) + ended
        for sequence in done:
            self.running.remove(sequence)
            self.keep(sequence)
        self.ends = NEVER
        return done


STALL = 2**36
"""Ticks that a change of step table takes."""

Event = tuple[int, str, int, tuple[int, ...], StepTable | None]
"""When, `fail`, `accept` or `swap`, a stage, replicas of it, and a table."""


def serve_naively(
    first: list[Naive],
    asked: Asked,
    *,
    second: list[Naive] | None = None,
    per_token: int = 0,
    lanes: int = 1,
    script: list[Event] | None = None,
) -> list[Sequence]:
    """Serve all requests, one instant after the other; each goes where fewest are in hand of those that accept."""
    script = list(script or [])
    facts = zip(asked.prompt, asked.output, asked.shared, asked.session, asked.arrival, strict=True)
    sequences = [
        Sequence(number=i, prompt=int(p), output=int(o), prefix=int(c), session=int(s), arrived=int(a))
        for i, (p, o, c, s, a) in enumerate(facts)
    ]
    coming, moving = list(sequences), []
    stages = [first, second or []]
    hands = [[0] * len(stage) for stage in stages]
    accepting = [set(range(len(stage))) for stage in stages]
    stranded: list[list[Sequence]] = [[], []]
    free = [[0] * lanes for _ in first]

    def send(depth: int, each: Sequence) -> None:
        if not accepting[depth]:
            stranded[depth].append(each)
            return
        place = min(sorted(accepting[depth]), key=hands[depth].__getitem__)
        hands[depth][place] += 1
        stages[depth][place].waiting.append(each)

    for each in coming[: asked.concurrency]:
        each.arrived = 0
    let_in = asked.concurrency
    while coming or moving or any(stranded) or any(one.ends < NEVER for stage in stages for one in stage):
        ends = [replica.ends for stage in stages for replica in stage]
        now = min([each.arrived for each in coming[:1]] + [there for there, _ in moving] + ends)
        now = min([now] + [event[0] for event in script[:1]])
        assert now < NEVER
        for depth, stage in enumerate(stages):
            for place, replica in enumerate(stage):
                if replica.ends != now:
                    continue
                for each in replica.end(now):
                    hands[depth][place] -= 1
                    if second and depth == 0 and not each.finished:
                        lane = min(range(lanes), key=free[place].__getitem__)
                        free[place][lane] = max(free[place][lane], now) + per_token * each.cached
                        each.saved = each.cached
                        moving.append((free[place][lane], each))
                    elif asked.concurrency and let_in < len(sequences):
                        sequences[let_in].arrived = now
                        let_in += 1
        while script and script[0][0] == now:
            _, what, depth, replicas, table = script.pop(0)
            if what == "accept":
                accepting[depth] = set(replicas)
                again, stranded[depth] = (stranded[depth], []) if replicas else ([], stranded[depth])
                for each in again:
                    send(depth, each)
            for place in replicas:
                if what == "fail":
                    lost = stages[depth][place].fail()
                    hands[depth][place] = 0
                    for each in lost:
                        send(0, each)
                if what == "swap":
                    stages[depth][place].swap(table, STALL)
        arriving = sorted((each for there, each in moving if there == now), key=lambda each: each.number)
        moving = [(there, each) for there, each in moving if there != now]
        arrivals = [(1, each) for each in arriving]
        while coming and coming[0].arrived == now:
            arrivals.append((0, coming.pop(0)))
        for depth, each in arrivals:
            send(depth, each)
        for stage in stages:
            for replica in stage:
                if replica.ends == NEVER and (replica.waiting or replica.running):
                    replica.start(now)
    return sequences
