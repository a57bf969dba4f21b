"""Few-shot jobs over the protocol: what is asked for, what is refused and by which field, what comes back."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference.gateway import Gateway, PlayedCoordinator
from reference.processes import command_line
from sklearn.datasets import load_digits

from common.errors import ConflictError, InvalidInputError, NotFoundError, QuotaError
from common.space.released import DARTS_V2
from coordinator.api.client import SearchClient
from coordinator.api.errors import FieldError
from coordinator.api.stubs import search_pb2 as pb
from coordinator.jobs import FewShotSpec
from workers.data.handful import handful_from_bytes

SIZE = 16
FEW_SHOT = ["rounds=1", "few_shot.test_steps=2", "families.0.num_ways=3"]
SUMMARY = {
    "prior_version": 0,
    "classes": ["four", "one", "seven"],
    "predictions": [
        {"name": "a.png", "label": "one", "probability": 0.75, "probabilities": [0.125, 0.75, 0.125]},
        {"name": "b.png", "label": "four", "probability": 0.5, "probabilities": [0.5, 0.25, 0.25]},
    ],
    "num_queries": 2,
    "statistics": "transductive",
    "steps": 2,
    "support_losses_nats": [1.0, 0.25],
    "genotype": DARTS_V2.model_dump(mode="json"),
    "genotype_probability": 0.25,
    "entropy_nats": {"normal": 1.5, "reduction": 1.25},
    "num_params": 1234,
    "has_network": False,
    "path": "native",
    "seconds": 0.5,
}


def png(pixels: Any, size: int = 8, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels).astype(np.uint8)).resize((size, size)).save(buffer, kind)
    return buffer.getvalue()


def digit(label: int, number: int) -> bytes:
    digits = load_digits()
    return png(digits.images[digits.target == label][number] * 15)


SUPPORT = {
    name: [digit(label, number) for number in range(2)] for name, label in (("one", 1), ("seven", 7), ("four", 4))
}
QUERIES = [digit(1, 5), digit(4, 5)]


@pytest.fixture
def study(client: SearchClient) -> str:
    return client.create_study("few", preset="smoke", overrides=FEW_SHOT).name


def message(**changes: Any) -> pb.JobSpec:
    """A job as other clients send it."""
    support = [
        {"name": f"{label}/{number}.png", "label": label, "content": content}
        for label, contents in SUPPORT.items()
        for number, content in enumerate(contents)
    ]
    plain = {"support": support, "queries": [{"name": f"{n}.png", "content": each} for n, each in enumerate(QUERIES)]}
    return pb.JobSpec(few_shot=pb.FewShotSpec(**{**plain, **changes}))


def test_submit_returns_what_was_asked_for_and_keeps_the_pixels(
    either: Any, gateway: Gateway, coordinator: PlayedCoordinator, tenant: str
) -> None:
    study = either.create_study("few", preset="smoke", overrides=FEW_SHOT).name
    job = either.few_shot(study, SUPPORT, QUERIES, steps=3, statistics="inductive", seed=5)
    spec = job.spec.few_shot
    assert job.state == pb.JOB_STATE_QUEUED and job.priority == 8, "somebody waits for it"
    assert [image.label for image in spec.support] == ["one", "one", "seven", "seven", "four", "four"]
    assert [image.name for image in spec.queries] == ["0", "1"] and not any(image.content for image in spec.queries)
    assert (spec.steps, spec.seed, spec.statistics) == (3, 5, pb.BATCH_STATISTICS_INDUCTIVE)
    assert either.get_job(job.name) == job
    kept = coordinator.job(tenant, job.name).spec
    assert isinstance(kept, FewShotSpec) and kept.file is not None and kept.file.sha256 is not None
    assert kept.task.classes == ("four", "one", "seven") and kept.task.labels == (1, 1, 2, 2, 0, 0)
    data = Path(kept.file.url.removeprefix("file://")).read_bytes()
    pixels = handful_from_bytes(data, kept.file.sha256, "it")
    assert pixels.support.shape == (6, SIZE, SIZE, 1) and pixels.queries.shape == (2, SIZE, SIZE, 1)
    assert kept.num_bytes == len(data) == coordinator.store.counts([tenant])[tenant]["bytes"]


def test_images_come_from_folders_archives_and_files(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "unknown" / "deep").mkdir(parents=True)
    (tmp_path / "unknown" / "deep" / "x.png").write_bytes(QUERIES[0])
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive, tarfile.open(tmp_path / "photos.tgz", "w:gz") as tar:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path, path.relative_to(photos))
            tar.add(path, path.relative_to(tmp_path))
    digests = set()
    for support in (photos, str(tmp_path / "photos.zip"), tmp_path / "photos.tgz"):
        job = client.few_shot(study, support, tmp_path / "unknown", request_id=None)
        assert [image.label for image in job.spec.few_shot.support] == ["ants", "ants", "bees", "bees"]
        assert [image.name for image in job.spec.few_shot.queries] == ["deep/x.png"]
        kept = coordinator.job(tenant, job.name).spec
        assert isinstance(kept, FewShotSpec) and kept.file is not None
        digests.add(kept.file.sha256)
    assert len(digests) == 1, "the same pixels, whatever they came in"
    one = client.few_shot(study, photos, tmp_path / "unknown" / "deep" / "x.png").spec.few_shot
    assert [image.name for image in one.queries] == ["x.png"]
    assert not client.few_shot(study, photos).spec.few_shot.queries


def test_large_images_are_scaled_before_they_are_sent_to_the_same_pixels(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 900, 1300, 3))
    large = {"a": [png(noise[0], 1200)], "b": [png(noise[1], 1200, "TIFF")]}
    assert sum(len(content) for contents in large.values() for content in contents) > 4 << 20
    scaled = coordinator.job(tenant, client.few_shot(study, large).name).spec
    from workers.data.images import decode_squares

    expected = np.stack([decode_squares(contents[0], "it", (SIZE,))[0] for contents in large.values()])
    assert isinstance(scaled, FewShotSpec) and scaled.file is not None and scaled.file.sha256 is not None
    data = Path(scaled.file.url.removeprefix("file://")).read_bytes()
    assert np.array_equal(handful_from_bytes(data, scaled.file.sha256, "it").support, expected)


def test_the_same_request_again_is_the_same_job_and_leaves_no_second_file(
    client: SearchClient, gateway: Gateway, tenant: str, study: str
) -> None:
    request_id = "2f0c8a52-7b0e-4c56-9d61-0f8b7d2f6a11"
    job = client.few_shot(study, SUPPORT, QUERIES, request_id=request_id)
    assert client.few_shot(study, SUPPORT, QUERIES, request_id=request_id).name == job.name
    assert len(list((gateway.artifacts / "tenants" / tenant).rglob("images.npz"))) == 1
    assert client.few_shot(study, SUPPORT, QUERIES, validate_only=True).name != job.name
    assert len(list((gateway.artifacts / "tenants" / tenant).rglob("images.npz"))) == 1


def test_images_count_as_stored_and_a_full_queue_keeps_none(gateway: Gateway) -> None:
    with gateway.client("tiny") as client:
        study = client.create_study("few", preset="smoke", overrides=FEW_SHOT).name
        with pytest.raises(QuotaError, match="may store"):
            client.few_shot(study, SUPPORT, QUERIES)
        assert not list(client.list_jobs(study))
    assert not list((gateway.artifacts / "tenants" / "tiny").rglob("images.npz"))


def bomb() -> bytes:
    """A small file of many pixels."""
    buffer = io.BytesIO()
    Image.new("L", (5000, 4000)).save(buffer, "PNG")
    return buffer.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n"


def labelled(*labels: str) -> list[dict[str, Any]]:
    return [{"name": label, "label": label, "content": QUERIES[0]} for label in labels]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"support": []}, "spec.few_shot.support", "has 0 classes"),
        ({"support": labelled("a")}, "spec.few_shot.support", "has 1 classes"),
        ({"support": labelled("a", "b", "c", "d")}, "spec.few_shot.support", "can tell 3 apart"),
        ({"support": labelled("a", "")}, "spec.few_shot.support.1.label", "names no class"),
        ({"support": labelled("a", "b\n")}, "spec.few_shot.support.1", "printable"),
        ({"support": labelled("a", "b" * 201)}, "spec.few_shot.support.1", "at most 200"),
        ({"support": [*labelled("a"), {"label": "b"}]}, "spec.few_shot.support.1.content", "is empty"),
        (
            {"support": [*labelled("a"), {"label": "b", "name": "b.eps", "content": POSTSCRIPT}]},
            "spec.few_shot.support.1.content",
            "not a readable image .*b.eps",
        ),
        ({"queries": [{"name": "q", "content": QUERIES[0][:60]}]}, "spec.few_shot.queries.0.content", "readable"),
        ({"queries": [{"name": "q", "content": bomb()}]}, "spec.few_shot.queries.0.content", "20000000 pixels"),
        ({"queries": [{"content": QUERIES[0]}]}, "spec.few_shot.queries.0.name", "is empty"),
        ({"queries": [{"name": "q", "content": QUERIES[0]}] * 2}, "spec.few_shot.queries.1.name", "two queries"),
        ({"queries": labelled("a")}, "spec.few_shot.queries.0.label", "leave it out"),
        (
            {"queries": [{"name": str(number), "content": b"x"} for number in range(1000)]},
            "spec.few_shot",
            "1006 images, at most 1000",
        ),
        ({"steps": -1}, "spec.few_shot.steps", "greater than or equal to 0"),
        ({"steps": 1001}, "spec.few_shot.steps", "less than or equal to 1000"),
        ({"seed": -1}, "spec.few_shot.seed", "greater than or equal to 0"),
        ({"statistics": 9}, "spec.few_shot.statistics", "unknown"),
        ({"prior_version": 7}, "spec.few_shot.prior_version", "no version 7"),
        ({"prior_version": -1}, "spec.few_shot.prior_version", "greater than or equal to 0"),
    ],
)
def test_a_wrong_job_is_refused_by_field(
    client: SearchClient, study: str, changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(FieldError, match=words) as error:
        client.submit(study, spec=message(**changes))
    assert error.value.field.startswith(field)
    assert not list(client.list_jobs(study))


def test_small_files_of_many_pixels_share_one_budget(client: SearchClient, study: str) -> None:
    buffer = io.BytesIO()
    Image.new("L", (4000, 4000)).save(buffer, "PNG")
    queries = [{"name": str(number), "content": buffer.getvalue()} for number in range(5)]
    with pytest.raises(FieldError, match="with all others") as error:
        client.submit(study, spec=message(queries=queries))
    assert error.value.field == "spec.few_shot.queries.4.content"


@pytest.mark.parametrize(
    ("support", "queries", "words"),
    [
        ("nowhere", (), "there is no folder"),
        (SUPPORT, "nowhere.png", "there is no file"),
        ({"a": [b"no image"], "b": QUERIES}, (), "not a readable image"),
        ("notes.txt", (), "neither an image folder nor a zip"),
        (SUPPORT, "empty", "has no images"),
    ],
)
def test_what_is_no_image_is_refused_before_it_is_sent(
    client: SearchClient,
    study: str,
    support: Any,
    queries: Any,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    with pytest.raises((InvalidInputError, NotFoundError), match=words):
        client.few_shot(study, support, queries)


def test_each_kind_of_study_takes_its_own_jobs(client: SearchClient, study: str) -> None:
    plain = client.create_study("plain", preset="smoke").name
    with pytest.raises(ConflictError, match="no few-shot study"):
        client.few_shot(plain, SUPPORT)
    with pytest.raises(ConflictError, match="is a few-shot study"):
        client.submit(study, "digits", num_ways=3)


def test_another_tenant_finds_neither_study_nor_job(
    client: SearchClient, gateway: Gateway, study: str, other_tenant: str
) -> None:
    job = client.few_shot(study, SUPPORT, QUERIES)
    with gateway.client(other_tenant) as other:
        with pytest.raises(NotFoundError):
            other.few_shot(study, SUPPORT, QUERIES)
        with pytest.raises(NotFoundError):
            other.get_job(job.name)


def test_predictions_come_back_with_the_job(
    client: SearchClient, coordinator: PlayedCoordinator, tenant: str, study: str
) -> None:
    coordinator.first_prior(tenant, "few")
    job = client.few_shot(study, SUPPORT, QUERIES)
    coordinator.store.succeed(
        coordinator.epoch,
        coordinator.start(tenant, job.name),
        2.0,
        {"summary": SUMMARY, "artifacts": [], "url": "memory://nowhere"},
    )
    result = client.wait(job.name).few_shot_result
    assert [(found.name, found.label) for found in result.predictions] == [("a.png", "one"), ("b.png", "four")]
    assert list(result.predictions[0].probabilities) == [0.125, 0.75, 0.125]
    assert list(result.classes) == ["four", "one", "seven"] and result.genotype_probability == 0.25
    assert result.statistics == pb.BATCH_STATISTICS_TRANSDUCTIVE and result.support_losses_nats[-1] == 0.25


def test_the_command_line_submits_it_and_shows_the_answer(
    gateway: Gateway,
    client: SearchClient,
    coordinator: PlayedCoordinator,
    tenant: str,
    study: str,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = command_line(capsys, monkeypatch)
    coordinator.first_prior(tenant, "few")
    reach = ("--server", gateway.address, "--token", gateway.token(tenant))
    images = [str(path) for path in sorted((photos / "ants").iterdir())]
    code, out, err = run("label", *reach, "--study", "few", str(photos), *images, "--no-wait", "--json", "--steps", "0")
    assert code == 0, err
    name = json.loads(out)["name"]
    spec = client.get_job(name).spec.few_shot
    assert [image.name for image in spec.queries] == images and spec.HasField("steps") and spec.steps == 0
    result = {"summary": SUMMARY, "artifacts": [], "url": "memory://nowhere"}
    coordinator.store.succeed(coordinator.epoch, coordinator.start(tenant, name), 2.0, result)
    code, _, err = run("result", *reach, name)
    assert code == 0 and "a.png" in err and "four 0.12" in err and "transductive BatchNorm" in err, err
    assert "1.000 to 0.250 nats" in err and "0.75" in err
    code, _, err = run("export", *reach, name, "--format", "onnx", "--out", "network.onnx")
    assert code == InvalidInputError.exit_code and "few_shot.network = 'genotype' it does" in err
    for arguments, words in (
        ((str(photos), "--statistics", "both"), "statistics must be transductive or inductive"),
        ((str(photos), images[0], str(photos)), "is a folder; give one folder of queries, or files"),
    ):
        code, _, err = run("label", *reach, "--study", "few", *arguments)
        assert code == InvalidInputError.exit_code and words in err
