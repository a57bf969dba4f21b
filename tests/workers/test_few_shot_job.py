"""Few-shot jobs as a worker does them: from a file of pixels to predictions, weights and, of a genotype, a network."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from common.config import StudyConfig
from common.errors import AdaptationError, ConflictError, CorruptArtifactError, NotFoundError
from common.loading import load
from common.messages import FewShotRequest, JobResult
from common.meta.prior import Prior, initial_prior
from common.nn.stored import load_network
from common.space.genotype import Genotype
from common.tasks import DatasetFile, FewShotTask
from workers.data.handful import Handful
from workers.few_shot_job import MAX_SHOWN, of_ways, run_few_shot
from workers.runner import TaskRunner

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, WAYS = 16, 3
RUNNER = TaskRunner(torch.device("cpu"))
NODE = [{"source": 0, "primitive": "sep_conv_3x3"}, {"source": 1, "primitive": "max_pool_3x3"}]
GENOTYPE = Genotype.model_validate({"cells": {kind: [NODE, NODE] for kind in ("normal", "reduction")}})


def configured(**few_shot: Any) -> StudyConfig:
    plain = load("smoke", ["few_shot.test_steps=3", "few_shot.theta_lr=0.1", "network.channels=2"], environment={})
    assert plain.few_shot is not None
    return plain.model_copy(update={"few_shot": plain.few_shot.model_copy(update=few_shot)})


def digits(label: int, count: int, first: int = 0) -> NDArray[np.uint8]:
    """Images (count, 16, 16, 1) of a digit."""
    source = load_digits()
    images = (source.images[source.target == label][first : first + count] * 15).astype(np.uint8)
    return images.repeat(2, axis=1).repeat(2, axis=2)[..., None]


SUPPORT = {"four": 4, "one": 1, "seven": 7}


def handful(ways: int = WAYS, queries: int = 4) -> Handful:
    support = np.concatenate([digits(label, 2) for label in list(SUPPORT.values())[:ways]])
    asked = np.concatenate([digits(label, queries, 10) for label in list(SUPPORT.values())[:ways]])
    return Handful(support, asked[:queries] if queries < 3 else asked)


def ask(folder: Path, images: Handful, config: StudyConfig, **changes: Any) -> FewShotRequest:
    """A request whose pixels are in the folder."""
    data = images.to_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.npz").write_bytes(data)
    ways = len(images.support) // 2
    plain = FewShotRequest(
        job_id="job-1",
        attempt=1,
        task=FewShotTask(
            classes=tuple(SUPPORT)[:ways],
            labels=tuple(np.repeat(np.arange(ways), 2).tolist()),
            support_names=tuple(f"s{number}" for number in range(2 * ways)),
            query_names=tuple(f"q{number}" for number in range(len(images.queries))),
            image_size=SIZE,
        ),
        file=DatasetFile(url=f"file://{folder}/images.npz", sha256=hashlib.sha256(data).hexdigest(), suffix=".npz"),
        config=config,
        version=0,
        seed=0,
        result_url=str(folder / "attempt-1-1"),
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def prior() -> Prior:
    return initial_prior(configured())


def probabilities(result: JobResult) -> NDArray[np.float64]:
    return np.array([found["probabilities"] for found in result.summary["predictions"]])


def test_predictions_weights_and_architecture_are_stored_and_told(prior: Prior, tmp_path: Path) -> None:
    request = ask(tmp_path, handful(), configured())
    result = run_few_shot(RUNNER, prior, request)
    summary = result.summary
    assert json.loads(json.dumps(summary)) == summary
    assert [found["name"] for found in summary["predictions"]] == [f"q{number}" for number in range(12)]
    likely = probabilities(result)
    assert np.allclose(likely.sum(axis=1), 1) and summary["classes"] == list(SUPPORT)
    for found, row in zip(summary["predictions"], likely, strict=True):
        assert found["label"] == summary["classes"][int(row.argmax())] and found["probability"] == row.max()
    losses = summary["support_losses_nats"]
    assert losses[0] == pytest.approx(np.log(WAYS), abs=1e-5), "the classifier starts from zeros"
    assert len(losses) == summary["steps"] == 3 and losses[-1] < losses[0]
    folder = tmp_path / "attempt-1-1"
    manifest = json.loads((folder / "manifest.json").read_text())
    names = ["predictions.json", "weights.safetensors", "result.json"]
    assert [entry["name"] for entry in manifest["artifacts"]] == names
    for artifact in result.artifacts:
        data = (folder / artifact.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.num_bytes, artifact.sha256)
    assert json.loads((folder / "predictions.json").read_text())["predictions"] == summary["predictions"]
    content = json.loads((folder / "result.json").read_text())
    assert content["genotype"] == summary["genotype"] and set(summary["genotype"]["cells"]) == {"normal", "reduction"}
    assert content["prior"] == {"version": 0, "sha256": prior.digest()}
    weights = load_file(folder / "weights.safetensors")
    assert set(weights) == {"body", "head/16", "classifier", "alpha"}
    assert sum(len(vector) for name, vector in weights.items() if name != "alpha") == summary["num_params"]
    assert not np.array_equal(weights["body"], prior.vectors["body"])


def test_equal_requests_find_the_same_whatever_the_job_is_called(prior: Prior, tmp_path: Path) -> None:
    first = run_few_shot(RUNNER, prior, ask(tmp_path / "a", handful(), configured()))
    again = run_few_shot(RUNNER, prior, ask(tmp_path / "b", handful(), configured(), job_id="job-2", attempt=2))
    assert np.array_equal(probabilities(first), probabilities(again))
    other = run_few_shot(RUNNER, prior, ask(tmp_path / "c", handful(), configured(), seed=1))
    assert not np.array_equal(probabilities(first), probabilities(other)), "other noise"


def test_inductive_labels_do_not_depend_on_the_other_queries(prior: Prior, tmp_path: Path) -> None:
    config = configured(evaluation="inductive")
    images = handful()
    together = probabilities(run_few_shot(RUNNER, prior, ask(tmp_path / "a", images, config)))
    one = Handful(images.support, images.queries[:1])
    alone = probabilities(run_few_shot(RUNNER, prior, ask(tmp_path / "b", one, config)))
    assert np.allclose(alone[0], together[0], atol=1e-6)
    transductive = probabilities(run_few_shot(RUNNER, prior, ask(tmp_path / "c", images, configured())))
    assert not np.allclose(transductive, together, atol=1e-6)


def test_without_queries_the_adapted_model_is_left(prior: Prior, tmp_path: Path) -> None:
    images = Handful(handful().support, np.empty((0, 1, 1, 1), np.uint8))
    result = run_few_shot(RUNNER, prior, ask(tmp_path, images, configured()))
    assert result.summary["predictions"] == [] and result.summary["num_queries"] == 0
    assert result.summary["genotype"] is not None and (tmp_path / "attempt-1-1" / "weights.safetensors").exists()


def test_many_predictions_are_in_the_file_alone(prior: Prior, tmp_path: Path) -> None:
    images = handful()
    many = Handful(images.support, images.queries[np.arange(MAX_SHOWN + 5) % len(images.queries)])
    result = run_few_shot(RUNNER, prior, ask(tmp_path, many, configured(test_steps=0)))
    assert len(result.summary["predictions"]) == MAX_SHOWN and result.summary["num_queries"] == MAX_SHOWN + 5
    stored = json.loads((tmp_path / "attempt-1-1" / "predictions.json").read_text())["predictions"]
    assert len(stored) == MAX_SHOWN + 5 and stored[:MAX_SHOWN] == result.summary["predictions"]


def test_fewer_classes_take_the_first_rows_of_the_classifier(prior: Prior, tmp_path: Path) -> None:
    rows = np.arange(WAYS * 4, dtype=np.float32)  # three features and a bias
    small = of_ways(replace(prior, vectors={**prior.vectors, "classifier": rows}), 2, WAYS)
    assert small.vectors["classifier"].tolist() == [0, 1, 2, 3, 4, 5, 9, 10]
    assert of_ways(prior, WAYS, WAYS).digest() == prior.digest()
    result = run_few_shot(RUNNER, prior, ask(tmp_path, handful(ways=2), configured()))
    assert probabilities(result).shape[1] == 2 and result.summary["classes"] == ["four", "one"]
    assert result.summary["support_losses_nats"][0] == pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.parametrize("network", ["supernet", "genotype", "four_convolutions"])
def test_every_network_of_few_shot_studies_answers(network: str, tmp_path: Path) -> None:
    config = configured(network=network, genotype=GENOTYPE if network == "genotype" else None, filters=4)
    result = run_few_shot(RUNNER, initial_prior(config), ask(tmp_path, handful(), config))
    assert probabilities(result).shape == (12, WAYS)
    assert (result.summary["genotype"] is None) == (network == "four_convolutions")
    assert result.summary["has_network"] == (network == "genotype")
    if network == "genotype":
        assert result.summary["genotype"] == GENOTYPE.model_dump(mode="json")
        assert result.summary["genotype_probability"] is None and result.summary["entropy_nats"] == {}


def test_the_network_of_a_genotype_predicts_by_itself_what_the_job_did(tmp_path: Path) -> None:
    config = configured(network="genotype", genotype=GENOTYPE, evaluation="inductive")
    images = handful()
    result = run_few_shot(RUNNER, initial_prior(config), ask(tmp_path, images, config))
    network = load_network(tmp_path / "attempt-1-1" / "network")
    pixels = torch.from_numpy(images.queries).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found = network(pixels.expand(-1, network.config.image_channels, -1, -1)).double().softmax(dim=1).numpy()
    # BatchNorm's running variances are those of samples, divided by n - 1.
    assert np.allclose(found, probabilities(result), atol=5e-3)
    assert np.array_equal(found.argmax(axis=1), probabilities(result).argmax(axis=1))


def test_colour_and_gray_images_meet_in_one_network(prior: Prior, tmp_path: Path) -> None:
    images = handful()
    colour = Handful(images.support.repeat(3, axis=3), images.queries)
    gray = probabilities(run_few_shot(RUNNER, prior, ask(tmp_path / "a", images, configured())))
    mixed = probabilities(run_few_shot(RUNNER, prior, ask(tmp_path / "b", colour, configured())))
    assert np.allclose(gray, mixed, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda request, folder: replace(request, version=1), ConflictError),
        (lambda request, folder: (folder / "images.npz").unlink() or request, NotFoundError),
        (lambda request, folder: (folder / "images.npz").write_bytes(b"PK") and request, CorruptArtifactError),
        (lambda request, folder: replace(request, config=configured(theta_lr=1e30)), AdaptationError),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_no_result(
    prior: Prior, tmp_path: Path, spoil: Callable[[FewShotRequest, Path], FewShotRequest], error: type[Exception]
) -> None:
    request = spoil(ask(tmp_path, handful(), configured()), tmp_path)
    with pytest.raises(error):
        run_few_shot(RUNNER, prior, request)
    assert not (tmp_path / "attempt-1-1" / "manifest.json").exists()
