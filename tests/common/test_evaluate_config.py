"""Recipes: what the paper and the released code state, schedules by hand, and mistakes as one line."""

import math

import pytest

from common.errors import ConflictError, InvalidInputError, NotFoundError
from common.evaluate_config import (
    PRESETS,
    EvaluateConfig,
    check_same_recipe,
    load_evaluate_config,
    validate_evaluate_config,
)


def test_cifar10_is_the_papers_recipe():
    config = load_evaluate_config("cifar10")
    assert (config.epochs, config.batch_size, config.channels, config.num_cells) == (600, 96, 40, 20)
    assert (config.lr, config.lr_end, config.schedule) == (0.025, 0.0, "cosine")
    assert (config.momentum, config.weight_decay, config.clip_norm) == (0.9, 3e-4, 5.0)
    assert (config.drop_path, config.cutout, config.auxiliary_weight, config.label_smoothing) == (0.2, 16, 0.4, 0.0)
    assert (config.crop_padding, config.flip, config.resized_crop, config.image_size) == (4, True, False, 32)
    assert config.ema_decay is None and config.precision == "float32"


def test_svhn_is_cifar10_with_160_epochs():
    assert load_evaluate_config("svhn") == load_evaluate_config("cifar10", ["epochs=160"])


def test_imagenet_is_the_released_codes_recipe():
    config = load_evaluate_config("imagenet")
    assert (config.motif, config.channels, config.num_cells, config.image_size) == ("imagenet", 48, 14, 224)
    assert config.loaded_size == 256
    assert (config.epochs, config.batch_size, config.lr, config.schedule) == (375, 128, 0.05, "sgdr")
    assert (config.momentum, config.weight_decay, config.clip_norm) == (0.9, 3e-5, 10.0)
    assert (config.label_smoothing, config.auxiliary_weight, config.drop_path) == (0.1, 0.4, 0.0)
    assert config.resized_crop and config.flip and config.color_jitter == (0.4, 0.4, 0.4, 0.2)
    assert (config.crop_padding, config.cutout) == (0, 0)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_recipe_survives_json(name):
    config = load_evaluate_config(name)
    assert EvaluateConfig.model_validate_json(config.model_dump_json()) == config


def test_a_recipe_makes_the_published_network():
    network = load_evaluate_config("imagenet").network(1000, 3)
    assert (network.channels, network.num_cells, network.num_classes, network.image_size) == (48, 14, 1000, 224)
    assert network.auxiliary
    assert not load_evaluate_config("cifar10", ["auxiliary_weight=0"]).network(10, 1).auxiliary


def test_cosine_falls_from_the_first_rate_to_the_last_over_all_epochs():
    config = EvaluateConfig(epochs=4, lr=0.1, lr_end=0.02)
    half = 0.04 * math.sqrt(0.5)
    assert [config.lr_at(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.06 + half, 0.06, 0.06 - half])


def test_sgdr_restarts_after_25_50_100_and_200_epochs():
    config = load_evaluate_config("imagenet")
    starts = [epoch for epoch in range(375) if epoch == 0 or config.lr_at(epoch) > config.lr_at(epoch - 1)]
    assert starts == [0, 25, 75, 175]
    assert [config.lr_at(start) for start in starts] == [0.05] * 4
    # A fall is half way down in its middle, and almost down in its last epoch.
    assert config.lr_at(50) == pytest.approx(0.025) and config.lr_at(125) == pytest.approx(0.025)
    assert config.lr_at(275) == pytest.approx(0.025)
    assert config.lr_at(374) == pytest.approx(0.025 * (1 + math.cos(math.pi * 199 / 200)))
    assert config.epochs == 25 + 50 + 100 + 200


def test_sgdr_agrees_with_torch():
    torch = pytest.importorskip("torch")
    config = EvaluateConfig(epochs=40, lr=0.3, lr_end=0.01, schedule="sgdr", sgdr_first_period=3, sgdr_factor=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3, 2, eta_min=0.01)
    for epoch in range(40):
        assert config.lr_at(epoch) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_drop_path_grows_linearly_from_zero():
    config = EvaluateConfig(epochs=4, drop_path=0.2)
    assert [config.drop_path_at(epoch) for epoch in range(4)] == pytest.approx([0, 0.05, 0.1, 0.15])


def test_max_epochs_ends_a_training_but_does_not_shorten_its_schedule():
    config = EvaluateConfig(epochs=10, max_epochs=3)
    assert config.last_epoch == 3 and config.lr_at(5) == pytest.approx(0.0125)
    assert EvaluateConfig(epochs=2, max_epochs=3).last_epoch == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epoch=3", ["epoch", "no such field"]),
        ("epochs=0", ["epochs", "greater than or equal to 1", "0"]),
        ("lr=fast", ["lr", "number", "'fast'"]),
        ("lr_end=1.0", ["lr_end 1.0 is above lr 0.025"]),
        ("batch_parts=50", ["batch_size 96 in 50 parts", "lower batch_parts"]),
        ("stored_size=16", ["stored_size 16 is below image_size 32"]),
        ("stored_size=40", ["stored_size above image_size needs resized_crop"]),
        ("drop_path=1.0", ["drop_path", "less than 1"]),
        ("schedule=steps", ["schedule", "cosine", "sgdr"]),
        ("epochs.first=3", ["epochs is a value"]),
        ("epochs", ["--set takes FIELD=VALUE"]),
    ],
)
def test_a_mistake_names_field_value_and_remedy(override, words):
    with pytest.raises(InvalidInputError) as error:
        load_evaluate_config("cifar10", [override])
    for word in words:
        assert word in str(error.value)


def test_an_unknown_recipe_is_answered_by_the_known_ones():
    with pytest.raises(NotFoundError, match="no recipe 'cifar'; recipes are cifar10, svhn, imagenet, smoke"):
        load_evaluate_config("cifar")


def test_a_training_goes_on_under_its_own_recipe_alone_but_its_budget_may_change():
    config = load_evaluate_config("smoke")
    check_same_recipe(
        config, load_evaluate_config("smoke", ["max_seconds=5", "max_epochs=1", "checkpoint_every_steps=2"])
    )
    with pytest.raises(ConflictError, match=r"started with lr = 0\.025, now it is 0\.2"):
        check_same_recipe(config, load_evaluate_config("smoke", ["lr=0.2"]))


def test_values_that_are_no_recipe_are_refused():
    with pytest.raises(InvalidInputError, match="recipe: "):
        validate_evaluate_config({"epochs": None})
