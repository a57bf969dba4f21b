"""The client for programs that use asyncio; see `coordinator.api.client`."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from google.protobuf.message import Message
from grpc import aio

from common.errors import NotFoundError
from coordinator.api.connection import BROKEN, TERMINAL_STATES, UNANSWERED, Connection, Patience
from coordinator.api.inline_images import Queries, Support, fits, query_images, scaled, support_images
from coordinator.api.requests import (
    JobOptions,
    SpecOf,
    evaluate_spec,
    few_shot_spec,
    job_of,
    job_request,
    meta_train_spec,
    page_request,
    study_image_size,
    study_request,
    sweep_spec,
)
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.transfer import (
    named_source,
    packed,
    receiving,
    safe_name,
    upload_header,
    upload_parts,
    wanted_artifacts,
)


class AsyncSearchClient(Connection):
    """`SearchClient` with `await`; see there for the methods."""

    _grpc = aio

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
        async for study in self._listed("ListStudies", "studies"):
            yield study

    async def submit(
        self,
        study: str,
        data: str | Path | pb.DataSource | None = None,
        spec: pb.JobSpec | None = None,
        **fields: Any,
    ) -> pb.Job:
        """See `SearchClient.submit`."""
        spec_of, options = job_of(spec, fields)
        return await self._create(study, spec_of, data, options)

    async def meta_train(self, study: str, until_version: int = 0, **options: Unpack[JobOptions]) -> pb.Job:
        """See `SearchClient.meta_train`."""
        return await self._create(study, meta_train_spec(until_version), None, options)

    async def evaluate(
        self,
        study: str,
        data: str | Path | pb.DataSource,
        genotype: str | Mapping[str, Any],
        preset: str = "",
        overrides: Sequence[str] = (),
        **options: Unpack[JobOptions],
    ) -> pb.Job:
        """See `SearchClient.evaluate`."""
        return await self._create(study, evaluate_spec(genotype, preset, overrides), data, options)

    async def sweep(
        self,
        study: str,
        config: Mapping[str, Any],
        data: str | Path | pb.DataSource | None = None,
        architectures: Sequence[tuple[str, float]] = (),
        **options: Unpack[JobOptions],
    ) -> pb.Job:
        """See `SearchClient.sweep`."""
        return await self._create(study, sweep_spec(config, architectures), data, options)

    async def few_shot(
        self,
        study: str,
        support: Support,
        queries: Queries = (),
        steps: int | None = None,
        prior_version: int | None = None,
        statistics: str | None = None,
        seed: int = 0,
        **options: Unpack[JobOptions],
    ) -> pb.Job:
        """See `SearchClient.few_shot`."""
        labelled, asked = support_images(support), query_images(queries)
        if not fits([*labelled, *asked]):
            size = study_image_size(await self.get_study(study))
            both = scaled([*labelled, *asked], size)
            labelled, asked = both[: len(labelled)], both[len(labelled) :]
        spec = few_shot_spec(labelled, asked, steps, prior_version, statistics, seed)
        return await self._create(study, spec, None, options)

    async def get_job(self, name: str) -> pb.Job:
        """See `SearchClient.get_job`."""
        return (await self._call("GetJob", pb.GetJobRequest(name=name))).job  # type: ignore[no-any-return]

    async def list_jobs(self, study: str, states: Sequence[pb.JobState] = ()) -> AsyncIterator[pb.Job]:
        """See `SearchClient.list_jobs`."""
        async for job in self._listed("ListJobs", "jobs", parent=study, states=states):
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
        patience = Patience(self._patience_s)
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
                await asyncio.sleep(patience.bear(error, BROKEN))
            else:  # it ended all the same, as a gateway that stops does
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
        async for prior in self._listed("ListPriors", "priors", parent=study):
            yield prior

    async def service_status(self) -> pb.GetServiceStatusResponse:
        """See `SearchClient.service_status`."""
        return await self._call("GetServiceStatus", pb.GetServiceStatusRequest())  # type: ignore[no-any-return]

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
            patience = Patience(self._patience_s)
            while True:
                try:
                    uploaded = await self._stub.UploadDataset(upload_parts(file, header), metadata=self._metadata)
                    return uploaded.dataset  # type: ignore[no-any-return]
                except aio.AioRpcError as error:
                    await asyncio.sleep(patience.bear(error, BROKEN))

    async def list_datasets(self) -> AsyncIterator[pb.Dataset]:
        """See `SearchClient.list_datasets`."""
        async for dataset in self._listed("ListDatasets", "datasets"):
            yield dataset

    async def download(self, job: str, folder: Path, names: Sequence[str] | None = None) -> list[Path]:
        """See `SearchClient.download`."""
        wanted = wanted_artifacts(await self.get_job(job), names)
        return [await self._download(job, artifact, folder) for artifact in wanted]

    async def _download(self, job: str, artifact: pb.Artifact, folder: Path) -> Path:
        target = folder / safe_name(artifact.name)
        patience = Patience(self._patience_s)
        with receiving(target, artifact) as part:
            while part.num_bytes < artifact.num_bytes:
                request = pb.DownloadArtifactRequest(job=job, artifact=artifact.name, offset=part.num_bytes)
                try:
                    async for response in self._stub.DownloadArtifact(request, metadata=self._metadata):
                        patience.renew()
                        part.add(response.chunk)
                except aio.AioRpcError as error:
                    await asyncio.sleep(patience.bear(error, BROKEN))
        return target

    async def _source(self, data: str | Path | pb.DataSource) -> pb.DataSource:
        known = named_source(data)
        return known if known is not None else pb.DataSource(dataset=(await self.upload(Path(str(data)))).name)

    async def _create(
        self, study: str, spec_of: SpecOf, data: str | Path | pb.DataSource | None, options: JobOptions
    ) -> pb.Job:
        source = None if data is None else await self._source(data)
        request = job_request(study, spec_of(source), options)
        return (await self._call("CreateJob", request)).job  # type: ignore[no-any-return]

    async def _listed(self, method: str, part: str, **fields: Any) -> AsyncIterator[Any]:
        token = ""
        while True:
            response = await self._call(method, page_request(method, token, **fields))
            for item in getattr(response, part):
                yield item
            if not (token := response.next_page_token):
                return

    async def _call(self, method: str, request: Message) -> Any:
        patience = Patience(self._patience_s)
        while True:
            try:
                return await getattr(self._stub, method)(request, timeout=self._timeout_s, metadata=self._metadata)
            except aio.AioRpcError as error:
                await asyncio.sleep(patience.bear(error, UNANSWERED))
