"""The learning task that options of the command line choose."""

from pathlib import Path

from common.config import DatasetRef, StudyConfig
from common.tasks import TaskChoice, validate_choice
from workers.data.sources import SOURCES


def choice_of(
    config: StudyConfig,
    data: str,
    root: str | None,
    classes: str | None,
    image_size: int | None,
    train_per_class: int | None,
    test_per_class: int,
    seed: int,
) -> TaskChoice:
    """The task that options choose.

    Args:
        config: of the study whose prior is adapted.
        data: a source by name, or a path.
        root: folder that holds the source's files.
        classes: names, separated by commas, or how many to draw.
        image_size: in pixels; that of the study's first family where None.
        train_per_class: all where None.
        test_per_class: held out.
        seed: chooses images, and classes where they are drawn.

    Raises:
        InvalidInputError: a value is out of range.
    """
    return validate_choice(
        {
            "data": reference_of(config, data, root),
            "classes": _classes(classes),
            "image_size": config.families[0].image_size if image_size is None else image_size,
            "train_per_class": train_per_class,
            "test_per_class": test_per_class,
            "seed": seed,
        }
    )


def reference_of(config: StudyConfig, data: str, root: str | None) -> DatasetRef:
    """The images that a source's name, or a path, stands for; split as in meta-training where it had them."""
    known = next((family.data for family in config.families if family.data.source == data), None)
    if known is not None:
        return known.model_copy(update={"root": root or known.root})
    # An absolute path means the same to workers on other machines, where the folder is shared.
    source = str(Path(data).resolve()) if data not in SOURCES and Path(data).exists() else data
    return DatasetRef(source=source, root=root)


def _classes(text: str | None) -> tuple[str, ...] | int | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return int(names[0]) if len(names) == 1 and names[0].isdecimal() else names
