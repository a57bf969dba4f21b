import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import DatasetRef
from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from workers.data.prepare import open_prepared, prepare
from workers.data.sources import load_arrays

COUNTS = {"n01": 2, "n02": 1, "n03": 3}


@pytest.fixture
def source(tmp_path: Path, write_images) -> Path:
    return write_images(tmp_path / "source", COUNTS)


def inodes(target: Path, size: int) -> list[int]:
    return [path.stat().st_ino for path in sorted((target / str(size)).glob("*.npy"))]


class Interrupted(Exception):
    pass


def interrupt_after(num_classes: int):
    def on_progress(done: int, total: int) -> None:
        if done == num_classes:
            raise Interrupted

    return on_progress


def test_every_size_is_loaded_as_the_imagenet_source(tmp_path: Path, source: Path) -> None:
    calls: list[tuple[int, int]] = []
    summary = prepare(source, tmp_path / "target", (16, 24), on_progress=lambda *call: calls.append(call))
    assert (summary.num_classes, summary.num_images, summary.num_resumed, summary.skipped) == (3, 6, 0, ())
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for size in (16, 24):
        arrays = load_arrays(DatasetRef(source="imagenet", root=str(tmp_path / "target")), size)
        assert arrays.class_names == arrays.groups == ("n01", "n02", "n03")
        assert arrays.image_shape == (size, size, 3)
        assert arrays.of_class(2)[1, 0, 0].tolist() == [25, 1, 200]
        assert isinstance(arrays.of_class(2), np.memmap)


def test_images_are_not_read_before_a_class_is_asked_for(tmp_path: Path, source: Path) -> None:
    prepare(source, tmp_path / "target", (16,))
    (tmp_path / "target" / "16" / "00001.npy").unlink()
    arrays = open_prepared(tmp_path / "target", 16)
    assert arrays.num_images(1) == 1
    assert len(arrays.of_class(0)) == 2
    with pytest.raises(CorruptArtifactError, match=r"00001\.npy"):
        arrays.of_class(1)


def test_prepared_folder_is_also_a_source_by_its_path(tmp_path: Path, source: Path, cache: Path) -> None:
    prepare(source, tmp_path / "target", (16,))
    arrays = load_arrays(DatasetRef(source=str(tmp_path / "target")), 16)
    assert arrays.num_images(2) == 3
    assert not cache.exists()


def test_processes_give_the_same_as_one(tmp_path: Path, source: Path) -> None:
    prepare(source, tmp_path / "one", (16, 24), num_processes=1)
    prepare(source, tmp_path / "two", (16, 24), num_processes=2)
    for size in (16, 24):
        assert open_prepared(tmp_path / "one", size).fingerprint == open_prepared(tmp_path / "two", size).fingerprint


def test_interrupted_run_is_incomplete_and_goes_on_where_it_stopped(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(Interrupted):
        prepare(source, target, (16,), on_progress=interrupt_after(2))
    with pytest.raises(NotFoundError, match="metasearch data prepare"):
        open_prepared(target, 16)
    before = inodes(target, 16)
    assert len(before) == 2

    calls: list[tuple[int, int]] = []
    summary = prepare(source, target, (16,), on_progress=lambda *call: calls.append(call))
    assert summary.num_resumed == 2
    assert calls == [(2, 3), (3, 3)]
    assert inodes(target, 16)[:2] == before  # not written again
    prepare(source, tmp_path / "at-once", (16,))
    assert open_prepared(target, 16).fingerprint == open_prepared(tmp_path / "at-once", 16).fingerprint


def test_finished_target_is_not_touched(tmp_path: Path, source: Path) -> None:
    prepare(source, tmp_path / "target", (16,))
    before = inodes(tmp_path / "target", 16)
    assert prepare(source, tmp_path / "target", (16,)).num_resumed == 3
    assert inodes(tmp_path / "target", 16) == before


def test_changed_and_truncated_classes_are_done_again(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    prepare(source, target, (16,))
    path = source / "n01" / "000.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path)
    os.utime(path, ns=(0, 0))
    (target / "16" / "00002.npy").write_bytes((target / "16" / "00002.npy").read_bytes()[:-1])
    assert prepare(source, target, (16,)).num_resumed == 1
    arrays = open_prepared(target, 16)
    assert arrays.of_class(0)[0, 0, 0].tolist() == [1, 2, 3]
    assert len(arrays.of_class(2)) == 3


def test_target_is_incomplete_while_a_changed_class_is_done_again(tmp_path: Path, source: Path) -> None:
    prepare(source, tmp_path / "target", (16,))
    for name in ("n01", "n02"):
        os.utime(source / name / "000.png", ns=(0, 0))
    with pytest.raises(Interrupted):
        prepare(source, tmp_path / "target", (16,), on_progress=interrupt_after(2))
    with pytest.raises(NotFoundError):
        open_prepared(tmp_path / "target", 16)


def test_another_size_can_be_added(tmp_path: Path, source: Path) -> None:
    prepare(source, tmp_path / "target", (16,))
    assert prepare(source, tmp_path / "target", (16, 24)).num_resumed == 0
    assert open_prepared(tmp_path / "target", 24).image_shape == (24, 24, 3)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_unreadable_image_is_named(tmp_path: Path, source: Path, num_processes: int) -> None:
    (source / "n03" / "001.png").write_text("no image")
    with pytest.raises(InvalidInputError, match=r"n03/001\.png is not a readable image"):
        prepare(source, tmp_path / "target", (16,), num_processes)


def test_unreadable_images_are_left_out_and_listed_on_request(tmp_path: Path, source: Path) -> None:
    bad = source / "n03" / "001.png"
    bad.write_text("no image")
    summary = prepare(source, tmp_path / "target", (16,), skip_unreadable=True)
    assert summary.skipped == (str(bad),)
    assert summary.num_images == 5
    assert open_prepared(tmp_path / "target", 16).num_images(2) == 2
    # A later run that does not allow it says so instead of reusing the class.
    with pytest.raises(InvalidInputError, match="not a readable image"):
        prepare(source, tmp_path / "target", (16,))


def test_class_without_a_readable_image_is_named(tmp_path: Path, source: Path) -> None:
    (source / "n02" / "000.png").write_text("no image")
    with pytest.raises(InvalidInputError, match="class 'n02' has no readable image"):
        prepare(source, tmp_path / "target", (16,), skip_unreadable=True)


def test_size_that_was_not_prepared_lists_those_that_were(tmp_path: Path, source: Path) -> None:
    prepare(source, tmp_path / "target", (16, 24))
    with pytest.raises(NotFoundError, match=r"prepared for 16, 24 px only; .* for 32 px"):
        open_prepared(tmp_path / "target", 32)


def test_altered_manifest_is_refused(tmp_path: Path, source: Path) -> None:
    prepare(source, tmp_path / "target", (16,))
    path = tmp_path / "target" / "16" / "manifest.json"
    path.write_text(path.read_text().replace("n02", "n99"))
    with pytest.raises(CorruptArtifactError, match="altered"):
        open_prepared(tmp_path / "target", 16)


@pytest.mark.parametrize(
    ("sizes", "num_processes", "message"), [((), 1, "sizes"), ((16, 16), 1, "sizes"), ((16,), 0, "num_processes")]
)
def test_arguments_out_of_range_are_refused(
    tmp_path: Path, source: Path, sizes: tuple[int, ...], num_processes: int, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"{message} must be"):
        prepare(source, tmp_path / "target", sizes, num_processes)
