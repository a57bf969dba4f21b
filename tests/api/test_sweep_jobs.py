"""Sweep jobs over the protocol: what is asked for, what is refused and by which field, what comes back."""

import json
from pathlib import Path
from typing import Any

import pytest
from reference.gateway import Gateway, PlayedCoordinator
from reference.processes import command_line

from common.space.genotype import Genotype
from common.space.released import DARTS_V1, DARTS_V2
from coordinator.api.client import SearchClient
from coordinator.api.errors import FieldError
from coordinator.api.stubs import search_pb2 as pb

CONFIG: dict[str, Any] = {
    "space": {"inner.theta.lr": {"loguniform": [0.01, 1.0]}, "inner.steps": {"choice": [1, 2]}},
    "trials": 3,
    "searcher": "optuna",
}
CANDIDATES = [(DARTS_V1.to_json(), 0.25), (DARTS_V2.to_json(), 0.125)]
SUMMARY = {
    "metric": "accuracy",
    "best": 1,
    "seconds": 2.5,
    "best_content": {"seed": 3},
    "trials": [
        {
            "trial": 0,
            "state": "failed",
            "values": {"inner.steps": 2},
            "rounds": 0,
            "value": None,
            "interval_95": None,
            "failure": "it diverged",
        },
        {
            "trial": 1,
            "state": "complete",
            "values": {"inner.steps": 1},
            "rounds": 3,
            "value": 0.75,
            "interval_95": [0.5, 1.0],
            "failure": "",
        },
    ],
}


@pytest.fixture
def study(client: SearchClient) -> str:
    return client.create_study("mine", preset="smoke").name


def test_submit_returns_what_was_asked_for(either: Any, study: str) -> None:
    job = either.sweep(study, CONFIG)
    assert job.state == pb.JOB_STATE_QUEUED and job.spec.WhichOneof("kind") == "sweep"
    assert either.get_job(job.name) == job
    again = either.submit(study, spec=job.spec)
    assert again.spec == job.spec, "what comes back can be asked for again"
    assert job.spec.sweep.config["trials"] == 3


def test_architectures_travel_with_their_probabilities(client: SearchClient, study: str) -> None:
    config = {"architectures": {"top": 2, "recipe": "smoke", "overrides": ["epochs=2"]}}
    spec = client.sweep(study, config, "digits", CANDIDATES).spec.sweep
    assert [(each.genotype_json, each.probability) for each in spec.architectures] == CANDIDATES
    assert spec.data.builtin == "digits"
    assert not client.sweep(study, config, "digits").spec.sweep.architectures, "those of the study's prior"


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"space": {"inner.stepz": {"choice": [1]}}}, "spec.sweep.config.space", "no such field"),
        ({"space": {"outer.alpha_rate": {"uniform": [0, 2]}}}, "spec.sweep.config.space", "less than or equal to 1"),
        ({"space": {}}, "spec.sweep.config", "either .space., with fields to sweep"),
        ({"study": "demo"}, "spec.sweep.config.study", "the job's study is varied"),
        ({"trials": 1001}, "spec.sweep.config.trials", "at most 1000 trials, got 1001"),
        ({"searcher": "bayes"}, "spec.sweep.config", "searcher: "),
        (
            {"space": {"families.0.data.source": {"choice": ["/etc/passwd"]}}},
            "spec.sweep.config.space",
            "below an allowed URL",
        ),
        ({"space": {"families.0.data.root": {"choice": ["/etc"]}}}, "spec.sweep.config.space", "allowed URL"),
    ],
)
def test_a_wrong_space_is_refused_by_field(
    client: SearchClient, study: str, change: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(FieldError, match=words) as error:
        client.sweep(study, {**CONFIG, **change})
    assert field in str(error.value)
    assert not list(client.list_jobs(study))


@pytest.mark.parametrize(
    ("config", "data", "candidates", "words"),
    [
        ({"top": 2, "recipe": "smoke"}, None, CANDIDATES, "builtin, dataset or url"),
        ({"top": 2, "recipe": "smoke"}, "digits", [("{", 0.5), CANDIDATES[0]], "architectures.0.genotype_json"),
        ({"top": 3, "recipe": "smoke"}, "digits", CANDIDATES, "there are 2, config says top = 3"),
        ({"top": 2, "recipe": "mnist"}, "digits", CANDIDATES, "recipes are cifar10"),
        ({"top": 2, "overrides": ["validation_fraction=0"]}, "digits", CANDIDATES, "on the test images"),
    ],
)
def test_wrong_architectures_are_refused(
    client: SearchClient, study: str, config: Any, data: Any, candidates: Any, words: str
) -> None:
    with pytest.raises(FieldError, match=words):
        client.sweep(study, {"architectures": config}, data, candidates)


def test_a_result_comes_back_with_all_trials(
    client: SearchClient, gateway: Gateway, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    coordinator.first_prior(tenant, "mine")
    job = client.sweep(study, CONFIG)
    running = coordinator.start(tenant, job.name)
    result = {"summary": SUMMARY, "artifacts": [], "url": "memory://nowhere"}
    coordinator.store.succeed(coordinator.epoch, running, 2.0, result)
    found = client.get_job(job.name).sweep_result
    assert (found.metric, found.best, found.seconds, json.loads(found.best_json)) == ("accuracy", 1, 2.5, {"seed": 3})
    failed, best = found.trials
    assert failed.failure == "it diverged" and not failed.HasField("value") and not failed.HasField("low")
    assert (best.value, best.low, best.high, json.loads(best.values_json)) == (0.75, 0.5, 1.0, {"inner.steps": 1})


def test_the_command_line_submits_it_and_shows_what_was_found(
    gateway: Gateway,
    coordinator: PlayedCoordinator,
    client: SearchClient,
    tenant: str,
    study: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = command_line(capsys, monkeypatch)
    reach = ("--server", gateway.address, "--token", gateway.token(tenant))
    file = tmp_path / "sweep.toml"
    file.write_text('trials = 2\n[space]\n"inner.steps" = { choice = [1, 2] }\n')
    code, out, err = run("study", "sweep", "mine", str(file), *reach, "--json")
    assert code == 0, err
    name = json.loads(out)["name"]
    assert client.get_job(name).spec.sweep.config["trials"] == 2
    coordinator.first_prior(tenant, "mine")
    result = {"summary": SUMMARY, "artifacts": [], "url": "memory://nowhere"}
    coordinator.store.succeed(coordinator.epoch, coordinator.start(tenant, name), 2.0, result)
    code, _, err = run("result", name, *reach)
    assert code == 0 and "0.750 (0.500-1.000)" in err and "inner.steps" in err
    posterior = {"ops": ["skip_connect", "sep_conv_3x3", "max_pool_3x3"]}
    posterior["probabilities"] = {kind: [[0.2, 0.5, 0.3]] * 2 for kind in ("normal", "reduction")}  # type: ignore[assignment]
    (tmp_path / "result.json").write_text(json.dumps({"architecture_posterior": posterior}))
    options = ("--architectures", str(tmp_path), "--top", "2", "--data", "digits", "--recipe", "smoke")
    code, out, err = run("study", "sweep", "mine", *options, *reach, "--json")
    assert code == 0, err
    spec = client.get_job(json.loads(out)["name"]).spec.sweep
    assert len({Genotype.from_json(each.genotype_json).to_json() for each in spec.architectures}) == 2
    file.write_text('study = "demo"\n[space]\n"inner.steps" = { choice = [1, 2] }\n')
    for arguments, words in (
        ((str(file),), "the job's study is varied"),
        (("--top", "2"), "architectures.data is missing"),
    ):
        code, _, err = run("study", "sweep", "mine", *arguments, *reach)
        assert code == 2 and words in err
