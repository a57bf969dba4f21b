"""The priors of all studies of a service: pointers in the job store, tensors in the artifact store."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.artifacts import load_prior, remove_prior, save_prior
from common.config import StudyConfig, validate
from common.errors import CorruptArtifactError
from common.intake import DoneTasks, Intake
from common.meta.prior import Prior, initial_prior
from common.storage import ArtifactFolder
from coordinator.jobs import Job
from coordinator.recent_priors import RecentPriors
from coordinator.store.jobs import JobStore
from coordinator.store.records import PriorPointer

ATTEMPT = "attempt-"  # begins the names of the folders of a job's attempts


class StudyPriors:
    """See the module. Those that were asked for last stay in memory.

    Args:
        store: of jobs.
        artifacts: URL of the artifact store.
        now_s: seconds since 1970.
    """

    def __init__(self, store: JobStore, artifacts: str, now_s: Callable[[], float]) -> None:
        self._store = store
        self._artifacts = ArtifactFolder(artifacts)
        self._now_s = now_s
        self._priors: RecentPriors[Prior] = RecentPriors()
        self._configs: dict[tuple[str, str], StudyConfig] = {}

    def url_of(self, job: Job) -> str:
        """Where the results of a job's present attempt go."""
        folder = f"{_folder(job.tenant, job.study)}/jobs/{job.job_id}/{ATTEMPT}{job.epoch}-{job.attempt}"
        return self._artifacts.url_of(folder)

    def config_of(self, tenant: str, study: str) -> StudyConfig:
        """Configuration of a study."""
        if (tenant, study) not in self._configs:
            self._configs[tenant, study] = validate(self._store.get_study(tenant, study).config)
        return self._configs[tenant, study]

    def load(self, tenant: str, study: str, version: int) -> Prior:
        """A version of the prior of a study."""
        pointer = self._store.get_prior(tenant, study, version)
        prior = self._priors.get(pointer.digest)
        if prior is None:
            stem = f"{_folder(tenant, study)}/{pointer.stem}"
            prior = load_prior(self._artifacts, stem, version)
            if prior.digest() != pointer.digest:
                raise CorruptArtifactError(f"{self._artifacts.path(stem)} is not the prior that the job store names")
            self._keep(prior)
        return prior

    def done_tasks(self, tenant: str, study: str, version: int) -> DoneTasks:
        """The tasks that have had their effect by a version of a study in buffered mode."""
        intake = self._store.get_prior(tenant, study, version).intake
        return DoneTasks() if intake is None or intake.done is None else intake.done

    def carried(self, tenant: str, study: str, version: int) -> Intake | None:
        """The intake of a version that follows `version`, and that no task of the study made: the same are done."""
        intake = self._store.get_prior(tenant, study, version).intake
        return None if intake is None else Intake(accepted=(), done=intake.done)

    def save(
        self,
        tenant: str,
        study: str,
        prior: Prior,
        made_by: str,
        metrics: Mapping[str, float],
        intake: Intake | None = None,
    ) -> PriorPointer:
        """Stores the files of a prior under its content's hash: two coordinators cannot overwrite each other's."""
        digest = prior.digest()
        stem = f"priors/{prior.version:08d}-{digest[:16]}"
        save_prior(self._artifacts, f"{_folder(tenant, study)}/{stem}", prior)
        self._keep(prior)
        return PriorPointer(
            version=prior.version,
            digest=digest,
            stem=stem,
            created_s=self._now_s(),
            made_by=made_by,
            metrics={name: float(value) for name, value in metrics.items()},
            intake=intake,
        )

    def run_files(self, tenant: str, study: str, version: int) -> dict[str, bytes]:
        """What a run that came to a version has in its folder, by name: its configuration, the metrics of all versions,
        the files of this one, and where the schedule left it to chance, what each version took in."""
        pointer = self._store.get_prior(tenant, study, version)
        stem = f"{_folder(tenant, study)}/{pointer.stem}"
        records = [record for record in self._store.rounds(tenant, study) if record.version <= version]
        rounds = [{"prior_version": record.version, **record.metrics} for record in records]
        intakes = [
            {"prior_version": record.version, **record.intake.model_dump(mode="json")}
            for record in records
            if record.intake is not None
        ]
        return {
            "config.json": self.config_of(tenant, study).to_json().encode(),
            "rounds.jsonl": _lines(rounds),
            **({"tasks.jsonl": _lines(intakes)} if intakes else {}),
            **{f"{version:08d}{suffix}": self._artifacts.read(stem + suffix) for suffix in (".safetensors", ".json")},
        }

    def make_first(self, epoch: int, tenant: str, study: str) -> None:
        """Gives a study that has none yet version 0 of its prior."""
        prior = initial_prior(self.config_of(tenant, study))
        self._store.set_first_prior(epoch, tenant, study, self.save(tenant, study, prior, "", {}))

    def prune(self, epoch: int, tenant: str, study: str, keep_last: int) -> None:
        """Removes old versions, but none that a job at hand or in the queue starts from."""
        priors: Sequence[PriorPointer] = self._store.list_priors(tenant, study, 1000, "").items
        if len(priors) <= keep_last:
            return
        needed = self._store.needed_versions(tenant, study)
        for pointer in priors[keep_last:]:
            if pointer.version not in needed:
                self._store.forget_prior(epoch, tenant, study, pointer.version)
                remove_prior(self._artifacts, f"{_folder(tenant, study)}/{pointer.stem}")

    def _keep(self, prior: Prior) -> None:
        self._priors.add(prior.digest(), prior, prior.num_bytes)


def _lines(values: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in values).encode()


def _folder(tenant: str, study: str) -> str:
    return f"tenants/{tenant}/studies/{study}"
