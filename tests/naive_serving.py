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
    arrived: int = NEVER
    admitted: int = NEVER
    emitted: list[int] = field(default_factory=list)
    cached: int = 0
    target: int = 0  # tokens its cache must hold before it decodes
    preempted: int = 0

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
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    ends: int = NEVER
    most_blocks: int = 0
    begins: int = 0
    tokens: int = 0

    def blocks(self, sequence: Sequence) -> int:
        if self.limits.whole:
            tokens = sequence.prompt + sequence.output - 1
        else:
            tokens = max(sequence.cached, sequence.target)
        return -(-tokens // self.limits.block)

    @property
    def used(self) -> int:
        return sum(map(self.blocks, self.running))

    def start(self, now: int) -> None:
        short = not self.limits.whole and self.make_room()
        decoding = [each for each in self.running if each.decodes]
        groups, width = self.table.groups, self.table.width
        each = self.limits.budget - -(-len(decoding) // groups) * width
        left = groups * self.limits.budget - len(decoding) * width
        self.chunks = []
        wanted = 0 if self.limits.whole else sum(one.cached % self.limits.block == 0 for one in decoding)
        for sequence in self.running:
            if not sequence.decodes and min(each, left) > 0:
                left -= self.chunk(sequence, min(each, left))
        while not short and self.waiting and min(each, left) > 0 and len(self.running) < self.limits.sequences:
            head = self.waiting[0]
            if self.limits.whole:
                blocks = self.blocks(head)
            else:
                blocks = -(-(head.prompt + len(head.emitted)) // self.limits.block)
            if self.used + wanted + blocks > self.limits.blocks:
                break
            self.running.append(self.waiting.pop(0))
            head.target, head.cached = head.prompt + len(head.emitted), head.prefix
            head.admitted = min(head.admitted, now)
            left -= self.chunk(head, min(each, left))
        context = sum(one.cached for one in decoding) * GRAIN
        if self.chunks:
            prompt = sum(size for _, size in self.chunks)
            pairs = sum(size * (one.cached + size / 2) for one, size in self.chunks)
            fullest = max(*(size for _, size in self.chunks), prompt / groups)
            self.ends = now + self.table.mixed(len(decoding), context, prompt, pairs, fullest)
        elif decoding:
            self.ends = now + self.table.decoding(len(decoding), context)
        self.begins = now

    def chunk(self, sequence: Sequence, room: int) -> int:
        size = min(room, sequence.target - sequence.cached)
        self.chunks.append((sequence, size))
        return size

    def make_room(self) -> bool:
        short = False
        while True:
            decoding = [each for each in self.running if each.decodes]
            wanted = sum(each.cached % self.limits.block == 0 for each in decoding)
            if self.used + wanted <= self.limits.blocks:
                return short
            victim = self.running.pop()
            victim.cached = victim.target = 0
            victim.preempted += 1
            self.waiting.insert(0, victim)
            short = True

    def end(self, now: int) -> list[Sequence]:
        decoding = [each for each in self.running if each.decodes]
        for each in decoding:
            each.cached += 1
            each.target = each.cached
            each.emitted.append(now)
        for sequence, size in self.chunks:
            sequence.cached += size
            if sequence.decodes:
                sequence.emitted.append(now)
        self.most_blocks = max(self.most_blocks, self.used)
        done = sorted((each for each in decoding if each.finished), key=lambda each: each.number)
        done += [sequence for sequence, _ in self.chunks if sequence.finished]
        self.running = [each for each in self.running if not each.finished]
        self.tokens += len(decoding) + sum(sequence.decodes for sequence, _ in self.chunks)
        self.ends = NEVER
        return done


def serve_naively(
    replicas: list[Naive], asked: Asked, route: str = "least_loaded", concurrency: int = 0
) -> list[Sequence]:
    """Serve all requests, one instant after the other."""
    sequences = [
        Sequence(number=i, prompt=int(p), output=int(o), prefix=int(c), arrived=int(a))
        for i, (p, o, c, a) in enumerate(zip(asked.prompt, asked.output, asked.shared, asked.arrival, strict=True))
    ]
    coming = list(sequences)
    hand = [0] * len(replicas)
    where: dict[int, int] = {}
    for each in coming[:concurrency]:
        each.arrived = 0
    let_in = concurrency
    while coming or any(replica.ends < NEVER for replica in replicas):
        now = min([each.arrived for each in coming[:1]] + [replica.ends for replica in replicas])
        assert now < NEVER
        for place, replica in enumerate(replicas):
            if replica.ends == now:
                for _ in replica.end(now):
                    hand[place] -= 1
                    if concurrency and let_in < len(sequences):
                        sequences[let_in].arrived = now
                        let_in += 1
        while coming and coming[0].arrived == now:
            each = coming.pop(0)
            place = each.number % len(replicas) if route == "round_robin" else hand.index(min(hand))
            hand[place] += 1
            where[each.number] = place
            replicas[place].waiting.append(each)
        for replica in replicas:
            if replica.ends == NEVER and (replica.waiting or replica.running):
                replica.start(now)
    return sequences
