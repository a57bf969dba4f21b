"""What must hold of a service's jobs and priors once everything is over, whatever happened in between."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common.artifacts import PriorStore
from common.config import StudyConfig
from common.limits import Limits
from common.messages import JobRequest
from common.meta.prior import Prior, initial_prior
from coordinator import outer, study
from coordinator.jobs import AdaptSpec, Job, JobState
from coordinator.local import LocalExecutor
from coordinator.store.fenced import MAX_PAGE
from coordinator.store.jobs import JobStore
from coordinator.store.records import Page, PriorPointer
from workers.device import choose_device
from workers.job import run_job
from workers.runner import TaskRunner


def all_jobs(store: JobStore, tenant: str, study_id: str) -> list[Job]:
    """Jobs of a study, the youngest first."""
    return list(_all_pages(lambda token: store.list_jobs(tenant, study_id, MAX_PAGE, token)))


def all_priors(store: JobStore, tenant: str, study_id: str) -> list[PriorPointer]:
    """Versions of a study's prior, the latest first."""
    return list(_all_pages(lambda token: store.list_priors(tenant, study_id, MAX_PAGE, token)))


def _all_pages(page_at: Callable[[str], Page]) -> Iterator[Any]:
    token = ""
    while True:
        page = page_at(token)
        yield from page.items
        token = page.next_token
        if not token:
            return


def count_losses(store: JobStore, tenant: str, study_id: str, submitted: Sequence[str]) -> dict[str, int]:
    """Counts what must be zero of the adapt jobs of a study, and says how much there was.

    Args:
        store: of jobs.
        tenant: whose study it is.
        study_id: of the study.
        submitted: names of the jobs that clients know of.
    """
    jobs = {job.name: job for job in all_jobs(store, tenant, study_id)}
    assert len(set(submitted)) == len(submitted) and set(submitted) <= set(jobs)
    succeeded = {
        name: sum(view.job.state is JobState.SUCCEEDED for view in store.events(job.job_id, 0))
        for name, job in jobs.items()
    }
    pointers = list(reversed(all_priors(store, tenant, study_id)))
    contributions = [job.job_id for job in jobs.values() if isinstance(job.spec, AdaptSpec) and job.spec.contribute]
    makers = [pointer.made_by for pointer in pointers[1:]]
    assert [pointer.version for pointer in pointers] == list(range(len(pointers)))
    assert set(makers) <= set(contributions)
    for job in jobs.values():
        if job.result is not None:
            files = Path(str(job.result["url"]).removeprefix("file://"))
            assert (files / "manifest.json").is_file(), f"{job.name} has no results"
    return {
        "jobs": len(jobs),
        "attempts": sum(job.attempt for job in jobs.values()),
        "failures": sum(job.failures for job in jobs.values()),
        "jobs_lost": sum(job.state is not JobState.SUCCEEDED for job in jobs.values()),
        "results_duplicated": sum(count > 1 for count in succeeded.values()),
        "updates": len(makers),
        "updates_lost": len(set(contributions) - set(makers)),
        "updates_applied_twice": len(makers) - len(set(makers)),
    }


def check_lineage(store: JobStore, tenant: str, study_id: str, config: StudyConfig, folder: Path) -> None:
    """Every prior that a contribution made is made again here, from the one before."""
    torch.set_num_threads(1)
    runner, prior = TaskRunner(choose_device()), initial_prior(config)
    for pointer in reversed(all_priors(store, tenant, study_id)):
        if pointer.version:
            spec = store.get_job(tenant, study_id, pointer.made_by).job.spec
            assert isinstance(spec, AdaptSpec)
            request = JobRequest(
                job_id=pointer.made_by,
                attempt=1,
                choice=spec.choice,
                file=None,
                config=config,
                inner=config.adapt.model_copy(update={"steps": spec.steps}),
                version=prior.version,
                derivation=spec.derivation,
                limits=Limits(),
                result_url=str(folder / str(pointer.version)),
                returns_update=True,
            )
            update = run_job(runner, prior, request).update
            assert update is not None
            prior = outer.step(prior, [update], config)
        assert pointer.digest == prior.digest(), f"version {pointer.version}"


def undisturbed_digest(config: StudyConfig, version: int, folder: Path) -> str:
    """The SHA-256 of a version of a study's prior, made in this process, where nothing goes wrong."""
    torch.set_num_threads(1)
    store, executor = PriorStore(folder), LocalExecutor(choose_device())
    made: list[Prior] = []
    study.run(
        study.begin(store, config),
        config,
        executor,
        store,
        [],
        time.monotonic,
        should_stop=lambda: bool(made) and made[-1].version == version,
        on_round=lambda prior, metrics: made.append(prior),
    )
    return made[-1].digest()
