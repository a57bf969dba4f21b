"""Mini-ImageNet is read from generated files in the layouts that people have; the images themselves are not here."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import DatasetRef, TaskFamily
from common.errors import InvalidInputError, NotFoundError
from workers.data.arrays import ClassArrays
from workers.data.episodes import load_episode, sample_task
from workers.data.sources import load_arrays
from workers.data.splits import classes_of

CLASSES = {"train": ("n03", "n01", "n02"), "val": ("n05", "n04"), "test": ("n07", "n06")}
SIZE = 12
Writer = Callable[[Path], Path]


def jpeg(path: Path, label: str, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (30 * int(label[1:]), 80 * index, 100)
    Image.fromarray(np.full((SIZE, SIZE, 3), color, np.uint8)).save(path, "JPEG")


def file_name(label: str, index: int) -> str:
    return f"{label}{index:08d}.jpg"


def write_csv_files(root: Path, classes: Mapping[str, tuple[str, ...]] = CLASSES) -> None:
    for part, labels in classes.items():
        with (root / f"{part}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("filename", "label"))
            rows.writerows((file_name(label, index), label) for label in labels for index in (2, 0, 1))


def split_files(root: Path) -> Path:
    for labels in CLASSES.values():
        for label in labels:
            for index in range(3):
                jpeg(root / "images" / file_name(label, index), label, index)
    write_csv_files(root)
    return root


def split_files_and_class_folders(root: Path) -> Path:
    split_files(root)
    for path in list((root / "images").iterdir()):
        folder = root / "images" / path.name[:3]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    return root


def class_folders(root: Path) -> Path:
    for part, labels in CLASSES.items():
        for label in labels:
            for index in range(3):
                jpeg(root / part / label / file_name(label, index), label, index)
    return root


def pixels(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images as packed files hold them, in no order, and their classes."""
    found = sorted(path for label in CLASSES[part] for path in (folder / part / label).iterdir())
    images = np.stack([np.asarray(Image.open(path)) for path in found])
    return images, np.array([path.parent.name for path in found])


def npz_files(root: Path) -> Path:
    folder = class_folders(root.with_name("unpacked"))
    root.mkdir()
    for part in CLASSES:
        images, labels = pixels(folder, part)
        np.savez(root / f"{part}.npz", images=images, labels=labels)
    return root


def hdf5_files(root: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    folder = class_folders(root.with_name("unpacked"))
    root.mkdir()
    for part, of_part in CLASSES.items():
        images, labels = pixels(folder, part)
        with h5py.File(root / f"{part}_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for label in of_part:
                group.create_dataset(label, data=images[labels == label])
    return root


def load(root: Path) -> ClassArrays:
    return load_arrays(DatasetRef(source="mini_imagenet", root=str(root)), SIZE)


@pytest.mark.parametrize(
    "write",
    [split_files, split_files_and_class_folders, class_folders, npz_files, hdf5_files],
    ids=lambda w: w.__name__,
)
def test_every_layout_gives_the_same_images_classes_and_parts(tmp_path: Path, write: Writer) -> None:
    arrays = load(write(tmp_path / "root"))
    assert arrays.class_names == arrays.groups == tuple(f"n0{number}" for number in range(1, 8))
    assert [record.part for record in arrays.records] == ["meta_train"] * 3 + ["validation"] * 2 + ["unseen"] * 2
    assert arrays.image_shape == (SIZE, SIZE, 3)
    # In every class the images come in the order of their names, which their green channel counts.
    expected = np.array([[30 * number, 80 * index, 100] for number in range(1, 8) for index in range(3)])
    found = np.concatenate([arrays.of_class(index)[:, 5, 5] for index in range(7)])
    assert np.abs(found.astype(int) - expected).max() <= 3  # JPEG
    data = DatasetRef(source="mini_imagenet", root=str(tmp_path / "root"))
    assert classes_of(arrays, "validation", data) == (3, 4)


def test_tasks_of_each_split_have_its_classes_only(tmp_path: Path) -> None:
    root = split_files(tmp_path / "root")
    data = DatasetRef(source="mini_imagenet", root=str(root))
    family = TaskFamily(data=data, image_size=84, num_ways=2, train_per_class=1, test_per_class=2)
    arrays = load_arrays(data, 84)
    for split, part in (("meta_train", "train"), ("validation", "val"), ("unseen", "test")):
        drawn = {name for index in range(9) for name in sample_task(arrays, family, split, str(index), 0).classes}
        assert drawn == set(CLASSES[part])
    episode = load_episode(sample_task(arrays, family, "unseen", "t", 0))
    assert episode.train_images.shape == (2, 84, 84, 3)
    assert episode.test_images.shape == (4, 84, 84, 3)


def test_missing_files_say_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no Mini-ImageNet in .*root.*train\.csv.*images.*data\.root"):
        load(tmp_path / "root")


def test_what_a_begun_layout_lacks_is_named(tmp_path: Path) -> None:
    root = split_files(tmp_path / "root")
    (root / "val.csv").unlink()
    with pytest.raises(NotFoundError, match=r"root lacks val\.csv of Mini-ImageNet"):
        load(root)


def test_pickles_are_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(InvalidInputError, match=r"cache-train\.pkl, a pickle.*convert it to train\.npz"):
        load(tmp_path)


def test_image_that_a_split_file_names_and_nobody_has_is_named(tmp_path: Path) -> None:
    root = split_files(tmp_path / "root")
    (root / "images" / file_name("n05", 1)).unlink()
    with pytest.raises(NotFoundError, match=r"val\.csv names n0500000001\.jpg, which is not in .*images"):
        load(root)


def test_class_in_two_split_files_is_refused(tmp_path: Path) -> None:
    root = split_files(tmp_path / "root")
    write_csv_files(root, CLASSES | {"test": ("n07", "n03")})
    with pytest.raises(InvalidInputError, match="class 'n03' is in both train and test"):
        load(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,class\na.jpg,n01\n", r"val\.csv has the columns name, class; a split file has filename and label"),
        ("filename,label\n../../etc/passwd,n01\n", r"line 2 of .*val\.csv must have a file below images"),
        ("filename,label\n/etc/passwd,n01\n", r"line 2 of .*val\.csv must have a file below images"),
        ("filename,label\na.jpg\n", r"line 2 of .*val\.csv must have a file below images and a class"),
        ("filename,label\n", r"val\.csv names no images"),
    ],
)
def test_split_file_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    root = split_files(tmp_path / "root")
    (root / "val.csv").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        load(root)


def test_hdf5_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    root = hdf5_files(tmp_path / "root")
    with h5py.File(root / "val_data.hdf5", "w") as file:
        file.create_dataset("images", data=np.zeros(3))
    with pytest.raises(InvalidInputError, match=r"val_data\.hdf5 is not a file of torchmeta's"):
        load(root)
    (root / "val_data.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(InvalidInputError, match=r"val_data\.hdf5 is not a file of torchmeta's"):
        load(root)
    with h5py.File(root / "val_data.hdf5", "w") as file:
        file.create_group("datasets").create_dataset("n04", data=np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InvalidInputError, match=r"class 'n04' holds uint8 \(2, 3, 3\)"):
        load(root)


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    root = npz_files(tmp_path / "root")
    before = load(root).fingerprint
    images, labels = pixels(tmp_path / "unpacked", "val")
    np.savez(root / "val.npz", images=images[1:], labels=labels[1:])
    assert load(root).fingerprint != before
