import gzip
import struct
import subprocess
import sys
import types
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from common.config import DatasetRef
from common.errors import InvalidInputError, UnavailableError
from workers.data import downloads
from workers.data.downloads import IDX_SETS
from workers.data.glyphs import render_glyphs
from workers.data.scripts import SCRIPTS
from workers.data.sources import SOURCES, load_arrays

FASHION = next((folder for folder in IDX_SETS["fashion-mnist"].system_folders if folder.is_dir()), None)


@pytest.fixture
def no_system_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine on which no package has installed a data set."""
    bare = {name: downloads.IdxSet(spec.torchvision_name, spec.class_names) for name, spec in IDX_SETS.items()}
    monkeypatch.setattr(downloads, "IDX_SETS", bare)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, compress: bool = True) -> Path:
    """Ten training and ten test images of 28 px; the image of label k has value k, in the test part k + 100."""
    folder.mkdir(parents=True)
    labels = np.arange(10, dtype=np.uint8)[::-1]
    for part, offset in (("train", 0), ("t10k", 100)):
        images = np.broadcast_to((labels + np.uint8(offset))[:, None, None], (10, 28, 28))
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(np.ascontiguousarray(array))
            path = folder / f"{part}-{what}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(data) if compress else data)
    return folder


def test_digits_are_the_real_ones_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    arrays = load_arrays(DatasetRef(source="digits"), 8)
    assert arrays.class_names == tuple("0123456789")
    assert sum(arrays.num_images(index) for index in range(10)) == 1797
    threes = load_digits().images[load_digits().target == 3]
    assert np.abs(arrays.of_class(3)[..., 0] / 255 - threes / 16).max() <= 0.5 / 255
    assert load_arrays(DatasetRef(source="digits"), 32).image_shape == (32, 32, 1)


def test_unknown_source_lists_the_known_ones_and_a_close_name() -> None:
    with pytest.raises(InvalidInputError, match=r"no source 'glyfs'; did you mean 'glyphs'\?.*omniglot"):
        load_arrays(DatasetRef(source="glyfs"), 32)


def test_nothing_heavy_is_imported_before_a_source_needs_it() -> None:
    heavy = {"torch", "torchvision", "sklearn", "matplotlib", "ray"}
    code = f"import sys, workers.data.episodes; print(*{heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_image_size_below_one_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="image_size must be >= 1 pixel, got 0"):
        load_arrays(DatasetRef(source="digits"), 0)


def test_registry_knows_what_the_sources_hold() -> None:
    assert all(name == source.name and source.description for name, source in SOURCES.items())
    glyphs = load_arrays(DatasetRef(source="glyphs"), 32)
    assert SOURCES["glyphs"].num_classes == glyphs.num_classes
    assert SOURCES["glyphs"].native_size == glyphs.image_shape[0]
    assert {glyphs.num_images(index) for index in range(glyphs.num_classes)} == {40}
    assert not SOURCES["glyphs"].downloads
    assert SOURCES["cifar10"].downloads


@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_in_root_are_used_as_they_are(tmp_path: Path, layout: str, compress: bool) -> None:
    root = tmp_path / "root"
    folder = write_idx(root / layout, compress)
    before = sorted(path.name for path in folder.iterdir())
    arrays = load_arrays(DatasetRef(source="fashion-mnist", root=str(root)), 28)
    assert arrays.class_names[9] == "Ankle boot"
    assert arrays.of_class(3)[:, 0, 0, 0].tolist() == [3, 103]
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.skipif(FASHION is None, reason="needs apt-get install dataset-fashion-mnist")
def test_installed_fashion_mnist_is_found_and_merged(no_network: None) -> None:
    arrays = load_arrays(DatasetRef(source="fashion-mnist"), 28)
    assert [arrays.num_images(index) for index in range(10)] == [7000] * 10
    assert arrays.image_shape == (28, 28, 1)
    # Trousers are narrow: their mean has less ink at the sides than a pullover's.
    ink = [arrays.of_class(index)[:200, :, :6].mean() for index in (1, 2)]
    assert ink[0] < ink[1] / 3


def test_truncated_idx_file_is_named(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "root", compress=False)
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match="t10k-images-idx3-ubyte is truncated"):
        load_arrays(DatasetRef(source="mnist", root=str(folder)), 28)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "root")
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidInputError, match=r"train-labels-idx1-ubyte\.gz cannot be read"):
        load_arrays(DatasetRef(source="kmnist", root=str(folder)), 28)


def test_idx_file_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "root", compress=False)
    (folder / "train-images-idx3-ubyte").write_bytes(b"<html>not found</html>")
    with pytest.raises(InvalidInputError, match="train-images-idx3-ubyte is no idx file"):
        load_arrays(DatasetRef(source="mnist", root=str(folder)), 28)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "apt-get install dataset-fashion-mnist"),
        ("kmnist", "t10k-labels-idx1-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat and test_32x32.mat"),
        ("omniglot", "images_background.zip"),
    ],
)
def test_failed_download_says_what_to_put_where(
    source: str, wanted: str, cache: Path, no_network: None, no_system_folders: None
) -> None:
    with pytest.raises(UnavailableError, match=f"{source} could not be downloaded") as caught:
        load_arrays(DatasetRef(source=source), 32)
    assert wanted in str(caught.value)
    assert f"into {cache / 'downloads' / source}" in str(caught.value)
    assert "data.root" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_put_where_the_message_says_are_found(cache: Path, no_network: None, no_system_folders: None) -> None:
    write_idx(cache / "downloads" / "mnist")
    assert load_arrays(DatasetRef(source="mnist"), 28).num_classes == 10


def test_cifar_parts_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(root: str, *, train: bool, download: bool) -> types.SimpleNamespace:
        data = np.zeros((4, 32, 32, 3), np.uint8)
        data[:, :16, :, 2] = 200 if train else 100
        return types.SimpleNamespace(data=data, targets=[0, 1, 1, 1], classes=["plane", "car"])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", dataset)
    arrays = load_arrays(DatasetRef(source="cifar10", root=str(tmp_path)), 32)
    assert arrays.class_names == ("plane", "car")
    assert arrays.of_class(0)[:, 0, 0].tolist() == [[0, 0, 200], [0, 0, 100]]
    assert arrays.of_class(0)[:, 31, 0].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert arrays.num_images(1) == 6


def test_svhn_images_are_turned_to_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(root: str, *, split: str, download: bool) -> types.SimpleNamespace:
        data = np.zeros((2, 3, 32, 32), np.uint8)
        data[:, 1, :5] = 9
        return types.SimpleNamespace(data=data, labels=np.array([7, 3]))

    monkeypatch.setattr("torchvision.datasets.SVHN", dataset)
    arrays = load_arrays(DatasetRef(source="svhn", root=str(tmp_path)), 32)
    assert arrays.class_names == ("3", "7")
    assert arrays.of_class(0)[1, 4, 20].tolist() == [0, 9, 0]
    assert arrays.of_class(0)[1, 5, 20].tolist() == [0, 0, 0]


def test_omniglot_ink_is_bright_and_alphabets_are_groups(tmp_path: Path) -> None:
    for half, alphabet in (("images_background", "Greek"), ("images_evaluation", "Tengwar")):
        for character in ("character01", "character02"):
            folder = tmp_path / "omniglot-py" / half / alphabet / character
            folder.mkdir(parents=True)
            paper = Image.new("1", (105, 105), 1)
            paper.paste(0, (40, 40, 70, 70))
            paper.save(folder / "0001_01.png")
    arrays = load_arrays(DatasetRef(source="omniglot", root=str(tmp_path)), 35)
    assert arrays.class_names[1:3] == ("Greek/character02", "Tengwar/character01")
    assert arrays.groups == ("Greek", "Greek", "Tengwar", "Tengwar")
    assert [record.part for record in arrays.records] == ["meta_train", "meta_train", "unseen", "unseen"]
    assert arrays.of_class(0)[0, 17, 17, 0] == 255
    assert arrays.of_class(0)[0, 2, 2, 0] == 0


@pytest.mark.parametrize("size", [28, 84])
def test_sizes_of_few_shot_learning_are_made_of_any_image(size: int) -> None:
    assert load_arrays(DatasetRef(source="digits"), size).image_shape == (size, size, 1)
    drawn = next(iter(render_glyphs(SCRIPTS[:1], images_per_class=2, image_size=size)))
    assert drawn.images.shape == (2, size, size, 1)
    assert drawn.images.max() > 150


def test_imagenet_without_root_says_how_to_get_one() -> None:
    with pytest.raises(InvalidInputError, match="metasearch data prepare"):
        load_arrays(DatasetRef(source="imagenet"), 64)
