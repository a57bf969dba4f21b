"""The servicer: checks requests, calls the job store, answers. Blocking calls run on threads of their own."""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from common.config import StudyConfig, validate
from common.errors import (
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    QuotaError,
)
from common.metrics import MetricRecorder
from common.storage import ArtifactFolder
from common.tasks import DatasetFile
from coordinator.api import convert, names
from coordinator.api.bridge import Changes, Commits
from coordinator.api.checks import allowed_file, asked_for, check_limits, check_sources, check_sweep, new_job
from coordinator.api.errors import FieldError
from coordinator.api.few_shot import pixels_name, pixels_of, with_pixels
from coordinator.api.gatekeeper import answers, answers_stream
from coordinator.api.pages import fitting, unfinished_jobs
from coordinator.api.status import service_status
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc
from coordinator.api.uploads import CHUNK_BYTES, Parts, read_header, receive
from coordinator.jobs import AdaptSpec, FewShotSpec, Job, JobSpec, MetaTrainSpec, SweepSpec
from coordinator.settings import ServiceSettings
from coordinator.store.fenced import MAX_PAGE
from coordinator.store.jobs import JobStore
from coordinator.store.records import DatasetRecord, Head, Quota, Study
from coordinator.store.transitions import creation
from workers.data.archives import check_archive
from workers.data.sources import SOURCES

_NUM_THREADS = 32
_WATCH_POLL_S = 2.0
_MAX_TITLE = 200

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """metasearch.v1.SearchService over a job store.

    Args:
        store: of jobs.
        artifacts: where results and uploaded data are.
        settings: limits, allowed URLs.
        logger: hears of what users cannot repair.
        recorder: of metrics.
    """

    def __init__(
        self,
        store: JobStore,
        artifacts: ArtifactFolder,
        settings: ServiceSettings,
        logger: logging.Logger,
        recorder: MetricRecorder,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._settings = settings
        self.logger = logger
        self._recorder = recorder
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="store")
        self._configs: dict[tuple[str, str], StudyConfig] = {}  # studies never change
        self.changes = Changes(store)
        self._commits = Commits(store.ledger)
        self.closing = False
        self.num_open = 0

    def stop_watches(self) -> None:
        """Ends all watches, with a token to resume with."""
        self.closing = True
        self.changes.wake_all()

    async def close(self) -> None:
        """Lets go of threads."""
        self.changes.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Studies

    @answers
    async def CreateStudy(self, request: pb.CreateStudyRequest, tenant: str) -> pb.CreateStudyResponse:
        """See the protocol."""
        study_id = names.checked_id(request.study_id, "study_id")
        config = convert.study_config(request)
        check_sources(config, self._settings.allowed_urls)
        study = Study(tenant=tenant, study=study_id, config=config.model_dump(mode="json"), created_s=time.time())
        if not request.validate_only:
            study = await self._call(self._store.create_study, study, self._settings.quota_of(tenant))
            head = await self._call(self._store.head, tenant, study_id)
            return pb.CreateStudyResponse(study=convert.study_message(study, head))
        return pb.CreateStudyResponse(study=convert.study_message(study, Head(version=0)))

    @answers
    async def GetStudy(self, request: pb.GetStudyRequest, tenant: str) -> pb.GetStudyResponse:
        """See the protocol."""
        study_id = names.study_id(request.name, "name")
        study = await self._call(self._store.get_study, tenant, study_id)
        head = await self._call(self._store.head, tenant, study_id)
        return pb.GetStudyResponse(study=convert.study_message(study, head))

    @answers
    async def ListStudies(self, request: pb.ListStudiesRequest, tenant: str) -> pb.ListStudiesResponse:
        """See the protocol."""
        size, token = names.page_size(request.page_size), names.page_token(request.page_token)
        page = await self._call(self._store.list_studies, tenant, size, token)
        heads = [await self._call(self._store.head, tenant, study.study) for study in page.items]
        studies = [convert.study_message(study, head) for study, head in zip(page.items, heads, strict=True)]
        shown = fitting(studies)
        more = page.items[shown - 1].study if shown < len(studies) else page.next_token
        return pb.ListStudiesResponse(studies=studies[:shown], next_page_token=more)

    # Jobs

    @answers
    async def CreateJob(self, request: pb.CreateJobRequest, tenant: str) -> pb.CreateJobResponse:
        """See the protocol."""
        study_id = names.study_id(request.parent, "parent")
        if request.request_id and not names.UUID4_PATTERN.fullmatch(request.request_id):
            raise FieldError("request_id", f"must be a UUID4, got {request.request_id[:80]!r}")
        config = await self._config(tenant, study_id)
        spec = await self._spec(tenant, study_id, request.spec, config)
        job = new_job(tenant, study_id, spec, request)
        pixels = b""
        if isinstance(spec, FewShotSpec):
            pixels = await self._call(pixels_of, request.spec.few_shot, spec)
            job = with_pixels(job, spec, pixels, self._artifacts.url_of(pixels_name(job)))
        if not request.validate_only:
            quota = self._settings.quota_of(tenant)
            content = asked_for(request, job)
            request_id = request.request_id or None
            transaction, fingerprint = creation(job, request_id, quota, content)
            if pixels:
                await self._call(self._artifacts.write, pixels_name(job), pixels)
            blocked = await self._commits.commit(transaction)
            if blocked is not None:
                if pixels:
                    await self._call(self._artifacts.remove, pixels_name(job))
                job = await self._call(self._store.created, job, request_id, quota, fingerprint, blocked)
        return pb.CreateJobResponse(job=convert.job_message(job))

    @answers
    async def GetJob(self, request: pb.GetJobRequest, tenant: str) -> pb.GetJobResponse:
        """See the protocol."""
        view = await self._call(self._store.get_job, tenant, *names.job_ids(request.name))
        return pb.GetJobResponse(job=convert.job_message(view.job))

    @answers
    async def ListJobs(self, request: pb.ListJobsRequest, tenant: str) -> pb.ListJobsResponse:
        """See the protocol."""
        study_id = names.study_id(request.parent, "parent")
        size, token = names.page_size(request.page_size), names.page_token(request.page_token)
        states = convert.job_states(request.states)
        if study_id == names.ALL_STUDIES:
            return await self._call(unfinished_jobs, self._store, tenant, size, token, states)
        await self._config(tenant, study_id)
        page = await self._call(self._store.list_jobs, tenant, study_id, size, token, states)
        jobs = [convert.job_message(job) for job in page.items]
        shown = fitting(jobs)
        more = page.items[shown - 1].job_id if shown < len(jobs) else page.next_token
        return pb.ListJobsResponse(jobs=jobs[:shown], next_page_token=more)

    @answers
    async def CancelJob(self, request: pb.CancelJobRequest, tenant: str) -> pb.CancelJobResponse:
        """See the protocol."""
        ids = names.job_ids(request.name)
        job = await self._call(self._store.cancel_job, tenant, *ids, time.time())
        return pb.CancelJobResponse(job=convert.job_message(job))

    @answers
    async def PauseJob(self, request: pb.PauseJobRequest, tenant: str) -> pb.PauseJobResponse:
        """See the protocol."""
        job = await self._call(self._store.suspend_job, tenant, *names.job_ids(request.name), True)
        return pb.PauseJobResponse(job=convert.job_message(job))

    @answers
    async def ResumeJob(self, request: pb.ResumeJobRequest, tenant: str) -> pb.ResumeJobResponse:
        """See the protocol."""
        job = await self._call(self._store.suspend_job, tenant, *names.job_ids(request.name), False)
        return pb.ResumeJobResponse(job=convert.job_message(job))

    @answers_stream
    async def WatchJob(self, request: pb.WatchJobRequest, tenant: str) -> AsyncIterator[pb.WatchJobResponse]:
        """See the protocol."""
        study_id, job_id = names.job_ids(request.name)
        seen = names.revision(request.resume_token)
        with self.changes.of(job_id) as changed:
            while True:
                changed.clear()
                view, events = await self._call(self._store.news, tenant, study_id, job_id, seen)
                if view.job.state.is_terminal and view.revision <= seen:
                    yield _watched(view.job, view.revision, state_changed=True)
                    return
                for event in events:
                    seen = event.revision
                    yield _watched(event.job, seen, state_changed=True)
                    if event.job.state.is_terminal:
                        return
                if len(events) == MAX_PAGE:
                    continue
                if view.revision > seen:
                    seen = view.revision
                    yield _watched(view.job, seen, state_changed=False)
                if self.closing:
                    yield pb.WatchJobResponse(job=convert.job_message(view.job), resume_token=f"{seen}", closing=True)
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _WATCH_POLL_S)

    # Priors

    @answers
    async def GetPrior(self, request: pb.GetPriorRequest, tenant: str) -> pb.GetPriorResponse:
        """See the protocol."""
        study_id, version = names.prior_ids(request.name)
        await self._config(tenant, study_id)
        if version is None:
            version = (await self._call(self._store.head, tenant, study_id)).version
        pointer = await self._call(self._store.get_prior, tenant, study_id, version)
        return pb.GetPriorResponse(prior=convert.prior_message(study_id, pointer))

    @answers
    async def ListPriors(self, request: pb.ListPriorsRequest, tenant: str) -> pb.ListPriorsResponse:
        """See the protocol."""
        study_id = names.study_id(request.parent, "parent")
        await self._config(tenant, study_id)
        size, token = names.page_size(request.page_size), names.page_token(request.page_token)
        page = await self._call(self._store.list_priors, tenant, study_id, size, token)
        priors = [convert.prior_message(study_id, pointer) for pointer in page.items]
        return pb.ListPriorsResponse(priors=priors, next_page_token=page.next_token)

    # Data

    @answers
    async def UploadDataset(
        self, requests: AsyncIterator[pb.UploadDatasetRequest], tenant: str
    ) -> pb.UploadDatasetResponse:
        """See the protocol."""
        parts = Parts(requests, self._settings.upload_idle_s)
        header = await read_header(parts, self._settings.max_upload_bytes)
        quota = self._settings.quota_of(tenant)
        await self._call(self._check_room, tenant, header, quota)
        with tempfile.TemporaryDirectory(prefix="metasearch-upload-") as folder:
            path = Path(folder) / f"data{header.suffix}"
            await receive(parts, header, path, self._threads, self._recorder)
            try:
                dataset = await self._call(self._store.get_dataset, tenant, header.sha256)
                return pb.UploadDatasetResponse(dataset=convert.dataset_message(dataset), existed=True)
            except NotFoundError:
                pass
            try:
                await self._call(check_archive, path)
            except InvalidInputError as error:
                text = str(error).replace(str(path), header.title or "the file")
                raise FieldError("chunk", text) from None
            name = f"tenants/{tenant}/datasets/{header.sha256}{header.suffix}"
            await self._call(self._artifacts.put_file, name, path)
        record = DatasetRecord(
            sha256=header.sha256,
            num_bytes=header.num_bytes,
            suffix=header.suffix,
            url=self._artifacts.url_of(name),
            created_s=time.time(),
            title=header.title[:_MAX_TITLE],
        )
        try:
            dataset = await self._call(self._store.add_dataset, tenant, record, quota)
        except QuotaError:  # others of the tenant were faster
            await self._call(self._artifacts.remove, name)
            raise
        return pb.UploadDatasetResponse(dataset=convert.dataset_message(dataset))

    @answers
    async def GetDataset(self, request: pb.GetDatasetRequest, tenant: str) -> pb.GetDatasetResponse:
        """See the protocol."""
        dataset = await self._call(self._store.get_dataset, tenant, names.dataset_id(request.name))
        return pb.GetDatasetResponse(dataset=convert.dataset_message(dataset))

    @answers
    async def ListDatasets(self, request: pb.ListDatasetsRequest, tenant: str) -> pb.ListDatasetsResponse:
        """See the protocol."""
        size, token = names.page_size(request.page_size), names.page_token(request.page_token)
        page = await self._call(self._store.list_datasets, tenant, size, token)
        datasets = [convert.dataset_message(dataset) for dataset in page.items]
        return pb.ListDatasetsResponse(datasets=datasets, next_page_token=page.next_token)

    @answers_stream
    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, tenant: str
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """See the protocol."""
        view = await self._call(self._store.get_job, tenant, *names.job_ids(request.job, "job"))
        artifact = next(
            (found for found in convert.job_message(view.job).artifacts if found.name == request.artifact), None
        )
        if artifact is None or view.job.result is None:
            raise NotFoundError(f"{request.job} has no artifact {request.artifact[:80]!r}")
        if not 0 <= request.offset <= artifact.num_bytes:
            raise FieldError("offset", f"must be from 0 to {artifact.num_bytes}, got {request.offset}")
        yield pb.DownloadArtifactResponse(artifact=artifact)
        folder = ArtifactFolder(str(view.job.result["url"]))
        offset = request.offset
        while offset < artifact.num_bytes:
            chunk = await self._call(folder.read_range, artifact.name, offset, CHUNK_BYTES)
            if not chunk:
                raise CorruptArtifactError(f"artifact {artifact.name} of {request.job} is truncated")
            offset += len(chunk)
            yield pb.DownloadArtifactResponse(chunk=chunk)

    # The service

    @answers
    async def GetServiceStatus(self, request: pb.GetServiceStatusRequest, tenant: str) -> pb.GetServiceStatusResponse:
        """See the protocol."""
        return await self._call(service_status, self._store, tenant, time.time())

    async def _call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def _config(self, tenant: str, study_id: str) -> StudyConfig:
        key = (tenant, study_id)
        if key not in self._configs:
            study = await self._call(self._store.get_study, tenant, study_id)
            self._configs[key] = validate(study.config)
        return self._configs[key]

    async def _spec(self, tenant: str, study_id: str, message: pb.JobSpec, config: StudyConfig) -> JobSpec:
        spec = convert.job_spec(message, config)
        if isinstance(spec, MetaTrainSpec):
            return spec
        if isinstance(spec, FewShotSpec):
            await self._call(self._check_version, tenant, study_id, spec)
            return spec
        if isinstance(spec, SweepSpec) and spec.plan.architectures is None:
            await self._call(check_sweep, spec.plan.config, config, self._settings.allowed_urls)
            return spec
        data = getattr(message, spec.kind).data
        source = data.WhichOneof("source")
        field = f"spec.{spec.kind}.data"
        if source is None:
            raise FieldError(field, "give builtin, dataset or url")
        if source == "builtin":
            if data.builtin not in SOURCES:
                known = ", ".join(SOURCES)
                raise FieldError(f"{field}.builtin", f"must be one of {known}, got {data.builtin[:80]!r}")
            if not isinstance(spec, AdaptSpec):
                return spec
            known_data = next(
                (family.data for family in config.families if family.data.source == spec.choice.data.source), None
            )
            if known_data is not None:  # the same split into seen and unseen classes as in meta-training
                choice = spec.choice.model_copy(update={"data": known_data})
                spec = spec.model_copy(update={"choice": choice})
        elif source == "dataset":
            sha256 = names.dataset_id(data.dataset, f"{field}.dataset")
            dataset = await self._call(self._store.get_dataset, tenant, sha256)
            file = DatasetFile(url=dataset.url, sha256=sha256, suffix=dataset.suffix)
            spec = convert.with_file(spec, dataset.title or f"datasets/{sha256}", file)
        else:
            file = allowed_file(data.url, self._settings.allowed_urls, f"{field}.url")
            spec = convert.with_file(spec, data.url, file)
        if not isinstance(spec, AdaptSpec):
            return spec
        check_limits(spec, config)
        await self._call(self._check_version, tenant, study_id, spec)
        return spec

    def _check_version(self, tenant: str, study_id: str, spec: AdaptSpec | FewShotSpec) -> None:
        version = spec.prior_version
        if version is None:
            return
        head = self._store.head(tenant, study_id)
        if version == 0 and not head.digest:
            return  # made when the first job starts
        try:
            self._store.get_prior(tenant, study_id, version)
        except NotFoundError:
            field = f"spec.{spec.kind}.prior_version"
            raise FieldError(
                field, f"studies/{study_id} has no version {version}; the latest is {head.version}"
            ) from None

    def _check_room(self, tenant: str, header: pb.UploadHeader, quota: Quota) -> None:
        """Refuses what would exceed the quota before it is received; `add_dataset` has the last word."""
        stored = self._store.counts([tenant])[tenant]["bytes"]
        if stored + header.num_bytes <= quota.max_stored_bytes:
            return
        try:
            self._store.get_dataset(tenant, header.sha256)
        except NotFoundError:
            raise QuotaError(
                f"{header.num_bytes} bytes more exceed the {quota.max_stored_bytes} that tenant {tenant} may store"
            ) from None


def _watched(job: Job, revision: int, state_changed: bool) -> pb.WatchJobResponse:
    return pb.WatchJobResponse(job=convert.job_message(job), resume_token=f"{revision}", state_changed=state_changed)
