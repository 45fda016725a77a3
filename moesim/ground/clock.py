"""The simulated clock: SimPy's only door."""

from collections.abc import Generator
from typing import Any, final

from simpy import Environment, Event, Interrupt, Process
from simpy.events import NORMAL, EventPriority

__all__ = ["Clock", "Event", "Interrupt", "Process", "Steps"]

Steps = Generator[Event, Any, Any]
"""What a process is: a generator that yields the event it waits for and is sent that event's value."""


class _Phase(Event):
    """An event that has already happened, and is only waiting for its turn."""

    def __init__(self, environment: Environment, priority: EventPriority, delay: float, value: object) -> None:
        super().__init__(environment)
        self._ok = True
        self._value = value
        environment.schedule(self, priority, delay)


@final
class Clock:
    """Simulated time in seconds, and the events that move it.

    Events come in order of (time, priority, serial): of two at one instant the one of the earlier phase comes first,
    and within a phase the one scheduled first. Two times are one instant only when they are the same float. A process
    starts, and an interrupt strikes, before anything else of its instant.

    Attributes
    ----------
    process
        Start a generator as a process; the process is itself an event, whose value is what the generator returns.
    timeout
        An event after a delay, carrying a value, in phase 0.
    event
        An event that somebody will ``succeed`` or ``fail``; it then comes in phase 0 of that instant.
    all_of, any_of
        An event that comes once all, or one, of several have come.
    peek, step
        When the next event comes, infinity where there is none; and let it come.
    run
        Run to a time (short of what happens at it), to an event (returning its value), or until nothing is left.

    Examples
    --------
    >>> clock = Clock()
    >>> def copy():
    ...     yield clock.timeout(1.5)
    ...     return "copied"
    >>> clock.run(until=clock.process(copy())), clock.now
    ('copied', 1.5)
    """

    __slots__ = ("_environment", "all_of", "any_of", "event", "peek", "process", "run", "step", "timeout")

    def __init__(self) -> None:
        environment = Environment()
        self._environment = environment
        # Bound once: looking them up through SimPy at every call costs a hot loop three times as much.
        self.process = environment.process
        self.timeout = environment.timeout
        self.event = environment.event
        self.all_of = environment.all_of
        self.any_of = environment.any_of
        self.run = environment.run
        self.peek = environment.peek
        self.step = environment.step

    @property
    def now(self) -> float:
        """The present instant."""
        # SimPy's own property would be a second call, and this is the most read value of any simulation.
        return self._environment._now

    def phase(self, number: int, delay: float = 0.0, value: object = None) -> Event:
        """An event of a later phase comes when nothing of an earlier phase is left at its instant.

        What earlier phases schedule for that same instant still comes first, so a decision taken in a later phase has
        seen everything that happened at its instant.

        Parameters
        ----------
        number
            Which phase, from 0, where timeouts are.
        delay
            How long from now, not negative; 0 is a later phase of this very instant.
        value
            What the event carries.

        Examples
        --------
        >>> clock, log = Clock(), []
        >>> def wait(event, name):
        ...     yield event
        ...     log.append(name)
        >>> for event, name in [(clock.phase(1, 2.0), "share links"), (clock.timeout(2.0), "flow ends")]:
        ...     _ = clock.process(wait(event, name))
        >>> clock.run()
        >>> log
        ['flow ends', 'share links']
        """
        return _Phase(self._environment, EventPriority(NORMAL + number), delay, value)
