"""Public data sets that torchvision fetches. Training and test images are merged: tasks make their own split."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataUnavailableError
from workers.data.arrays import ClassImages, Part, by_label
from workers.data.cache import locked
from workers.data.idx import find_idx
from workers.data.images import decode_squares, resize_all, stack_images


@dataclass(frozen=True)
class IdxSet:
    """A data set of the MNIST family.

    Attributes:
        torchvision_name: class of `torchvision.datasets`; also the folder that it downloads to.
        class_names: by label.
        system_folders: where operating systems put it.
    """

    torchvision_name: str
    class_names: tuple[str, ...]
    system_folders: tuple[Path, ...] = ()


IDX_SETS: Mapping[str, IdxSet] = {
    "mnist": IdxSet("MNIST", tuple("0123456789")),
    "fashion-mnist": IdxSet(
        "FashionMNIST",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        # Debian and Ubuntu: apt-get install dataset-fashion-mnist
        (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/share/dataset-fashion-mnist")),
    ),
    "kmnist": IdxSet("KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
}


_BACKGROUND = "images_background"  # the half of Omniglot that its publishers learn from

_IDX_FILES = ", ".join(
    f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)
_WANTED_FILES = {
    "mnist": _IDX_FILES,
    "fashion-mnist": f"{_IDX_FILES} (on Debian: apt-get install dataset-fashion-mnist)",
    "kmnist": _IDX_FILES,
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "svhn": "train_32x32.mat and test_32x32.mat",
    "omniglot": "omniglot-py/images_background.zip and omniglot-py/images_evaluation.zip",
}


def idx_files(name: str, root: Path | None, downloads: Path) -> tuple[Path, ...]:
    """The four idx files of a data set of `IDX_SETS`; downloads them where nobody has them.

    Args:
        name: key of `IDX_SETS`.
        root: folder that directly holds the files, or as torchvision lays them out, or receives them.
        downloads: folder that receives them where no root is given.

    Raises:
        DataUnavailableError: the download failed.
    """
    spec = IDX_SETS[name]
    target = downloads if root is None else root
    folders = (*(spec.system_folders if root is None else ()), target, target / spec.torchvision_name / "raw")
    files = find_idx(folders)
    if files is None:
        download(name, spec.torchvision_name, target)
        files = find_idx(folders)
    if files is None:
        raise DataUnavailableError(_remedy(name, target, "the files are not all there"))
    return files


def read_cifar(name: str, root: Path, image_size: int) -> Iterator[ClassImages]:
    """CIFAR-10 or CIFAR-100, 32 px, three channels; torchvision checks the files' digests before it unpickles them."""
    parts = [download(name, name.upper(), root, train=train) for train in (True, False)]
    images = np.concatenate([part.data for part in parts])
    labels = np.concatenate([np.asarray(part.targets) for part in parts])
    return by_label(resize_all(images, image_size), labels, [str(label) for label in parts[0].classes])


def read_svhn(root: Path, image_size: int) -> Iterator[ClassImages]:
    """Street View House Numbers, cropped digits of 32 px, three channels, without the `extra` part."""
    parts = [download("svhn", "SVHN", root, split=split) for split in ("train", "test")]
    images = np.concatenate([part.data for part in parts]).transpose(0, 2, 3, 1)
    labels = np.concatenate([part.labels for part in parts])
    return by_label(resize_all(np.ascontiguousarray(images), image_size), labels)


def omniglot_alphabets(root: Path) -> list[Path]:
    """Folders of the alphabets, sorted; downloads them where `root` lacks them.

    Raises:
        DataUnavailableError: the download failed.
    """
    halves = [root / "omniglot-py" / half for half in (_BACKGROUND, "images_evaluation")]
    for half in halves:
        if not half.is_dir():
            download("omniglot", "Omniglot", root, background=half.name == _BACKGROUND)
    return sorted(path for half in halves for path in half.iterdir() if path.is_dir())


def read_omniglot(alphabets: Sequence[Path], image_size: int) -> Iterator[ClassImages]:
    """Omniglot: 1623 characters of 50 alphabets, drawn by 20 people each; inverted, so that ink is bright.

    Raises:
        InvalidInputError: a file is not a readable image.
    """
    for alphabet in alphabets:
        for character in sorted(path for path in alphabet.iterdir() if path.is_dir()):
            squares = [
                255 - decode_squares(path, str(path), (image_size,), channels=1)[0]
                for path in sorted(character.glob("*.png"))
            ]
            part: Part = "meta_train" if alphabet.parent.name == _BACKGROUND else "unseen"
            yield ClassImages(f"{alphabet.name}/{character.name}", alphabet.name, stack_images(squares), part)


def download(name: str, torchvision_name: str, root: Path, **arguments: object) -> Any:
    """Has torchvision open a data set, fetching what `root` lacks.

    Args:
        name: of the source.
        torchvision_name: class of `torchvision.datasets`.
        root: folder that holds or receives the files; may be read-only where it holds them.
        arguments: of that class.

    Raises:
        DataUnavailableError: no network, a server that does not answer, or a folder that cannot be written to.
    """
    from torchvision import datasets

    dataset = getattr(datasets, torchvision_name)
    try:
        if root.exists() and not os.access(root, os.W_OK):
            return dataset(str(root), download=True, **arguments)
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{name}.lock"):  # two processes would write into the same files
            return dataset(str(root), download=True, **arguments)
    except (OSError, RuntimeError, EOFError) as error:
        raise DataUnavailableError(_remedy(name, root, " ".join(str(error).split()))) from None


def _remedy(name: str, root: Path, reason: str) -> str:
    return (
        f"{name} could not be downloaded ({reason}); put {_WANTED_FILES[name]} into {root}, "
        "or into a folder of your own and set data.root to it"
    )
