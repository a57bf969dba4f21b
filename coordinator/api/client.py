"""The client: submit tasks, watch them, fetch what was found. Imports neither torch nor Ray.

    from coordinator.api.client import SearchClient

    with SearchClient("localhost:7171", token="msk_...") as client:
        job = client.submit("studies/scripts", data="photos.zip", steps=20)
        for update in client.watch(job.name):
            print(update.job.progress.accuracy)
        client.download(job.name, Path("result"))

Errors are those of `common.errors`. Calls that are safe to repeat are repeated while the service does not answer, for
`patience_s`; submitting is safe, as every submission carries a request id. `AsyncSearchClient` does the same with
`await`.
"""

import asyncio
import hashlib
import json
import os
import random
import tempfile
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from grpc import aio

from common.errors import CorruptArtifactError, InvalidInputError, MetaSearchError, NotFoundError, UnavailableError
from coordinator.api.errors import from_rpc_error
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc

ADDRESS_VARIABLE = "METASEARCH_ADDRESS"
TOKEN_VARIABLE = "METASEARCH_TOKEN"
CA_VARIABLE = "METASEARCH_CA"
DEFAULT_ADDRESS = "127.0.0.1:7171"
CHUNK_BYTES = 1 << 20
ARCHIVE_SUFFIXES = (".zip", ".npz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TERMINAL_STATES = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})

_SERVICE = "metasearch.v1.SearchService"
_IDEMPOTENT = (
    *(
        "CreateStudy",
        "GetStudy",
        "ListStudies",
        "CreateJob",
        "GetJob",
        "ListJobs",
        "CancelJob",
        "PauseJob",
        "ResumeJob",
    ),
    *("GetPrior", "ListPriors", "GetDataset", "ListDatasets"),
)
_RETRY_POLICY = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": method} for method in _IDEMPOTENT],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = (
    ("grpc.service_config", json.dumps(_RETRY_POLICY)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_MAX_WAIT_S = 2.0


@dataclass(frozen=True)
class Tls:
    """How to talk TLS.

    Attributes:
        ca: PEM of the authority that signed the service's certificate; the system's where None.
        certificate: PEM of the client's own, for mutual TLS.
        key: of that.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


class _Base:
    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = 10.0,
        patience_s: float = 30.0,
    ) -> None:
        self.address = address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
        found = token or os.environ.get(TOKEN_VARIABLE)
        self._metadata = (("authorization", f"Bearer {found}"),) if found else ()
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        if tls is None and os.environ.get(CA_VARIABLE):
            ca = Path(os.environ[CA_VARIABLE])
            if not ca.is_file():
                raise NotFoundError(f"{CA_VARIABLE} names {ca}, which is not there")
            tls = Tls(ca.read_bytes())
        self._credentials = None if tls is None else grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)


class SearchClient(_Base):
    """See the module. Thread-safe.

    Args:
        address: HOST:PORT; `METASEARCH_ADDRESS` where not given.
        token: API token; `METASEARCH_TOKEN` where not given.
        tls: None talks plain text, as on the loopback; `METASEARCH_CA` names a PEM file.
        timeout_s: of a single call.
        patience_s: how long calls that are safe to repeat are repeated while the service does not answer.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = 10.0,
        patience_s: float = 30.0,
    ) -> None:
        super().__init__(address, token, tls, timeout_s, patience_s)
        if self._credentials is None:
            self._channel = grpc.insecure_channel(self.address, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(self.address, self._credentials, options=_OPTIONS)
        self._stub = search_pb2_grpc.SearchServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def create_study(
        self,
        study_id: str,
        preset: str | None = None,
        config: Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
        validate_only: bool = False,
    ) -> pb.Study:
        """Begins a study from a preset or a configuration; the same again returns the same."""
        response: pb.CreateStudyResponse = self._call(
            "CreateStudy", study_request(study_id, preset, config, overrides, validate_only)
        )
        return response.study

    def get_study(self, name: str) -> pb.Study:
        """A study by name."""
        response: pb.GetStudyResponse = self._call("GetStudy", pb.GetStudyRequest(name=name))
        return response.study

    def list_studies(self) -> Iterator[pb.Study]:
        """All studies."""
        for response in self._pages("ListStudies", pb.ListStudiesRequest(page_size=1000)):
            yield from response.studies

    def submit(
        self,
        study: str,
        data: str | Path | pb.DataSource | None = None,
        spec: pb.JobSpec | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        priority: int | None = None,
        needs_gpu: bool = False,
        queue_timeout_s: float = 0.0,
        max_attempts: int = 0,
        **adapt: Any,
    ) -> pb.Job:
        """Submits a job.

        Args:
            study: `studies/{study}`.
            data: of an adapt job: a folder or file here, which is uploaded; a source's name; or a DataSource.
            spec: the whole job, instead of `data` and the fields in `adapt`.
            request_id: a UUID4; the same again returns the same job. A fresh one where not given.
            validate_only: checks, and creates nothing.
            priority: 0 to 9.
            needs_gpu: only run on workers with a GPU.
            queue_timeout_s: seconds after which a job that has not started fails.
            max_attempts: times that it is started before it fails.
            **adapt: fields of `AdaptSpec`.
        """
        if spec is None:
            if data is None:
                raise InvalidInputError("submit needs data or spec")
            spec = adapt_spec(self._source(data), adapt)
        request = pb.CreateJobRequest(
            parent=study,
            spec=spec,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
            priority=priority,
            needs_gpu=needs_gpu,
            queue_timeout_s=queue_timeout_s,
            max_attempts=max_attempts,
        )
        response: pb.CreateJobResponse = self._call("CreateJob", request)
        return response.job

    def meta_train(self, study: str, until_version: int = 0, **options: Any) -> pb.Job:
        """Submits a job that runs the study's rounds, up to a version of the prior."""
        spec = pb.JobSpec(meta_train=pb.MetaTrainSpec(until_version=until_version))
        return self.submit(study, spec=spec, **options)

    def get_job(self, name: str) -> pb.Job:
        """A job by name."""
        response: pb.GetJobResponse = self._call("GetJob", pb.GetJobRequest(name=name))
        return response.job

    def list_jobs(self, study: str, states: Sequence[pb.JobState] = ()) -> Iterator[pb.Job]:
        """Jobs of a study, the youngest first."""
        for response in self._pages("ListJobs", pb.ListJobsRequest(parent=study, page_size=1000, states=states)):
            yield from response.jobs

    def cancel(self, name: str) -> pb.Job:
        """Cancels a job; a running one is given up as soon as its worker lets go."""
        response: pb.CancelJobResponse = self._call("CancelJob", pb.CancelJobRequest(name=name))
        return response.job

    def pause(self, name: str) -> pb.Job:
        """Pauses a job."""
        response: pb.PauseJobResponse = self._call("PauseJob", pb.PauseJobRequest(name=name))
        return response.job

    def resume(self, name: str) -> pb.Job:
        """Lets a paused job go on."""
        response: pb.ResumeJobResponse = self._call("ResumeJob", pb.ResumeJobRequest(name=name))
        return response.job

    def watch(self, name: str, resume_token: str = "") -> Iterator[pb.WatchJobResponse]:
        """The job after every change of its state and, now and then, its progress; ends after its last state.

        Goes on by itself after a break of up to `patience_s`.
        """
        patience = _Patience(self._patience_s)
        while True:
            request = pb.WatchJobRequest(name=name, resume_token=resume_token)
            try:
                for response in self._stub.WatchJob(request, metadata=self._metadata):
                    patience.renew()
                    resume_token = response.resume_token
                    if response.closing:
                        break
                    yield response
                    if response.job.state in TERMINAL_STATES:
                        return
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if error.code() not in _BROKEN:
                    raise failure from None
                patience.check(failure)
            time.sleep(patience.wait_s())

    def wait(self, name: str) -> pb.Job:
        """Waits until the job has ended."""
        for response in self.watch(name):
            job = response.job
        return job

    def get_prior(self, name: str) -> pb.Prior:
        """A prior: `studies/{study}/priors/{version}`, or `.../latest`."""
        response: pb.GetPriorResponse = self._call("GetPrior", pb.GetPriorRequest(name=name))
        return response.prior

    def list_priors(self, study: str) -> Iterator[pb.Prior]:
        """Versions that are kept, the latest first."""
        for response in self._pages("ListPriors", pb.ListPriorsRequest(parent=study, page_size=1000)):
            yield from response.priors

    def upload(self, path: Path) -> pb.Dataset:
        """Stores an archive, an npz file or an image folder; what is stored already is not sent again."""
        with packed(path) as (file, title):
            header = upload_header(file, title)
            try:
                response: pb.GetDatasetResponse = self._call(
                    "GetDataset", pb.GetDatasetRequest(name=f"datasets/{header.sha256}")
                )
            except NotFoundError:
                pass
            else:
                return response.dataset
            patience = _Patience(self._patience_s)
            while True:
                try:
                    # By content: sending it twice stores it once.
                    uploaded = self._stub.UploadDataset(upload_parts(file, header), metadata=self._metadata)
                    return uploaded.dataset  # type: ignore[no-any-return]
                except grpc.RpcError as error:
                    failure = from_rpc_error(error)
                    if error.code() not in _BROKEN:
                        raise failure from None
                    patience.check(failure)
                time.sleep(patience.wait_s())

    def list_datasets(self) -> Iterator[pb.Dataset]:
        """All uploaded files."""
        for response in self._pages("ListDatasets", pb.ListDatasetsRequest(page_size=1000)):
            yield from response.datasets

    def download(self, job: str, folder: Path, names: Sequence[str] | None = None) -> list[Path]:
        """Fetches artifacts of a finished job into a folder, all of them where no names are given.

        A broken download goes on where it was. Files appear whole, with the right SHA-256, or not at all.

        Raises:
            NotFoundError: the job has no such artifact, or none yet.
            CorruptArtifactError: what came has another SHA-256.
        """
        found = {artifact.name: artifact for artifact in self.get_job(job).artifacts}
        if not found:
            raise NotFoundError(f"{job} has no artifacts; it has not succeeded")
        for name in names or ():
            if name not in found:
                raise NotFoundError(f"{job} has no artifact {name!r}; it has {', '.join(found)}")
        return [self._download(job, found[name], folder) for name in names or found]

    def _download(self, job: str, artifact: pb.Artifact, folder: Path) -> Path:
        target = folder / safe_name(artifact.name)
        patience = _Patience(self._patience_s)
        with receiving(target, artifact) as part:
            while part.num_bytes < artifact.num_bytes:
                request = pb.DownloadArtifactRequest(job=job, artifact=artifact.name, offset=part.num_bytes)
                try:
                    for response in self._stub.DownloadArtifact(request, metadata=self._metadata):
                        patience.renew()
                        part.add(response.chunk)
                except grpc.RpcError as error:
                    failure = from_rpc_error(error)
                    if error.code() not in _BROKEN:
                        raise failure from None
                    patience.check(failure)
                    time.sleep(patience.wait_s())
        return target

    def _source(self, data: str | Path | pb.DataSource) -> pb.DataSource:
        known = named_source(data)
        return known if known is not None else pb.DataSource(dataset=self.upload(Path(str(data))).name)

    def _pages(self, method: str, request: Any) -> Iterator[Any]:
        while True:
            response = self._call(method, request)
            yield response
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def _call(self, method: str, request: Message) -> Any:
        patience = _Patience(self._patience_s)
        while True:
            try:
                return getattr(self._stub, method)(request, timeout=self._timeout_s, metadata=self._metadata)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if error.code() not in _UNANSWERED:
                    raise failure from None
                patience.check(failure)
            time.sleep(patience.wait_s())


class AsyncSearchClient(_Base):
    """`SearchClient` with `await`; see there for arguments and methods."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = 10.0,
        patience_s: float = 30.0,
    ) -> None:
        super().__init__(address, token, tls, timeout_s, patience_s)
        if self._credentials is None:
            self._channel = aio.insecure_channel(self.address, options=_OPTIONS)
        else:
            self._channel = aio.secure_channel(self.address, self._credentials, options=_OPTIONS)
        self._stub = search_pb2_grpc.SearchServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """See `SearchClient.close`."""
        await self._channel.close()

    async def create_study(
        self,
        study_id: str,
        preset: str | None = None,
        config: Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
        validate_only: bool = False,
    ) -> pb.Study:
        """See `SearchClient.create_study`."""
        request = study_request(study_id, preset, config, overrides, validate_only)
        return (await self._call("CreateStudy", request)).study  # type: ignore[no-any-return]

    async def get_study(self, name: str) -> pb.Study:
        """See `SearchClient.get_study`."""
        return (await self._call("GetStudy", pb.GetStudyRequest(name=name))).study  # type: ignore[no-any-return]

    async def list_studies(self) -> AsyncIterator[pb.Study]:
        """See `SearchClient.list_studies`."""
        async for response in self._pages("ListStudies", pb.ListStudiesRequest(page_size=1000)):
            for study in response.studies:
                yield study

    async def submit(
        self,
        study: str,
        data: str | Path | pb.DataSource | None = None,
        spec: pb.JobSpec | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        priority: int | None = None,
        needs_gpu: bool = False,
        queue_timeout_s: float = 0.0,
        max_attempts: int = 0,
        **adapt: Any,
    ) -> pb.Job:
        """See `SearchClient.submit`."""
        if spec is None:
            if data is None:
                raise InvalidInputError("submit needs data or spec")
            known = named_source(data)
            if known is None:
                known = pb.DataSource(dataset=(await self.upload(Path(str(data)))).name)
            spec = adapt_spec(known, adapt)
        request = pb.CreateJobRequest(
            parent=study,
            spec=spec,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
            priority=priority,
            needs_gpu=needs_gpu,
            queue_timeout_s=queue_timeout_s,
            max_attempts=max_attempts,
        )
        return (await self._call("CreateJob", request)).job  # type: ignore[no-any-return]

    async def meta_train(self, study: str, until_version: int = 0, **options: Any) -> pb.Job:
        """See `SearchClient.meta_train`."""
        spec = pb.JobSpec(meta_train=pb.MetaTrainSpec(until_version=until_version))
        return await self.submit(study, spec=spec, **options)

    async def get_job(self, name: str) -> pb.Job:
        """See `SearchClient.get_job`."""
        return (await self._call("GetJob", pb.GetJobRequest(name=name))).job  # type: ignore[no-any-return]

    async def list_jobs(self, study: str, states: Sequence[pb.JobState] = ()) -> AsyncIterator[pb.Job]:
        """See `SearchClient.list_jobs`."""
        request = pb.ListJobsRequest(parent=study, page_size=1000, states=states)
        async for response in self._pages("ListJobs", request):
            for job in response.jobs:
                yield job

    async def cancel(self, name: str) -> pb.Job:
        """See `SearchClient.cancel`."""
        return (await self._call("CancelJob", pb.CancelJobRequest(name=name))).job  # type: ignore[no-any-return]

    async def pause(self, name: str) -> pb.Job:
        """See `SearchClient.pause`."""
        return (await self._call("PauseJob", pb.PauseJobRequest(name=name))).job  # type: ignore[no-any-return]

    async def resume(self, name: str) -> pb.Job:
        """See `SearchClient.resume`."""
        return (await self._call("ResumeJob", pb.ResumeJobRequest(name=name))).job  # type: ignore[no-any-return]

    async def watch(self, name: str, resume_token: str = "") -> AsyncIterator[pb.WatchJobResponse]:
        """See `SearchClient.watch`."""
        patience = _Patience(self._patience_s)
        while True:
            request = pb.WatchJobRequest(name=name, resume_token=resume_token)
            try:
                async for response in self._stub.WatchJob(request, metadata=self._metadata):
                    patience.renew()
                    resume_token = response.resume_token
                    if response.closing:
                        break
                    yield response
                    if response.job.state in TERMINAL_STATES:
                        return
            except aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if error.code() not in _BROKEN:
                    raise failure from None
                patience.check(failure)
            await asyncio.sleep(patience.wait_s())

    async def wait(self, name: str) -> pb.Job:
        """See `SearchClient.wait`."""
        async for response in self.watch(name):
            job = response.job
        return job

    async def get_prior(self, name: str) -> pb.Prior:
        """See `SearchClient.get_prior`."""
        return (await self._call("GetPrior", pb.GetPriorRequest(name=name))).prior  # type: ignore[no-any-return]

    async def list_priors(self, study: str) -> AsyncIterator[pb.Prior]:
        """See `SearchClient.list_priors`."""
        async for response in self._pages("ListPriors", pb.ListPriorsRequest(parent=study, page_size=1000)):
            for prior in response.priors:
                yield prior

    async def upload(self, path: Path) -> pb.Dataset:
        """See `SearchClient.upload`."""
        with packed(path) as (file, title):
            header = await asyncio.to_thread(upload_header, file, title)
            try:
                found = await self._call("GetDataset", pb.GetDatasetRequest(name=f"datasets/{header.sha256}"))
            except NotFoundError:
                pass
            else:
                return found.dataset  # type: ignore[no-any-return]
            patience = _Patience(self._patience_s)
            while True:
                try:
                    uploaded = await self._stub.UploadDataset(upload_parts(file, header), metadata=self._metadata)
                    return uploaded.dataset  # type: ignore[no-any-return]
                except aio.AioRpcError as error:
                    failure = from_rpc_error(error)
                    if error.code() not in _BROKEN:
                        raise failure from None
                    patience.check(failure)
                await asyncio.sleep(patience.wait_s())

    async def list_datasets(self) -> AsyncIterator[pb.Dataset]:
        """See `SearchClient.list_datasets`."""
        async for response in self._pages("ListDatasets", pb.ListDatasetsRequest(page_size=1000)):
            for dataset in response.datasets:
                yield dataset

    async def download(self, job: str, folder: Path, names: Sequence[str] | None = None) -> list[Path]:
        """See `SearchClient.download`."""
        found = {artifact.name: artifact for artifact in (await self.get_job(job)).artifacts}
        if not found:
            raise NotFoundError(f"{job} has no artifacts; it has not succeeded")
        for name in names or ():
            if name not in found:
                raise NotFoundError(f"{job} has no artifact {name!r}; it has {', '.join(found)}")
        return [await self._download(job, found[name], folder) for name in names or found]

    async def _download(self, job: str, artifact: pb.Artifact, folder: Path) -> Path:
        target = folder / safe_name(artifact.name)
        patience = _Patience(self._patience_s)
        with receiving(target, artifact) as part:
            while part.num_bytes < artifact.num_bytes:
                request = pb.DownloadArtifactRequest(job=job, artifact=artifact.name, offset=part.num_bytes)
                try:
                    async for response in self._stub.DownloadArtifact(request, metadata=self._metadata):
                        patience.renew()
                        part.add(response.chunk)
                except aio.AioRpcError as error:
                    failure = from_rpc_error(error)
                    if error.code() not in _BROKEN:
                        raise failure from None
                    patience.check(failure)
                    await asyncio.sleep(patience.wait_s())
        return target

    async def _pages(self, method: str, request: Any) -> AsyncIterator[Any]:
        while True:
            response = await self._call(method, request)
            yield response
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def _call(self, method: str, request: Message) -> Any:
        patience = _Patience(self._patience_s)
        while True:
            try:
                return await getattr(self._stub, method)(request, timeout=self._timeout_s, metadata=self._metadata)
            except aio.AioRpcError as error:
                failure = from_rpc_error(error)
                if error.code() not in _UNANSWERED:
                    raise failure from None
                patience.check(failure)
            await asyncio.sleep(patience.wait_s())


# A gateway that stops sometimes says CANCELLED. A caller that cancels its own call gets no RpcError.
_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_UNANSWERED = (*_BROKEN, grpc.StatusCode.DEADLINE_EXCEEDED)


class _Patience:
    """How long to go on trying, and how long to wait in between: longer each time, and never in step with others."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.renew()

    def renew(self) -> None:
        self._until_s = time.monotonic() + self._patience_s
        self._next_s = 0.05

    def check(self, failure: MetaSearchError) -> None:
        if time.monotonic() >= self._until_s:
            raise failure

    def wait_s(self) -> float:
        wait_s = self._next_s * random.uniform(0.5, 1.0)  # jitter alone; nothing is computed from it
        self._next_s = min(2 * self._next_s, _MAX_WAIT_S)
        return wait_s


# What both clients share.


def study_request(
    study_id: str,
    preset: str | None,
    config: Mapping[str, Any] | None,
    overrides: Sequence[str],
    validate_only: bool,
) -> pb.CreateStudyRequest:
    """The request that `create_study` sends.

    Raises:
        InvalidInputError: both or neither of preset and config.
    """
    if (preset is None) == (config is None):
        raise InvalidInputError("create_study takes either a preset or a config")
    request = pb.CreateStudyRequest(study_id=study_id, overrides=overrides, validate_only=validate_only)
    if preset is not None:
        request.preset = preset
    else:
        struct = struct_pb2.Struct()
        struct.update(json.loads(json.dumps(config)))
        request.config.CopyFrom(struct)
    return request


def adapt_spec(source: pb.DataSource, fields: Mapping[str, Any]) -> pb.JobSpec:
    """A job that adapts to `source`.

    Raises:
        InvalidInputError: an unknown field, or a value of the wrong type.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    known = {field.name for field in pb.AdaptSpec.DESCRIPTOR.fields}
    for name in given:
        if name not in known:
            raise InvalidInputError(f"an adapt job has no field {name!r}; it has {', '.join(sorted(known))}")
    try:
        return pb.JobSpec(adapt=pb.AdaptSpec(data=source, **given))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"adapt job: {error}") from None


def named_source(data: str | Path | pb.DataSource) -> pb.DataSource | None:
    """What `data` names, or None if it is a file or folder on this machine.

    Raises:
        NotFoundError: a path that does not exist.
    """
    if isinstance(data, pb.DataSource):
        return data
    text = str(data)
    if "://" in text:
        return pb.DataSource(url=text)
    if text.startswith("datasets/"):
        return pb.DataSource(dataset=text)
    if isinstance(data, Path) or os.sep in text or text.lower().endswith(ARCHIVE_SUFFIXES) or Path(text).is_dir():
        if not Path(text).expanduser().exists():
            raise NotFoundError(f"there is no file or folder {text}")
        return None
    return pb.DataSource(builtin=text)


@contextmanager
def packed(path: Path) -> Iterator[tuple[Path, str]]:
    """The file to upload for `path`, and a title; a folder is packed into a zip. Equal folders give equal bytes.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidInputError: a file of another kind, or an empty folder.
    """
    path = path.expanduser()
    if path.is_file():
        if not path.name.lower().endswith(ARCHIVE_SUFFIXES):
            raise InvalidInputError(f"{path} is none of {', '.join(ARCHIVE_SUFFIXES)}; pack it as one")
        yield path, path.name
        return
    if not path.is_dir():
        raise NotFoundError(f"there is no file or folder {path}")
    with tempfile.TemporaryDirectory(prefix="metasearch-") as folder:
        target = Path(folder) / "data.zip"
        # Images are compressed already. Fixed times, so that identical data is stored once.
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(path.rglob("*")):
                name = file.relative_to(path).as_posix()
                if (
                    file.is_file()
                    and not file.is_symlink()
                    and not any(part.startswith(".") for part in name.split("/"))
                ):
                    info = zipfile.ZipInfo(name)
                    info.external_attr = 0o644 << 16
                    with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as member:
                        while block := source.read(CHUNK_BYTES):
                            member.write(block)
            if not archive.namelist():
                raise InvalidInputError(f"{path} has no files; an image folder has a subfolder of images per class")
        yield target, path.resolve().name


def upload_header(file: Path, title: str) -> pb.UploadHeader:
    """What goes before the content of a file."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    name = file.name.lower()
    suffix = max((suffix for suffix in ARCHIVE_SUFFIXES if name.endswith(suffix)), key=len)
    return pb.UploadHeader(title=title, suffix=suffix, num_bytes=file.stat().st_size, sha256=digest)


def upload_parts(file: Path, header: pb.UploadHeader) -> Iterator[pb.UploadDatasetRequest]:
    """The messages of an upload."""
    yield pb.UploadDatasetRequest(header=header)
    with file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            yield pb.UploadDatasetRequest(chunk=chunk)


def safe_name(name: str) -> str:
    """An artifact's name as a file name.

    Raises:
        CorruptArtifactError: it would lie elsewhere.
    """
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise CorruptArtifactError(f"artifact name {name!r} is not a file name")
    return name


class _Part:
    """A file that is being received."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hasher = hashlib.sha256()
        self.num_bytes = 0

    def add(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hasher.update(chunk)
        self.num_bytes += len(chunk)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hasher.hexdigest()

    def close(self) -> None:
        self._file.close()


@contextmanager
def receiving(target: Path, artifact: pb.Artifact) -> Iterator[_Part]:
    """Receives into a file beside `target`, and puts it there once it is whole.

    Raises:
        CorruptArtifactError: it has another size or SHA-256.
        UnavailableError: it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _Part(temporary)
    except OSError as error:
        raise UnavailableError(f"cannot write {target}: {error}") from None
    try:
        yield part
        if part.finish() != artifact.sha256 or part.num_bytes != artifact.num_bytes:
            raise CorruptArtifactError(f"{artifact.name} came with another SHA-256 than the job says; fetch it again")
        temporary.replace(target)
    finally:
        part.close()
        temporary.unlink(missing_ok=True)
