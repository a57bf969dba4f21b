"""What the paper reports, as it is printed; what its text has lost stays unknown."""

import pytest

from coordinator.paper.anchors import (
    CIFAR10_ROW,
    IMAGENET32_ROW,
    IMAGENET_ROW,
    PRIOR_ROW,
    PUBLISHED,
    SVHN_ROW,
    Published,
    published,
)
from coordinator.paper.places import published_places


def test_total_cost_includes_the_meta_training():
    assert published("imagenet", IMAGENET_ROW).total_days == pytest.approx(8.04)
    assert published("cifar10", CIFAR10_ROW).total_days == pytest.approx(8.05)
    assert published("cifar10", PRIOR_ROW).total_days == 8
    assert Published("nothing known").total_days is None


@pytest.mark.parametrize(
    ("table", "row", "error"),
    [
        ("cifar10", CIFAR10_ROW, 2.83),
        ("svhn", PRIOR_ROW, 2.13),
        ("svhn", IMAGENET32_ROW, 2.07),
        ("svhn", SVHN_ROW, 2.01),
        ("imagenet", IMAGENET_ROW, 25.7),
    ],
)
def test_errors_of_base_are_as_printed(table, row, error):
    assert published(table, row).error == error


@pytest.mark.parametrize(
    ("table", "row"), [("cifar10", PRIOR_ROW), ("cifar10", IMAGENET32_ROW), ("imagenet", PRIOR_ROW)]
)
def test_what_could_not_be_recovered_is_unknown(table, row):
    assert published(table, row).error is None


def test_figure_2_has_every_row_with_both_figures():
    places = published_places()
    assert len(places) == len(PUBLISHED["imagenet"]) - 1  # all but the prior, whose error is lost
    assert {place.cost for place in places} == {1800, 3150, 225, 4, 1.5, 8.04}
