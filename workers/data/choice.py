"""The learning task that a user's choice of images and classes stands for."""

from common.config import StudyConfig, TaskFamily
from common.errors import InvalidInputError
from common.streams import derived_seed
from common.tasks import LearningTask, TaskChoice
from workers.data.episodes import sample_task
from workers.data.sources import load_arrays


def task_of(choice: TaskChoice, config: StudyConfig, task_id: str) -> LearningTask:
    """The task that a user means.

    Args:
        choice: images and classes.
        config: of the study whose prior is adapted; classes that are not named are drawn from those that it has not
            seen, where it learnt from the same source.
        task_id: names the task; with `choice.seed` it decides everything that is drawn.

    Raises:
        InvalidInputError: the study has no head for the image size, or the source has too few classes or images; and
            see `workers.data.sources.load_arrays`, also for the other errors.
    """
    if choice.image_size not in config.network.heads:
        sizes = ", ".join(str(size) for size in sorted(config.network.heads))
        raise InvalidInputError(f"image_size {choice.image_size} has no head in this study; use one of {sizes}")
    if isinstance(choice.classes, tuple):
        return LearningTask(
            task_id=task_id,
            data=choice.data,
            classes=choice.classes,
            image_size=choice.image_size,
            train_per_class=choice.train_per_class,
            test_per_class=choice.test_per_class,
            seed=derived_seed(choice.seed, task_id, "images"),
        )
    arrays = load_arrays(choice.data, choice.image_size)
    wanted = min(config.families[0].num_ways, len(arrays.class_names)) if choice.classes is None else choice.classes
    family = TaskFamily(
        data=choice.data,
        image_size=choice.image_size,
        num_ways=wanted,
        test_per_class=choice.test_per_class,
    )
    learnt_from = any(family.data.source == choice.data.source for family in config.families)
    task = sample_task(arrays, family, "unseen" if learnt_from else "all", task_id, choice.seed)
    return task.model_copy(update={"train_per_class": choice.train_per_class})
