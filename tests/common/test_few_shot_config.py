"""What a few-shot study may be, and what it says when it may not."""

import pytest
from reference.priors import smoke_config

from common.config import StudyConfig, validate
from common.errors import InvalidInputError
from common.loading import load

GENOTYPE = '{cells={normal=[[{source=0, primitive="sep_conv_3x3"}, {source=1, primitive="skip_connect"}]]}}'
SINGLE_PATH = ("relaxation.kind=single_path", "few_shot.method=first_order")


def few_shot_study(*overrides: str) -> StudyConfig:
    return smoke_config("few_shot={}", *overrides)


def test_a_few_shot_study_has_the_settings_of_maml_and_adam() -> None:
    few_shot = few_shot_study().few_shot
    assert few_shot is not None
    assert (few_shot.method, few_shot.network, few_shot.sgd) == ("finite_difference", "supernet", None)
    assert (few_shot.adam.lr, few_shot.adam.betas, few_shot.adam.eps) == (1e-3, (0.9, 0.999), 1e-8)


def test_a_study_without_few_shot_is_as_it_was() -> None:
    assert smoke_config().few_shot is None


def test_a_resolved_few_shot_configuration_reads_back_equal() -> None:
    config = few_shot_study("few_shot.sgd={lr=0.5, lr_end=0}", "few_shot.method=reptile")
    assert validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["families=[{num_ways=5, image_size=16}, {num_ways=3, image_size=16}]"],
            "families have num_ways 3, 5; a few-shot study learns one classifier and one head: give one",
        ),
        (
            ["network.heads.32=2", "families=[{num_ways=5, image_size=16}, {num_ways=5, image_size=32}]"],
            "families have image_size 16, 32",
        ),
        (
            ["inner.weights=gaussian", "adapt.weights=gaussian"],
            "inner.weights is 'gaussian', few_shot learns points; set inner.weights and adapt.weights to 'map'",
        ),
        (['inner.cost={measure="macs", target=1e6, weight=1}'], "inner.cost is given, few_shot knows no cost penalty"),
        (['adapt.cost={measure="macs", target=1e6, weight=1}'], "adapt.cost is given, few_shot knows no cost penalty"),
        (
            ["outer.alpha_trials={}", "outer.alpha_average=logits", "space.normalisation=node"],
            "outer.alpha_trials is given, few_shot learns the architecture by gradients; leave it out",
        ),
        (["outer.theta_average=uses"], "outer.theta_average is 'uses', .* set it to 'tasks'"),
        (
            ["relaxation.kind=straight_through"],
            "relaxation has 'straight_through', .* few_shot.method 'finite_difference' has no derivative to take; "
            "set few_shot.method to 'first_order' or 'reptile'",
        ),
        (["relaxation.hard_after_round=2", "few_shot.method=exact"], "'straight_through', .* few_shot.method 'exact'"),
        ([*SINGLE_PATH, "relaxation.path_per=task"], "relaxation.path_per is 'task', .*; set it to 'step'"),
        (
            ["few_shot.network=four_convolutions", "outer.alpha_warmup_rounds=3"],
            "outer.alpha_warmup_rounds is 3, few_shot.network 'four_convolutions' learns no architecture",
        ),
        (
            ["few_shot.network=four_convolutions", "outer.max_parameter_free_edges=0"],
            "outer.max_parameter_free_edges is 0, .* leave it out",
        ),
        (
            ["few_shot.network=genotype", f"few_shot.genotype={GENOTYPE}"],
            "network.cells names 'reduction', few_shot.genotype has normal",
        ),
        (["few_shot.network=genotype"], "network is 'genotype' and genotype is not given; set both, or neither"),
        ([f"few_shot.genotype={GENOTYPE}"], "network is 'supernet' and genotype is given; set both, or neither"),
        (["few_shot.adam.eps=1e-12"], "few_shot.adam.eps: Input should be greater than or equal to 0.000000001"),
        (["few_shot.adam.betas=[0.9, 1.0]"], "few_shot.adam.betas.1: Input should be less than 1"),
    ],
)
def test_what_does_not_fit_is_named_with_its_value_and_the_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        few_shot_study(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["relaxation.kind=softmax", "few_shot.method=exact"],
        ["relaxation.kind=straight_through", "few_shot.method=reptile"],
        SINGLE_PATH,
        ["relaxation.hard_kind=single_path"],  # never reached
        ["outer.rule=clipped_mean"],
        ["outer.rule=median"],
        ["outer.alpha_warmup_rounds=1", "outer.max_parameter_free_edges=3"],
        [
            "few_shot.network=genotype",
            f"few_shot.genotype={GENOTYPE}",
            'network.cells=["normal"]',
            *["space.cell_kinds={normal=1}"],
        ],
    ],
)
def test_what_fits_is_taken(overrides: list[str]) -> None:
    assert few_shot_study(*overrides).few_shot is not None


def test_four_convolutions_need_no_head_for_their_images() -> None:
    family = 'families=[{data={source="digits"}, image_size=28, num_ways=5}]'
    with pytest.raises(InvalidInputError, match="families has image_size 28"):
        load("smoke", ["few_shot={}", family], environment={})
    assert load("smoke", ['few_shot={network="four_convolutions"}', family], environment={}).few_shot is not None
