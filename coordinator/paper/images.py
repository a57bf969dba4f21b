"""The images of the paper's data sets, or of what takes their place, as a run's workers are to see them.

A search must not see what the final network is tested on. So the training part of a data set is written as a file of
its own, and adaptation draws its images, its own held-out ones too, from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from common.config import DatasetRef
from common.data_config import MINI_IMAGENET
from common.errors import InvalidInputError, MetaSearchError
from common.storage import ArtifactFolder
from common.streams import stream
from coordinator.paper.anchors import TableName
from coordinator.paper.experiments import TABLES, ImageSet, PaperConfig, Target, data_needed
from workers.data.arrays import ClassArrays
from workers.data.downloads import IDX_SETS
from workers.data.idx import find_idx
from workers.data.sources import load_arrays
from workers.data.splits import classes_of
from workers.data.whole import load_whole

FOLDER = "images"
_REMEDIES: Mapping[str, str] = {
    "imagenet": "prepare ImageNet's training images with metasearch data prepare FOLDER PREPARED --sizes 32,64,224,256 "
    "and give --imagenet PREPARED",
    MINI_IMAGENET: "give --mini-imagenet FOLDER",
}
"""What to do about images that full scale needs, by their source."""


@dataclass(frozen=True)
class PreparedImages:
    """Where a run's images are.

    Attributes:
        search: by table, what adaptation may see.
        trained: by table, what full networks are trained and tested on.
    """

    search: Mapping[TableName, DatasetRef]
    trained: Mapping[TableName, DatasetRef]


def check_data(config: PaperConfig, target: Target) -> None:
    """Whether all images that a target needs are there.

    Raises:
        MetaSearchError: they are not; the message says which, and what to do.
    """
    for reference, image_size in data_needed(config, target):
        try:
            load_arrays(reference, image_size)
        except MetaSearchError as error:
            if config.scale != "full":
                raise
            remedy = _REMEDIES.get(reference.source, "give --downloads FOLDER")
            raise type(error)(
                f"--scale full needs {reference.source} at {image_size} pixels: {error}; {remedy}"
            ) from None


def prepare_images(config: PaperConfig, folder: Path) -> PreparedImages:
    """Writes the files that a run needs beside its sources, where they are not there yet.

    Raises:
        MetaSearchError: a source cannot be read, or the folder not be written to.
    """
    search: dict[TableName, DatasetRef] = {}
    trained: dict[TableName, DatasetRef] = {}
    target = ArtifactFolder(folder / FOLDER)
    for table in TABLES:
        image_set = config.image_set(table)
        reference = image_set.data
        if image_set.num_unseen_classes is not None:
            name = f"{table}.npz"
            if not target.exists(name):
                target.write(name, _unseen_classes(image_set, image_set.num_unseen_classes))
            reference = DatasetRef(source=str((folder / FOLDER / name).resolve()))
        trained[table] = reference
        if not image_set.search_in_training_part:
            search[table] = reference
            continue
        name = f"{table}-training.npz"
        if not target.exists(name):
            target.write(name, _training_part(image_set, reference))
        search[table] = DatasetRef(source=str((folder / FOLDER / name).resolve()))
    return PreparedImages(search, trained)


def _unseen_classes(image_set: ImageSet, num_classes: int) -> bytes:
    """An npz file of classes that meta-training never sees."""
    arrays = load_arrays(image_set.data, image_set.recipe.loaded_size)
    unseen = classes_of(arrays, "unseen", image_set.data)
    if len(unseen) < num_classes:
        raise InvalidInputError(
            f"num_unseen_classes is {num_classes}, {image_set.data.source!r} keeps {len(unseen)} unseen; lower it"
        )
    order = stream(image_set.data.split_seed, "classes of the paper's stand-in").permutation(len(unseen))
    chosen = sorted(unseen[position] for position in order[:num_classes])
    labels = np.repeat([arrays.class_names[index] for index in chosen], [arrays.num_images(index) for index in chosen])
    return _npz(np.concatenate([arrays.of_class(index) for index in chosen]), labels)


def _training_part(image_set: ImageSet, reference: DatasetRef) -> bytes:
    """An npz file of the images that a final network is trained on."""
    train = load_whole(reference, image_set.recipe).train
    arrays: ClassArrays = train.arrays
    labels = np.array(arrays.class_names)[train.labels]
    return _npz(train.gather(np.arange(train.num_images)), labels)


def _npz(images: np.ndarray, labels: np.ndarray) -> bytes:
    file = BytesIO()
    np.savez(file, images=images, labels=labels)
    return file.getvalue()


def has_fashion_mnist() -> bool:
    """Whether the operating system has Fashion-MNIST; nothing is downloaded to find out."""
    return find_idx(IDX_SETS["fashion-mnist"].system_folders) is not None
