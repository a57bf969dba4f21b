import numpy as np
import pytest

from common.errors import InvalidInputError
from workers.data.arrays import ClassImages, by_label, in_memory


def images(count: int, value: int = 0, dtype: type = np.uint8, channels: int = 1) -> np.ndarray:
    return np.full((count, 4, 4, channels), value, dtype)


def test_images_are_reached_by_class() -> None:
    arrays = in_memory([ClassImages("a", "g", images(2, 1)), ClassImages("b", "h", images(3, 2))], "x")
    assert arrays.num_classes == 2
    assert arrays.class_names == ("a", "b")
    assert arrays.groups == ("g", "h")
    assert arrays.num_images(1) == 3
    assert arrays.image_shape == (4, 4, 1)
    assert (arrays.of_class(1) == 2).all()


def test_labelled_images_are_sorted_by_label_and_keep_their_order() -> None:
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    sorted_classes = list(by_label(pixels, np.array([10, 2, 10, 2, 2])))
    assert [entry.name for entry in sorted_classes] == ["2", "10"]
    assert sorted_classes[0].images.ravel().tolist() == [1, 3, 4]
    assert sorted_classes[1].images.ravel().tolist() == [0, 2]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([ClassImages("a", "a", images(1))], r"pets has 1 class \('a'\); at least 2"),
        ([], "pets has 0 class"),
        ([ClassImages("a", "a", images(0)), ClassImages("b", "b", images(1))], "class 'a' has no images"),
        ([ClassImages("a", "a", images(1)), ClassImages("a", "a", images(1))], "class 'a' is there twice"),
        ([ClassImages("a", "a", images(1, dtype=np.float32)), ClassImages("b", "b", images(1))], "'a' are float32"),
        ([ClassImages("a", "a", images(1, channels=2)), ClassImages("b", "b", images(1))], "1 or 3 channels"),
        ([ClassImages("a", "a", images(1, channels=3)), ClassImages("b", "b", images(1))], "give all the same"),
    ],
)
def test_unsound_classes_are_named(classes: list[ClassImages], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        in_memory(classes, "pets")


def test_fingerprint_changes_with_every_part_of_the_contents() -> None:
    def fingerprint(name: str = "a", group: str = "g", value: int = 0, count: int = 1) -> str:
        return in_memory(
            [ClassImages(name, group, images(count, value)), ClassImages("z", "z", images(1))], "x"
        ).fingerprint

    assert fingerprint() == fingerprint()
    changed = {fingerprint(name="b"), fingerprint(group="h"), fingerprint(value=1), fingerprint(count=2)}
    assert len(changed | {fingerprint()}) == 5
