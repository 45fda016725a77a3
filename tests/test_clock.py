import pytest

from moesim.ground.clock import Clock, Event, Interrupt, Steps


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> list[object]:
    return []


def note(clock: Clock, log: list[object], name: str, event: Event) -> None:
    event.callbacks.append(lambda _: log.append((clock.now, name)))


def test_ties_break_by_time_then_priority_then_serial(clock, log):
    note(clock, log, "later", clock.timeout(2.0))
    note(clock, log, "phase 2", clock.phase(2, 1.0))
    note(clock, log, "phase 1, first", clock.phase(1, 1.0))
    note(clock, log, "phase 0, first", clock.timeout(1.0))
    note(clock, log, "phase 1, second", clock.phase(1, 1.0))
    note(clock, log, "phase 0, second", clock.phase(0, 1.0))
    clock.run()
    assert log == [
        (1.0, "phase 0, first"),
        (1.0, "phase 0, second"),
        (1.0, "phase 1, first"),
        (1.0, "phase 1, second"),
        (1.0, "phase 2"),
        (2.0, "later"),
    ]


def test_a_later_phase_waits_for_what_an_earlier_one_adds_at_that_instant(clock, log):
    note(clock, log, "decide", clock.phase(1, 1.0))
    ended = clock.timeout(1.0)
    ended.callbacks.append(lambda _: note(clock, log, "follows at once", clock.timeout(0.0)))
    note(clock, log, "ended", ended)
    clock.run()
    assert [name for _, name in log] == ["ended", "follows at once", "decide"]


def test_processes_start_in_the_order_they_were_made_and_before_any_timeout(clock, log):
    def process(name: str) -> Steps:
        log.append(f"{name} starts")
        yield clock.timeout(0.0)
        log.append(f"{name} ends")

    note(clock, log, "timeout", clock.timeout(0.0))
    for name in ("b", "a"):
        clock.process(process(name))
    clock.run()
    assert log == ["b starts", "a starts", (0.0, "timeout"), "b ends", "a ends"]


def test_a_phase_carries_its_value_into_a_process(clock):
    def process() -> Steps:
        value = yield clock.phase(3, 2.5, "decision")
        return value, clock.now

    assert clock.run(until=clock.process(process())) == ("decision", 2.5)


def test_whoever_waits_for_an_event_wakes_in_the_order_of_waiting(clock, log):
    door = clock.event()

    def guest(name: str) -> Steps:
        log.append((name, (yield door), clock.now))

    def host() -> Steps:
        yield clock.timeout(1.0)
        door.succeed("open")

    for process in (guest("first"), host(), guest("second")):
        clock.process(process)
    clock.run()
    assert log == [("first", "open", 1.0), ("second", "open", 1.0)]


def test_all_of_comes_with_the_last_and_any_of_with_the_first(clock, log):
    def process(event: Event) -> Steps:
        yield event
        log.append(clock.now)

    clock.process(process(clock.all_of([clock.timeout(1.0), clock.timeout(3.0)])))
    clock.process(process(clock.any_of([clock.timeout(1.0), clock.timeout(3.0)])))
    clock.run()
    assert log == [1.0, 3.0]


def test_an_interrupt_comes_before_a_timeout_of_its_instant(clock):
    def sleeper() -> Steps:
        try:
            yield clock.timeout(1.0)
        except Interrupt as interrupt:
            return interrupt.cause
        return "slept"

    def waker() -> Steps:
        yield clock.timeout(1.0)
        asleep.interrupt("woken")

    waking = waker()
    clock.process(waking)
    asleep = clock.process(sleeper())
    assert clock.run(until=asleep) == "woken"


def test_a_run_to_a_time_stops_short_of_what_happens_at_it(clock, log):
    note(clock, log, "at 1", clock.timeout(1.0))
    note(clock, log, "at 2", clock.timeout(2.0))
    clock.run(until=2.0)
    assert (log, clock.now) == ([(1.0, "at 1")], 2.0)
