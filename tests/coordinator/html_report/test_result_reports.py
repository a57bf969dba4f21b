"""Pages of jobs that learn one task: a full network that was trained, images that were labelled by a handful."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from common.config import DatasetRef
from common.errors import CorruptArtifactError
from common.evaluate_config import load_evaluate_config
from common.loading import load
from common.messages import EvaluateRequest, FewShotRequest
from common.meta.prior import initial_prior
from common.space.released import DARTS_V2
from common.tasks import DatasetFile, FewShotTask
from coordinator.html_report.collect import collect
from coordinator.html_report.page import page
from workers.data.handful import Handful
from workers.few_shot_job import run_few_shot
from workers.job import run_evaluation
from workers.runner import TaskRunner

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OVERRIDES = ["epochs=3", "evaluate_every_epochs=2", "train_per_class=10", "test_per_class=5"]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that trained a network for three epochs, and tested it after the second and the last."""
    folder = tmp_path_factory.mktemp("evaluation") / "attempt-1-1"
    config = load_evaluate_config("smoke", OVERRIDES)
    data = DatasetRef(source="digits")
    run_evaluation(EvaluateRequest("job-1", 1, DARTS_V2, config, data, None, str(folder), 1e9), CPU)
    return folder


def test_an_evaluations_report_has_its_accuracy_and_curve(evaluation: Path) -> None:
    result = json.loads((evaluation / "result.json").read_text())
    report = collect(evaluation)
    assert report.kind == "evaluation"
    (panel,) = report.accuracy
    assert panel.steps == (2, 3)
    assert panel.arms["test images"].mean[-1] == result["accuracy"]
    assert len(report.train_losses) == 3
    assert report.found is not None and report.found.genotype == DARTS_V2
    html = page(report)
    assert f"{100 * result['accuracy']:.1f} % of 50 test images" in html
    assert "epoch by epoch" in html and "Architecture posterior" not in html
    assert "config.batch_size" in html  # the recipe, field by field


def test_an_evaluation_that_lacks_its_curve_is_named(evaluation: Path, tmp_path: Path) -> None:
    result = json.loads((evaluation / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**result, "learning_curve": [{}]}))
    with pytest.raises(CorruptArtifactError, match="result.json is not a result of metasearch .*KeyError"):
        collect(tmp_path)


def few_shot_folder(folder: Path) -> Path:
    """The folder of a job that labelled six digits by two of each class."""
    config = load("smoke", ["few_shot.test_steps=2", "network.channels=2"], environment={})
    source = load_digits()

    def of(digit: int, first: int, count: int) -> np.ndarray:
        images = (source.images[source.target == digit][first : first + count] * 15).astype(np.uint8)
        return images.repeat(2, axis=1).repeat(2, axis=2)[..., None]

    classes = {"four": 4, "one": 1, "seven": 7}
    images = Handful(
        np.concatenate([of(digit, 0, 2) for digit in classes.values()]),
        np.concatenate([of(digit, 10, 2) for digit in classes.values()]),
    )
    data = images.to_bytes()
    (folder / "images.npz").write_bytes(data)
    request = FewShotRequest(
        job_id="job-1",
        attempt=1,
        task=FewShotTask(
            classes=tuple(classes),
            labels=(0, 0, 1, 1, 2, 2),
            support_names=tuple(f"s{number}.png" for number in range(6)),
            query_names=tuple(f"q<{number}>.png" for number in range(6)),
            image_size=16,
        ),
        file=DatasetFile(url=f"file://{folder}/images.npz", sha256=hashlib.sha256(data).hexdigest(), suffix=".npz"),
        config=config,
        version=0,
        seed=0,
        result_url=str(folder / "attempt-1-1"),
    )
    run_few_shot(TaskRunner(CPU), initial_prior(config), request)
    return folder / "attempt-1-1"


def test_a_few_shot_jobs_report_has_its_labels(tmp_path: Path) -> None:
    folder = few_shot_folder(tmp_path)
    found = json.loads((folder / "predictions.json").read_text())["predictions"]
    report = collect(folder)
    assert report.kind == "few_shot"
    assert [each.label for each in report.predictions] == [each["label"] for each in found]
    assert len(report.train_losses) == 2
    html = page(report)
    assert "four, one, seven" in html and "q&lt;5&gt;.png" in html and "q<5>" not in html
    assert f"{100 * found[5]['probability']:.1f} %" in html
    (folder / "predictions.json").unlink()
    with pytest.raises(Exception, match=r"predictions\.json"):
        collect(folder)
