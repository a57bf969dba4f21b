"""`metasearch serve --local` as a user runs it: one service for the whole module, talked to by the real client."""

import io
import json
import re
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference.gateway import until
from reference.processes import METASEARCH, descendants, environment_without_ray, kill_with_descendants
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from common.artifacts import PriorStore
from common.loading import load
from common.nn.stored import load_network
from coordinator import study
from coordinator.api.client import SearchClient
from coordinator.api.stubs import search_pb2 as pb
from coordinator.local import LocalExecutor
from workers.device import choose_device

pytestmark = pytest.mark.ray

SETTINGS = ["rounds=2", "network.channels=2", "families.0.tasks_per_round=2"]
STUDY = "studies/digits"
START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 60.0
ADDRESS = re.compile(r"Serving on (127\.0\.0\.1:\d+)")


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    folder: Path
    client: SearchClient

    def said(self) -> str:
        """What the service told its user."""
        return (self.folder / "said").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared_image_cache: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    arguments = ["serve", "--local", "--folder", str(folder), "--listen", "127.0.0.1:0", "--workers", "2"]
    said = folder / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [METASEARCH, *arguments], stdout=file, stderr=file, start_new_session=True, env=environment_without_ray()
        )
    try:
        until(lambda: ADDRESS.search(said.read_text()) or process.poll() is not None, "its address", START_TIMEOUT_S)
        found = ADDRESS.search(said.read_text())
        assert found, said.read_text()
        with SearchClient(found[1], (folder / "token").read_text().strip()) as client:
            yield Service(process, folder, client)
    finally:
        kill_with_descendants(process)
        process.wait()


@pytest.fixture(scope="module")
def trained(service: Service) -> pb.Job:
    """The job that meta-trained the study."""
    created = service.client.create_study("digits", preset="smoke", overrides=SETTINGS)
    assert created.name == STUDY
    return service.client.wait(service.client.meta_train(STUDY).name)


def test_meta_training_makes_the_prior_that_metasearch_train_makes(trained: pb.Job, tmp_path: Path) -> None:
    config = load("smoke", SETTINGS, environment={})
    store = PriorStore(tmp_path)
    prior = study.run(study.begin(store, config), config, LocalExecutor(choose_device()), store, [], time.monotonic)
    assert trained.state == pb.JOB_STATE_SUCCEEDED, trained
    assert trained.meta_train_result.prior_version == 2
    assert trained.meta_train_result.prior_sha256 == prior.digest()


def test_images_of_ones_own_are_adapted_to_within_limits_and_the_results_come_back_whole(
    service: Service, trained: pb.Job, tmp_path: Path
) -> None:
    archive = write_digits(tmp_path / "mine.zip", (3, 5, 8))
    free = service.client.wait(service.client.submit(STUDY, archive, steps=2, test_per_class=5, fine_tune_steps=3).name)
    assert free.state == pb.JOB_STATE_SUCCEEDED, free
    assert free.adapt_result.fine_tuned.steps == 3
    service.client.download(free.name, tmp_path / "free")
    network = load_network(tmp_path / "free" / "network")
    assert network.genotype.to_json() == free.adapt_result.genotype_json
    most = free.adapt_result.num_params - 1
    job = service.client.wait(service.client.submit(STUDY, archive, steps=2, test_per_class=5, max_params=most).name)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job
    assert job.adapt_result.num_params <= most
    assert len(list(service.client.list_datasets())) == 1, "the same file is stored once"

    paths = {path.name: path for path in service.client.download(job.name, tmp_path / "result")}
    weights = load_file(paths["weights.safetensors"])
    assert weights["classifier/weight"].shape[0] == 3 and np.isfinite(weights["body"]).all()
    result = json.loads(paths["result.json"].read_text())
    assert sorted(result["task"]["classes"]) == ["class 3", "class 5", "class 8"]
    assert result["genotype"] == json.loads(job.adapt_result.genotype_json)
    assert result["prior"]["sha256"] == trained.meta_train_result.prior_sha256


def test_a_contribution_makes_the_next_version(service: Service, trained: pb.Job) -> None:
    before = service.client.get_prior(f"{STUDY}/priors/latest")
    job = service.client.wait(service.client.submit(STUDY, "digits", num_ways=3, steps=1, contribute=True).name)
    assert job.adapt_result.contributed_version == before.version + 1
    after = service.client.get_prior(f"{STUDY}/priors/latest")
    assert (after.version, after.made_by) == (before.version + 1, job.name)
    assert after.sha256 != before.sha256


def test_a_long_job_shows_what_it_has_found_and_lets_itself_be_cancelled(service: Service, trained: pb.Job) -> None:
    job = service.client.submit(STUDY, "digits", num_ways=3, steps=1_000_000, train_per_class=10)
    seen: list[pb.Job] = []
    for update in service.client.watch(job.name):
        seen.append(update.job)
        progress = update.job.progress
        if progress.done > 2 and progress.genotype_json and update.job.state == pb.JOB_STATE_RUNNING:
            service.client.cancel(job.name)
    assert any(0 < found.progress.accuracy <= 1 and found.progress.total == 1_000_000 for found in seen)
    genotypes = [json.loads(found.progress.genotype_json) for found in seen if found.progress.genotype_json]
    assert set(genotypes[0]["cells"]) == {"normal", "reduction"}
    assert seen[-1].state == pb.JOB_STATE_CANCELLED and not seen[-1].artifacts
    quick = service.client.wait(service.client.submit(STUDY, "digits", num_ways=3, steps=1).name)
    assert quick.state == pb.JOB_STATE_SUCCEEDED, "the worker is free again"


def test_a_handful_of_images_is_answered_while_long_jobs_hold_the_workers(
    service: Service, trained: pb.Job, tmp_path: Path
) -> None:
    client = service.client
    study = client.create_study("handfuls", preset="few_shot_smoke").name
    long_jobs = [client.submit(STUDY, "digits", num_ways=3, steps=1_000_000, seed=seed).name for seed in range(4)]
    until(lambda: any(client.get_job(name).progress.done > 0 for name in long_jobs), "a worker to be at work")
    support = {name: digit_files(label, range(2)) for name, label in (("three", 3), ("five", 5), ("eight", 8))}
    queries = digit_files(3, range(5, 8)) + digit_files(8, range(5, 8))
    job = client.wait(client.few_shot(study, support, queries).name)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job
    assert pb.JOB_STATE_SUCCEEDED not in [client.get_job(name).state for name in long_jobs]
    for name in long_jobs:
        client.cancel(name)
    found = job.few_shot_result
    assert (found.num_queries, found.prior_version, list(found.classes)) == (6, 0, ["eight", "five", "three"])
    paths = {path.name: path for path in client.download(job.name, tmp_path)}
    stored = json.loads(paths["predictions.json"].read_text())["predictions"]
    assert [each["label"] for each in stored] == [each.label for each in found.predictions]


def test_sigterm_hands_work_over_and_leaves_nothing_running(service: Service, trained: pb.Job) -> None:
    """The last test of the module: the service is gone after it."""
    job = service.client.submit(STUDY, "digits", num_ways=3, steps=1_000_000)
    until(lambda: service.client.get_job(job.name).state == pb.JOB_STATE_RUNNING, "the job to run")
    children = descendants(service.process.pid)
    assert len(children) > 5, "gateway, supervisor, and Ray with its workers"
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(STOP_TIMEOUT_S) in (0, 130), service.said()
    until(lambda: not any(map(is_alive, children)), "its processes to end", 15)
    assert "Traceback" not in service.said()
    for name in ("gateway.log", "coordinator.log"):
        assert "Traceback" not in (service.folder / "logs" / name).read_text(), name
    assert state_in_store(service.folder, job) == ("queued", 0), "handed over, and no attempt used up"


def state_in_store(folder: Path, job: pb.Job) -> tuple[str, int]:
    from coordinator.settings import open_ledger
    from coordinator.store.jobs import JobStore

    store = JobStore(open_ledger(f"sqlite:{folder / 'jobs.sqlite'}"))
    try:
        found = store.get_job("local", "digits", job.name.rpartition("/")[2]).job
    finally:
        store.ledger.close()
    return str(found.state), found.failures


def digit_files(label: int, numbers: range) -> list[bytes]:
    """Some images of a digit, as PNG files."""
    digits = load_digits()
    images = digits.images[digits.target == label]
    return [png(images[number]) for number in numbers]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((pixels * 15).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_digits(path: Path, classes: tuple[int, ...]) -> Path:
    digits = load_digits()
    with zipfile.ZipFile(path, "w") as archive:
        for label in classes:
            for number, image in enumerate(digits.images[digits.target == label][:20]):
                archive.writestr(f"class {label}/{number}.png", png(image))
    return path


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
