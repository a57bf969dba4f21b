"""Jobs that train full networks: call by call, attempt by attempt, to the same stored network."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from common.config import DatasetRef
from common.errors import CorruptArtifactError, InvalidInputError
from common.evaluate_config import load_evaluate_config
from common.messages import EvaluateRequest, EvaluateResult
from common.nn.stored import load_network
from common.space.released import DARTS_V2
from common.storage import ArtifactFolder
from common.tasks import DatasetFile
from workers.checkpoint import CHECKPOINT
from workers.job import run_evaluation

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CONFIG = load_evaluate_config("smoke", ["epochs=2", "train_per_class=15", "test_per_class=10"])


def request(url: Path | str, **changes: Any) -> EvaluateRequest:
    plain = EvaluateRequest(
        job_id="job-1",
        attempt=1,
        genotype=DARTS_V2,
        config=CONFIG,
        data=DatasetRef(source="digits"),
        file=None,
        result_url=str(url),
        slice_s=1e9,
    )
    return replace(plain, **changes)


def steps_of_a_second() -> Callable[[], float]:
    """A clock that moves on at every look."""
    now_s = iter(range(10**6))
    return lambda: float(next(now_s))


def finished(make: Callable[[int], EvaluateRequest]) -> tuple[EvaluateResult, int]:
    """The last result of calls in a row, and how many there were."""
    for number in range(1, 100):
        result = run_evaluation(make(number), CPU, clock_s=steps_of_a_second())
        if result.summary is not None:
            return result, number
        assert result.artifacts == ()
    raise AssertionError("it never ends")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> EvaluateResult:
    torch.set_num_threads(1)
    return run_evaluation(request(tmp_path_factory.mktemp("job") / "attempt-1-1"), CPU)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    yield storage
    storage.store.clear()


def sha256_of(result: EvaluateResult, name: str) -> str:
    return next(artifact.sha256 for artifact in result.artifacts if artifact.name == name)


def test_a_job_tells_and_stores_what_it_found(tmp_path: Path) -> None:
    folder = tmp_path / "job" / "attempt-1-1"
    seen: list[int] = []
    result = run_evaluation(request(folder), CPU, lambda progress: seen.append(progress.epochs_done))
    assert seen[0] == 0 and seen[-1] == result.epochs_done == 2
    content = json.loads((folder / "result.json").read_text())
    assert content["job"] == {"job_id": "job-1", "attempt": 1, "file": None}
    assert result.summary is not None and json.loads(json.dumps(result.summary)) == result.summary
    for name in ("accuracy", "num_test", "epochs", "ended_by", "genotype"):
        assert result.summary[name] == content[name]
    assert [result.summary["accuracy_low"], result.summary["accuracy_high"]] == content["interval_95"]
    assert [record["epoch"] for record in result.summary["learning_curve"]] == [1, 2]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["artifacts"]] == ["weights.safetensors", "network.json", "result.json"]
    for artifact in result.artifacts:
        data = (folder / artifact.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (artifact.num_bytes, artifact.sha256)
    assert load_network(folder).genotype == DARTS_V2


@pytest.mark.parametrize("place", ["local", "memory://runs/job"])
def test_calls_in_a_row_end_in_the_network_of_one_call(
    place: str, tmp_path: Path, memory: Any, undisturbed: EvaluateResult
) -> None:
    url = str(tmp_path / "job") if place == "local" else place
    result, calls = finished(lambda number: request(f"{url}/attempt-1-1", slice_s=4.0))
    assert calls > 2
    assert sha256_of(result, "weights.safetensors") == sha256_of(undisturbed, "weights.safetensors")


def test_a_call_that_has_no_time_makes_a_step_all_the_same(tmp_path: Path, undisturbed: EvaluateResult) -> None:
    result, calls = finished(lambda number: request(tmp_path / "attempt-1-1", slice_s=0.0))
    assert result.summary is not None
    assert calls == json.loads((tmp_path / "attempt-1-1" / "result.json").read_text())["steps"]
    assert sha256_of(result, "weights.safetensors") == sha256_of(undisturbed, "weights.safetensors")


def test_another_attempt_goes_on_from_the_newest_checkpoint(tmp_path: Path, undisturbed: EvaluateResult) -> None:
    result, attempts = finished(lambda number: request(tmp_path / f"attempt-1-{number}", attempt=number, slice_s=4.0))
    assert attempts > 2
    assert sha256_of(result, "weights.safetensors") == sha256_of(undisturbed, "weights.safetensors")


def test_a_damaged_checkpoint_of_an_earlier_attempt_is_passed_over(tmp_path: Path, undisturbed: EvaluateResult) -> None:
    for number, seconds in ((1, 3.0), (2, 4.0), (3, 3.0)):
        run_evaluation(request(tmp_path / f"attempt-1-{number}", slice_s=seconds), CPU, clock_s=steps_of_a_second())
    steps = [
        json.loads((tmp_path / f"attempt-1-{number}" / "checkpoints" / CHECKPOINT).read_text())["state"]["steps_done"]
        for number in (1, 2, 3)
    ]
    assert steps[0] < steps[1] < steps[2]
    for path in (tmp_path / "attempt-1-3" / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"half")
    (tmp_path / "attempt-1-2" / "checkpoints" / CHECKPOINT).write_text("{")
    seen: list[int] = []
    result = run_evaluation(request(tmp_path / "attempt-2-4"), CPU, lambda progress: seen.append(progress.steps_done))
    assert seen[0] == steps[0]
    assert sha256_of(result, "weights.safetensors") == sha256_of(undisturbed, "weights.safetensors")


def test_files_of_users_are_fetched_and_checked(tmp_path: Path) -> None:
    digits = load_digits()
    wanted = np.isin(digits.target, (1, 7))
    np.savez(tmp_path / "mine.npz", images=(digits.images[wanted] * 15).astype(np.uint8), labels=digits.target[wanted])
    sha256 = hashlib.sha256((tmp_path / "mine.npz").read_bytes()).hexdigest()
    file = DatasetFile(url=str(tmp_path / "mine.npz"), sha256=sha256, suffix=".npz")
    named = request(tmp_path / "job" / "attempt-1-1", file=file, data=DatasetRef(source="mine"))
    run_evaluation(named, CPU)
    content = json.loads((tmp_path / "job" / "attempt-1-1" / "result.json").read_text())
    assert content["data"]["source"] == "mine" and content["data"]["classes"] == ["1", "7"]
    wrong = file.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CorruptArtifactError):
        run_evaluation(replace(named, file=wrong), CPU)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no source 'digit'"):
        run_evaluation(request(tmp_path / "job" / "attempt", data=DatasetRef(source="digit")), CPU)
    assert not ArtifactFolder(tmp_path / "job").names("attempt", "")
