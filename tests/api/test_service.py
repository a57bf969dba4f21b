"""Every call of the protocol, through both clients, against a gateway in a process of its own."""

import hashlib
import io
import json
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reference.gateway import Gateway, PlayedCoordinator, running, until
from reference.latency_tables import latency_table

from common.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    QuotaError,
)
from common.latency import LatencyTable
from common.limits import Limits
from common.space.primitives import NONE, PROFILES
from coordinator.api import connection
from coordinator.api.client import SearchClient
from coordinator.api.errors import DETAILS_KEY, DOMAIN, FieldError
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc
from coordinator.api.transfer import packed, upload_header, upload_parts
from coordinator.jobs import FailureReason

STUDY = "studies/mine"

# Of the preset's space. Every op takes 0.4 ms, 2 of 2 nodes in 5 cells, and all else 1 ms: 9 ms whatever is kept.
OPS = tuple(name for name in PROFILES["base"] if name != NONE)
TABLE = latency_table(OPS, lambda name, shape: 0.4).to_json()
FOUR_NODES = latency_table(OPS, lambda name, shape: 0.4, num_nodes=4).to_json()


@pytest.fixture
def study(client: SearchClient) -> str:
    return client.create_study("mine", preset="smoke").name


@pytest.fixture
def stub(gateway: Gateway, tenant: str) -> Iterator[Any]:
    """Calls without the client's help: `stub("GetStudy", request)`."""
    metadata = (("authorization", f"Bearer {gateway.token(tenant)}"),)
    with grpc.insecure_channel(gateway.address) as channel:
        raw = search_pb2_grpc.SearchServiceStub(channel)
        yield lambda method, request: getattr(raw, method)(request, metadata=metadata, timeout=20)


def details_of(error: grpc.RpcError) -> dict[str, Any]:
    """Details of a failed call by type."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata[DETAILS_KEY])
    assert status.code == error.code().value[0]
    found: dict[str, Any] = {}
    for detail in status.details:
        for kind in (error_details_pb2.BadRequest, error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message
    return found


def states(responses: Any) -> list[str]:
    return [pb.JobState.Name(found.job.state).removeprefix("JOB_STATE_") for found in responses if found.state_changed]


# Studies


def test_study_is_created_once_and_found_again(either: Any) -> None:
    made = either.create_study("mine", preset="smoke", overrides=["rounds=5", "inner.steps=3"])
    assert made.name == STUDY and made.prior_version == 0 and made.prior_sha256 == ""
    assert made.config["rounds"] == 5 and made.config["inner"]["steps"] == 3
    assert either.create_study("mine", preset="smoke", overrides=["rounds=5", "inner.steps=3"]) == made
    assert either.get_study(STUDY) == made
    with pytest.raises(AlreadyExistsError, match="another configuration"):
        either.create_study("mine", preset="smoke", overrides=["rounds=6"])
    assert either.get_study(STUDY) == made


def test_study_by_config_is_the_study_by_preset(either: Any) -> None:
    from common.loading import load

    made = either.create_study("mine", preset="smoke")
    config = load("smoke", environment={}).model_dump(mode="json")
    assert either.create_study("mine", config=config) == made


def test_validate_only_checks_and_creates_no_study(either: Any) -> None:
    assert either.create_study("mine", preset="smoke", validate_only=True).config["rounds"] == 3
    with pytest.raises(NotFoundError, match=STUDY):
        either.get_study(STUDY)
    with pytest.raises(FieldError, match=r"inner\.steps"):
        either.create_study("mine", preset="smoke", overrides=["inner.steps=0"], validate_only=True)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"preset": "smog"}, "preset", "smoke"),
        ({"overrides": ["inner.stepz=1"]}, "preset", "stepz"),
        ({"overrides": ["nonsense"]}, "overrides", "nonsense"),
        ({"overrides": ["families.7.num_ways=2"]}, "overrides", "elements 0 to 0"),
        ({"study_id": "Mine"}, "study_id", "lower-case"),
        ({"study_id": "-mine"}, "study_id", "lower-case"),
        ({"study_id": "a" * 64}, "study_id", "1 to 63"),
        ({"study_id": ""}, "study_id", "1 to 63"),
        ({"preset": None, "config": {"rounds": 1.5}}, "config", "rounds"),
        ({"preset": None, "config": {"seed": [[]]}}, "config", "seed"),
        ({"overrides": ["seed=" + "[" * 5000]}, "overrides", "nested"),
    ],
)
def test_wrong_study_is_refused_by_field(client: SearchClient, change: Any, field: str, words: str) -> None:
    with pytest.raises(FieldError, match=words) as caught:
        client.create_study(**({"study_id": "mine", "preset": "smoke"} | change))
    assert caught.value.field == field
    assert list(client.list_studies()) == []


def test_study_without_a_base_is_refused(client: SearchClient, stub: Any) -> None:
    with pytest.raises(InvalidInputError, match="either a preset or a config"):
        client.create_study("mine")
    with pytest.raises(grpc.RpcError, match="give a preset"):
        stub("CreateStudy", pb.CreateStudyRequest(study_id="mine"))


def test_studies_are_listed_by_name_and_in_pages(either: Any, stub: Any) -> None:
    for name in ("c", "a", "b"):
        either.create_study(name, preset="smoke")
    assert [study.name for study in either.list_studies()] == ["studies/a", "studies/b", "studies/c"]
    first = stub("ListStudies", pb.ListStudiesRequest(page_size=2))
    assert len(first.studies) == 2
    last = stub("ListStudies", pb.ListStudiesRequest(page_size=2, page_token=first.next_page_token))
    assert [study.name for study in last.studies] == ["studies/c"] and last.next_page_token == ""


# Jobs


def test_submit_returns_what_was_asked_for(either: Any, client: SearchClient, study: str) -> None:
    job = either.submit(
        study,
        "digits",
        classes=["1", "7", "9"],
        steps=3,
        train_per_class=5,
        test_per_class=6,
        seed=11,
        derivation=pb.DERIVATION_RULE_DARTS,
        contribute=True,
        priority=9,
        needs_gpu=True,
        max_attempts=2,
    )
    assert job.state == pb.JOB_STATE_QUEUED and job.priority == 9 and job.needs_gpu and job.attempt == 0
    assert job.name.startswith(f"{study}/jobs/")
    spec = job.spec.adapt
    assert list(spec.classes) == ["1", "7", "9"] and spec.data.builtin == "digits" and spec.image_size == 16
    assert (spec.steps, spec.train_per_class, spec.test_per_class, spec.seed) == (3, 5, 6, 11)
    assert spec.derivation == pb.DERIVATION_RULE_DARTS and spec.contribute and not spec.HasField("prior_version")
    assert either.get_job(job.name) == job
    assert abs(job.create_time.seconds - time.time()) < 60


def test_defaults_of_a_job(either: Any, client: SearchClient, study: str) -> None:
    job = either.submit(study, "digits", num_ways=4)
    assert job.priority == 4 and not job.needs_gpu
    assert job.spec.adapt.num_ways == 4 and job.spec.adapt.test_per_class == 20 and job.spec.adapt.steps == 0
    trained = either.meta_train(study, until_version=2)
    assert trained.spec.meta_train.until_version == 2 and trained.state == pb.JOB_STATE_QUEUED


def test_same_request_makes_one_job(either: Any, client: SearchClient, study: str) -> None:
    request_id = str(uuid.uuid4())
    job = either.submit(study, "digits", steps=3, request_id=request_id)
    assert either.submit(study, "digits", steps=3, request_id=request_id) == job
    assert [found.name for found in either.list_jobs(study)] == [job.name]
    assert either.submit(study, "digits", steps=3).name != job.name


@pytest.mark.parametrize(
    "change", [{"steps": 4}, {"priority": 5}, {"needs_gpu": True}, {"max_attempts": 2}, {"queue_timeout_s": 5.0}]
)
def test_another_request_under_the_same_id_is_refused(client: SearchClient, study: str, change: Any) -> None:
    request_id = str(uuid.uuid4())
    client.submit(study, "digits", **({"steps": 3, "request_id": request_id}))
    with pytest.raises(AlreadyExistsError, match=request_id):
        client.submit(study, "digits", **({"steps": 3, "request_id": request_id} | change))
    assert len(list(client.list_jobs(study))) == 1


def test_same_request_in_another_study_is_another_request(client: SearchClient, study: str) -> None:
    request_id = str(uuid.uuid4())
    client.submit(study, "digits", request_id=request_id)
    other = client.create_study("other", preset="smoke").name
    with pytest.raises(AlreadyExistsError):
        client.submit(other, "digits", request_id=request_id)


def test_same_request_at_once_from_many_threads_makes_one_job(client: SearchClient, study: str) -> None:
    request_id = str(uuid.uuid4())
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda: names.append(client.submit(study, "digits", request_id=request_id).name))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 12 and len(set(names)) == 1


def test_validate_only_checks_and_creates_no_job(either: Any, client: SearchClient, study: str) -> None:
    request_id = str(uuid.uuid4())
    found = either.submit(study, "digits", steps=3, validate_only=True, request_id=request_id)
    assert found.spec.adapt.steps == 3
    assert list(either.list_jobs(study)) == []
    with pytest.raises(NotFoundError):
        either.get_job(found.name)
    with pytest.raises(FieldError):
        either.submit(study, "digits", image_size=17, validate_only=True)
    either.submit(study, "digits", steps=9, request_id=request_id)  # the id is still free


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"data": "didgits"}, "spec.adapt.data.builtin", "digits"),
        ({"data": pb.DataSource()}, "spec.adapt.data", "builtin"),
        ({"data": pb.DataSource(dataset="datasets/" + "0" * 63)}, "spec.adapt.data.dataset", "SHA256"),
        ({"image_size": 17}, "spec.adapt.image_size", "16"),
        ({"classes": ["1"]}, "spec.adapt.classes", "2 classes"),
        ({"num_ways": 1}, "spec.adapt.classes", "2 classes"),
        ({"classes": ["1", "1"]}, "spec.adapt.classes", "twice"),
        ({"classes": ["1", "2"], "num_ways": 2}, "spec.adapt.num_ways", "leave it out"),
        ({"steps": -1}, "spec.adapt.steps", "at least 0"),
        ({"steps": 2_000_000}, "spec.adapt.steps", "1000000"),
        ({"fine_tune_steps": -1}, "spec.adapt.fine_tune_steps", "at least 0"),
        ({"fine_tune_steps": 2_000_000}, "spec.adapt.fine_tune_steps", "1000000"),
        ({"seed": -1}, "spec.adapt.seed", "-1"),
        ({"max_params": -1}, "spec.adapt.max_params", "at least 0"),
        ({"prior_version": 5}, "spec.adapt.prior_version", "latest is 0"),
        ({"prior_version": -1}, "spec.adapt.prior_version", "-1"),
        ({"derivation": 77}, "spec.adapt.derivation", "77"),
        ({"derivation": pb.DERIVATION_RULE_SAMPLE, "max_params": 10_000}, "spec.adapt.derivation", "limits"),
        ({"max_latency_ms": 5.0}, "spec.adapt.latency_table_json", "goes with max_latency_ms"),
        ({"latency_table_json": TABLE}, "spec.adapt.max_latency_ms", "goes with latency_table_json"),
        ({"max_latency_ms": -1.0, "latency_table_json": TABLE}, "spec.adapt.max_latency_ms", "-1"),
        ({"max_latency_ms": float("nan"), "latency_table_json": TABLE}, "spec.adapt.max_latency_ms", "nan"),
        ({"max_latency_ms": 5.0, "latency_table_json": "{}"}, "spec.adapt.latency_table_json", "latency table: "),
        ({"max_latency_ms": 5.0, "latency_table_json": " " * 65537}, "spec.adapt.latency_table_json", "65536 bytes"),
        (
            {"max_latency_ms": 5.0, "latency_table_json": FOUR_NODES},
            "spec.adapt.latency_table_json",
            "cells of 4 nodes",
        ),
        (
            {"max_latency_ms": 0.1, "latency_table_json": TABLE},
            "spec.adapt.max_latency_ms",
            "smallest network has 9 ms",
        ),
        (
            {"derivation": pb.DERIVATION_RULE_DARTS, "max_latency_ms": 50.0, "latency_table_json": TABLE},
            "spec.adapt.derivation",
            "limits",
        ),
        ({"priority": 10}, "priority", "10"),
        ({"priority": -1}, "priority", "-1"),
        ({"max_attempts": -1}, "max_attempts", "-1"),
        ({"max_attempts": 101}, "max_attempts", "101"),
        ({"queue_timeout_s": -1.0}, "queue_timeout_s", "-1"),
        ({"queue_timeout_s": float("nan")}, "queue_timeout_s", "nan"),
        ({"queue_timeout_s": float("inf")}, "queue_timeout_s", "inf"),
        ({"request_id": "not-one"}, "request_id", "UUID4"),
        ({"request_id": str(uuid.uuid1())}, "request_id", "UUID4"),
        ({"data": None, "spec": pb.JobSpec()}, "spec.kind", "adapt, meta_train, evaluate, sweep or few_shot"),
        ({"data": None, "spec": pb.JobSpec(meta_train=pb.MetaTrainSpec(until_version=-1))}, None, "-1"),
    ],
)
def test_wrong_job_is_refused_by_field(
    client: SearchClient, study: str, change: Any, field: str | None, words: str
) -> None:
    with pytest.raises(FieldError, match=words) as caught:
        client.submit(**({"study": study, "data": "digits"} | change))
    assert field is None or caught.value.field == field
    assert list(client.list_jobs(study)) == []


def test_job_of_a_study_or_dataset_that_is_not_there(client: SearchClient, study: str) -> None:
    with pytest.raises(NotFoundError, match="studies/none"):
        client.submit("studies/none", "digits")
    with pytest.raises(NotFoundError, match="datasets/" + "0" * 64):
        client.submit(study, pb.DataSource(dataset="datasets/" + "0" * 64))


def test_infeasible_limits_are_refused_and_the_smallest_is_named(client: SearchClient, study: str) -> None:
    with pytest.raises(FieldError, match="smallest") as caught:
        client.submit(study, "digits", num_ways=3, max_params=10)
    assert caught.value.field == "spec.adapt.max_params"
    smallest = max(int(word) for word in caught.value.description.replace(",", "").split() if word.isdecimal())
    assert client.submit(study, "digits", num_ways=3, max_params=smallest).spec.adapt.max_params == smallest
    with pytest.raises(FieldError, match="smallest"):
        client.submit(study, "digits", num_ways=3, max_params=smallest - 1)
    with pytest.raises(FieldError) as caught:
        client.submit(study, "digits", num_ways=3, max_macs=10)
    assert caught.value.field == "spec.adapt.max_macs"


def test_a_latency_limit_and_its_table_reach_the_job_and_come_back(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits", max_latency_ms=9.25, latency_table_json=TABLE)
    assert job.spec.adapt.max_latency_ms == 9.25
    assert LatencyTable.from_json(job.spec.adapt.latency_table_json) == LatencyTable.from_json(TABLE)
    limits = coordinator.job(tenant, job.name).spec.limits
    assert limits == Limits(max_latency_ms=9.25, latency_table=LatencyTable.from_json(TABLE))


def test_builtin_source_of_the_study_keeps_its_unseen_classes(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits")
    assert coordinator.job(tenant, job.name).spec.choice.data.unseen_fraction == 0.5  # as in the preset's family


def test_jobs_are_listed_youngest_first_over_many_pages(client: SearchClient, study: str, stub: Any) -> None:
    calls = [
        client._stub.CreateJob.future(
            pb.CreateJobRequest(parent=study, spec=pb.JobSpec(meta_train=pb.MetaTrainSpec())), metadata=client._metadata
        )
        for _ in range(1005)
    ]
    made = {call.result().job.name for call in calls}
    pages = []
    token = ""
    while True:
        page = stub("ListJobs", pb.ListJobsRequest(parent=study, page_size=5000, page_token=token))
        pages.append([job.name for job in page.jobs])
        token = page.next_page_token
        if not token:
            break
    assert [len(page) for page in pages] == [1000, 5]
    names = [name for page in pages for name in page]
    assert names == sorted(made, reverse=True)
    assert len(stub("ListJobs", pb.ListJobsRequest(parent=study)).jobs) == 50
    assert [job.name for job in client.list_jobs(study)] == names


def test_pages_of_large_jobs_fit_into_messages(client: SearchClient, study: str, stub: Any) -> None:
    classes = [f"class-{number}-{'x' * 400}" for number in range(2000)]  # 0.8 MB each
    made = [client.submit(study, "digits", classes=classes).name for _ in range(6)]
    assert sorted(job.name for job in client.list_jobs(study)) == sorted(made)
    page = stub("ListJobs", pb.ListJobsRequest(parent=study, page_size=6))
    assert 1 <= len(page.jobs) < 6 and page.next_page_token
    first, last = made[0], made[-1]
    assert page.jobs[0].name == last and first not in {job.name for job in page.jobs}


def test_pages_refuse_what_is_no_token_or_size(study: str, stub: Any) -> None:
    for field, request in (
        ("page_token", pb.ListJobsRequest(parent=study, page_token="../../x")),
        ("page_token", pb.ListJobsRequest(parent=study, page_token="a" * 81)),
        ("page_size", pb.ListJobsRequest(parent=study, page_size=-1)),
        ("states", pb.ListJobsRequest(parent=study, states=[77])),
        ("parent", pb.ListJobsRequest(parent="mine")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub("ListJobs", request)
        assert details_of(caught.value)["BadRequest"].field_violations[0].field == field
    with pytest.raises(grpc.RpcError) as caught:
        stub("ListJobs", pb.ListJobsRequest(parent="studies/none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_jobs_are_listed_by_state(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    queued, running, done, cancelled = (client.submit(study, "digits").name for _ in range(4))
    coordinator.start(tenant, running)
    coordinator.succeed(coordinator.start(tenant, done))
    client.cancel(cancelled)

    def listed(*names: str) -> set[str]:
        return {job.name for job in either.list_jobs(study, [pb.JobState.Value(f"JOB_STATE_{name}") for name in names])}

    assert listed() == {queued, running, done, cancelled}
    assert listed("QUEUED") == {queued}
    assert listed("RUNNING", "SUCCEEDED") == {running, done}
    assert listed("FAILED") == set()


# What users do to jobs


def test_cancel_of_a_queued_job_is_final(either: Any, client: SearchClient, study: str) -> None:
    job = client.submit(study, "digits")
    assert either.cancel(job.name).state == pb.JOB_STATE_CANCELLED
    assert either.cancel(job.name).state == pb.JOB_STATE_CANCELLED  # again changes nothing
    for refused in (either.pause, either.resume):
        with pytest.raises(ConflictError, match="cancelled"):
            refused(job.name)


def test_cancel_of_a_running_job_waits_for_its_worker(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits")
    running = coordinator.start(tenant, job.name)
    assert either.cancel(job.name).state == pb.JOB_STATE_CANCELLING
    with pytest.raises(ConflictError):
        coordinator.succeed(running)  # too late
    with pytest.raises(ConflictError):
        either.pause(job.name)
    coordinator.confirm_cancel(running)
    found = either.get_job(job.name)
    assert found.state == pb.JOB_STATE_CANCELLED and found.HasField("end_time")


def test_pause_and_resume(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits")
    assert either.pause(job.name).paused and either.pause(job.name).paused
    with pytest.raises(ConflictError, match="paused"):
        coordinator.start(tenant, job.name)
    resumed = either.resume(job.name)
    assert not resumed.paused and resumed.state == pb.JOB_STATE_QUEUED
    running = coordinator.start(tenant, job.name)
    paused = either.pause(job.name)
    assert paused.paused and paused.state == pb.JOB_STATE_RUNNING  # until its coordinator lets go
    coordinator.requeue(coordinator.job(tenant, job.name), "paused")
    assert either.get_job(job.name).state == pb.JOB_STATE_QUEUED
    either.resume(job.name)
    assert coordinator.start(tenant, job.name).attempt == running.attempt + 1


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_what_has_ended_stays_so(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str, stub: Any, end: str
) -> None:
    job = client.submit(study, "digits")
    running = coordinator.start(tenant, job.name)
    coordinator.succeed(running) if end == "succeeded" else coordinator.fail(running)
    before = client.get_job(job.name)
    for method, request in (
        ("CancelJob", pb.CancelJobRequest(name=job.name)),
        ("PauseJob", pb.PauseJobRequest(name=job.name)),
        ("ResumeJob", pb.ResumeJobRequest(name=job.name)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub(method, request)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details_of(caught.value)["ErrorInfo"].reason == "CONFLICT"
    assert client.get_job(job.name) == before


def test_result_of_an_adapt_job(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits")
    coordinator.succeed(coordinator.start(tenant, job.name))
    found = either.get_job(job.name)
    assert found.state == pb.JOB_STATE_SUCCEEDED and found.attempt == 1
    assert found.create_time.seconds <= found.start_time.seconds <= found.end_time.seconds
    result = found.adapt_result
    assert set(json.loads(result.genotype_json)["cells"]) == {"normal", "reduction"}
    assert (result.accuracy, result.num_params, result.num_macs) == (0.75, 12_345, 678_900)
    assert [scored.probability for scored in result.top_genotypes] == [0.25 / (1 + rank) for rank in range(5)]
    assert [(found.step, found.accuracy) for found in result.evaluations] == [(0, 0.5), (4, 0.75)]
    assert dict(result.entropy_nats) == {"normal": 1.5, "reduction": 1.25}
    assert not result.HasField("contributed_version")
    assert [artifact.name for artifact in found.artifacts] == ["weights.safetensors", "result.json"]


def test_a_fine_tuned_network_is_told_of_and_fetched_into_a_folder_of_its_own(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str, tmp_path: Path
) -> None:
    job = client.submit(study, "digits", fine_tune_steps=7)
    assert job.spec.adapt.fine_tune_steps == 7
    assert client.submit(study, "digits").spec.adapt.fine_tune_steps == 0
    files = {"result.json": b"{}", "network/network.json": b"{ }", "network/weights.safetensors": b"w" * 9}
    tuned = {"steps": 7, "accuracy": 0.875, "inductive_accuracy": 0.75, "inductive_loss_nats": 0.5}
    coordinator.succeed(coordinator.start(tenant, job.name), files, {"fine_tuned": tuned})
    assert either.get_job(job.name).adapt_result.fine_tuned == pb.FineTuned(**tuned)
    either.download(job.name, tmp_path / "out")
    for name, data in files.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_fine_tuning_is_refused_where_the_network_could_not_be_stored(client: SearchClient) -> None:
    flat = ["space.cell_kinds={flat = 1, reduction = 2}", 'network.cells=["flat", "reduction"]']
    found = client.create_study("flat", preset="smoke", overrides=flat)
    with pytest.raises(FieldError, match="'flat'") as caught:
        client.submit(found.name, "digits", fine_tune_steps=1)
    assert caught.value.field == "spec.adapt.fine_tune_steps"
    client.submit(found.name, "digits")


def test_result_of_a_meta_train_job_and_a_failure(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.meta_train(study)
    coordinator.succeed_round(coordinator.start(tenant, job.name))
    assert either.get_job(job.name).meta_train_result == pb.MetaTrainResult(prior_version=3, prior_sha256="cd" * 32)
    failed = client.submit(study, "digits")
    coordinator.fail(coordinator.start(tenant, failed.name), FailureReason.INVALID_INPUT, "too few images")
    found = either.get_job(failed.name)
    assert found.failure == pb.Failure(reason=pb.FAILURE_REASON_INVALID_INPUT, message="too few images")
    assert not found.HasField("adapt_result") and not found.artifacts


# Watching


def test_watch_sees_every_state_in_order_and_ends(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits")
    watch = either.watch(job.name)
    seen = [next(watch)]
    running = coordinator.start(tenant, job.name)
    seen.append(next(watch))
    coordinator.requeue(running, "its worker died")
    seen.append(next(watch))
    running = coordinator.start(tenant, job.name)
    seen.append(next(watch))
    coordinator.progress(running, 2, 4, 0.5)
    seen.append(next(watch))
    coordinator.succeed(running)
    seen += list(watch)
    assert states(seen) == ["QUEUED", "RUNNING", "QUEUED", "RUNNING", "SUCCEEDED"]
    progress = next(found for found in seen if not found.state_changed)
    assert (progress.job.progress.done, progress.job.progress.total, progress.job.progress.accuracy) == (2, 4, 0.5)
    assert seen[2].job.note == "its worker died"
    tokens = [int(found.resume_token) for found in seen]
    assert tokens == sorted(set(tokens))


def test_watch_goes_on_from_any_token(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits")
    coordinator.fail(coordinator.start(tenant, coordinator.job(tenant, job.name).name))
    everything = list(either.watch(job.name))
    assert states(everything) == ["QUEUED", "RUNNING", "FAILED"]
    assert states(either.watch(job.name, everything[0].resume_token)) == ["RUNNING", "FAILED"]
    assert states(either.watch(job.name, everything[1].resume_token)) == ["FAILED"]
    assert states(either.watch(job.name, everything[2].resume_token)) == ["FAILED"]  # never nothing
    assert either.wait(job.name).state == pb.JOB_STATE_FAILED


def test_watch_of_many_changes_drops_no_state(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits")
    store, job_id = coordinator.store, job.name.rpartition("/")[2]
    changes = 1100  # more than one read of the store gives
    for number in range(changes):
        store.suspend_job(tenant, "mine", job_id, number % 2 == 0)
    coordinator.fail(coordinator.start(tenant, job.name))
    seen = [found for found in client.watch(job.name) if found.state_changed]
    assert len(seen) == 1 + changes + 2
    assert [found.job.paused for found in seen[1:-2]] == [number % 2 == 0 for number in range(changes)]


def test_slow_reader_misses_no_state_and_not_every_progress(
    gateway: Gateway, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    job = client.submit(study, "digits", classes=[f"class-{number}-{'x' * 200}" for number in range(500)])  # 0.1 MB
    watch = client.watch(job.name)
    assert next(watch).job.state == pb.JOB_STATE_QUEUED
    running = coordinator.start(tenant, job.name)
    for done in range(300):  # 30 MB, far more than flow control lets through unread
        coordinator.progress(running, done, 300, 0.5)
    coordinator.succeed(running)
    seen = list(watch)
    assert states(seen) == ["RUNNING", "SUCCEEDED"]
    assert len(seen) < 250


@pytest.mark.parametrize("token", ["-1", "x", "1.5", "9" * 13, "../1"])
def test_watch_refuses_what_is_no_token(client: SearchClient, study: str, token: str) -> None:
    job = client.submit(study, "digits")
    with pytest.raises(FieldError, match="resume_token"):
        list(client.watch(job.name, token))


def test_watch_of_nothing(either: Any, study: str) -> None:
    with pytest.raises(NotFoundError, match="studies/mine/jobs/none"):
        list(either.watch(f"{study}/jobs/none"))
    with pytest.raises(FieldError, match="studies/"):
        list(either.watch("none"))


def test_watch_goes_on_when_the_gateway_drains_and_comes_back(own_gateway: Gateway) -> None:
    played = PlayedCoordinator(own_gateway)
    with own_gateway.client("nobody", "viewer") as reader:
        writer = SearchClient(own_gateway.address, own_gateway.known_token("nobody"))
        writer.create_study("mine", preset="smoke")
        job = writer.submit(STUDY, "digits")
        raw = reader._stub.WatchJob(pb.WatchJobRequest(name=job.name), metadata=reader._metadata)
        assert next(raw).job.state == pb.JOB_STATE_QUEUED
        watch = reader.watch(job.name)
        seen = [next(watch)]
        own_gateway.terminate()
        last = next(raw)
        assert last.closing and not last.state_changed and last.resume_token == seen[0].resume_token
        assert list(raw) == []  # ends without an error
        assert own_gateway.stop() == 0
        running = played.start("nobody", job.name)
        played.progress(running, 1, 4, 0.25)
        own_gateway.start()
        seen.append(next(watch))
        played.succeed(running)
        seen += list(watch)
        assert states(seen) == ["QUEUED", "RUNNING", "SUCCEEDED"]  # none twice, none missing
        writer.close()
    played.close()


def test_watch_and_calls_survive_a_killed_gateway(own_gateway: Gateway) -> None:
    played = PlayedCoordinator(own_gateway)
    client = SearchClient(own_gateway.address, own_gateway.known_token("nobody"))
    client.create_study("mine", preset="smoke")
    job = client.submit(STUDY, "digits")
    watch = client.watch(job.name)
    seen = [next(watch)]
    own_gateway.stop(9)
    names: list[str] = []
    request_id = str(uuid.uuid4())
    submitting = threading.Thread(
        target=lambda: names.append(client.submit(STUDY, "digits", request_id=request_id).name)
    )
    submitting.start()
    played.fail(played.start("nobody", job.name))
    own_gateway.start()
    seen += list(watch)
    submitting.join()
    assert states(seen) == ["QUEUED", "RUNNING", "FAILED"]
    assert {found.name for found in client.list_jobs(STUDY)} == {job.name, *names} and len(names) == 1
    client.close()
    played.close()


# Priors


def test_priors(either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str) -> None:
    with pytest.raises(NotFoundError):
        either.get_prior(f"{study}/priors/latest")  # made when the first job starts
    coordinator.first_prior(tenant, "mine", "ab" * 32)
    prior = either.get_prior(f"{study}/priors/latest")
    assert (prior.name, prior.version, prior.sha256, prior.made_by) == (f"{study}/priors/0", 0, "ab" * 32, "")
    assert either.get_prior(f"{study}/priors/0") == prior
    assert list(either.list_priors(study)) == [prior]
    assert either.get_study(study).prior_sha256 == "ab" * 32
    with pytest.raises(NotFoundError, match="priors/7"):
        either.get_prior(f"{study}/priors/7")
    for name in ("latest", f"{study}/priors/x", f"{study}/priors/-1", f"{study}/priors/123456789"):
        with pytest.raises(FieldError):
            either.get_prior(name)
    with pytest.raises(NotFoundError):
        list(either.list_priors("studies/none"))


# Uploads


def test_identical_data_is_stored_once(either: Any, gateway: Gateway, tenant: str, photos: Path) -> None:
    first = either.upload(photos)
    assert first.title == "photos" and first.suffix == ".zip"
    assert either.upload(photos) == first
    assert list(either.list_datasets()) == [first]
    stored = list((gateway.artifacts / "tenants" / tenant).rglob("*.zip"))
    assert len(stored) == 1
    assert hashlib.sha256(stored[0].read_bytes()).hexdigest() == first.name.removeprefix("datasets/")
    assert stored[0].stat().st_size == first.num_bytes


def test_folder_is_packed_the_same_whenever_and_wherever(photos: Path, tmp_path: Path) -> None:
    import os
    import shutil

    (photos / "ants" / ".hidden").write_text("x")
    (photos / "ants" / "link.png").symlink_to("/etc/passwd")
    copy = tmp_path / "elsewhere" / "photos"
    shutil.copytree(photos, copy, symlinks=True)
    for file in copy.rglob("*.png"):
        if not file.is_symlink():
            os.utime(file, (1, 1))
            file.chmod(0o600)
    digests = []
    for folder in (photos, copy):
        with packed(folder) as (file, _):
            digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
            assert zipfile.ZipFile(file).namelist() == ["ants/0.png", "ants/1.png", "bees/0.png", "bees/1.png"]
    assert digests[0] == digests[1]
    (copy / "ants" / "0.png").write_bytes(b"other")
    with packed(copy) as (file, _):
        assert hashlib.sha256(file.read_bytes()).hexdigest() != digests[0]


def test_submit_uploads_a_folder_and_names_it(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str, photos: Path
) -> None:
    job = either.submit(study, photos)
    dataset = next(iter(client.list_datasets()))
    assert job.spec.adapt.data.dataset == dataset.name
    file = coordinator.job(tenant, job.name).spec.file
    assert file is not None and file.sha256 == dataset.name.removeprefix("datasets/") and file.suffix == ".zip"
    assert Path(file.url.removeprefix("file://")).is_file()
    assert either.submit(study, dataset.name).spec == job.spec
    with pytest.raises(NotFoundError, match=r"none\.zip"):
        either.submit(study, "none.zip")


def test_npz_and_tar_are_taken(client: SearchClient, photos: Path, tmp_path: Path) -> None:
    import tarfile

    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 0, 1, 1]))
    assert client.upload(tmp_path / "a.npz").suffix == ".npz"
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz"), (".tbz2", "w:bz2")):
        with tarfile.open(tmp_path / f"a{suffix}", mode) as archive:  # type: ignore[call-overload]
            archive.add(photos, "photos")
        assert client.upload(tmp_path / f"a{suffix}").suffix == suffix
    assert len(list(client.list_datasets())) == 5
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InvalidInputError, match=r"a\.txt is none of"):
        client.upload(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="no files"):
        client.upload(tmp_path / "empty")


@pytest.fixture
def parts(photos: Path) -> list[pb.UploadDatasetRequest]:
    with packed(photos) as (file, title):
        return list(upload_parts(file, upload_header(file, title)))


def _edited(parts: list[pb.UploadDatasetRequest], **fields: Any) -> list[pb.UploadDatasetRequest]:
    header = pb.UploadHeader()
    header.CopyFrom(parts[0].header)
    for name, value in fields.items():
        setattr(header, name, value)
    return [pb.UploadDatasetRequest(header=header), *parts[1:]]


_CHUNK = pb.UploadDatasetRequest(chunk=b"x")
WRONG_UPLOADS: dict[str, Any] = {
    "nothing": (lambda parts: [], "header", "must come first"),
    "no header": (lambda parts: parts[1:], "header", "must come first"),
    "header twice": (lambda parts: [parts[0], parts[0], *parts[1:]], "part", "chunks only"),
    "empty part": (lambda parts: [parts[0], pb.UploadDatasetRequest()], "part", "chunks only"),
    "wrong hash": (lambda parts: _edited(parts, sha256="0" * 64), "header.sha256", "what came has"),
    "no hash": (lambda parts: _edited(parts, sha256="x"), "header.sha256", "SHA256"),
    "hash in capitals": (lambda parts: _edited(parts, sha256="A" * 64), "header.sha256", "datasets"),
    "too short": (lambda parts: parts[:1], "header.num_bytes", "0 came"),
    "too long": (lambda parts: [*parts, _CHUNK], "header.num_bytes", "more came"),
    "no bytes": (lambda parts: _edited(parts, num_bytes=0), "header.num_bytes", "from 1"),
    "negative": (lambda parts: _edited(parts, num_bytes=-1), "header.num_bytes", "from 1"),
    "oversize": (lambda parts: _edited(parts, num_bytes=(8 << 20) + 1), "header.num_bytes", str(8 << 20)),
    "suffix": (lambda parts: _edited(parts, suffix=".exe"), "header.suffix", ".zip"),
    "suffix elsewhere": (lambda parts: _edited(parts, suffix="/../../x.zip"), "header.suffix", ".zip"),
    "large chunk": (
        lambda parts: [*_edited(parts, num_bytes=2 << 20)[:1], pb.UploadDatasetRequest(chunk=bytes((1 << 20) + 1))],
        "chunk",
        "at most 1048576",
    ),
}


@pytest.mark.parametrize("kind", WRONG_UPLOADS)
def test_wrong_upload_is_refused_and_leaves_nothing(
    client: SearchClient,
    gateway: Gateway,
    tenant: str,
    parts: list[pb.UploadDatasetRequest],
    stub: Any,
    kind: str,
) -> None:
    change, field, words = WRONG_UPLOADS[kind]
    with pytest.raises(grpc.RpcError) as caught:
        stub("UploadDataset", iter(change(parts)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = details_of(caught.value)["BadRequest"].field_violations[0]
    assert violation.field == field and words in violation.description
    assert list(client.list_datasets()) == []
    assert not (gateway.artifacts / "tenants" / tenant).exists()
    assert not stub("UploadDataset", iter(parts)).existed
    assert stub("UploadDataset", iter(parts)).existed


def test_quota_of_jobs(gateway: Gateway) -> None:
    with gateway.client("small") as client:
        client.create_study("mine", preset="smoke")
        request_id = str(uuid.uuid4())
        first = client.submit(STUDY, "digits", request_id=request_id)
        client.submit(STUDY, "digits")
        with pytest.raises(QuotaError, match="2 jobs of tenant small"):
            client.submit(STUDY, "digits")
        assert client.submit(STUDY, "digits", request_id=request_id) == first, "the same request is no new job"
        client.cancel(first.name)
        client.submit(STUDY, "digits")
        request = pb.CreateJobRequest(parent=STUDY, spec=pb.JobSpec(meta_train=pb.MetaTrainSpec()))
        with pytest.raises(grpc.RpcError) as caught:
            client._stub.CreateJob(request, metadata=client._metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = details_of(caught.value)
    assert details["RetryInfo"].retry_delay.seconds > 0
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("QUOTA_EXCEEDED", DOMAIN)


def test_quota_of_studies(gateway: Gateway) -> None:
    with gateway.client("small") as client:
        client.create_study("one", preset="smoke")
        client.create_study("one", preset="smoke")
        with pytest.raises(QuotaError, match="tenant small has 2 studies, its limit"):
            for name in ("two", "three"):
                client.create_study(name, preset="smoke")
        assert len(list(client.list_studies())) == 2
        client.create_study("one", preset="smoke")


def test_quota_of_bytes_leaves_no_file_behind(gateway: Gateway, photos: Path, tmp_path: Path) -> None:
    with gateway.client("small") as client:
        first = client.upload(photos)
        assert first.num_bytes < 1500
        np.savez(tmp_path / "b.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9))
        with pytest.raises(QuotaError, match="1500"):
            client.upload(tmp_path / "b.npz")
        with packed(photos) as (file, title):  # what is stored already takes no room
            again = client._stub.UploadDataset(
                upload_parts(file, upload_header(file, title)), metadata=client._metadata
            )
        assert again.existed
        assert list(client.list_datasets()) == [first]
    assert len([path for path in (gateway.artifacts / "tenants" / "small").rglob("*") if path.is_file()]) == 1


def test_upload_beyond_the_quota_is_refused_before_it_is_sent(gateway: Gateway, photos: Path) -> None:
    sent = []

    def requests(header: pb.UploadHeader) -> Iterator[pb.UploadDatasetRequest]:
        yield pb.UploadDatasetRequest(header=header)
        stop.wait(20)  # no chunk comes until the service has answered
        sent.append(stop.is_set())

    stop = threading.Event()
    with gateway.client("tiny") as client, packed(photos) as (file, title):
        try:
            with pytest.raises(grpc.RpcError) as caught:
                client._stub.UploadDataset(requests(upload_header(file, title)), metadata=client._metadata, timeout=15)
        finally:
            stop.set()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_title_of_any_kind_is_only_a_title(
    client: SearchClient, parts: list[pb.UploadDatasetRequest], stub: Any
) -> None:
    title = "../../[bold]\n\x1b[31m\N{SNOWMAN}" + "x" * 500
    found = stub("UploadDataset", iter(_edited(parts, title=title))).dataset
    assert found.title == title[:200]
    assert client.get_job is not None and next(iter(client.list_datasets())) == found


# Downloads


@pytest.fixture
def finished(client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str) -> tuple[str, bytes]:
    """A job with an artifact of 2.5 chunks, and an empty one."""
    job = client.submit(study, "digits")
    data = np.random.default_rng(0).bytes((5 << 20) // 2)
    coordinator.succeed(coordinator.start(tenant, job.name), {"weights.safetensors": data, "empty": b""})
    return job.name, data


def test_download_brings_whole_files(either: Any, finished: tuple[str, bytes], tmp_path: Path) -> None:
    name, data = finished
    paths = either.download(name, tmp_path / "new" / "out")
    assert [path.name for path in paths] == ["weights.safetensors", "empty"]
    assert paths[0].read_bytes() == data and paths[1].read_bytes() == b""
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["empty", "weights.safetensors"]
    (only,) = either.download(name, tmp_path / "one", ["empty"])
    assert only.name == "empty" and len(list((tmp_path / "one").iterdir())) == 1
    with pytest.raises(NotFoundError, match="'none'"):
        either.download(name, tmp_path / "two", ["empty", "none"])
    assert not (tmp_path / "two").exists()


def test_download_starts_at_an_offset(finished: tuple[str, bytes], stub: Any) -> None:
    name, data = finished
    for offset in (0, 1, 1 << 20, len(data) - 1, len(data)):
        request = pb.DownloadArtifactRequest(job=name, artifact="weights.safetensors", offset=offset)
        first, *rest = stub("DownloadArtifact", request)
        assert first.artifact.sha256 == hashlib.sha256(data).hexdigest() and first.chunk == b""
        assert b"".join(response.chunk for response in rest) == data[offset:]
        assert all(0 < len(response.chunk) <= 1 << 20 for response in rest)
    for offset in (-1, len(data) + 1):
        request = pb.DownloadArtifactRequest(job=name, artifact="weights.safetensors", offset=offset)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub("DownloadArtifact", request))
        assert details_of(caught.value)["BadRequest"].field_violations[0].field == "offset"


class _Breaking:
    """A stub whose downloads break off after a chunk, twice."""

    def __init__(self, stub: Any, is_async: bool) -> None:
        self._stub = stub
        self._is_async = is_async
        self.offsets: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def DownloadArtifact(self, request: Any, metadata: Any) -> Any:
        self.offsets.append(request.offset)
        responses = self._stub.DownloadArtifact(request, metadata=metadata)
        if len(self.offsets) > 2:
            return responses
        return self._broken_async(responses) if self._is_async else self._broken(responses)

    def _broken(self, responses: Any) -> Iterator[Any]:
        for index, response in enumerate(responses):
            if index == 2:
                responses.cancel()
                raise _Unavailable
            yield response

    async def _broken_async(self, responses: Any) -> Any:
        index = 0
        async for response in responses:
            if index == 2:
                responses.cancel()
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
            yield response
            index += 1


class _Unavailable(grpc.RpcError):
    @staticmethod
    def code() -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    @staticmethod
    def details() -> str:
        return "broken off"

    @staticmethod
    def trailing_metadata() -> tuple[()]:
        return ()


def test_broken_download_goes_on_where_it_was(either: Any, finished: tuple[str, bytes], tmp_path: Path) -> None:
    name, data = finished
    inner = getattr(either, "_client", either) if not isinstance(either, SearchClient) else either
    inner._stub = breaking = _Breaking(inner._stub, inner is not either)
    (path,) = either.download(name, tmp_path, ["weights.safetensors"])
    assert path.read_bytes() == data
    assert breaking.offsets == [0, 1 << 20, 2 << 20]


def test_altered_or_missing_artifact_is_never_delivered(
    either: Any, gateway: Gateway, finished: tuple[str, bytes], tmp_path: Path, tenant: str
) -> None:
    name, data = finished
    (file,) = (gateway.artifacts / tenant).rglob("weights.safetensors")
    file.write_bytes(b"x" + data[1:])
    with pytest.raises(CorruptArtifactError, match="SHA-256"):
        either.download(name, tmp_path / "out")
    file.write_bytes(data[:100])
    with pytest.raises(CorruptArtifactError, match="truncated"):
        either.download(name, tmp_path / "out")
    file.unlink()
    with pytest.raises(NotFoundError):
        either.download(name, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_download_of_what_is_not_there(either: Any, client: SearchClient, study: str, tmp_path: Path) -> None:
    job = client.submit(study, "digits")
    with pytest.raises(NotFoundError, match="has not succeeded"):
        either.download(job.name, tmp_path)


def test_artifact_name_that_leads_elsewhere_is_not_written(
    either: Any, client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str, tmp_path: Path
) -> None:
    job = client.submit(study, "digits")
    coordinator.succeed(coordinator.start(tenant, job.name), {"../evil": b"x"})
    with pytest.raises(CorruptArtifactError, match="not a file name"):
        either.download(job.name, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


# Details


def test_errors_on_the_wire_carry_details(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub("GetStudy", pb.GetStudyRequest(name="x"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(caught.value)
    assert set(details) == {"BadRequest", "ErrorInfo"}
    assert details["BadRequest"].field_violations[0].field == "name"
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("INVALID_INPUT", DOMAIN)
    with pytest.raises(grpc.RpcError) as caught:
        stub("GetStudy", pb.GetStudyRequest(name="studies/none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert set(details_of(caught.value)) == {"ErrorInfo"}


@pytest.mark.parametrize("letter", ["x", "\N{SNOWMAN}", "\N{GRINNING FACE}", "\x00", "%"])
def test_error_about_a_long_text_still_arrives(stub: Any, letter: str) -> None:
    request = pb.CreateStudyRequest(study_id="mine", preset="smoke", overrides=[letter * 100_000 + "=1"])
    with pytest.raises(grpc.RpcError) as caught:
        stub("CreateStudy", request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert "BadRequest" in details_of(caught.value)


def test_client_gives_up_on_a_silent_service_after_its_patience() -> None:
    from common.errors import UnavailableError

    with SearchClient("127.0.0.1:1", "token", patience_s=0.3) as client, pytest.raises(UnavailableError):
        client.get_study(STUDY)


def test_callers_at_once_keep_their_tenants(gateway: Gateway, client: SearchClient, other_tenant: str) -> None:
    client.create_study("mine", preset="smoke")
    with gateway.client(other_tenant) as other:
        other.create_study("mine", preset="smoke", overrides=["rounds=7"])
        calls = [
            (
                rounds,
                caller._stub.GetStudy.future(pb.GetStudyRequest(name=STUDY), metadata=caller._metadata),
            )
            for _ in range(200)
            for rounds, caller in ((3, client), (7, other))
        ]
        assert all(call.result().study.config["rounds"] == rounds for rounds, call in calls)


def test_client_speaks_to_the_named_address_and_uploads_again_after_a_break(
    either: Any, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = either if isinstance(either, SearchClient) else either._client
    real, tries = inner._stub.UploadDataset, []

    def breaking(parts: Any, metadata: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            if inner is either:
                raise _Unavailable
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        return real(parts, metadata=metadata)

    inner._stub.UploadDataset = breaking
    assert either.upload(photos).title == "photos"
    assert len(tries) == 3
    assert connection.DEFAULT_ADDRESS == "127.0.0.1:7171"


def test_half_a_zip_is_refused_in_words_of_the_user(client: SearchClient, photos: Path, tmp_path: Path) -> None:
    with packed(photos) as (file, _):
        (tmp_path / "half.zip").write_bytes(file.read_bytes()[:200])
    with pytest.raises(FieldError, match=r"^chunk: half\.zip is not a readable archive"):
        client.upload(tmp_path / "half.zip")
    only = io.BytesIO()
    with zipfile.ZipFile(only, "w") as archive:
        archive.write(photos / "ants" / "0.png", "ants/0.png")
    (tmp_path / "one.zip").write_bytes(only.getvalue())
    with pytest.raises(FieldError, match="at least 2"):
        client.upload(tmp_path / "one.zip")


def test_drain_waits_for_a_call_under_way(own_gateway: Gateway, photos: Path) -> None:
    client = SearchClient(own_gateway.address, own_gateway.known_token("nobody"))
    go_on = threading.Event()

    def requests(parts: list[pb.UploadDatasetRequest]) -> Iterator[pb.UploadDatasetRequest]:
        yield parts[0]
        go_on.wait(20)
        yield from parts[1:]

    with packed(photos) as (file, title):
        parts = list(upload_parts(file, upload_header(file, title)))
    call = client._stub.UploadDataset.future(requests(parts), metadata=client._metadata)
    list(client.list_datasets())  # the upload, sent earlier on the same connection, has begun
    own_gateway.terminate()
    until(lambda: "draining" in own_gateway.log.read_text(), "the drain")
    go_on.set()
    assert call.result(20).dataset.title == "photos"
    assert own_gateway.stop() == 0
    client.close()


def test_drain_does_not_wait_for_watches_of_health(own_gateway: Gateway) -> None:
    with grpc.insecure_channel(own_gateway.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        started_s = time.monotonic()
        assert own_gateway.stop() == 0
        assert time.monotonic() - started_s < own_gateway.drain_s - 0.5
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING, "told before the end"


def test_an_upload_that_falls_silent_is_given_up(tmp_path: Path, photos: Path) -> None:
    with running(tmp_path / "own", upload_idle_s=0.3) as gateway, packed(photos) as (file, title):
        parts = list(upload_parts(file, upload_header(file, title)))
        go_on = threading.Event()

        def requests() -> Iterator[pb.UploadDatasetRequest]:
            yield parts[0]
            go_on.wait(20)

        with (
            gateway.client("nobody", "viewer") as viewer,
            SearchClient(gateway.address, gateway.known_token("nobody")) as client,
        ):
            call = viewer._stub.UploadDataset.future(requests(), metadata=client._metadata)
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert "nothing of the upload came for 0.3 s" in call.details()
            go_on.set()
            assert client.upload(photos).title == "photos"
        until(lambda: not list(gateway.scratch.glob("metasearch-upload-*")), "the half file to go")
