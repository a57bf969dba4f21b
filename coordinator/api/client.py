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

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from common.errors import InvalidInputError, NotFoundError
from coordinator.api.async_client import AsyncSearchClient
from coordinator.api.connection import BROKEN, OPTIONS, TERMINAL_STATES, UNANSWERED, Connection, Patience, Tls
from coordinator.api.inline_images import Queries, Support, fits, query_images, scaled, support_images
from coordinator.api.requests import (
    adapt_spec,
    evaluate_spec,
    few_shot_spec,
    job_request,
    study_image_size,
    study_request,
    sweep_spec,
)
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc
from coordinator.api.transfer import (
    named_source,
    packed,
    receiving,
    safe_name,
    upload_header,
    upload_parts,
    wanted_artifacts,
)

__all__ = ["TERMINAL_STATES", "AsyncSearchClient", "SearchClient", "Tls"]


class SearchClient(Connection):
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
            self._channel = grpc.insecure_channel(self.address, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(self.address, self._credentials, options=OPTIONS)
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
        request = job_request(
            study, spec, request_id, validate_only, priority, needs_gpu, queue_timeout_s, max_attempts
        )
        response: pb.CreateJobResponse = self._call("CreateJob", request)
        return response.job

    def meta_train(self, study: str, until_version: int = 0, **options: Any) -> pb.Job:
        """Submits a job that runs the study's rounds, up to a version of the prior."""
        spec = pb.JobSpec(meta_train=pb.MetaTrainSpec(until_version=until_version))
        return self.submit(study, spec=spec, **options)

    def evaluate(
        self,
        study: str,
        data: str | Path | pb.DataSource,
        genotype: str | Mapping[str, Any],
        preset: str = "",
        overrides: Sequence[str] = (),
        **options: Any,
    ) -> pb.Job:
        """Submits a job that trains a full network from scratch and tests it.

        Args:
            study: `studies/{study}`.
            data: as in `submit`.
            genotype: its JSON, plain values of it, or the name of a published one.
            preset: recipe; cifar10 where empty.
            overrides: changes of single fields of the recipe, `epochs=50`.
            **options: as in `submit`.
        """
        return self.submit(study, spec=evaluate_spec(self._source(data), genotype, preset, overrides), **options)

    def sweep(
        self,
        study: str,
        config: Mapping[str, Any],
        data: str | Path | pb.DataSource | None = None,
        architectures: Sequence[tuple[str, float]] = (),
        **options: Any,
    ) -> pb.Job:
        """Submits a job that tries many configurations of the study, or trains several architectures.

        Args:
            study: `studies/{study}`.
            config: fields of a sweep's TOML file, but `study`.
            data: of architectures: images to train on, as in `submit`.
            architectures: JSON and probability of each, where config has `architectures`; those of the study's latest
                prior where there are none.
            **options: as in `submit`.
        """
        source = None if data is None else self._source(data)
        return self.submit(study, spec=sweep_spec(config, source, architectures), **options)

    def few_shot(
        self,
        study: str,
        support: Support,
        queries: Queries = (),
        steps: int | None = None,
        prior_version: int | None = None,
        statistics: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> pb.Job:
        """Submits a few-shot job: classes are learnt from a handful of images, and others are labelled, in seconds.

        The images travel in the request. Where they would not fit, they are scaled first to the study's image size,
        as the service would do.

        Args:
            study: `studies/{study}`, a few-shot study.
            support: labelled images, a handful per class.
            queries: to be labelled.
            steps: inner steps; the study's `few_shot.test_steps` where not given.
            prior_version: the latest where not given.
            statistics: of BatchNorm, transductive or inductive; the study's where not given.
            seed: of the noise, where architectures are sampled.
            **options: as in `submit`.
        """
        labelled, asked = support_images(support), query_images(queries)
        if not fits([*labelled, *asked]):
            size = study_image_size(self.get_study(study))
            both = scaled([*labelled, *asked], size)
            labelled, asked = both[: len(labelled)], both[len(labelled) :]
        spec = few_shot_spec(labelled, asked, steps, prior_version, statistics, seed)
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
        patience = Patience(self._patience_s)
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
                time.sleep(patience.bear(error, BROKEN))
            else:  # it ended all the same, as a gateway that stops does
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
            patience = Patience(self._patience_s)
            while True:
                try:
                    # By content: sending it twice stores it once.
                    uploaded = self._stub.UploadDataset(upload_parts(file, header), metadata=self._metadata)
                    return uploaded.dataset  # type: ignore[no-any-return]
                except grpc.RpcError as error:
                    time.sleep(patience.bear(error, BROKEN))

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
        wanted = wanted_artifacts(self.get_job(job), names)
        return [self._download(job, artifact, folder) for artifact in wanted]

    def _download(self, job: str, artifact: pb.Artifact, folder: Path) -> Path:
        target = folder / safe_name(artifact.name)
        patience = Patience(self._patience_s)
        with receiving(target, artifact) as part:
            while part.num_bytes < artifact.num_bytes:
                request = pb.DownloadArtifactRequest(job=job, artifact=artifact.name, offset=part.num_bytes)
                try:
                    for response in self._stub.DownloadArtifact(request, metadata=self._metadata):
                        patience.renew()
                        part.add(response.chunk)
                except grpc.RpcError as error:
                    time.sleep(patience.bear(error, BROKEN))
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
        patience = Patience(self._patience_s)
        while True:
            try:
                return getattr(self._stub, method)(request, timeout=self._timeout_s, metadata=self._metadata)
            except grpc.RpcError as error:
                time.sleep(patience.bear(error, UNANSWERED))
