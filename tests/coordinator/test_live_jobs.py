"""How long a job will take, by how far it was when."""

from coordinator.live_jobs import Pace


def pace_of(*samples: tuple[float, int]) -> Pace:
    pace = Pace()
    for now_s, done in samples:
        pace.note(now_s, done)
    return pace


def test_the_rest_takes_as_long_as_what_was_done_before() -> None:
    assert pace_of((100.0, 4), (110.0, 5), (120.0, 8)).left_s(20) == 60.0  # 4 in 20 s; 12 are left
    assert pace_of((0.0, 0), (8.0, 4)).left_s(4) == 0.0


def test_nothing_is_told_of_one_that_does_not_get_on() -> None:
    assert pace_of((0.0, 3)).left_s(20) is None
    assert pace_of((0.0, 3), (50.0, 3)).left_s(20) is None
    assert pace_of((5.0, 3), (5.0, 4)).left_s(20) is None, "two answers of one moment"


def test_a_job_that_has_begun_anew_is_measured_anew() -> None:
    assert pace_of((0.0, 0), (10.0, 10), (20.0, 2), (30.0, 4)).left_s(6) == 10.0


def test_only_the_last_two_minutes_count() -> None:
    slow_at_first = [(float(second), 0) for second in range(0, 600, 10)]
    quick = [(600.0 + second, second) for second in range(0, 200, 10)]
    left_s = pace_of(*slow_at_first, *quick).left_s(290)
    assert left_s == 100.0  # 190 are done, one a second
