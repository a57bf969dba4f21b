"""A job at hand that trains and tests a full network: calls in a row, each from the checkpoint of the one before."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from common.messages import EvaluateRequest, EvaluateResult
from coordinator.jobs import EvaluateSpec
from coordinator.pool import Outcome
from coordinator.runs import Run
from workers.actor import WorkerStatus

# Seconds of training a full network in one call. Between calls others get their turn, and a pause takes effect; far
# below `cluster.task_timeout_s`, after which a call counts as hanging.
EVALUATE_SLICE_S = 120.0


class EvaluateRun(Run):
    """Calls one after the other, each of which trains for a while and goes on from the checkpoint of the one before.

    Another attempt goes on too, from the newest checkpoint that it finds beside its own folder.
    """

    def begin(self) -> None:
        """See `Run`."""
        spec, job = self.job.spec, self.job
        assert isinstance(spec, EvaluateSpec)
        self.config = self.desk.priors.config_of(job.tenant, job.study)
        self.url = self.desk.priors.url_of(job)
        self.pausing = False
        # An attempt goes on where the one before stopped, before its first call says so.
        done = job.progress.get("done")
        self.epochs_done = done if isinstance(done, int) else 0
        self.request = EvaluateRequest(
            job_id=job.job_id,
            attempt=job.attempt,
            genotype=spec.genotype,
            config=spec.config,
            data=spec.data,
            file=spec.file,
            result_url=self.url,
            slice_s=EVALUATE_SLICE_S,
        )
        self.desk.submit(self, job.job_id, self.request, None)

    def take(self, outcome: Outcome) -> None:
        """See `Run`."""
        desk, job = self.desk, self.job
        if outcome.error is not None:
            raise outcome.error
        if outcome.lost:
            desk.send_back(self, outcome.lost, uses_attempt=True)
            return
        found: EvaluateResult = outcome.result
        self.epochs_done = found.epochs_done
        if found.summary is None:
            if self.pausing:
                desk.send_back(self, "paused", uses_attempt=False)
            else:
                desk.submit(self, job.job_id, self.request, None)
            return
        result = {
            "summary": dict(found.summary),
            "artifacts": [asdict(artifact) for artifact in found.artifacts],
            "url": self.url,
        }
        desk.owe(job, lambda: desk.store.succeed(desk.epoch, job, desk.now_s(), result))
        desk.forget(job)

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """See `Run`; counts epochs."""
        status = workers.get(self.job.job_id)
        if status is None:
            return None
        # A call that has only just begun has not read its checkpoint yet.
        self.epochs_done = max(self.epochs_done, status.steps_done)
        found: dict[str, Any] = {"done": self.epochs_done, "total": self.request.config.last_epoch}
        if status.interim is not None:
            found["accuracy"] = status.interim.accuracy
            found["genotype_json"] = status.interim.genotype.to_json()
        elif "accuracy" in self.last_progress:
            found |= {name: self.last_progress[name] for name in ("accuracy", "genotype_json")}
        return found

    def pause(self) -> None:
        """See `Run`: once the call at hand has stored a checkpoint."""
        self.pausing = True

    def give_up(self) -> None:
        """See `Run`."""
        self.desk.abandon(self.job.job_id)
