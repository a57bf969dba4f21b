"""What the job store names is read and held against it; whatever is missing or altered is named."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.data_config import DatasetRef
from common.errors import CorruptArtifactError
from common.loading import load
from common.storage import ArtifactFolder
from common.tasks import DatasetFile, TaskChoice
from coordinator.cli import app
from coordinator.inventory import Inventory, take_inventory
from coordinator.jobs import AdaptSpec, Job
from coordinator.priors import StudyPriors
from coordinator.runs import result_of
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Delete, Transaction
from coordinator.store.records import DatasetRecord, Quota, Study
from coordinator.store.sqlite import SqliteLedger
from workers.results import store_results

CONFIG = load("smoke", ["network.channels=2"], environment={})
RESULT = {"result.json": b"{}", "posterior.npz": bytes(1000)}
UPLOAD = b"images of cats"


class Service:
    """A job store, and artifacts of it: a prior, the result of one job, what another one waits to be given."""

    def __init__(self, folder: Path) -> None:
        self.artifacts = ArtifactFolder(folder / "artifacts")
        self.store_name = f"sqlite:{folder / 'jobs.sqlite'}"
        self.store = JobStore(SqliteLedger(folder / "jobs.sqlite"))
        self.priors = StudyPriors(self.store, self.artifacts.url, lambda: 0.0)
        self.store.create_study(Study(tenant="lab", study="cats", config=CONFIG.model_dump(mode="json"), created_s=0.0))
        epoch = self.store.take_charge("test")
        self.priors.make_first(epoch, "lab", "cats")
        self.upload = f"tenants/lab/datasets/{hashlib.sha256(UPLOAD).hexdigest()}.zip"
        self.artifacts.write(self.upload, UPLOAD)
        sha256, url = hashlib.sha256(UPLOAD).hexdigest(), self.artifacts.url_of(self.upload)
        record = DatasetRecord(sha256=sha256, num_bytes=len(UPLOAD), suffix=".zip", url=url, created_s=0.0)
        self.store.add_dataset("lab", record, Quota())
        choice = TaskChoice(data=DatasetRef(source="file"), image_size=16, train_per_class=8, test_per_class=4)
        spec = AdaptSpec(choice=choice, file=DatasetFile(url=url, sha256=sha256, suffix=".zip"))
        done = self.store.create_job(self.job("0001", spec), None, Quota())
        done = self.store.start(epoch, done, 1.0, 0, Quota())
        self.result = "tenants/lab/studies/cats/jobs/0001/attempt-1-1"
        url = self.artifacts.url_of(self.result)
        files = store_results(ArtifactFolder(url), RESULT, None)
        self.store.succeed(epoch, done, 2.0, result_of({}, files, url))
        self.store.create_job(self.job("0002", spec), None, Quota())

    def job(self, job_id: str, spec: AdaptSpec) -> Job:
        return Job(tenant="lab", study="cats", job_id=job_id, created_s=0.0, spec=spec)

    def inventory(self) -> Inventory:
        fresh = StudyPriors(self.store, self.artifacts.url, lambda: 0.0)  # which remembers no prior
        return take_inventory(self.store, fresh, self.artifacts, lambda inventory: None)

    def tensors(self) -> str:
        pointer = self.store.get_prior("lab", "cats", 0)
        return f"tenants/lab/studies/cats/{pointer.stem}.safetensors"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    found = Service(tmp_path)
    yield found
    found.store.ledger.close()


def test_all_that_the_store_names_is_read(service: Service) -> None:
    found = service.inventory()
    # Two files of the result, the upload, and the upload once more for the job that waits for it.
    assert (found.num_priors, found.num_files, found.problems) == (1, 4, [])
    assert found.num_bytes == sum(map(len, RESULT.values())) + 2 * len(UPLOAD)


def shortened(service: Service) -> None:
    service.artifacts.write(f"{service.result}/result.json", b"")


def changed(service: Service) -> None:
    service.artifacts.write(f"{service.result}/posterior.npz", b"\1" * 1000)


def without_result(service: Service) -> None:
    service.artifacts.remove(f"{service.result}/result.json")


def without_prior(service: Service) -> None:
    service.artifacts.remove(service.tensors())


def with_another_prior(service: Service) -> None:
    data = service.artifacts.read(service.tensors())
    service.artifacts.write(service.tensors(), data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "key", "words"),
    [
        (shortened, "job/lab/cats/0001", "has 0 bytes, the job store says 2"),
        (changed, "job/lab/cats/0001", "posterior.npz does not have the SHA-256"),
        (without_result, "job/lab/cats/0001", "there is no file"),
        (without_prior, "prior/lab/cats/00000000", "is missing"),
        (with_another_prior, "prior/lab/cats/00000000", "does not have the SHA-256"),
    ],
)
def test_damage_is_named_by_record_and_file(
    service: Service, damage: Callable[[Service], None], key: str, words: str
) -> None:
    damage(service)
    (problem,) = service.inventory().problems
    assert problem.startswith(f"{key}: ") and words in problem


def test_an_upload_that_is_missing_is_missed_by_its_record_and_by_the_job_that_waits_for_it(service: Service) -> None:
    service.artifacts.remove(service.upload)
    problems = service.inventory().problems
    assert [problem.partition(":")[0].rpartition("/")[0] for problem in problems] == ["job/lab/cats", "dataset/lab"]
    assert "0002" in problems[0]


def test_what_is_removed_meanwhile_is_no_problem(service: Service) -> None:
    """As when a running service prunes a prior: first its record goes, then its files."""
    service.artifacts.remove(service.tensors())
    (record,) = service.store.ledger.scan("prior/")
    seen: list[Inventory] = []

    class Forgetful(StudyPriors):
        def load(self, tenant: str, study: str, version: int) -> None:  # type: ignore[override]
            service.store.ledger.commit(Transaction(changes=[Delete(record.key)]))
            raise CorruptArtifactError("its tensors are missing")

    priors = Forgetful(service.store, service.artifacts.url, lambda: 0.0)
    found = take_inventory(service.store, priors, service.artifacts, seen.append)
    assert (found.num_priors, found.problems) == (0, []) and seen


def test_command_ends_with_7_where_something_is_missing(service: Service) -> None:
    arguments = ["verify", "--store", service.store_name, "--artifacts", service.artifacts.url, "--json"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["problems"] == []
    without_prior(service)
    ran = CliRunner().invoke(app, arguments)
    assert isinstance(ran.exception, CorruptArtifactError) and ran.exception.exit_code == 7
    assert "missing or altered: 1 of the files that the job store names" in str(ran.exception)
    assert len(json.loads(ran.stdout)["problems"]) == 1
