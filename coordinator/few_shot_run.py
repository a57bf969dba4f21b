"""A job at hand that learns from a handful of images: one quick call, which goes between the steps of longer ones."""

from collections.abc import Mapping
from typing import Any

from common.messages import FewShotRequest
from common.meta.prior import Prior
from coordinator.jobs import FewShotSpec
from coordinator.runs import CallRun
from workers.actor import WorkerStatus


class FewShotRun(CallRun):
    """See the module."""

    prior: Prior

    def asked(self) -> FewShotRequest:
        """See `CallRun`."""
        spec, job = self.job.spec, self.job
        assert isinstance(spec, FewShotSpec) and spec.file is not None and job.base_version is not None
        assert self.config.few_shot is not None, "jobs of this kind are refused where the study is of another"
        self.prior = self.base_prior()
        changes = {"test_steps": spec.steps, "evaluation": spec.statistics}
        given = {name: value for name, value in changes.items() if value is not None}
        few_shot = self.config.few_shot.model_copy(update=given)
        return FewShotRequest(
            job_id=job.job_id,
            attempt=job.attempt,
            task=spec.task,
            file=spec.file,
            config=self.config.model_copy(update={"few_shot": few_shot}),
            version=job.base_version,
            seed=spec.seed,
            result_url=self.url,
        )

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """See `Run`; there is no time to tell of it."""
        return None
