"""Jobs that evaluate, over the protocol: what is asked for, what is refused and by which field, what comes back."""

import json
from pathlib import Path
from typing import Any

import pytest
from reference.gateway import Gateway, PlayedCoordinator
from reference.processes import command_line

from common.errors import InvalidInputError
from common.evaluate_config import load_evaluate_config
from common.space.genotype import Genotype
from common.space.released import CIFAR_TUNED, DARTS_V2
from coordinator.api.client import SearchClient
from coordinator.api.errors import FieldError
from coordinator.api.stubs import search_pb2 as pb

SUMMARY = {
    "genotype": DARTS_V2.model_dump(mode="json"),
    "accuracy": 0.9,
    "accuracy_low": 0.85,
    "accuracy_high": 0.93,
    "num_test": 200,
    "num_params": 2642,
    "num_macs": 12345,
    "epochs": 2,
    "ended_by": "schedule",
    "train_s": 1.5,
    "learning_curve": [
        {"epoch": 1, "lr": 0.1, "train_loss_nats": 2.0, "train_accuracy": 0.3, "accuracy": None},
        {"epoch": 2, "lr": 0.05, "train_loss_nats": 1.0, "train_accuracy": 0.6, "accuracy": 0.9},
    ],
}


@pytest.fixture
def study(client: SearchClient) -> str:
    return client.create_study("mine", preset="smoke").name


def test_submit_returns_what_was_asked_for(either: Any, study: str) -> None:
    job = either.evaluate(study, "digits", "DARTS_V2", preset="smoke", overrides=["epochs=7", "ema_decay=0.9"])
    spec = job.spec.evaluate
    assert job.state == pb.JOB_STATE_QUEUED and job.spec.WhichOneof("kind") == "evaluate"
    assert spec.data.builtin == "digits" and Genotype.from_json(spec.genotype_json) == DARTS_V2
    expected = load_evaluate_config("smoke", ["epochs=7", "ema_decay=0.9"])
    assert load_evaluate_config(spec.preset, list(spec.overrides)) == expected
    assert either.get_job(job.name) == job
    # What comes back can be asked for again.
    again = either.submit(study, spec=job.spec)
    assert again.spec == job.spec


def test_the_recipe_is_cifar10s_by_default(client: SearchClient, study: str) -> None:
    job = client.evaluate(study, "digits", json.loads(CIFAR_TUNED.to_json()))
    assert job.spec.evaluate.preset == "cifar10" and not job.spec.evaluate.overrides


def test_every_recipe_comes_back_as_it_was(client: SearchClient, study: str) -> None:
    for preset in ("svhn", "imagenet", "smoke"):
        spec = client.evaluate(study, "digits", "DARTS_V1", preset=preset, validate_only=True).spec.evaluate
        assert load_evaluate_config(spec.preset, list(spec.overrides)) == load_evaluate_config(preset)


def test_a_folder_is_uploaded(client: SearchClient, study: str, photos: Path) -> None:
    job = client.evaluate(study, photos, "DARTS_V2", preset="smoke")
    assert job.spec.evaluate.data.dataset.startswith("datasets/")


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"data": pb.DataSource()}, "spec.evaluate.data", "builtin, dataset or url"),
        ({"data": pb.DataSource(builtin="digit")}, "spec.evaluate.data.builtin", "must be one of"),
        ({"data": pb.DataSource(dataset="datasets/1")}, "spec.evaluate.data.dataset", "SHA256"),
        ({"data": pb.DataSource(url="https://elsewhere/a.zip")}, "spec.evaluate.data.url", "allowed prefix"),
        ({"genotype_json": ""}, "spec.evaluate.genotype_json", "JSON"),
        ({"genotype_json": "DARTS"}, "spec.evaluate.genotype_json", "JSON"),
        (
            {"genotype_json": '{"cells": {"flat": [[{"source": 0, "primitive": "skip_connect"}]]}}'},
            "spec.evaluate.genotype_json",
            "normal and reduction",
        ),
        ({"preset": "mnist"}, "spec.evaluate.preset", "cifar10, svhn"),
        ({"overrides": ["epoch=1"]}, "spec.evaluate.overrides", "no such field"),
        ({"overrides": ["epochs=0"]}, "spec.evaluate.overrides", "greater than or equal to 1"),
        ({"overrides": ["nonsense"]}, "spec.evaluate.overrides", "FIELD=VALUE"),
    ],
)
def test_a_wrong_job_is_refused_by_field(
    client: SearchClient, study: str, change: dict[str, Any], field: str, words: str
) -> None:
    plain = {"data": pb.DataSource(builtin="digits"), "genotype_json": "DARTS_V2", "preset": "smoke"}
    with pytest.raises(FieldError, match=words) as error:
        client.submit(study, spec=pb.JobSpec(evaluate=pb.EvaluateSpec(**{**plain, **change})))
    assert field in str(error.value)
    assert not list(client.list_jobs(study))


def test_a_result_comes_back_with_its_interval_and_curve(
    client: SearchClient, gateway: Gateway, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    coordinator.first_prior(tenant, "mine")
    job = client.evaluate(study, "digits", "DARTS_V2", preset="smoke")
    running = coordinator.start(tenant, job.name)
    running = coordinator.progress(running, 1, 2, 0.5)
    assert client.get_job(job.name).progress.accuracy == 0.5
    coordinator.store.succeed(
        coordinator.epoch, running, 2.0, {"summary": SUMMARY, "artifacts": [], "url": "memory://nowhere"}
    )
    found = client.get_job(job.name)
    result = found.evaluate_result
    assert found.state == pb.JOB_STATE_SUCCEEDED and found.progress.done == 2
    assert (result.accuracy, result.accuracy_low, result.accuracy_high) == (0.9, 0.85, 0.93)
    assert (result.num_test, result.num_params, result.epochs, result.ended_by) == (200, 2642, 2, "schedule")
    assert [record.HasField("accuracy") for record in result.learning_curve] == [False, True]
    assert Genotype.from_json(result.genotype_json) == DARTS_V2


def test_the_command_line_submits_it(
    gateway: Gateway,
    client: SearchClient,
    tenant: str,
    study: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = command_line(capsys, monkeypatch)
    reach = ("--server", gateway.address, "--token", gateway.token(tenant), "--study", "mine", "--data", "digits")
    (tmp_path / "result.json").write_text(json.dumps({"genotype": CIFAR_TUNED.model_dump(mode="json")}))
    code, out, err = run(
        "submit", *reach, "--evaluate", str(tmp_path / "result.json"), "--recipe", "svhn", "--set", "epochs=3", "--json"
    )
    assert code == 0, err
    spec = client.get_job(json.loads(out)["name"]).spec.evaluate
    assert Genotype.from_json(spec.genotype_json) == CIFAR_TUNED and list(spec.overrides) == ["epochs=3"]
    for options, words in (
        (("--evaluate", "DARTS_V2", "--steps", "3"), "--steps: leave it out with --evaluate"),
        (("--set", "epochs=3"), "--set: add --evaluate GENOTYPE"),
        (("--evaluate", "NO_SUCH"), "there is no file and no genotype 'NO_SUCH'"),
    ):
        code, _, err = run("submit", *reach, *options)
        assert code in (InvalidInputError.exit_code, 3) and words in err
