"""A job at hand that trains and tests a full network: calls in a row, each from the checkpoint of the one before."""

from collections.abc import Mapping
from typing import Any

from common.messages import EvaluateRequest, EvaluateResult
from coordinator.jobs import EvaluateSpec
from coordinator.runs import CallRun, interim_of
from workers.actor import WorkerStatus

# Seconds of training a full network in one call. Between calls others get their turn, and a pause takes effect; far
# below `cluster.task_timeout_s`, after which a call counts as hanging.
EVALUATE_SLICE_S = 120.0


class EvaluateRun(CallRun):
    """Calls one after the other, each of which trains for a while and goes on from the checkpoint of the one before.

    Another attempt goes on too, from the newest checkpoint that it finds beside its own folder.
    """

    holds_worker = True
    request: EvaluateRequest
    leaves_checkpoints = True

    def asked(self) -> EvaluateRequest:
        """See `CallRun`."""
        spec, job = self.job.spec, self.job
        assert isinstance(spec, EvaluateSpec)
        self.pausing = False
        # An attempt goes on where the one before stopped, before its first call says so.
        done = job.progress.get("done")
        self.epochs_done = done if isinstance(done, int) else 0
        return EvaluateRequest(
            job_id=job.job_id,
            attempt=job.attempt,
            genotype=spec.genotype,
            config=spec.config,
            data=spec.data,
            file=spec.file,
            result_url=self.url,
            slice_s=EVALUATE_SLICE_S,
        )

    def found(self, result: EvaluateResult) -> None:
        """See `CallRun`."""
        self.epochs_done = result.epochs_done
        if result.summary is not None:
            super().found(result)
        elif self.pausing:
            super().pause()
        else:
            self.call()

    def progress(self, workers: Mapping[str, WorkerStatus]) -> Mapping[str, Any] | None:
        """See `Run`; counts epochs."""
        status = workers.get(self.job.job_id)
        if status is None:
            return None
        # A call that has only just begun has not read its checkpoint yet.
        self.epochs_done = max(self.epochs_done, status.steps_done)
        before = {
            name: self.last_progress[name] for name in ("accuracy", "genotype_json") if name in self.last_progress
        }
        return {
            "done": self.epochs_done,
            "total": self.request.config.last_epoch,
            "worker": status.short_name,
            **(interim_of(status) or before),
        }

    def pause(self) -> None:
        """See `Run`: once the call at hand has stored a checkpoint."""
        self.pausing = True
