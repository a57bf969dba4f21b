"""The prior as a value: how it begins, what its digest covers, and how priors are crossed for ablations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference.priors import smoke_config

from common.config import (
    InnerConfig,
    NetworkConfig,
    RelaxationConfig,
    SpaceConfig,
    StudyConfig,
    TaskFamily,
)
from common.meta.prior import Prior, alpha_tensor, image_sizes, initial_prior, with_alpha_of, with_theta_of
from common.nn.supernet import build_supernet
from common.streams import derived_seed

OPS = ("none", "skip_connect", "sep_conv_3x3")


def study(seed: int = 0, inner: InnerConfig | None = None, **space: object) -> StudyConfig:
    inner = InnerConfig() if inner is None else inner
    return StudyConfig(
        seed=seed,
        space=SpaceConfig(primitives=OPS, num_nodes=2, **space),
        network=NetworkConfig(channels=4, cells=("normal", "reduction"), heads={16: 4, 8: 1}),
        relaxation=RelaxationConfig(tau_start=4.0, tau_end=1.0),
        families=(TaskFamily(image_size=16),),
        inner=inner,
        adapt=inner,
    )


def plain_prior(**changes: object) -> Prior:
    vectors = {
        "body": np.array([1, 2, 3], np.float32),
        "head/16": np.array([4, 5], np.float32),
        "alpha": np.array([6, 7], np.float32),
        "log_sigma/body": np.array([-5], np.float32),
        "log_sigma/head/16": np.array([-4], np.float32),
    }
    return replace(Prior(version=2, tau=1.5, vectors=vectors), **changes)


def test_first_version_is_zero_at_the_first_temperature():
    prior = initial_prior(study())
    assert (prior.version, prior.tau, prior.alpha_stopped) == (0, 4.0, False)


def test_first_prior_holds_float32_vectors_of_body_heads_and_architecture():
    prior = initial_prior(study())
    assert set(prior.vectors) == {"body", "head/8", "head/16", "alpha"}
    assert all(vector.dtype == np.float32 and vector.ndim == 1 for vector in prior.vectors.values())
    assert set(prior.weight_names) == {"body", "head/8", "head/16"}
    # Two convolutions of stride 2, 3 to 4 to 12 channels; one of stride 1, 3 to 12 channels.
    assert prior.vectors["head/16"].size == (3 * 4 + 4 * 12) * 9
    assert prior.vectors["head/8"].size == 3 * 12 * 9
    assert prior.vectors["alpha"].size == 2 * 5 * 3


def test_first_weights_are_those_of_a_supernet_drawn_for_the_studys_seed():
    config = study(seed=5)
    prior = initial_prior(config)
    supernet = build_supernet(config.space, config.network, derived_seed(5, "supernet"))
    body = [p.detach().reshape(-1) for name, p in supernet.named_parameters() if not name.startswith("heads.")]
    head = [p.detach().reshape(-1) for name, p in supernet.named_parameters() if name.startswith("heads.16.")]
    assert np.array_equal(prior.vectors["body"], torch.cat(body).numpy())
    assert np.array_equal(prior.vectors["head/16"], torch.cat(head).numpy())
    assert prior.vectors["body"].std() > 0.01


def test_first_prior_is_decided_by_the_seed_and_not_by_global_random_state():
    torch.manual_seed(1)
    first = initial_prior(study(seed=3))
    torch.manual_seed(2)
    assert initial_prior(study(seed=3)).digest() == first.digest()
    other = initial_prior(study(seed=4))
    assert not np.array_equal(other.vectors["body"], first.vectors["body"])
    assert np.array_equal(other.vectors["alpha"], first.vectors["alpha"])


def test_every_architecture_is_equally_likely_at_first():
    np.testing.assert_allclose(np.exp(initial_prior(study()).vectors["alpha"]), 1 / 3, rtol=1e-6)
    node = np.exp(initial_prior(study(normalisation="node")).vectors["alpha"]).reshape(2, 5, 3)
    np.testing.assert_allclose(node[:, 0:2], 1 / 6, rtol=1e-6)  # two sources of three ops
    np.testing.assert_allclose(node[:, 2:5], 1 / 9, rtol=1e-6)  # three sources of three ops


def test_map_has_no_standard_deviations():
    assert not any(name.startswith("log_sigma/") for name in initial_prior(study()).vectors)


@pytest.mark.parametrize("scale", ["tensor", "element"])
def test_gaussian_has_one_standard_deviation_per_tensor_or_element(scale: str):
    config = study(inner=InnerConfig(weights="gaussian", gaussian_scale=scale, log_sigma=-3.5))
    prior = initial_prior(config)
    supernet = build_supernet(config.space, config.network, seed=0)
    for vector, prefix in (("body", "cells."), ("head/16", "heads.16."), ("head/8", "heads.8.")):
        shapes = [p.shape for name, p in supernet.named_parameters() if name.startswith(prefix)]
        expected = len(shapes) if scale == "tensor" else sum(shape.numel() for shape in shapes)
        log_sigma = prior.vectors[f"log_sigma/{vector}"]
        assert log_sigma.shape == (expected,)
        assert log_sigma.dtype == np.float32
        assert set(log_sigma.tolist()) == {-3.5}
    assert set(prior.weight_names) == {"body", "head/16", "head/8"}


def test_equal_priors_have_equal_digests_whatever_the_order_and_memory():
    prior = plain_prior()
    backwards = dict(reversed([(name, vector.copy()) for name, vector in prior.vectors.items()]))
    strided = {name: np.repeat(vector, 2)[::2] for name, vector in prior.vectors.items()}
    assert len(prior.digest()) == 64
    assert replace(prior, vectors=backwards).digest() == prior.digest()
    assert replace(prior, vectors=strided).digest() == prior.digest()


def changed(name: str, values: list[float]) -> dict[str, np.ndarray]:
    return {**plain_prior().vectors, name: np.array(values, np.float32)}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"tau": np.nextafter(1.5, 2).item()},
        {"alpha_stopped": True},
        {"vectors": changed("body", [1, 2, np.nextafter(np.float32(3), np.float32(4))])},
        {"vectors": changed("body", [1, 3, 2])},
        {"vectors": changed("alpha", [7, 6])},
        {"vectors": changed("log_sigma/body", [-5.5])},
        {"vectors": changed("head/8", [4, 5])},
        {"vectors": {**changed("body", [1, 2]), "head/16": np.array([3, 4, 5], np.float32)}},
        {"vectors": {name: vector for name, vector in plain_prior().vectors.items() if name != "log_sigma/body"}},
    ],
    ids=["version", "tau", "stopped", "last_bit", "order", "alpha", "sigma", "more", "border", "fewer"],
)
def test_digest_tells_any_change(changes: dict[str, object]):
    assert plain_prior(**changes).digest() != plain_prior().digest()


def test_crossed_priors_take_weights_and_scales_from_one_and_architecture_from_the_other():
    prior = plain_prior(alpha_stopped=True)
    donor = plain_prior(version=9, tau=0.5, vectors={name: vector + 10 for name, vector in prior.vectors.items()})

    with_theta = with_theta_of(prior, donor)
    assert with_theta.vectors["alpha"].tolist() == [6, 7]
    assert with_theta.vectors["body"].tolist() == [11, 12, 13]
    assert with_theta.vectors["head/16"].tolist() == [14, 15]
    assert with_theta.vectors["log_sigma/body"].tolist() == [5]

    with_alpha = with_alpha_of(prior, donor)
    assert with_alpha.vectors["alpha"].tolist() == [16, 17]
    assert with_alpha.vectors["body"].tolist() == [1, 2, 3]
    assert with_alpha.vectors["log_sigma/head/16"].tolist() == [-4]

    for crossed in (with_theta, with_alpha):
        assert (crossed.version, crossed.tau, crossed.alpha_stopped) == (2, 1.5, True)
        assert crossed.vectors.keys() == prior.vectors.keys()
    assert prior.vectors["alpha"].tolist() == [6, 7]
    assert donor.vectors["alpha"].tolist() == [16, 17]


def test_image_sizes_are_those_of_the_heads_ascending():
    heads = {f"head/{size}": np.zeros(1, np.float32) for size in (224, 32, 64)}
    vectors = {**heads, "log_sigma/head/96": np.zeros(1, np.float32), "body": np.zeros(1, np.float32)}
    assert image_sizes(Prior(version=0, tau=1.0, vectors=vectors)) == (32, 64, 224)
    assert image_sizes(initial_prior(study())) == (8, 16)


def test_alpha_is_shaped_kind_by_edge_by_op_in_double_precision():
    config = study()
    flat = np.arange(30, dtype=np.float32)
    prior = replace(initial_prior(config), vectors={"alpha": flat})
    for alpha in (prior.alpha(config), alpha_tensor(flat, config)):
        assert alpha.dtype == torch.float64
        assert alpha.shape == (2, 5, 3)
        assert alpha[1, 2].tolist() == [21, 22, 23]
        alpha.zero_()
    assert flat[-1] == 29


# Few-shot studies


@pytest.mark.parametrize(
    ("network", "learnt"),
    [
        ("supernet", {"body", "head/16", "classifier", "alpha"}),
        ("four_convolutions", {"body", "classifier"}),
    ],
)
def test_a_few_shot_prior_has_a_classifier_and_moments_of_zero_for_all_that_learns(network, learnt):
    prior = initial_prior(smoke_config(f'few_shot={{network="{network}"}}'))
    assert set(prior.learnt_names) == learnt
    assert set(prior.weight_names) == learnt - {"alpha"}
    assert prior.has_architecture == ("alpha" in learnt)
    moments = {f"adam/{moment}/{name}": name for moment in ("first", "second") for name in learnt}
    assert set(prior.vectors) == learnt | set(moments)
    for moment, name in moments.items():
        assert prior.vectors[moment].shape == prior.vectors[name].shape
        assert not prior.vectors[moment].any()
    assert image_sizes(prior) == ((16,) if "head/16" in learnt else ())


def test_a_study_of_plain_outer_steps_has_no_moments():
    prior = initial_prior(smoke_config("few_shot={sgd={lr=1.0}}"))
    assert set(prior.vectors) == {"body", "head/16", "classifier", "alpha"}


def test_priors_are_crossed_with_the_moments_of_what_is_crossed():
    prior = initial_prior(smoke_config("few_shot={}"))
    donor = replace(prior, vectors={name: vector + 1 for name, vector in prior.vectors.items()})
    of_donor = {name for name, each in with_theta_of(prior, donor).vectors.items() if each is donor.vectors[name]}
    assert of_donor == {name for name in prior.vectors if not name.endswith("alpha")}
    of_donor = {name for name, each in with_alpha_of(prior, donor).vectors.items() if each is donor.vectors[name]}
    assert of_donor == {"alpha", "adam/first/alpha", "adam/second/alpha"}
