"""A job at hand that is a sweep: one call, which runs trials on lent workers, and goes on where an earlier one was."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from common.messages import JobResult, SweepRequest
from common.sweep_plan import SweepPlan
from coordinator.architectures import most_probable, prior_probabilities
from coordinator.jobs import SweepSpec
from coordinator.pool import Outcome
from coordinator.runs import Run
from workers.actor import WorkerStatus

STATE = "sweep"  # beside the folders of the attempts


class SweepRun(Run):
    """See the module. Whatever ends a call, the next goes on from the state that Ray Tune has stored."""

    def begin(self) -> None:
        """See `Run`."""
        spec, job = self.job.spec, self.job
        assert isinstance(spec, SweepSpec)
        self.config = self.desk.priors.config_of(job.tenant, job.study)
        self.url = self.desk.priors.url_of(job)
        self.plan = self._resolved(spec.plan)
        request = SweepRequest(
            job_id=job.job_id,
            attempt=job.attempt,
            plan=self.plan,
            state_url=f"{self.url.rpartition('/')[0]}/{STATE}",
            result_url=self.url,
        )
        self.desk.submit(self, job.job_id, request, None)

    def _resolved(self, plan: SweepPlan) -> SweepPlan:
        """The plan with its study, or with the architectures of the study's prior."""
        chosen = plan.architectures
        if chosen is None:
            return plan.model_copy(update={"study": self.config})
        if chosen.candidates:
            return plan
        assert plan.config.architectures is not None and self.job.base_version is not None
        prior = self.desk.priors.load(self.job.tenant, self.job.study, self.job.base_version)
        top = plan.config.architectures.top
        found = most_probable(prior_probabilities(prior, self.config), self.config.space, top)
        return plan.model_copy(update={"architectures": chosen.model_copy(update={"candidates": found})})

    def take(self, outcome: Outcome) -> None:
        """See `Run`."""
        desk, job = self.desk, self.job
        if outcome.error is not None:
            raise outcome.error
        if outcome.lost:
            desk.send_back(self, outcome.lost, uses_attempt=True)
            return
        found: JobResult = outcome.result
        result = {
            "summary": dict(found.summary),
            "artifacts": [asdict(artifact) for artifact in found.artifacts],
            "url": self.url,
        }
        desk.owe(job, lambda: desk.store.succeed(desk.epoch, job, desk.now_s(), result))
        desk.forget(job)

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """See `Run`; counts trials that are over."""
        status = workers.get(self.job.job_id)
        if status is None or not status.metrics:
            return None
        found: dict[str, Any] = {"done": status.steps_done, "total": self.plan.config.num_trials}
        found["metrics"] = dict(status.metrics)
        if "best_value" in status.metrics and self.plan.config.metric == "accuracy":
            found["accuracy"] = status.metrics["best_value"]
        return found

    def pause(self) -> None:
        """See `Run`: at once, as every checkpoint of a trial is stored."""
        self.desk.send_back(self, "paused", uses_attempt=False)

    def give_up(self) -> None:
        """See `Run`."""
        self.desk.abandon(self.job.job_id)
