"""The servicer: checks requests, calls the job store, answers. Blocking calls run on threads of their own."""

import asyncio
import contextlib
import hashlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar, cast

import grpc
from google.protobuf.message import Message
from grpc import aio
from pydantic import ValidationError

from common.config import StudyConfig, validate
from common.derivation import check_feasible
from common.errors import (
    CorruptArtifactError,
    ForbiddenError,
    InvalidInputError,
    MetaSearchError,
    NotFoundError,
    QuotaError,
)
from common.storage import ArtifactFolder
from common.tasks import DatasetFile
from coordinator.api import convert
from coordinator.api.auth import Caller, Role, Tokens
from coordinator.api.errors import DETAILS_KEY, FieldError, grpc_code, to_status
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc
from coordinator.jobs import AdaptSpec, Job, JobSpec, MetaTrainSpec
from coordinator.settings import ServiceSettings
from coordinator.store.jobs import DatasetRecord, Head, JobStore, Quota, Study, new_job_id
from workers.data.archives import check_archive
from workers.data.sources import FILE_SUFFIXES, SOURCES

CHUNK_BYTES = 1 << 20
DEFAULT_QUEUE_TIMEOUT_S = 86_400.0
MAX_QUEUE_TIMEOUT_S = 366 * 86_400.0
MAX_PAGE_BYTES = 3 << 20
"""A page ends early rather than exceed a message (`gateway.MAX_MESSAGE_BYTES`)."""
SERVICE = "metasearch.v1.SearchService"
_NUM_THREADS = 32
_WATCH_POLL_S = 2.0
_MAX_TITLE = 200

_READ = ("GetStudy", "ListStudies", "GetJob", "ListJobs", "WatchJob", "GetPrior", "ListPriors", "GetDataset")
_READ_TOO = ("ListDatasets", "DownloadArtifact")
_WRITE = ("CreateJob", "CancelJob", "PauseJob", "ResumeJob", "UploadDataset", "CreateStudy")
REQUIRED_ROLES: Mapping[str, Role] = {
    **{f"/{SERVICE}/{name}": Role.VIEWER for name in (*_READ, *_READ_TOO)},
    **{f"/{SERVICE}/{name}": Role.SUBMITTER for name in _WRITE},
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.VIEWER,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Role.VIEWER,
}
"""A method that is not listed here is refused."""
OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""For load balancers and probes, which have no token."""

_caller: ContextVar[Caller] = ContextVar("caller")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Gatekeeper(aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through if its token's role allows it; everything else is refused."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See `grpc.aio.ServerInterceptor`."""
        if details.method in OPEN_METHODS:
            return await continuation(details)
        try:
            metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
            caller = self._tokens.caller_of(metadata.get("authorization"))
            needed = REQUIRED_ROLES.get(details.method)
            if needed is None or caller.role < needed:
                role = "no role" if needed is None else f"role {needed.name.lower()}"
                raise ForbiddenError(f"{details.method} takes {role}; the token has {caller.role.name.lower()}")
        except MetaSearchError as error:
            return _refusal(await continuation(details), error)
        _caller.set(caller)
        return await continuation(details)


def _refusal(handler: grpc.RpcMethodHandler | None, error: MetaSearchError) -> grpc.RpcMethodHandler | None:
    """A handler of the same kind that fails."""
    if handler is None:
        return None  # gRPC answers UNIMPLEMENTED

    async def abort(request: Any, context: Any) -> None:
        await _abort(context, error)

    async def abort_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await _abort(context, error)
        yield  # makes it a stream

    if handler.request_streaming:
        return (
            grpc.stream_stream_rpc_method_handler(abort_stream)
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler(abort)
        )
    return (
        grpc.unary_stream_rpc_method_handler(abort_stream)
        if handler.response_streaming
        else grpc.unary_unary_rpc_method_handler(abort)
    )


async def _abort(context: Any, error: MetaSearchError) -> None:
    status = to_status(error)
    await context.abort(grpc_code(status), status.message, ((DETAILS_KEY, status.SerializeToString()),))


class Changes:
    """Wakes coroutines that wait for a topic of the ledger."""

    def __init__(self, store: JobStore) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._end = store.ledger.subscribe(self._heard)

    @contextlib.contextmanager
    def of(self, topic: str) -> Any:
        """An event that is set when the topic, or anything, may have changed."""
        event = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]

    def wake_all(self) -> None:
        """Wakes everyone."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    def close(self) -> None:
        """Hears no more."""
        self._end()

    def _heard(self, topic: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake, topic)

    def _wake(self, topic: str | None) -> None:
        # News of everything comes often (silence counts as such) and may be none: watchers look for themselves then.
        if topic is not None:
            for event in self._waiting.get(topic, ()):
                event.set()


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """metasearch.v1.SearchService over a job store.

    Args:
        store: of jobs.
        artifacts: where results and uploaded data are.
        settings: limits, allowed URLs.
        logger: hears of what users cannot repair.
    """

    def __init__(
        self, store: JobStore, artifacts: ArtifactFolder, settings: ServiceSettings, logger: logging.Logger
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._settings = settings
        self._logger = logger
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="store")
        self._configs: dict[tuple[str, str], StudyConfig] = {}  # studies never change
        self.changes = Changes(store)
        self.closing = False

    def stop_watches(self) -> None:
        """Ends all watches, with a token to resume with."""
        self.closing = True
        self.changes.wake_all()

    async def close(self) -> None:
        """Lets go of threads."""
        self.changes.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Studies

    async def CreateStudy(self, request: pb.CreateStudyRequest, context: Any) -> pb.CreateStudyResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            study_id = convert.checked_id(request.study_id, "study_id")
            config = convert.study_config(request)
            self._check_sources(config)
            study = Study(tenant=tenant, study=study_id, config=config.model_dump(mode="json"), created_s=time.time())
            if not request.validate_only:
                study = await self._call(self._store.create_study, study)
                head = await self._call(self._store.head, tenant, study_id)
                return pb.CreateStudyResponse(study=convert.study_message(study, head))
            return pb.CreateStudyResponse(study=convert.study_message(study, Head(version=0)))

    async def GetStudy(self, request: pb.GetStudyRequest, context: Any) -> pb.GetStudyResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            study_id = convert.study_id(request.name, "name")
            study = await self._call(self._store.get_study, tenant, study_id)
            head = await self._call(self._store.head, tenant, study_id)
            return pb.GetStudyResponse(study=convert.study_message(study, head))

    async def ListStudies(self, request: pb.ListStudiesRequest, context: Any) -> pb.ListStudiesResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            size, token = convert.page_size(request.page_size), convert.page_token(request.page_token)
            page = await self._call(self._store.list_studies, tenant, size, token)
            heads = [await self._call(self._store.head, tenant, study.study) for study in page.items]
            studies = [convert.study_message(study, head) for study, head in zip(page.items, heads, strict=True)]
            fitting = _fitting(studies)
            more = page.items[fitting - 1].study if fitting < len(studies) else page.next_token
            return pb.ListStudiesResponse(studies=studies[:fitting], next_page_token=more)

    # Jobs

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            study_id = convert.study_id(request.parent, "parent")
            if request.request_id and not convert.UUID4_PATTERN.fullmatch(request.request_id):
                raise FieldError("request_id", f"must be a UUID4, got {request.request_id[:80]!r}")
            config = await self._config(tenant, study_id)
            spec = await self._spec(tenant, study_id, request.spec, config)
            job = _new_job(tenant, study_id, spec, request)
            if not request.validate_only:
                quota = self._settings.quota_of(tenant)
                # The URL of an uploaded file is ours to choose; all else of the request must be the same.
                content = {
                    "spec": request.spec.SerializeToString(deterministic=True).hex(),
                    "priority": job.priority,
                    "needs_gpu": job.needs_gpu,
                    "queue_timeout_s": request.queue_timeout_s,
                    "max_attempts": job.max_attempts,
                }
                job = await self._store.create_job_async(job, request.request_id or None, quota, content)
            return pb.CreateJobResponse(job=convert.job_message(job))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            view = await self._call(self._store.get_job, tenant, *convert.job_ids(request.name))
            return pb.GetJobResponse(job=convert.job_message(view.job))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            study_id = convert.study_id(request.parent, "parent")
            await self._config(tenant, study_id)
            size, token = convert.page_size(request.page_size), convert.page_token(request.page_token)
            states = convert.job_states(request.states)
            page = await self._call(self._store.list_jobs, tenant, study_id, size, token, states)
            jobs = [convert.job_message(job) for job in page.items]
            fitting = _fitting(jobs)
            more = page.items[fitting - 1].job_id if fitting < len(jobs) else page.next_token
            return pb.ListJobsResponse(jobs=jobs[:fitting], next_page_token=more)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            ids = convert.job_ids(request.name)
            job = await self._call(self._store.cancel_job, tenant, *ids, time.time())
            return pb.CancelJobResponse(job=convert.job_message(job))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Any) -> pb.PauseJobResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            job = await self._call(self._store.suspend_job, tenant, *convert.job_ids(request.name), True)
            return pb.PauseJobResponse(job=convert.job_message(job))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Any) -> pb.ResumeJobResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            job = await self._call(self._store.suspend_job, tenant, *convert.job_ids(request.name), False)
            return pb.ResumeJobResponse(job=convert.job_message(job))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        """See the protocol."""
        async with self._answering(context) as tenant:
            study_id, job_id = convert.job_ids(request.name)
            seen = _revision(request.resume_token)
            with self.changes.of(job_id) as changed:
                while True:
                    changed.clear()
                    view = await self._call(self._store.get_job, tenant, study_id, job_id)
                    if view.revision > seen:
                        while events := await self._call(self._store.events, job_id, seen):
                            for event in events:
                                seen = event.revision
                                yield _watched(event.job, event.revision, state_changed=True)
                                if event.job.state.is_terminal:
                                    return
                        if view.revision > seen:
                            seen = view.revision
                            yield _watched(view.job, seen, state_changed=False)
                    elif view.job.state.is_terminal:
                        yield _watched(view.job, view.revision, state_changed=True)
                        return
                    if self.closing:
                        yield pb.WatchJobResponse(
                            job=convert.job_message(view.job), resume_token=f"{seen}", closing=True
                        )
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), _WATCH_POLL_S)

    # Priors

    async def GetPrior(self, request: pb.GetPriorRequest, context: Any) -> pb.GetPriorResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            study_id, version = convert.prior_ids(request.name)
            await self._config(tenant, study_id)
            if version is None:
                version = (await self._call(self._store.head, tenant, study_id)).version
            pointer = await self._call(self._store.get_prior, tenant, study_id, version)
            return pb.GetPriorResponse(prior=convert.prior_message(study_id, pointer))

    async def ListPriors(self, request: pb.ListPriorsRequest, context: Any) -> pb.ListPriorsResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            study_id = convert.study_id(request.parent, "parent")
            await self._config(tenant, study_id)
            size, token = convert.page_size(request.page_size), convert.page_token(request.page_token)
            page = await self._call(self._store.list_priors, tenant, study_id, size, token)
            priors = [convert.prior_message(study_id, pointer) for pointer in page.items]
            return pb.ListPriorsResponse(priors=priors, next_page_token=page.next_token)

    # Data

    async def UploadDataset(
        self, requests: AsyncIterator[pb.UploadDatasetRequest], context: Any
    ) -> pb.UploadDatasetResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            header = await _header(requests, self._settings.max_upload_bytes)
            quota = self._settings.quota_of(tenant)
            await self._call(self._check_room, tenant, header, quota)
            with tempfile.TemporaryDirectory(prefix="metasearch-upload-") as folder:
                path = Path(folder) / f"data{header.suffix}"
                await self._receive(requests, header, path)
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

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            dataset = await self._call(self._store.get_dataset, tenant, convert.dataset_id(request.name))
            return pb.GetDatasetResponse(dataset=convert.dataset_message(dataset))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        """See the protocol."""
        async with self._answering(context) as tenant:
            size, token = convert.page_size(request.page_size), convert.page_token(request.page_token)
            page = await self._call(self._store.list_datasets, tenant, size, token)
            datasets = [convert.dataset_message(dataset) for dataset in page.items]
            return pb.ListDatasetsResponse(datasets=datasets, next_page_token=page.next_token)

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """See the protocol."""
        async with self._answering(context) as tenant:
            view = await self._call(self._store.get_job, tenant, *convert.job_ids(request.job, "job"))
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

    # How a call is answered

    def _answering(self, context: Any) -> contextlib.AbstractAsyncContextManager[str, None]:
        """The caller's tenant; errors of ours become a status, others a log line and INTERNAL. It swallows none."""
        return cast("contextlib.AbstractAsyncContextManager[str, None]", self._answer(context))

    @contextlib.asynccontextmanager
    async def _answer(self, context: Any) -> AsyncIterator[str]:
        try:
            yield _caller.get().tenant
        except MetaSearchError as error:
            await _abort(context, error)
        except (aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            self._logger.exception("a call failed")
            await _abort(context, MetaSearchError("the service failed; its log says why"))

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
        source = message.adapt.data.WhichOneof("source")
        field = "spec.adapt.data"
        if source is None:
            raise FieldError(field, "give builtin, dataset or url")
        if source == "builtin":
            if spec.choice.data.source not in SOURCES:
                known = ", ".join(SOURCES)
                raise FieldError(f"{field}.builtin", f"must be one of {known}, got {spec.choice.data.source[:80]!r}")
            known_data = next(
                (family.data for family in config.families if family.data.source == spec.choice.data.source), None
            )
            if known_data is not None:  # the same split into seen and unseen classes as in meta-training
                choice = spec.choice.model_copy(update={"data": known_data})
                spec = spec.model_copy(update={"choice": choice})
        elif source == "dataset":
            sha256 = convert.dataset_id(message.adapt.data.dataset, f"{field}.dataset")
            dataset = await self._call(self._store.get_dataset, tenant, sha256)
            file = DatasetFile(url=dataset.url, sha256=sha256, suffix=dataset.suffix)
            spec = convert.with_file(spec, dataset.title or f"datasets/{sha256}", file)
        else:
            spec = convert.with_file(spec, message.adapt.data.url, self._allowed_file(message.adapt.data.url))
        self._check_limits(spec, config)
        if spec.prior_version is not None:
            await self._call(self._check_version, tenant, study_id, spec.prior_version)
        return spec

    def _check_version(self, tenant: str, study_id: str, version: int) -> None:
        head = self._store.head(tenant, study_id)
        if version == 0 and not head.digest:
            return  # made when the first job starts
        try:
            self._store.get_prior(tenant, study_id, version)
        except NotFoundError:
            raise FieldError(
                "spec.adapt.prior_version", f"studies/{study_id} has no version {version}; the latest is {head.version}"
            ) from None

    def _check_limits(self, spec: AdaptSpec, config: StudyConfig) -> None:
        classes = spec.choice.classes
        ways = len(classes) if isinstance(classes, tuple) else classes or config.families[0].num_ways
        try:
            check_feasible(spec.limits, config.space, config.network, spec.choice.image_size, ways)
        except InvalidInputError as error:
            name = "max_macs" if spec.limits.max_params is None else "max_params"
            raise FieldError(f"spec.adapt.{name}", str(error)) from None

    def _check_sources(self, config: StudyConfig) -> None:
        """A study may learn from sources that workers know by name, or from allowed URLs; not from just any path."""
        for index, family in enumerate(config.families):
            field = f"config.families.{index}.data"
            if family.data.source not in SOURCES:
                try:
                    self._allowed_file(family.data.source)
                except FieldError:
                    raise FieldError(
                        f"{field}.source",
                        f"must be one of {', '.join(SOURCES)}, or below an allowed URL, "
                        f"got {family.data.source[:200]!r}",
                    ) from None
            if family.data.root is not None and not self._is_allowed(family.data.root):
                raise FieldError(f"{field}.root", f"is not below an allowed URL, got {family.data.root[:200]!r}")

    def _allowed_file(self, url: str) -> DatasetFile:
        field = "spec.adapt.data.url"
        if not self._is_allowed(url):
            allowed = ", ".join(self._settings.allowed_urls) or "none"
            raise FieldError(field, f"is not below an allowed prefix ({allowed}), got {url[:200]!r}")
        suffix = next((suffix for suffix in FILE_SUFFIXES if url.lower().endswith(suffix)), None)
        if suffix is None:
            raise FieldError(field, f"must end in one of {', '.join(FILE_SUFFIXES)}, got {url[:200]!r}")
        return DatasetFile(url=url, suffix=suffix)

    def _is_allowed(self, url: str) -> bool:
        # What could mean another place than it seems to: encoded characters, backslashes, steps upwards, chained URLs.
        if any(mark in url for mark in ("%", "\\", "::", "@", "?", "#", ";")) or len(url) > 2000:
            return False
        if not url.isprintable() or " " in url or ".." in PurePosixPath(url).parts:  # URL parsers drop line breaks
            return False
        return any(url.startswith(prefix) for prefix in self._settings.allowed_urls)

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

    async def _receive(
        self, requests: AsyncIterator[pb.UploadDatasetRequest], header: pb.UploadHeader, path: Path
    ) -> None:
        hasher = hashlib.sha256()
        received = 0
        with path.open("wb") as file:
            async for request in requests:
                if request.WhichOneof("part") != "chunk":
                    raise FieldError("part", "after the header come chunks only")
                received += len(request.chunk)
                if len(request.chunk) > CHUNK_BYTES:
                    raise FieldError("chunk", f"has {len(request.chunk)} bytes, at most {CHUNK_BYTES} go at once")
                if received > header.num_bytes:
                    raise FieldError("header.num_bytes", f"says {header.num_bytes}, more came")
                hasher.update(request.chunk)
                await self._call(file.write, request.chunk)
        if received != header.num_bytes:
            raise FieldError("header.num_bytes", f"says {header.num_bytes}, {received} came")
        if hasher.hexdigest() != header.sha256:
            raise FieldError("header.sha256", f"says {header.sha256}, what came has {hasher.hexdigest()}")


async def _header(requests: AsyncIterator[pb.UploadDatasetRequest], max_bytes: int) -> pb.UploadHeader:
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("part") != "header":
        raise FieldError("header", "must come first")
    header = first.header
    if header.suffix not in FILE_SUFFIXES:
        raise FieldError("header.suffix", f"must be one of {', '.join(FILE_SUFFIXES)}, got {header.suffix[:20]!r}")
    if not 0 < header.num_bytes <= max_bytes:
        raise FieldError("header.num_bytes", f"must be from 1 to {max_bytes}, got {header.num_bytes}")
    convert.dataset_id(f"datasets/{header.sha256}", "header.sha256")
    return header


def _new_job(tenant: str, study_id: str, spec: JobSpec, request: pb.CreateJobRequest) -> Job:
    now_s = time.time()
    timeout_s = request.queue_timeout_s or DEFAULT_QUEUE_TIMEOUT_S
    if not 0 < timeout_s <= MAX_QUEUE_TIMEOUT_S:
        raise FieldError("queue_timeout_s", f"must be from 0 to {MAX_QUEUE_TIMEOUT_S:.0f} seconds, got {timeout_s}")
    fields: dict[str, Any] = {"priority": request.priority} if request.HasField("priority") else {}
    if request.max_attempts:
        fields["max_attempts"] = request.max_attempts
    try:
        return Job(
            tenant=tenant,
            study=study_id,
            job_id=new_job_id(now_s),
            spec=spec,
            needs_gpu=request.needs_gpu,
            created_s=now_s,
            queue_deadline_s=now_s + timeout_s,
            **fields,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FieldError(str(first["loc"][0]), f"{first['msg']}, got {first['input']}") from None


def _fitting(messages: Sequence[Message]) -> int:
    """How many of the messages one response holds, at least one of them."""
    total = 0
    for index, message in enumerate(messages):
        total += message.ByteSize() + 8  # tag and length
        if total > MAX_PAGE_BYTES:
            return max(index, 1)
    return len(messages)


def _watched(job: Job, revision: int, state_changed: bool) -> pb.WatchJobResponse:
    return pb.WatchJobResponse(job=convert.job_message(job), resume_token=f"{revision}", state_changed=state_changed)


def _revision(token: str) -> int:
    if not token:
        return 0
    if not token.isdecimal() or len(token) > 12:
        raise FieldError(
            "resume_token", f"is not one that this service gave, got {token[:80]!r}; leave it empty to start"
        )
    return int(token)
