"""Posteriors over architectures and weights, against torch.distributions and naive loops."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal, RelaxedOneHotCategorical, kl_divergence

from common.meta.posterior import (
    MIN_PROBABILITY,
    Relaxed,
    entropy,
    evaluation_weights,
    floored_log,
    kl_architecture,
    kl_weights,
    log_probabilities,
    num_categoricals,
    one_hot_of_largest,
    probabilities,
    relax,
    relaxed_log_density,
    single_path,
)
from common.space.genotype import derive
from common.space.topology import Topology
from common.streams import stream

NUM_KINDS = 2
NUM_OPS = 4
TOPOLOGY = Topology(3)  # 2 + 3 + 4 = 9 edges
NORMALISATIONS = ["edge", "node"]
EULER_GAMMA = 0.5772156649015329


def naive_groups(normalisation):
    """The entries (edge, op) of each categorical of a kind, written out from what a cell is."""
    nodes, first = [], 0
    for node in range(TOPOLOGY.num_nodes):
        rows = range(first, first + 2 + node)
        first += 2 + node
        nodes.append([(row, op) for row in rows for op in range(NUM_OPS)])
    if normalisation == "node":
        return nodes
    return [[(row, op) for op in range(NUM_OPS)] for row in range(first)]


def random_logits(*keys, scale=2.0):
    draw = stream(7, "logits", *keys).normal(size=(NUM_KINDS, TOPOLOGY.num_edges, NUM_OPS))
    return torch.from_numpy(scale * draw)


def gumbel_noise(*keys):
    return torch.from_numpy(stream(7, "gumbel", *keys).gumbel(size=(NUM_KINDS, TOPOLOGY.num_edges, NUM_OPS)))


def values_of(tensor, kind, group):
    return torch.stack([tensor[kind, edge, op] for edge, op in group])


def naive_softmax(logits, normalisation):
    result = torch.empty_like(logits)
    for kind in range(logits.shape[0]):
        for group in naive_groups(normalisation):
            total = sum(math.exp(float(logits[kind, edge, op])) for edge, op in group)
            for edge, op in group:
                result[kind, edge, op] = math.exp(float(logits[kind, edge, op])) / total
    return result


def naive_one_hot(values, normalisation):
    result = torch.zeros_like(values)
    for kind in range(values.shape[0]):
        for group in naive_groups(normalisation):
            best = max(group, key=lambda entry: float(values[kind, entry[0], entry[1]]))  # the first of equals
            result[kind, best[0], best[1]] = 1.0
    return result


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_log_probabilities_equal_a_naive_softmax_of_each_categorical(normalisation):
    logits = random_logits()
    expected = naive_softmax(logits, normalisation).log()
    torch.testing.assert_close(log_probabilities(logits, TOPOLOGY, normalisation), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_probabilities_of_each_categorical_sum_to_one(normalisation):
    p = probabilities(random_logits(scale=20.0), TOPOLOGY, normalisation)
    for kind in range(NUM_KINDS):
        for group in naive_groups(normalisation):
            assert float(values_of(p, kind, group).sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_normalisations_differ_and_node_probabilities_are_those_of_pairs():
    logits = torch.zeros(1, TOPOLOGY.num_edges, NUM_OPS, dtype=torch.float64)
    assert probabilities(logits, TOPOLOGY, "edge").unique().tolist() == [0.25]
    by_node = probabilities(logits, TOPOLOGY, "node")
    # nodes have 2, 3 and 4 sources of 4 ops each
    assert by_node[0, 0, 0] == pytest.approx(1 / 8)
    assert by_node[0, 2, 0] == pytest.approx(1 / 12)
    assert by_node[0, 8, 3] == pytest.approx(1 / 16)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_single_kind_may_come_without_its_dimension(normalisation):
    logits = random_logits()
    alone = log_probabilities(logits[1], TOPOLOGY, normalisation)
    assert torch.equal(alone, log_probabilities(logits, TOPOLOGY, normalisation)[1])


@pytest.mark.parametrize(("normalisation", "expected"), [("edge", 9), ("node", 3)])
def test_categoricals_are_counted_per_kind_of_cell(normalisation, expected):
    assert num_categoricals(TOPOLOGY, normalisation) == expected == len(naive_groups(normalisation))


def test_floored_log_never_falls_below_the_smallest_probability():
    values = torch.tensor([0.0, 1e-9, 0.5, 1.0], dtype=torch.float64)
    smallest = math.log(MIN_PROBABILITY)
    assert floored_log(values).tolist() == pytest.approx([smallest, smallest, math.log(0.5), 0.0], abs=1e-12)
    assert values.tolist() == [0.0, 1e-9, 0.5, 1.0], "the argument is left as it was"


# Relaxations


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_gumbel_is_the_softmax_of_noisy_logits_over_tau(normalisation):
    logits, noise, tau = random_logits(), gumbel_noise(), 0.7
    relaxed = relax(logits, noise, tau, "gumbel", TOPOLOGY, normalisation)
    expected = naive_softmax((logits + noise) / tau, normalisation)
    torch.testing.assert_close(relaxed.weights, expected, rtol=1e-12, atol=1e-14)
    assert relaxed.active is None


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_softmax_ignores_the_noise(normalisation):
    logits, tau = random_logits(), 1.8
    expected = naive_softmax(logits / tau, normalisation)
    for noise in (None, gumbel_noise()):
        relaxed = relax(logits, noise, tau, "softmax", TOPOLOGY, normalisation)
        torch.testing.assert_close(relaxed.weights, expected, rtol=1e-12, atol=1e-14)
        assert relaxed.active is None


@pytest.mark.parametrize("tau", [0.1, 0.7, 5.0])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_straight_through_is_exactly_one_at_the_largest_noisy_logit_and_zero_elsewhere(normalisation, tau):
    logits, noise = random_logits(), gumbel_noise()
    relaxed = relax(logits.requires_grad_(), noise, tau, "straight_through", TOPOLOGY, normalisation)
    assert torch.equal(relaxed.weights.detach(), naive_one_hot(logits.detach() + noise, normalisation))


def test_straight_through_is_exactly_one_in_float32_too():
    logits = random_logits(scale=0.3).float().requires_grad_()
    for draw in range(50):
        weights = relax(logits, gumbel_noise(draw).float(), 0.3, "straight_through", TOPOLOGY, "edge").weights
        assert set(weights.detach().unique().tolist()) == {0.0, 1.0}


def test_straight_through_asks_for_one_op_per_edge():
    logits, noise = random_logits(), gumbel_noise()
    active = relax(logits, noise, 1.0, "straight_through", TOPOLOGY, "edge").active
    largest = (logits + noise).argmax(dim=-1).tolist()
    assert active == tuple(tuple((column,) for column in kind) for kind in largest)


def test_straight_through_asks_for_one_source_and_op_per_node():
    logits, noise = random_logits(), gumbel_noise()
    active = relax(logits, noise, 1.0, "straight_through", TOPOLOGY, "node").active
    for kind in range(NUM_KINDS):
        for group in naive_groups("node"):
            edges = {edge for edge, _ in group}
            asked = [(edge, op) for edge in sorted(edges) for op in active[kind][edge]]
            assert asked == [max(group, key=lambda entry: float((logits + noise)[kind, entry[0], entry[1]]))]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_straight_through_gradient_is_the_gumbel_gradient(normalisation):
    noise, tau = gumbel_noise(), 0.9
    upstream = torch.from_numpy(stream(7, "upstream").normal(size=(NUM_KINDS, TOPOLOGY.num_edges, NUM_OPS)))
    gradients = {}
    for kind in ("gumbel", "straight_through"):
        logits = random_logits().requires_grad_()
        relaxed = relax(logits, noise, tau, kind, TOPOLOGY, normalisation)
        chosen = naive_one_hot(logits.detach() + noise, normalisation)
        # Ops that were not chosen are not computed, so nothing arrives at their weights.
        (relaxed.weights * upstream * chosen).sum().backward()
        gradients[kind] = logits.grad
    assert float(gradients["gumbel"].abs().min()) > 0
    torch.testing.assert_close(gradients["straight_through"], gradients["gumbel"], rtol=1e-12, atol=1e-15)


def test_straight_through_gradient_by_hand():
    # One node, two edges, two ops: softmax s of [0, log 3] at tau 1/2 is [1/10, 9/10]; ds_1/dphi = s_1 s_0 / tau.
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    weights = relax(logits, None, 0.5, "straight_through", Topology(1), "edge").weights
    weights[0, 0, 1].backward()
    assert logits.grad[0, 0].tolist() == pytest.approx([-0.18, 0.18], abs=1e-12)
    assert logits.grad[0, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_ties_go_to_the_first_entry(normalisation):
    values = torch.zeros(1, TOPOLOGY.num_edges, NUM_OPS, dtype=torch.float64)
    hot = one_hot_of_largest(values, TOPOLOGY, normalisation)
    ones = [tuple(place) for place in hot[0].nonzero().tolist()]
    assert ones == [group[0] for group in naive_groups(normalisation)]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_one_hot_equals_a_naive_search(normalisation):
    values = random_logits("one hot")
    values[0, 1, 2] = values[0, 1, 3] = 9.0  # a tie that is not at the start
    assert torch.equal(one_hot_of_largest(values, TOPOLOGY, normalisation), naive_one_hot(values, normalisation))


def test_mixtures_carry_weights_and_active_ops_by_kind():
    weights = random_logits()
    soft = Relaxed(weights, None).mixtures(("normal", "reduction"))
    assert list(soft) == ["normal", "reduction"]
    assert torch.equal(soft["reduction"].weights, weights[1])
    assert soft["normal"].active is None
    hard = relax(weights, gumbel_noise(), 1.0, "straight_through", TOPOLOGY, "edge")
    assert hard.mixtures(("normal", "reduction"))["reduction"].active == hard.active[1]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_evaluation_mixes_ops_as_training_did_on_average(normalisation):
    logits, tau = random_logits(), 0.6
    # Sampled ops appear as often as they are probable, whatever tau; a noise-free mixture is one at its tau.
    expected = {"gumbel": logits, "straight_through": logits, "softmax": logits / tau}
    for kind, scaled in expected.items():
        weights = evaluation_weights(logits, tau, kind, TOPOLOGY, normalisation)
        torch.testing.assert_close(weights, naive_softmax(scaled, normalisation), rtol=1e-12, atol=1e-14)


# Divergences and densities


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_kl_of_architectures_is_the_sum_over_all_categoricals(normalisation):
    q, p = random_logits("q"), random_logits("p")
    expected = sum(
        kl_divergence(Categorical(logits=values_of(q, kind, group)), Categorical(logits=values_of(p, kind, group)))
        for kind in range(NUM_KINDS)
        for group in naive_groups(normalisation)
    )
    assert float(expected) > 1.0
    torch.testing.assert_close(kl_architecture(q, p, TOPOLOGY, normalisation), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_kl_of_an_architecture_to_itself_and_its_gradient_are_zero(normalisation):
    q = random_logits("q").requires_grad_()
    divergence = kl_architecture(q, q.detach() + 3.0, TOPOLOGY, normalisation)  # logits are free up to a constant
    divergence.backward()
    assert float(divergence.detach()) == pytest.approx(0.0, abs=1e-12)
    assert float(q.grad.abs().max()) < 1e-12


def test_kl_of_weights_is_that_of_normal_distributions():
    generator = stream(7, "weights")
    m, mu = torch.from_numpy(generator.normal(size=20)), torch.from_numpy(generator.normal(size=20))
    log_s, log_sigma = torch.from_numpy(generator.normal(size=20)), torch.from_numpy(generator.normal(size=20))
    expected = kl_divergence(Normal(m, log_s.exp()), Normal(mu, log_sigma.exp())).sum()
    torch.testing.assert_close(kl_weights(m - mu, log_s, log_sigma), expected, rtol=1e-12, atol=1e-12)


def test_kl_of_weights_by_hand():
    # s = sigma = 2, m - mu = 4: (m - mu)^2 / (2 sigma^2) = 16 / 8
    log_two = torch.full((1,), math.log(2.0), dtype=torch.float64)
    assert float(kl_weights(torch.full((1,), 4.0, dtype=torch.float64), log_two, log_two)) == pytest.approx(2.0)


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_relaxed_density_is_that_of_the_relaxed_one_hot_categorical(tau):
    logits = random_logits("density")
    sample = relax(logits, gumbel_noise("density"), tau, "gumbel", TOPOLOGY, "edge").weights.clamp_min(1e-12)
    sample = sample / sample.sum(dim=-1, keepdim=True)
    reference = RelaxedOneHotCategorical(torch.tensor(tau, dtype=torch.float64), logits=logits)
    torch.testing.assert_close(
        relaxed_log_density(sample, logits, tau), reference.log_prob(sample), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_entropy_is_the_mean_over_the_categoricals_of_each_kind(normalisation):
    logits = random_logits("entropy")
    expected = [
        np.mean([Categorical(logits=values_of(logits, kind, group)).entropy() for group in naive_groups(normalisation)])
        for kind in range(NUM_KINDS)
    ]
    assert entropy(logits, TOPOLOGY, normalisation).tolist() == pytest.approx(expected, rel=1e-12)


# Noise


def test_gumbel_noise_has_the_moments_of_the_standard_gumbel_distribution():
    count = 200_000
    noise = stream(7, "moments").gumbel(size=count)
    variance = math.pi**2 / 6
    assert noise.mean() == pytest.approx(EULER_GAMMA, abs=5 * math.sqrt(variance / count))
    # The fourth central moment is 5.4 sigma^4 (excess kurtosis 12/5), so var(s^2) = 4.4 sigma^4 / n.
    assert noise.var() == pytest.approx(variance, abs=5 * variance * math.sqrt(4.4 / count))


@pytest.mark.untraced
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_straight_through_draws_each_op_as_often_as_its_probability_at_any_temperature(normalisation):
    logits = random_logits("frequency", scale=1.0)
    count = 4000
    drawn = torch.zeros_like(logits)
    for draw in range(count):
        noise = gumbel_noise("frequency", draw)
        drawn += relax(logits, noise, 0.2 + draw % 5, "straight_through", TOPOLOGY, normalisation).weights
    p = naive_softmax(logits, normalisation)
    # A binomial count lies within 5 standard deviations, all 72 of them at a level of 4e-5; + 1 for rare ops.
    assert bool(((drawn - count * p).abs() <= 5 * (count * p * (1 - p)).sqrt() + 1).all())


# One derived network per sample


OPS = ("max_pool_3x3", "none", "sep_conv_3x3", "skip_connect")
NONE_COLUMN = 1


def kept_pairs(weights):
    """Per kind and node the (source, op) pairs that have a weight, in flat order."""
    ends = [0, 2, 5, 9]
    return [
        [tuple(pair) for pair in torch.nonzero(kind[first:last]).tolist()]
        for kind in weights
        for first, last in pairwise(ends)
    ]


def pairs_of(genotype):
    return [
        [(edge.source, OPS.index(edge.primitive)) for edge in node]
        for nodes in genotype.cells.values()
        for node in nodes
    ]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_single_path_without_noise_keeps_what_the_best_pairs_derivation_keeps(normalisation):
    for draw in range(20):
        logits = random_logits("single path", draw).round(decimals=draw % 2)  # ties too
        relaxed = relax(logits, None, 1.0, "single_path", TOPOLOGY, normalisation, NONE_COLUMN)
        values = probabilities(logits, TOPOLOGY, normalisation).numpy()
        genotype = derive({"a": values[0], "b": values[1]}, TOPOLOGY, OPS, "top2_pairs")
        assert kept_pairs(relaxed.weights) == pairs_of(genotype)


def test_single_path_weighs_two_pairs_per_node_exactly_one_and_asks_for_no_other():
    for draw in range(10):
        logits, noise = random_logits(draw).float(), gumbel_noise(draw).float()
        relaxed = relax(logits, noise, 0.3, "single_path", TOPOLOGY, "edge", NONE_COLUMN)
        assert set(relaxed.weights.unique().tolist()) == {0.0, 1.0}
        pairs = kept_pairs(relaxed.weights)
        assert [len(node) for node in pairs] == [2] * 6
        assert all(op != NONE_COLUMN for node in pairs for _, op in node)
        columns = [torch.nonzero(edge)[:, 0].tolist() for kind in relaxed.weights for edge in kind]
        assert [list(edge) for kind in relaxed.active for edge in kind] == columns


@pytest.mark.untraced
def test_single_path_draws_pairs_without_replacement_as_often_as_their_probabilities_say():
    topology = Topology(1)
    p = np.array([[0.4, 0.1, 0.3, 0.2], [0.1, 0.5, 0.1, 0.3]])  # per edge; column 1 is none
    logits = torch.from_numpy(np.log(p))[None]
    counts = np.zeros(8)
    num_draws = 4000
    for draw in range(num_draws):
        noise = torch.from_numpy(stream(3, "draws", draw).gumbel(size=(1, 2, 4)))
        weights = relax(logits, noise, 1.0, "single_path", topology, "edge", NONE_COLUMN).weights
        counts += weights.reshape(-1).numpy()
    q = p.copy()
    q[:, NONE_COLUMN] = 0
    q = (q / q.sum()).ravel()
    # In the sample by being first, or second after any other.
    second = [sum(q[j] * q[i] / (1 - q[j]) for j in range(8) if j != i) for i in range(8)]
    np.testing.assert_allclose(counts / num_draws, q + second, atol=4 * 0.5 / num_draws**0.5)


def test_single_path_gradient_is_that_of_twice_the_softmax_over_a_nodes_pairs():
    scores = random_logits("scores").requires_grad_()
    upstream = random_logits("upstream")
    tau = 0.7
    (single_path(scores, tau, TOPOLOGY, NONE_COLUMN).weights * upstream).sum().backward()
    again = scores.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for kind in range(NUM_KINDS):
        for group in naive_groups("node"):
            pairs = [(edge, op) for edge, op in group if op != NONE_COLUMN]
            soft = torch.softmax(values_of(again, kind, pairs) / tau, 0)
            total = total + (2 * soft * values_of(upstream, kind, pairs)).sum()
    total.backward()
    torch.testing.assert_close(scores.grad, again.grad, rtol=1e-12, atol=1e-14)
    assert scores.grad[:, :, NONE_COLUMN].abs().max() == 0


def test_single_path_of_a_node_with_one_candidate_keeps_that_one():
    scores = torch.zeros(1, 2, 1, dtype=torch.float64)
    assert single_path(scores, 1.0, Topology(1), None).weights.reshape(-1).tolist() == [1.0, 1.0]
