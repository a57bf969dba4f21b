"""The jobs at hand, and what they leave of the workers' room to meta-training."""

from typing import Any, cast

from coordinator.at_hand import AtHand
from coordinator.evaluate_run import EvaluateRun
from coordinator.few_shot_run import FewShotRun
from coordinator.jobs import AdaptSpec, Job, JobSpec, MetaTrainSpec
from coordinator.runs import AdaptRun, Run
from coordinator.simulation.workload import CHOICE
from coordinator.sweep_run import SweepRun
from coordinator.train_run import BufferedRun, RoundsRun, TrainRun

ANY: Any = None


def a_run(kind: type[Run], job_id: str, spec: JobSpec | None = None) -> Any:
    """Of any kind; only its id matters here."""
    spec = spec or AdaptSpec(choice=CHOICE)
    return kind(ANY, Job(tenant="lab", study="digits", job_id=job_id, spec=spec, created_s=0.0))


def trains(job_id: str, num_calls: int, num_waiting: int) -> RoundsRun:
    run = cast(RoundsRun, a_run(RoundsRun, job_id, MetaTrainSpec()))
    run.keys = {f"{job_id}/{number}" for number in range(num_calls)}
    run.waiting.extend(str(number) for number in range(num_waiting))
    return run


def test_jobs_are_found_by_their_ids_in_the_order_in_which_they_started():
    at_hand = AtHand()
    runs = [a_run(AdaptRun, "b"), trains("a", 0, 0), a_run(SweepRun, "c")]
    for run in runs:
        at_hand.add(run)
    assert list(at_hand) == runs and len(at_hand) == 3
    assert [job.job_id for job in at_hand.jobs] == ["b", "a", "c"]
    assert at_hand.get("c") is runs[2] and "c" in at_hand
    assert at_hand.training == [runs[1]]
    for run in at_hand:  # each may end meanwhile
        at_hand.remove(run.job.job_id)
    at_hand.remove("a")
    assert at_hand.get("a") is at_hand.get(None) is None and "a" not in at_hand
    assert (list(at_hand), at_hand.training, len(at_hand)) == ([], [], 0)


def test_each_job_and_one_that_may_come_have_a_call_of_the_room_up_to_half_of_it():
    at_hand = AtHand()
    training: TrainRun = trains("t", 0, 99)
    at_hand.add(training)
    assert at_hand.more_calls(training, num_workers=4) == 7
    for number, kind in enumerate((AdaptRun, EvaluateRun, AdaptRun, AdaptRun, AdaptRun)):
        at_hand.add(a_run(kind, str(number)))
        assert at_hand.more_calls(training, 4) == max(6 - number, 4)
    for number in range(5):
        at_hand.remove(str(number))
        at_hand.remove(str(number))
    assert at_hand.more_calls(training, 4) == 7


def test_what_has_ways_of_its_own_to_workers_takes_no_room():
    at_hand = AtHand()
    training = trains("t", 0, 99)
    for run in (training, a_run(FewShotRun, "f"), a_run(SweepRun, "s")):
        at_hand.add(run)
    assert at_hand.more_calls(training, 4) == 7


def test_studies_share_what_is_left():
    at_hand = AtHand()
    runs = [trains("a", 2, 9), trains("b", 1, 0), a_run(BufferedRun, "c", MetaTrainSpec())]
    for run in runs:
        at_hand.add(run)
    # Of 7 each has 2. Of theirs b and c leave 1 and 2, as they have nothing to submit now; and 4 are free.
    assert at_hand.more_calls(runs[0], 4) == 3
