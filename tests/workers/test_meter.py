"""What a worker's work is counted by, on a clock of the test."""

import pytest
from reference.recorded_metrics import RecordedMetrics

from workers.meter import Meter


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorded() -> RecordedMetrics:
    return RecordedMetrics()


@pytest.fixture
def meter(recorded: RecordedMetrics, clock: Clock) -> Meter:
    return Meter(recorded, clock)


def test_seconds_at_work_are_those_of_calls_and_not_the_idle_ones(
    meter: Meter, recorded: RecordedMetrics, clock: Clock
) -> None:
    for seconds in (2.0, 3.0):
        clock.now_s += 10.0  # idle
        meter.look()
        with meter.call("adapt"):
            clock.now_s += seconds
    assert recorded.counters["worker_busy_seconds",] == 5.0
    assert recorded.observed == {("adapt_seconds", "adapt"): [2.0, 3.0]}


def test_a_look_counts_what_was_done_of_a_call_that_goes_on(
    meter: Meter, recorded: RecordedMetrics, clock: Clock
) -> None:
    with meter.call("evaluate"):
        clock.now_s += 60.0
        meter.look()
        assert recorded.counters["worker_busy_seconds",] == 60.0
        clock.now_s += 1.0
    assert recorded.counters["worker_busy_seconds",] == 61.0


def test_a_quick_call_within_another_is_no_more_work(meter: Meter, recorded: RecordedMetrics, clock: Clock) -> None:
    with meter.call("run_job"):
        clock.now_s += 1.0
        with meter.call("few_shot"):
            clock.now_s += 2.0
        clock.now_s += 1.0
    assert recorded.counters["worker_busy_seconds",] == 4.0
    assert recorded.observed == {("adapt_seconds", "few_shot"): [2.0], ("adapt_seconds", "run_job"): [4.0]}


def test_a_call_that_raises_counts_as_work_and_has_no_duration(
    meter: Meter, recorded: RecordedMetrics, clock: Clock
) -> None:
    with pytest.raises(ZeroDivisionError), meter.call("adapt"):
        meter.step()
        clock.now_s += 1.0
        raise ZeroDivisionError
    assert recorded.counters == {("worker_steps",): 1, ("worker_busy_seconds",): 1.0}
    assert not recorded.observed


def test_no_step_is_lost_and_not_every_one_is_recorded_by_itself(
    meter: Meter, recorded: RecordedMetrics, clock: Clock
) -> None:
    recordings = 0
    add = recorded.add

    def counted(*arguments: object, **labels: object) -> None:
        nonlocal recordings
        recordings += 1
        add(*arguments, **labels)  # type: ignore[arg-type]

    recorded.add = counted  # type: ignore[method-assign]
    with meter.call("adapt"):
        for _ in range(1000):
            clock.now_s += 1 / 1024
            meter.step()
    assert recorded.counters["worker_steps",] == 1000
    assert recordings < 20
