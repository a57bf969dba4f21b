"""Jobs from the images to stored results, on real digits."""

import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from reference.latency_tables import latency_table
from safetensors.numpy import load as load_tensors
from sklearn.datasets import load_digits

from common.config import DatasetRef, SpaceConfig
from common.cost import network_cost
from common.derivation import genotype_probability, smallest_cost, top_genotypes
from common.errors import (
    AdaptationError,
    ConflictError,
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from common.latency import network_ms
from common.limits import Limits
from common.loading import load
from common.messages import AdaptRequest, ArtifactInfo, Interim, JobRequest, JobResult
from common.meta.inherit import inherited_network
from common.meta.prior import Prior, initial_prior
from common.nn.stored import load_network
from common.space.genotype import Genotype, derive
from common.storage import ArtifactFolder
from common.tasks import DatasetFile, LearningTask, TaskChoice
from workers.actor import SearchWorker
from workers.data.episodes import load_episode
from workers.job import check_limits, entropies, environment, evaluation_steps, run_job
from workers.runner import TaskRunner

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = load("smoke", ["adapt.steps=5", "adapt.alpha.lr=0.3"], environment={})
SPACE, NETWORK = CONFIG.space, CONFIG.network
CHOICE = TaskChoice(
    data=DatasetRef(source="digits"), classes=("1", "7", "4"), image_size=16, train_per_class=12, test_per_class=10
)
RUNNER = TaskRunner(torch.device("cpu"))


@pytest.fixture
def prior() -> Prior:
    return initial_prior(CONFIG)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    yield storage
    storage.store.clear()


def request(folder: Path | str, **changes: Any) -> JobRequest:
    plain = JobRequest(
        job_id="job-1",
        attempt=1,
        choice=CHOICE,
        file=None,
        config=CONFIG,
        inner=CONFIG.adapt,
        version=0,
        derivation="top2_pairs",
        limits=Limits(),
        result_url=str(folder),
        returns_update=False,
    )
    return replace(plain, **changes)


def write_digits(path: Path) -> Path:
    """A file of the user's: real digits, 1 and 7 alone."""
    digits = load_digits()
    wanted = np.isin(digits.target, (1, 7))
    images = (digits.images[wanted] * 15).astype(np.uint8)
    np.savez(path, images=images, labels=digits.target[wanted])
    return path


def results_in(folder: Path | str) -> dict[str, Any]:
    return json.loads(ArtifactFolder(folder).read("result.json"))


def genotype_of(content: Any) -> Genotype:
    return Genotype.from_json(json.dumps(content))


def posterior_in(folder: Path | str) -> dict[str, np.ndarray]:
    stored = results_in(folder)["architecture_posterior"]["probabilities"]
    return {kind: np.array(values) for kind, values in stored.items()}


def test_a_job_tells_what_it_found(prior: Prior, tmp_path: Path):
    result = run_job(RUNNER, prior, request(tmp_path / "job", limits=Limits(max_params=10**9)))
    content = results_in(tmp_path / "job")
    posterior = posterior_in(tmp_path / "job")

    assert content["task"]["classes"] == ["1", "7", "4"] and content["task"]["data"]["source"] == "digits"
    assert content["job"] == {"job_id": "job-1", "attempt": 1, "file": None}
    assert content["prior"] == {"version": 0, "sha256": prior.digest()}
    assert content["limits"] == {"max_params": 10**9, "max_macs": None}
    assert [entry["step"] for entry in content["evaluations"]] == [0, 1, 2, 5]
    assert content["evaluations"][0]["accuracy"] == pytest.approx(1 / 3), "a fresh classifier guesses"
    assert content["evaluations"][0]["loss_nats"] == pytest.approx(math.log(3), abs=1e-5)
    assert len(content["train_losses_nats"]) == 5
    assert content["batch_size"] == 16
    assert content["images_per_s"] == pytest.approx(5 * 16 / content["adapt_s"])
    assert content["environment"] == environment()

    genotype = genotype_of(content["genotype"])
    assert genotype == derive(posterior, SPACE.topology, SPACE.ops)
    assert content["probability"] == pytest.approx(genotype_probability(genotype, posterior, SPACE))
    cost = network_cost(genotype, SPACE, NETWORK, 16, 3)
    assert content["network"] == {"num_params": cost.num_params, "num_macs": cost.num_macs}
    expected = top_genotypes(posterior, SPACE, 5)
    assert len(expected) == len(content["top_genotypes"]) == 5
    for entry, scored in zip(content["top_genotypes"], expected, strict=True):
        assert genotype_of(entry["genotype"]) == scored.genotype
        assert entry["probability"] == pytest.approx(scored.probability)
    for kind, values in posterior.items():
        by_hand = np.mean([-sum(p * math.log(p) for p in edge) for edge in values])
        assert content["architecture_posterior"]["entropy_nats"][kind] == pytest.approx(by_hand)

    assert result.job_id == "job-1" and result.update is None
    assert json.loads(json.dumps(result.summary)) == result.summary
    assert result.summary == {
        "genotype": content["genotype"],
        "probability": content["probability"],
        "top_genotypes": content["top_genotypes"],
        "accuracy": content["evaluations"][-1]["accuracy"],
        "num_params": cost.num_params,
        "num_macs": cost.num_macs,
        "entropy_nats": content["architecture_posterior"]["entropy_nats"],
        "evaluations": content["evaluations"],
        "prior_version": 0,
        "steps": 5,
        "seconds": content["adapt_s"],
    }


@pytest.mark.parametrize("place", ["local", "memory://runs/job"])
def test_artifacts_are_what_the_manifest_says(
    prior: Prior, tmp_path: Path, memory: fsspec.AbstractFileSystem, place: str
):
    url = str(tmp_path / "job") if place == "local" else place
    result = run_job(RUNNER, prior, request(url))
    folder = ArtifactFolder(url)
    manifest = json.loads(folder.read("manifest.json"))
    assert manifest["format"] == 1
    assert [ArtifactInfo(**entry) for entry in manifest["artifacts"]] == list(result.artifacts)
    assert [artifact.name for artifact in result.artifacts] == ["weights.safetensors", "result.json"]
    for artifact in result.artifacts:
        data = folder.read(artifact.name)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.num_bytes, artifact.sha256)


def test_stored_weights_are_the_adapted_ones(prior: Prior, tmp_path: Path):
    result = run_job(RUNNER, prior, request(tmp_path, returns_update=True))
    assert result.update is not None
    weights = load_tensors((tmp_path / "weights.safetensors").read_bytes())
    assert set(weights) == {"body", "head/16", "alpha", "classifier/weight", "classifier/bias"}
    for name, difference in result.update.differences.items():
        assert np.any(difference)
        assert np.array_equal(weights[name] - prior.vectors[name], difference)
    assert np.array_equal(weights["alpha"], result.update.alpha)
    assert weights["classifier/weight"].shape[0] == 3 and np.any(weights["classifier/bias"])
    logits = torch.from_numpy(weights["alpha"]).double().reshape(2, SPACE.topology.num_edges, len(SPACE.ops))
    for index, values in enumerate(posterior_in(tmp_path).values()):
        assert np.allclose(values, logits[index].softmax(dim=-1).numpy())


def test_an_update_bears_the_name_of_its_job(prior: Prior, tmp_path: Path):
    result = run_job(RUNNER, prior, request(tmp_path, returns_update=True, job_id="of mine"))
    assert result.update is not None
    assert (result.update.task_id, result.update.version, result.update.num_examples) == ("of mine", 0, 36)


def test_equal_requests_find_the_same_under_any_name(prior: Prior, tmp_path: Path):
    first = run_job(RUNNER, prior, request(tmp_path / "a"))
    again = run_job(TaskRunner(torch.device("cpu")), prior, request(tmp_path / "b", job_id="another", attempt=2))
    other = run_job(RUNNER, prior, request(tmp_path / "c", choice=CHOICE.model_copy(update={"seed": 1})))
    assert first.artifacts[0] == again.artifacts[0] != other.artifacts[0]
    assert {**first.summary, "seconds": 0} == {**again.summary, "seconds": 0}


def test_steps_and_the_best_so_far_are_reported(prior: Prior, tmp_path: Path):
    steps: list[int] = []
    interims: list[Interim] = []
    result = run_job(RUNNER, prior, request(tmp_path), steps.append, interims.append)
    assert steps == [1, 2, 3, 4, 5]
    evaluations = result.summary["evaluations"]
    assert len(interims) == len(evaluations)
    for index, interim in enumerate(interims):
        best = max(evaluations[: index + 1], key=lambda entry: (entry["accuracy"], entry["step"]))
        assert (interim.step, interim.accuracy) == (best["step"], best["accuracy"])
    alpha = torch.from_numpy(prior.vectors["alpha"]).double().reshape(2, SPACE.topology.num_edges, -1)
    at_first = {kind: alpha[index].softmax(-1).numpy() for index, kind in enumerate(SPACE.cell_kinds)}
    assert interims[0].genotype == derive(at_first, SPACE.topology, SPACE.ops)
    if interims[-1].step == 5:
        assert interims[-1].genotype == genotype_of(result.summary["genotype"])
    assert len({interim.genotype.to_json() for interim in interims}) > 1


def test_limits_are_respected(prior: Prior, tmp_path: Path):
    free = run_job(RUNNER, prior, request(tmp_path / "free")).summary
    smallest = smallest_cost(SPACE, NETWORK, 16, 3)
    for name, freely, least in (
        ("max_params", free["num_params"], smallest.num_params),
        ("max_macs", free["num_macs"], smallest.num_macs),
    ):
        assert freely > least
        limits = Limits(**{name: (freely + least) // 2})
        interims: list[Interim] = []
        held = run_job(RUNNER, prior, request(tmp_path / name, limits=limits), on_interim=interims.append).summary
        genotypes = [genotype_of(held["genotype"]), *(interim.genotype for interim in interims)]
        for genotype in genotypes:
            cost = network_cost(genotype, SPACE, NETWORK, 16, 3)
            assert {"max_params": cost.num_params, "max_macs": cost.num_macs}[name] <= (freely + least) // 2
        cost = network_cost(genotypes[0], SPACE, NETWORK, 16, 3)
        assert (held["num_params"], held["num_macs"]) == (cost.num_params, cost.num_macs)
        assert 0 < held["probability"] < free["probability"]
        assert held["top_genotypes"] == free["top_genotypes"], "limits change the choice, not the posterior"


def test_a_latency_limit_is_respected_and_results_say_what_by_which_table(prior: Prior, tmp_path: Path):
    primitives = tuple(name for name in SPACE.ops if name != "none")
    free = genotype_of(run_job(RUNNER, prior, request(tmp_path / "free")).summary["genotype"])
    used = {edge.primitive for nodes in free.cells.values() for node in nodes for edge in node}
    assert set(primitives) - used, "else nothing is cheaper"
    table = latency_table(primitives, lambda name, shape: (2 if name in used else 1) * shape.channels / 100)
    most = network_ms(free, table) - 0.01
    limits = Limits(max_latency_ms=most, latency_table=table)
    interims: list[Interim] = []
    held = run_job(RUNNER, prior, request(tmp_path / "held", limits=limits), on_interim=interims.append).summary
    for genotype in (genotype_of(held["genotype"]), *(interim.genotype for interim in interims)):
        assert network_ms(genotype, table) <= most
    content = results_in(tmp_path / "held")
    assert content["network"]["latency_ms"] == held["latency_ms"] == network_ms(genotype_of(held["genotype"]), table)
    assert content["limits"]["max_latency_ms"] == most
    assert content["limits"]["latency_table"]["device"] == "abacus"
    assert "ops" not in content["limits"]["latency_table"], "by its digest"


def test_limits_that_nothing_respects_are_refused_before_any_step(prior: Prior, tmp_path: Path):
    steps: list[int] = []
    with pytest.raises(InvalidInputError, match="max_params"):
        run_job(RUNNER, prior, request(tmp_path / "job", limits=Limits(max_params=1)), steps.append)
    assert steps == []
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("rule", ["darts", "sample"])
def test_other_rules_derive_their_own_genotype_and_know_no_limits(prior: Prior, tmp_path: Path, rule: Any):
    run_job(RUNNER, prior, request(tmp_path / "job", derivation=rule))
    content, posterior = results_in(tmp_path / "job"), posterior_in(tmp_path / "job")
    genotype = genotype_of(content["genotype"])
    assert content["derivation"] == rule
    assert genotype == derive(posterior, SPACE.topology, SPACE.ops, rule, seed=content["task"]["seed"])
    assert content["probability"] == pytest.approx(genotype_probability(genotype, posterior, SPACE))
    for limits in (Limits(max_params=10**9), Limits(max_macs=10**9)):
        with pytest.raises(InvalidInputError, match=f"limits need the derivation top2_pairs, got '{rule}'"):
            run_job(RUNNER, prior, request(tmp_path / "other", derivation=rule, limits=limits))
        check_limits("top2_pairs", limits)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("place", ["file", "memory"])
def test_a_file_of_images_is_fetched_and_learnt_from(
    prior: Prior, tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, place: str
):
    monkeypatch.setenv("METASEARCH_CACHE", str(tmp_path / "cache"))
    original = write_digits(tmp_path / "mine.npz")
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    memory.pipe_file("/mine.npz", original.read_bytes())
    url = original.as_uri() if place == "file" else "memory://mine.npz"
    file = DatasetFile(url=url, sha256=sha256, suffix=".npz")
    choice = CHOICE.model_copy(update={"data": DatasetRef(source="upload"), "classes": None})
    result = run_job(RUNNER, prior, request(tmp_path / "job", file=file, choice=choice))
    content = results_in(tmp_path / "job")
    assert content["task"]["data"]["source"] == str(tmp_path / "cache" / "fetched" / f"{sha256}.npz")
    assert sorted(content["task"]["classes"]) == ["1", "7"], "there are no more than two to draw"
    assert content["job"]["file"] == {"url": url, "sha256": sha256, "suffix": ".npz"}
    assert result.summary["evaluations"][0]["accuracy"] == 0.5
    original.unlink()
    memory.rm_file("/mine.npz")
    again = run_job(RUNNER, prior, request(tmp_path / "again", file=file, choice=choice))
    assert again.artifacts[0] == result.artifacts[0], "the machine has the file by now"


def test_a_file_with_another_hash_is_refused(prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METASEARCH_CACHE", str(tmp_path / "cache"))
    original = write_digits(tmp_path / "mine.npz")
    file = DatasetFile(url=original.as_uri(), sha256="0" * 64, suffix=".npz")
    with pytest.raises(CorruptArtifactError, match="mine.npz has SHA-256"):
        run_job(RUNNER, prior, request(tmp_path / "job", file=file))
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"choice": CHOICE.model_copy(update={"classes": ("1", "x")})}, InvalidInputError, "no class 'x'"),
        ({"choice": CHOICE.model_copy(update={"image_size": 32})}, InvalidInputError, "image_size 32"),
        ({"choice": CHOICE.model_copy(update={"data": DatasetRef(source="/no/pets")})}, NotFoundError, "/no/pets"),
        ({"file": DatasetFile(url="memory://none.zip", suffix=".zip")}, NotFoundError, "memory://none.zip"),
        ({"version": 3}, ConflictError, "version 3"),
    ],
)
def test_what_is_wrong_is_named_and_leaves_no_results(
    prior: Prior, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
):
    with pytest.raises(error, match=words):
        run_job(RUNNER, prior, request(tmp_path / "job", **changes))
    assert not (tmp_path / "job").exists()


def test_a_job_that_diverges_ends_at_the_next_evaluation(prior: Prior, tmp_path: Path):
    steps: list[int] = []
    theta = CONFIG.adapt.theta.model_copy(update={"lr": 1e38})
    diverging = request(tmp_path / "job", inner=CONFIG.adapt.model_copy(update={"theta": theta}))
    with pytest.raises(AdaptationError, match="diverged; lower theta.lr"):
        run_job(RUNNER, prior, diverging, steps.append)
    assert len(steps) < CONFIG.adapt.steps
    assert not (tmp_path / "job").exists()


def test_a_job_adapts_as_its_study_does_at_that_version(tmp_path: Path):
    config = load("smoke", ["relaxation.hard_after_round=1", "seed=9", "rounds=4"], environment={})
    prior = replace(initial_prior(config), version=2, tau=0.7)
    result = run_job(RUNNER, prior, request(tmp_path, config=config, version=2, returns_update=True))
    assert result.update is not None
    task = LearningTask.model_validate(results_in(tmp_path)["task"])
    by_hand = AdaptRequest(task, config.space, config.network, CONFIG.adapt, 9, 2, "straight_through", 0.7)
    expected = RUNNER.run(prior, by_hand).update
    assert expected is not None
    assert np.array_equal(result.update.alpha, expected.alpha)
    for name, difference in expected.differences.items():
        assert np.array_equal(result.update.differences[name], difference)
    softer = RUNNER.run(prior, replace(by_hand, tau=0.8)).update
    assert softer is not None and not np.array_equal(softer.alpha, expected.alpha)


def test_a_folder_that_refuses_is_unavailable(prior: Prior, tmp_path: Path):
    (tmp_path / "job").write_bytes(b"a file, not a folder")
    with pytest.raises(UnavailableError, match="cannot write .*job/weights.safetensors"):
        run_job(RUNNER, prior, request(tmp_path / "job"))
    assert (tmp_path / "job").read_bytes() == b"a file, not a folder"


def test_a_second_attempt_that_breaks_off_leaves_no_manifest(
    prior: Prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_job(RUNNER, prior, request(tmp_path))
    write = ArtifactFolder.write

    def break_off(self: ArtifactFolder, name: str, data: bytes) -> None:
        if name == "result.json":
            raise UnavailableError("the disk is full")
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactFolder, "write", break_off)
        with pytest.raises(UnavailableError):
            run_job(RUNNER, prior, request(tmp_path, choice=CHOICE.model_copy(update={"seed": 1})))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "weights.safetensors"]
    result = run_job(RUNNER, prior, request(tmp_path, attempt=2))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["artifacts"][0]["sha256"] == result.artifacts[0].sha256


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("edge", (0.0 + math.log(2)) / 2),  # two edges: certain, and even between two ops
        ("node", math.log(2)),  # one node: even between two of its four pairs
    ],
)
def test_entropy_is_the_mean_over_categoricals(normalisation: Any, expected: float):
    space = SpaceConfig(
        num_nodes=1,
        primitives=("skip_connect", "sep_conv_3x3"),
        cell_kinds={"normal": 1},
        normalisation=normalisation,
    )
    values = {"edge": [[0.0, 1.0], [0.5, 0.5]], "node": [[0.0, 0.5], [0.5, 0.0]]}[normalisation]
    assert entropies({"normal": np.array(values)}, space) == {"normal": pytest.approx(expected)}


def test_evaluation_steps_are_1_2_5_times_powers_of_ten_from_start_to_end():
    assert evaluation_steps(1) == (0, 1)
    assert evaluation_steps(7) == (0, 1, 2, 5, 7)
    assert evaluation_steps(100) == (0, 1, 2, 5, 10, 20, 50, 100)


def test_a_worker_tells_of_its_job_while_it_runs_and_forgets_it_after(prior: Prior, tmp_path: Path):
    worker = SearchWorker("worker-0")
    write = ArtifactFolder.write
    reached, go_on = threading.Event(), threading.Event()
    results: list[JobResult] = []

    def hold(self: ArtifactFolder, name: str, data: bytes) -> None:
        reached.set()
        assert go_on.wait(60)
        write(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArtifactFolder, "write", hold)
        thread = threading.Thread(target=lambda: results.append(worker.run_job(request(tmp_path), prior)))
        thread.start()
        try:
            assert reached.wait(60)
            status = worker.status()
        finally:
            go_on.set()
            thread.join()
    assert (status.task_id, status.steps_done) == ("job-1", 5)
    assert status.interim is not None
    best = max(results[0].summary["evaluations"], key=lambda entry: (entry["accuracy"], entry["step"]))
    assert (status.interim.step, status.interim.accuracy) == (best["step"], best["accuracy"])
    idle = worker.status()
    assert (idle.task_id, idle.steps_done, idle.interim) == (None, 0, None)


def test_a_worker_forgets_a_job_that_failed_and_its_log_says_why(
    prior: Prior, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    worker = SearchWorker("service/host/7/worker-0")
    assert repr(worker).startswith("worker-0 on ")
    with pytest.raises(ConflictError):
        worker.run_job(request(tmp_path, version=3), prior)
    assert worker.status().task_id is None
    assert worker.run_job(request(tmp_path), prior).job_id == "job-1"
    lines = [line.partition("metasearch.worker ")[2] for line in capsys.readouterr().err.splitlines()]
    begin, failure, again, end = [line for line in lines if line]
    fields = " worker=worker-0 job=job-1 attempt=1"
    assert begin == again == f"begins{fields}"
    assert re.fullmatch(rf"failed after \d+\.\d\d s: .*version.*{fields}", failure)
    assert re.fullmatch(rf"done in \d+\.\d\d s{fields}", end)


# Networks that are ready to use


def test_a_fine_tuned_network_is_stored_and_does_what_the_result_says(prior: Prior, tmp_path: Path):
    steps: list[int] = []
    result = run_job(RUNNER, prior, request(tmp_path, fine_tune_steps=6), steps.append)
    content = results_in(tmp_path)
    told = content["derived_network"]
    assert steps == list(range(1, 5 + 6 + 1))
    assert [entry["step"] for entry in told["evaluations"]] == [0, 1, 2, 5, 6]
    assert (told["fine_tune_steps"], len(told["train_losses_nats"]), told["classes"]) == (6, 6, ["1", "7", "4"])
    assert told["train_losses_nats"][-1] < math.log(3)
    assert result.summary["fine_tuned"] == {
        "steps": 6,
        "accuracy": told["evaluations"][-1]["accuracy"],
        "inductive_accuracy": told["inductive"]["accuracy"],
        "inductive_loss_nats": told["inductive"]["loss_nats"],
    }
    names = ["weights.safetensors", "result.json", "network/weights.safetensors", "network/network.json"]
    assert [artifact.name for artifact in result.artifacts] == names
    for artifact in result.artifacts:
        assert hashlib.sha256((tmp_path / artifact.name).read_bytes()).hexdigest() == artifact.sha256

    network = load_network(tmp_path / "network")
    assert network.genotype == genotype_of(content["genotype"])
    episode = load_episode(LearningTask.model_validate(content["task"]))
    with torch.no_grad():
        logits = [
            network(torch.from_numpy(image).permute(2, 0, 1)[None].expand(1, 3, -1, -1).float() / 127.5 - 1)
            for image in episode.test_images
        ]
    found = torch.cat(logits).argmax(dim=1).numpy()
    assert (found == episode.test_labels).mean() == pytest.approx(told["inductive"]["accuracy"])


def test_fine_tuning_goes_on_where_the_adaptation_stopped(prior: Prior, tmp_path: Path):
    run_job(RUNNER, prior, request(tmp_path, fine_tune_steps=1))
    weights = load_tensors((tmp_path / "weights.safetensors").read_bytes())
    told = results_in(tmp_path)["derived_network"]
    adapted = inherited_network(weights, genotype_of(results_in(tmp_path)["genotype"]), SPACE, NETWORK, 16)
    episode = load_episode(LearningTask.model_validate(results_in(tmp_path)["task"]))
    images = torch.from_numpy(episode.test_images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float() / 127.5 - 1
    with torch.no_grad():
        accuracy = float((adapted(images).argmax(dim=1).numpy() == episode.test_labels).mean())
    assert told["evaluations"][0]["accuracy"] == pytest.approx(accuracy)


def test_an_adaptation_is_the_same_with_and_without_fine_tuning(prior: Prior, tmp_path: Path):
    plain = run_job(RUNNER, prior, request(tmp_path / "plain", returns_update=True))
    tuned = run_job(RUNNER, prior, request(tmp_path / "tuned", returns_update=True, fine_tune_steps=2))
    assert plain.artifacts[0] == tuned.artifacts[0]
    assert plain.update is not None
    assert tuned.update is not None
    assert np.array_equal(plain.update.differences["body"], tuned.update.differences["body"])
    assert "fine_tuned" not in plain.summary


def test_a_network_that_could_not_be_stored_is_refused_before_the_work(prior: Prior, tmp_path: Path):
    flat = SpaceConfig(num_nodes=2, cell_kinds={"flat": 1, "reduction": 2})
    config = CONFIG.model_copy(
        update={"space": flat, "network": NETWORK.model_copy(update={"cells": ("flat", "reduction")})}
    )
    with pytest.raises(InvalidInputError, match="has 'flat'"):
        run_job(RUNNER, prior, request(tmp_path, config=config, fine_tune_steps=2), pytest.fail)
