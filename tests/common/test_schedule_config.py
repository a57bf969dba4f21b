"""Schedules: what may be said of each mode, and that a study which says nothing is as it was."""

import json

import pytest
from reference.priors import smoke_config, tiny_config

from common.artifacts import check_same_config
from common.config import validate
from common.errors import ConflictError, InvalidInputError

BUFFERED = "schedule.mode=buffered"


def test_a_study_that_says_nothing_waits_for_every_task() -> None:
    schedule = smoke_config().schedule
    assert schedule.is_plain
    assert (schedule.mode, schedule.quorum_fraction, schedule.deadline_s) == ("synchronous", 1.0, None)


def test_a_configuration_stored_before_there_were_schedules_is_the_same_study() -> None:
    stored = json.loads(smoke_config().to_json())
    del stored["schedule"]
    assert validate(stored) == smoke_config()
    check_same_config(validate(stored), smoke_config())
    with pytest.raises(ConflictError, match=r"schedule\.mode = 'synchronous', now it is 'buffered'"):
        check_same_config(validate(stored), smoke_config(BUFFERED))


def test_buffered_mode_needs_no_more_than_its_name() -> None:
    config = smoke_config(BUFFERED)
    assert not config.schedule.is_plain
    assert validate(config.model_dump(mode="json")) == config


def test_a_quorum_needs_a_deadline_after_which_it_counts() -> None:
    config = smoke_config("schedule.deadline_s=5", "schedule.quorum_fraction=0.8")
    assert not config.schedule.is_plain


@pytest.mark.parametrize(("staleness", "weight"), [(0, 1.0), (3, 0.5), (8, 1 / 3)])
def test_an_update_weighs_one_over_the_root_of_one_plus_its_staleness(staleness: int, weight: float) -> None:
    assert smoke_config(BUFFERED).schedule.staleness_weight(staleness) == pytest.approx(weight, rel=1e-15)


def test_without_a_power_all_updates_weigh_the_same() -> None:
    schedule = smoke_config(BUFFERED, "schedule.staleness_power=0").schedule
    assert {schedule.staleness_weight(staleness) for staleness in range(9)} == {1.0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quorum_fraction=0.8"], "quorum_fraction is 0.8, and is asked for after a deadline only; set schedule.dead"),
        (["deadline_s=3"], "deadline_s is 3, and a quorum of all tasks waits for them anyway; set schedule.quorum_"),
        (["deadline_s=3", "quorum_fraction=0.4"], "schedule.quorum_fraction is 0.4, and a round fails with fewer upd"),
        (["deadline_s=0", "quorum_fraction=0.8"], "schedule.deadline_s: Input should be greater than 0"),
        (["quorum_fraction=0"], "schedule.quorum_fraction: Input should be greater than 0"),
        (["buffer_size=4"], "buffer_size is 4, mode 'synchronous' has none; leave it out, or set mode to 'buffered'"),
        (["max_staleness=4"], "max_staleness is 4, mode 'synchronous' has none"),
        (["mode=buffered", "deadline_s=3", "quorum_fraction=0.8"], "quorum_fraction is 0.8, mode 'buffered' has none"),
        (["mode=buffered", "buffer_size=0"], "schedule.buffer_size: Input should be greater than or equal to 1"),
        (["mode=buffered", "buffer_size=5000"], "schedule.buffer_size: Input should be less than or equal to 4096"),
        (["mode=eventual"], "schedule.mode: Input should be 'synchronous' or 'buffered'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        smoke_config(*(f"schedule.{override}" for override in overrides))
    assert message in str(raised.value)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_rules_without_weights_go_with_buffers_only_where_staleness_weighs_nothing(rule: str) -> None:
    with pytest.raises(InvalidInputError, match=f"outer.rule '{rule}' has no weights; set schedule.staleness_power"):
        smoke_config(BUFFERED, f"outer.rule={rule}")
    assert smoke_config(BUFFERED, f"outer.rule={rule}", "schedule.staleness_power=0").schedule.mode == "buffered"


def test_a_buffer_that_nothing_ends_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"outer.min_accepted_fraction is 0, so a buffer would wait"):
        smoke_config(BUFFERED, "outer.min_accepted_fraction=0")


def test_a_round_has_the_tasks_of_all_families() -> None:
    assert smoke_config().tasks_per_round == 3
    assert tiny_config().tasks_per_round == 2
