"""Every move of a job, from every state: the table in the design, row by row, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from common.config import DatasetRef
from common.errors import ConflictError
from common.limits import Limits
from common.tasks import DatasetFile, TaskChoice
from coordinator import jobs
from coordinator.jobs import (
    ACTIVE,
    TERMINAL,
    TRANSITIONS,
    AdaptSpec,
    Failure,
    FailureReason,
    Job,
    JobSpec,
    JobState,
    MetaTrainSpec,
)

EPOCH, ATTEMPT, NOW_S = 3, 2, 1000.0
FAILURE = Failure(reason=FailureReason.INVALID_INPUT, message="no images")
ADAPT = AdaptSpec(choice=TaskChoice(data=DatasetRef(source="digits"), image_size=8, classes=5))

SPECS: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)


def job_in(state: JobState, **changes: Any) -> Job:
    """A job that was started twice, in any state; its deadline for waiting has passed."""
    job = Job(
        tenant="lab",
        study="glyphs",
        job_id="j1",
        spec=MetaTrainSpec(),
        state=state,
        attempt=ATTEMPT,
        failures=1,
        epoch=EPOCH,
        created_s=900.0,
        started_s=910.0,
        queue_deadline_s=950.0,
        finished_s=995.0 if state in TERMINAL else None,
        progress={"done": 3, "total": 8},
    )
    return job.model_copy(update=changes)


Move = Callable[[Job], Job]
MOVES: dict[str, Move] = {
    "start": lambda job: jobs.started(job, EPOCH, NOW_S, 7),
    "report": lambda job: jobs.reported(job, EPOCH, ATTEMPT, {"done": 4}),
    "requeue": lambda job: jobs.requeued(job, EPOCH, ATTEMPT, NOW_S, 5.0, True, "worker died"),
    "drain": lambda job: jobs.requeued(job, EPOCH, ATTEMPT, NOW_S, 0.0, False, "drained"),
    "succeed": lambda job: jobs.succeeded(job, EPOCH, ATTEMPT, NOW_S, {"accuracy": 0.5}),
    "fail": lambda job: jobs.failed(job, EPOCH, ATTEMPT, NOW_S, FAILURE),
    "cancel": lambda job: jobs.cancelled(job, NOW_S),
    "confirm_cancel": lambda job: jobs.cancel_confirmed(job, EPOCH, ATTEMPT, NOW_S),
    "give_up": lambda job: jobs.given_up(job, NOW_S, FAILURE),
    "pause": lambda job: jobs.suspended(job, True),
    "resume": lambda job: jobs.suspended(job, False),
}
HELD = ("report", "requeue", "drain", "succeed", "fail", "confirm_cancel")
"""Moves that only the holder of the present attempt may make."""

QUEUED, RUNNING, CANCELLING = JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING
SUCCEEDED, FAILED, CANCELLED = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED

LEADS_TO: dict[tuple[JobState, str], JobState] = {
    (QUEUED, "start"): RUNNING,
    (RUNNING, "report"): RUNNING,
    (CANCELLING, "report"): CANCELLING,
    (RUNNING, "requeue"): QUEUED,
    (CANCELLING, "requeue"): CANCELLED,
    (RUNNING, "drain"): QUEUED,
    (CANCELLING, "drain"): CANCELLED,
    (RUNNING, "succeed"): SUCCEEDED,
    (RUNNING, "fail"): FAILED,
    (QUEUED, "cancel"): CANCELLED,
    (RUNNING, "cancel"): CANCELLING,
    (CANCELLING, "cancel"): CANCELLING,
    (CANCELLED, "cancel"): CANCELLED,
    (CANCELLING, "confirm_cancel"): CANCELLED,
    (QUEUED, "give_up"): FAILED,
    (QUEUED, "pause"): QUEUED,
    (RUNNING, "pause"): RUNNING,
    (QUEUED, "resume"): QUEUED,
    (RUNNING, "resume"): RUNNING,
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("state", JobState)
def test_a_move_leads_where_the_table_says_or_is_refused(state: JobState, move: str) -> None:
    job = job_in(state)
    before = job.model_dump()
    if (state, move) in LEADS_TO:
        assert MOVES[move](job).state is LEADS_TO[state, move]
    else:
        with pytest.raises(ConflictError, match=r"studies/glyphs/jobs/j1"):
            MOVES[move](job)
    assert job.model_dump() == before


def test_moves_make_the_transitions_there_are_and_all_of_them() -> None:
    made = {(state, to) for (state, _), to in LEADS_TO.items()}
    made.add((RUNNING, MOVES["requeue"](job_in(RUNNING, failures=3)).state))
    staying = {(state, state) for state in JobState} - {(RUNNING, RUNNING)}
    assert made - staying == TRANSITIONS
    assert not any(state in TERMINAL for state, _ in TRANSITIONS)


@pytest.mark.parametrize("state", JobState)
def test_terminal_and_active_states(state: JobState) -> None:
    assert state.is_terminal == (state in (SUCCEEDED, FAILED, CANCELLED))
    assert (state in ACTIVE) == (state in (RUNNING, CANCELLING))


@pytest.mark.parametrize("move", HELD)
@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize(("epoch", "attempt"), [(EPOCH - 1, ATTEMPT), (EPOCH + 1, ATTEMPT), (EPOCH, 1), (EPOCH, 3)])
def test_whoever_does_not_hold_the_attempt_can_do_nothing(state: JobState, move: str, epoch: int, attempt: int) -> None:
    with pytest.raises(ConflictError):
        MOVES[move](job_in(state, epoch=epoch, attempt=attempt))


# QUEUED -> RUNNING


def test_a_start_counts() -> None:
    job = job_in(QUEUED, attempt=0, failures=0, epoch=0, started_s=None, note="resumed")
    started = jobs.started(job, epoch=4, now_s=1000.0, base_version=7)
    expected = {"state": RUNNING, "attempt": 1, "epoch": 4, "started_s": 1000.0}
    assert started == job.model_copy(update=expected | {"base_version": 7, "note": ""})


def test_another_start_keeps_the_first_time_and_version() -> None:
    queued = job_in(QUEUED, spec=ADAPT, base_version=7)
    started = jobs.started(queued, epoch=5, now_s=2000.0, base_version=9)
    assert (started.attempt, started.epoch, started.base_version, started.started_s) == (3, 5, 7, 910.0)
    assert jobs.started(job_in(QUEUED, spec=ADAPT, base_version=0), 5, 2000.0, 9).base_version == 0


@pytest.mark.parametrize("spec", [MetaTrainSpec(), ADAPT.model_copy(update={"contribute": True})])
def test_another_start_of_a_job_that_moves_the_prior_takes_the_version_of_now(spec: MetaTrainSpec | AdaptSpec) -> None:
    queued = job_in(QUEUED, spec=spec, base_version=7)
    assert jobs.started(queued, epoch=5, now_s=2000.0, base_version=9).base_version == 9


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"suspended": True}, "paused"),
        ({"not_before_s": NOW_S + 2.5}, "2.5 s"),
        ({"failures": 4}, "used up its 4"),
        ({"failures": 1, "max_attempts": 1}, "used up its 1"),
    ],
)
def test_a_start_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConflictError, match=why):
        MOVES["start"](job_in(QUEUED, **changes))


def test_a_start_at_the_end_of_the_wait_is_allowed() -> None:
    assert MOVES["start"](job_in(QUEUED, not_before_s=NOW_S)).state is RUNNING


# RUNNING -> RUNNING


def test_a_report_changes_the_progress_alone() -> None:
    job = job_in(RUNNING)
    assert MOVES["report"](job) == job.model_copy(update={"progress": {"done": 4}})


@pytest.mark.parametrize(("state", "suspended"), [(CANCELLING, False), (RUNNING, True)])
def test_a_report_is_told_of_cancel_and_pause(state: JobState, suspended: bool) -> None:
    reported = MOVES["report"](job_in(state, suspended=suspended))
    assert (reported.state, reported.suspended) == (state, suspended)


# RUNNING -> QUEUED


def test_a_lost_attempt_waits_and_uses_one_up() -> None:
    requeued = MOVES["requeue"](job_in(RUNNING))
    assert (requeued.state, requeued.failures, requeued.attempt) == (QUEUED, 2, 2)
    assert (requeued.not_before_s, requeued.note) == (1005.0, "worker died")
    assert (requeued.finished_s, requeued.failure, requeued.result) == (None, None, None)


def test_drains_and_pauses_never_use_attempts_up() -> None:
    job = job_in(QUEUED, failures=0, attempt=0, max_attempts=1)
    for turn in range(20):
        job = jobs.started(job, EPOCH, NOW_S, 0)
        assert job.attempt == turn + 1
        job = jobs.requeued(job, EPOCH, job.attempt, NOW_S, 0.0, uses_attempt=False, note="drained")
    assert (job.state, job.failures, job.attempt) == (QUEUED, 0, 20)


@pytest.mark.parametrize("max_attempts", [1, 2, 4])
def test_the_last_lost_attempt_fails_the_job(max_attempts: int) -> None:
    job = job_in(QUEUED, failures=0, attempt=0, max_attempts=max_attempts)
    for _ in range(max_attempts):
        assert job.state is QUEUED
        job = jobs.started(job, EPOCH, NOW_S, 0)
        job = jobs.requeued(job, EPOCH, job.attempt, NOW_S, 0.0, uses_attempt=True, note="worker died")
    assert (job.state, job.failures, job.attempt, job.finished_s) == (FAILED, max_attempts, max_attempts, NOW_S)
    assert job.failure is not None and job.failure.reason is FailureReason.ATTEMPTS_EXHAUSTED
    assert "worker died" in job.failure.message


def test_a_drain_after_the_last_failure_but_one_does_not_fail_the_job() -> None:
    assert MOVES["drain"](job_in(RUNNING, failures=3)).state is QUEUED


def test_a_job_being_cancelled_that_is_lost_is_cancelled_not_queued() -> None:
    lost = MOVES["requeue"](job_in(CANCELLING, failures=3))
    assert (lost.state, lost.finished_s, lost.failure, lost.failures) == (CANCELLED, NOW_S, None, 3)


# Ends


def test_success_keeps_the_result_and_completes_the_progress() -> None:
    done = MOVES["succeed"](job_in(RUNNING, note="resumed"))
    assert (done.result, done.finished_s, done.note) == ({"accuracy": 0.5}, NOW_S, "")
    assert done.progress == {"done": 8, "total": 8}
    assert MOVES["succeed"](job_in(RUNNING, progress={})).progress == {}


def test_failure_says_why() -> None:
    failed = MOVES["fail"](job_in(RUNNING))
    assert (failed.failure, failed.finished_s, failed.result) == (FAILURE, NOW_S, None)


def test_a_late_commit_of_a_cancelled_job_is_refused() -> None:
    cancelling = jobs.cancelled(job_in(RUNNING), NOW_S)
    for move in ("succeed", "fail"):
        with pytest.raises(ConflictError, match="cancelling"):
            MOVES[move](cancelling)
    assert MOVES["confirm_cancel"](cancelling).finished_s == NOW_S


def test_a_second_cancel_changes_nothing() -> None:
    for state in (CANCELLING, CANCELLED):
        job = job_in(state)
        assert jobs.cancelled(job, 2000.0) is job
    assert jobs.cancelled(job_in(QUEUED), NOW_S).finished_s == NOW_S
    assert jobs.cancelled(job_in(RUNNING), NOW_S).finished_s is None


def test_a_confirmation_does_not_cancel_a_job_that_went_back_to_the_queue() -> None:
    with pytest.raises(ConflictError):
        MOVES["confirm_cancel"](MOVES["requeue"](job_in(RUNNING)))


@pytest.mark.parametrize("deadline_s", [None, NOW_S + 0.1])
def test_nobody_is_given_up_before_the_deadline(deadline_s: float | None) -> None:
    with pytest.raises(ConflictError, match="deadline"):
        MOVES["give_up"](job_in(QUEUED, queue_deadline_s=deadline_s))


def test_whoever_is_given_up_learns_why() -> None:
    given_up = MOVES["give_up"](job_in(QUEUED, queue_deadline_s=NOW_S))
    assert (given_up.state, given_up.failure, given_up.finished_s) == (FAILED, FAILURE, NOW_S)


# Pause


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_pause_and_resume_repeat_without_effect(state: JobState) -> None:
    job = job_in(state)
    assert jobs.suspended(job, False) is job
    paused = jobs.suspended(job, True)
    assert paused == job.model_copy(update={"suspended": True, "note": "paused"})
    assert jobs.suspended(paused, True) is paused
    assert jobs.suspended(paused, False) == job.model_copy(update={"note": "resumed"})


def test_a_paused_job_can_be_cancelled_and_given_up_but_not_started() -> None:
    paused = jobs.suspended(job_in(QUEUED), True)
    assert jobs.cancelled(paused, NOW_S).state is CANCELLED
    assert MOVES["give_up"](paused).state is FAILED
    with pytest.raises(ConflictError, match="paused"):
        MOVES["start"](paused)


# Values


def test_jobs_are_frozen_and_checked() -> None:
    job = job_in(QUEUED)
    with pytest.raises(ValidationError):
        job.state = RUNNING  # type: ignore[misc]
    for wrong in ({"priority": 10}, {"priority": -1}, {"max_attempts": 0}, {"colour": "red"}, {"created_s": "inf"}):
        with pytest.raises(ValidationError):
            Job.model_validate(job.model_dump() | wrong)


@pytest.mark.parametrize(
    ("spec", "moves"),
    [
        (ADAPT, False),
        (ADAPT.model_copy(update={"contribute": True}), True),
        (MetaTrainSpec(), True),
        (MetaTrainSpec(until_version=3), True),
    ],
)
def test_specs_know_whether_they_move_the_prior_and_come_back_from_records(
    spec: AdaptSpec | MetaTrainSpec, moves: bool
) -> None:
    assert spec.moves_prior is moves
    assert SPECS.validate_python(spec.model_dump(mode="json")) == spec
    job = job_in(RUNNING, spec=spec)
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_a_full_adapt_spec_comes_back() -> None:
    spec = AdaptSpec(
        choice=TaskChoice(data=DatasetRef(source="upload"), image_size=8, classes=("a", "b")),
        file=DatasetFile(url="s3://bucket/a.zip", sha256="0" * 64, suffix=".zip"),
        prior_version=0,
        steps=10,
        derivation="top2_pairs",
        limits=Limits(max_params=1000, max_macs=2000),
        contribute=True,
    )
    assert SPECS.validate_python(spec.model_dump(mode="json")) == spec
