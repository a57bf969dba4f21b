"""A job at hand that is a sweep: one call, which runs trials on lent workers, and goes on where an earlier one was."""

from collections.abc import Mapping
from typing import Any

from common.messages import SweepRequest
from common.sweep_plan import SweepPlan
from coordinator.architectures import most_probable, prior_probabilities
from coordinator.jobs import SweepSpec
from coordinator.runs import CallRun
from workers.actor import WorkerStatus

STATE = "sweep"  # beside the folders of the attempts


class SweepRun(CallRun):
    """See the module. Whatever ends a call, the next goes on from the state that Ray Tune has stored."""

    def asked(self) -> SweepRequest:
        """See `CallRun`."""
        spec, job = self.job.spec, self.job
        assert isinstance(spec, SweepSpec)
        self.plan = self._resolved(spec.plan)
        return SweepRequest(
            job_id=job.job_id,
            attempt=job.attempt,
            plan=self.plan,
            state_url=f"{self.url.rpartition('/')[0]}/{STATE}",
            result_url=self.url,
        )

    def _resolved(self, plan: SweepPlan) -> SweepPlan:
        """The plan with its study, or with the architectures of the study's prior."""
        chosen = plan.architectures
        if chosen is None:
            return plan.model_copy(update={"study": self.config})
        if chosen.candidates:
            return plan
        assert plan.config.architectures is not None
        probabilities = prior_probabilities(self.base_prior(), self.config)
        found = most_probable(probabilities, self.config.space, plan.config.architectures.top)
        return plan.model_copy(update={"architectures": chosen.model_copy(update={"candidates": found})})

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
