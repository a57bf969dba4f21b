import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import DatasetRef, TaskFamily
from common.errors import InvalidInputError
from common.tasks import LearningTask
from workers.data.arrays import ClassArrays, ClassImages, in_memory
from workers.data.episodes import Episode, episode_of, load_episode, sample_task
from workers.data.sources import load_arrays

REF = DatasetRef(source="toy", unseen_fraction=0.0)


def source(counts: list[int], groups: list[str] | None = None) -> ClassArrays:
    """Image i of class k has the two pixels k and i, so that every image tells where it is from."""
    return in_memory(
        [
            ClassImages(
                f"class-{label}",
                groups[label] if groups else f"class-{label}",
                np.array([[label, index] for index in range(count)], np.uint8).reshape(count, 1, 2, 1),
            )
            for label, count in enumerate(counts)
        ],
        "toy",
    )


def task(classes: tuple[str, ...], **changes: object) -> LearningTask:
    values = {"task_id": "t", "data": REF, "classes": classes, "image_size": 4, "test_per_class": 2} | changes
    return LearningTask.model_validate(values)


def origins(images: np.ndarray) -> list[tuple[int, int]]:
    return [(int(image[0, 0, 0]), int(image[0, 1, 0])) for image in images]


def same(first: Episode, second: Episode) -> bool:
    return np.array_equal(first.train_images, second.train_images) and np.array_equal(
        first.test_images, second.test_images
    )


@given(
    counts=st.lists(st.integers(3, 30), min_size=2, max_size=5),
    train_per_class=st.none() | st.integers(1, 40),
    test_per_class=st.integers(1, 2),
    seed=st.integers(0, 2**62),
)
def test_halves_are_disjoint_and_of_the_sizes_asked_for(
    counts: list[int], train_per_class: int | None, test_per_class: int, seed: int
) -> None:
    classes = tuple(f"class-{label}" for label in range(len(counts)))[::-1]
    asked = task(classes, train_per_class=train_per_class, test_per_class=test_per_class, seed=seed)
    episode = episode_of(source(counts), asked)
    train, test = origins(episode.train_images), origins(episode.test_images)
    assert len(set(train) | set(test)) == len(train) + len(test)
    assert np.bincount(episode.test_labels).tolist() == [test_per_class] * len(counts)
    left = [count - test_per_class for count in counts[::-1]]
    assert np.bincount(episode.train_labels).tolist() == [min(number, train_per_class or number) for number in left]
    # Labels index the task's classes, which are listed backwards here.
    assert [len(counts) - 1 - label for label, _ in train] == episode.train_labels.tolist()
    assert [len(counts) - 1 - label for label, _ in test] == episode.test_labels.tolist()
    assert episode.train_labels.dtype == episode.test_labels.dtype == np.int64
    assert episode.train_images.dtype == np.uint8


def test_equal_tasks_have_equal_images_and_other_seeds_others() -> None:
    arrays = source([30, 30])
    one = episode_of(arrays, task(("class-0", "class-1"), seed=1))
    assert same(one, episode_of(arrays, task(("class-0", "class-1"), seed=1)))
    assert not same(one, episode_of(arrays, task(("class-0", "class-1"), seed=2)))


def test_images_of_a_class_do_not_depend_on_the_other_classes() -> None:
    arrays = source([9, 9, 9])
    pair = episode_of(arrays, task(("class-1", "class-0"), seed=5))
    other = episode_of(arrays, task(("class-2", "class-1"), seed=5))
    assert origins(pair.test_images[pair.test_labels == 0]) == origins(other.test_images[other.test_labels == 1])


def test_images_of_a_class_do_not_depend_on_where_the_source_lists_it() -> None:
    asked = task(("class-0", "class-1"), seed=5)
    entries = [ClassImages(f"class-{label}", "g", source([9, 9]).of_class(label)) for label in (1, 0)]
    assert same(episode_of(source([9, 9]), asked), episode_of(in_memory(entries, "toy"), asked))


def test_fewer_training_images_are_a_part_of_more() -> None:
    arrays = source([30, 30])
    few = episode_of(arrays, task(("class-0", "class-1"), train_per_class=3))
    many = episode_of(arrays, task(("class-0", "class-1"), train_per_class=9))
    assert set(origins(few.train_images)) < set(origins(many.train_images))
    assert origins(few.test_images) == origins(many.test_images)


def test_class_with_no_image_left_to_train_on_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"class 'class-1' of 'toy' has 4 images.* at most 3"):
        episode_of(source([5, 4]), task(("class-0", "class-1"), test_per_class=4))


def test_unknown_class_names_close_ones() -> None:
    with pytest.raises(InvalidInputError, match="no class 'clas-1'; it has 'class-1'"):
        episode_of(source([5, 5, 5, 5]), task(("class-0", "clas-1")))


def test_class_listed_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'class-0' is listed twice"):
        episode_of(source([5, 5]), task(("class-0", "class-0")))


def family(**changes: object) -> TaskFamily:
    return TaskFamily.model_validate({"data": REF, "num_ways": 3, "test_per_class": 2} | changes)


def test_sampled_task_carries_the_family_and_is_a_function_of_seed_and_id() -> None:
    arrays = source([9] * 12)
    drawn = sample_task(arrays, family(image_size=8, train_per_class=4), "all", "round-1/0", seed=3)
    assert drawn == sample_task(arrays, family(image_size=8, train_per_class=4), "all", "round-1/0", seed=3)
    assert (drawn.task_id, drawn.data, drawn.image_size) == ("round-1/0", REF, 8)
    assert (drawn.train_per_class, drawn.test_per_class) == (4, 2)
    assert len(set(drawn.classes)) == 3
    others = [
        sample_task(arrays, family(), "all", task_id, seed) for task_id, seed in (("round-1/1", 3), ("round-1/0", 4))
    ]
    assert len({drawn.classes, *(other.classes for other in others)}) == 3
    assert len({drawn.seed, *(other.seed for other in others)}) == 3


def test_tasks_stay_in_their_split_and_mix_its_groups() -> None:
    groups = ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["d"] * 4
    arrays = source([9] * 16, groups)
    halved = family(data=DatasetRef(source="toy", unseen_fraction=0.5))
    group_of = dict(zip(arrays.class_names, arrays.groups, strict=True))
    drawn = {
        split: [
            {group_of[name] for name in sample_task(arrays, halved, split, str(index), 0).classes}
            for index in range(30)
        ]
        for split in ("meta_train", "unseen")
    }
    seen, unseen = (set().union(*drawn[split]) for split in ("meta_train", "unseen"))
    assert len(seen) == len(unseen) == 2
    assert not seen & unseen
    assert any(len(task_groups) == 2 for task_groups in drawn["meta_train"])


def test_every_class_of_a_split_is_drawn_equally_often() -> None:
    arrays = source([9] * 6)
    names = [name for index in range(400) for name in sample_task(arrays, family(), "all", str(index), 0).classes]
    # Binomial with mean 200 and standard deviation 10.
    assert all(150 < names.count(name) < 250 for name in arrays.class_names)


def test_classes_with_too_few_images_are_not_drawn() -> None:
    arrays = source([9, 2, 9, 3, 9])
    drawn = {name for index in range(50) for name in sample_task(arrays, family(), "all", str(index), 0).classes}
    assert drawn == {"class-0", "class-2", "class-3", "class-4"}


def test_classes_without_all_support_and_query_images_are_not_drawn_where_a_task_needs_them() -> None:
    arrays = source([7, 6, 7, 6, 9])
    five = family(train_per_class=5)
    drawn = {name for index in range(50) for name in sample_task(arrays, five, "all", str(index), 0, 5).classes}
    assert drawn == {"class-0", "class-2", "class-4"}
    episode = episode_of(arrays, sample_task(arrays, five, "all", "t", 0, 5))
    assert np.bincount(episode.train_labels).tolist() == [5, 5, 5]
    with pytest.raises(InvalidInputError, match="3 of them with 7 images or more, of which test_per_class is 2"):
        sample_task(arrays, family(num_ways=4, train_per_class=5), "all", "t", 0, 5)


@pytest.mark.parametrize(
    ("data", "split", "field"),
    [
        (REF, "unseen", "data.unseen_fraction"),
        (REF, "validation", "data.validation_fraction"),
        (DatasetRef(source="mini_imagenet"), "unseen", "data.class_split"),
    ],
)
def test_split_without_enough_classes_names_the_field_that_chooses_them(
    data: DatasetRef, split: str, field: str
) -> None:
    image = np.zeros((9, 1, 1, 3), np.uint8)
    arrays = in_memory([ClassImages(name, name, image, "meta_train") for name in "abc"], "toy")
    with pytest.raises(InvalidInputError, match=f"or change {field}$"):
        sample_task(arrays, family(data=data), split, "t", 0)  # type: ignore[arg-type]


def test_too_few_classes_say_what_to_change() -> None:
    with pytest.raises(InvalidInputError, match=r"3 classes in split 'all', 2 of them.*num_ways is 3: lower num_ways"):
        sample_task(source([9, 2, 9]), family(), "all", "t", 0)


def test_sampled_task_of_a_real_source_loads() -> None:
    digits = family(data=DatasetRef(source="digits"), num_ways=5, image_size=16, train_per_class=7)
    arrays = load_arrays(digits.data, 16)
    episode = load_episode(sample_task(arrays, digits, "meta_train", "t", 0))
    assert episode.train_images.shape == (35, 16, 16, 1)
    assert episode.test_images.shape == (10, 16, 16, 1)
    assert episode.train_labels.tolist() == [label for label in range(5) for _ in range(7)]
