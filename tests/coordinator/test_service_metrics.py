"""What a coordinator says of its work, by itself; test_dispatcher.py has it at work."""

import pytest
from reference.recorded_metrics import RecordedMetrics

from common.metrics import RetryCause
from coordinator.jobs import FailureReason, Job, MetaTrainSpec
from coordinator.service_metrics import ServiceMetrics

JOB = Job(tenant="lab", study="digits", job_id="1", spec=MetaTrainSpec(), created_s=100.0)


class Staff:
    num_replaced = 4

    @property
    def num_by_state(self) -> dict[str, int]:
        return {"running": 2, "starting": 1, "wanted": 3, "lent": 0, "leaving": 0}


@pytest.fixture
def recorded() -> RecordedMetrics:
    return RecordedMetrics()


@pytest.fixture
def metrics(recorded: RecordedMetrics) -> ServiceMetrics:
    return ServiceMetrics(recorded)


def test_a_jobs_seconds_are_those_since_its_submission(metrics: ServiceMetrics, recorded: RecordedMetrics) -> None:
    metrics.succeeded(JOB, 107.5)
    metrics.succeeded(JOB, 90.0)  # a clock that was set back
    assert recorded.observed == {("job_seconds", "meta_train"): [7.5, 0.0]}


def test_failures_and_retries_are_counted_by_reason_and_cause(
    metrics: ServiceMetrics, recorded: RecordedMetrics
) -> None:
    metrics.failed(JOB, FailureReason.INTERNAL)
    metrics.retried(RetryCause.PAUSED)
    metrics.rejected("not_finite")
    metrics.accepted(3)
    assert recorded.counters == {
        ("jobs_failed", "meta_train", "INTERNAL"): 1,
        ("retries", "paused"): 1,
        ("updates_rejected", "not_finite"): 1,
        ("updates_accepted",): 3,
    }


def test_a_look_tells_of_every_kind_of_job_and_counts_each_replacement_once(
    metrics: ServiceMetrics, recorded: RecordedMetrics
) -> None:
    staff = Staff()
    metrics.look([JOB, JOB], staff, draining=False)
    staff.num_replaced = 5
    metrics.look([JOB], staff, draining=True)
    assert recorded.counters["workers_replaced",] == 5
    assert recorded.gauges["jobs_running", "meta_train"] == 1
    assert recorded.gauges["jobs_running", "adapt"] == 0
    assert recorded.gauges["workers", "starting"] == 1
    assert recorded.gauges["draining",] == 1
