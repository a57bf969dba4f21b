"""The inner loop against a naive one with plain autograd and torch.optim, and what it must never depend on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

import workers.adapt
from common.config import (
    AdamConfig,
    AugmentConfig,
    CostPenalty,
    DatasetRef,
    InnerConfig,
    NetworkConfig,
    SgdConfig,
    SpaceConfig,
    StudyConfig,
    TaskFamily,
)
from common.cost import cost_model
from common.errors import ConflictError, InvalidInputError
from common.expense import expense_of
from common.messages import AdaptRequest, AdaptResult
from common.meta.expected_cost import expected_cost
from common.meta.inherit import inherited_network
from common.meta.prior import Prior, initial_prior
from common.meta.uses import spread_over_ops
from common.nn.cell import Mixture
from common.nn.supernet import Supernet, build_supernet
from common.space.genotype import derive
from common.streams import stream
from common.tasks import LearningTask
from workers.adapt import InnerLoop, MinibatchOrder, adapt
from workers.data.episodes import Episode, load_episode
from workers.device import ResidentImages

pytestmark = pytest.mark.usefixtures("one_thread")

OPS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3")
SPACE = SpaceConfig(primitives=OPS, num_nodes=2)
NETWORK = NetworkConfig(channels=4, cells=("normal", "reduction"), heads={16: 4, 8: 2})
INNER = InnerConfig(
    steps=5,
    batch_size=8,
    theta=SgdConfig(lr=0.05, momentum=0.9, weight_decay=1e-3),
    alpha=AdamConfig(lr=0.05),
)
DATA = DatasetRef(source="digits", unseen_fraction=0.0)
FAMILIES = (TaskFamily(data=DATA, image_size=16),)


def task(num_classes: int = 4, image_size: int = 16, task_id: str = "task", **changes: Any) -> LearningTask:
    classes = tuple(str(index) for index in range(num_classes))
    return LearningTask(task_id=task_id, data=DATA, classes=classes, image_size=image_size, **changes)


def synthetic(
    counts: tuple[int, ...] = (6, 6, 6, 6), test_per_class: int = 5, size: int = 16, channels: int = 3
) -> Episode:
    """Noise around a mean brightness of its own for each class."""
    rng = np.random.default_rng(5)

    def draw(numbers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(len(numbers)), numbers)
        noise = rng.integers(0, 128, (len(labels), size, size, channels))
        return (noise + 100 * labels[:, None, None, None] // len(numbers)).astype(np.uint8), labels

    train, test = draw(counts), draw((test_per_class,) * len(counts))
    return Episode(*train, *test)


def prior_for(inner: InnerConfig = INNER, space: SpaceConfig = SPACE, network: NetworkConfig = NETWORK) -> Prior:
    """Version 3, with an architecture and standard deviations that are not all alike."""
    family = TaskFamily(data=DATA, image_size=16)
    config = StudyConfig(seed=1, space=space, network=network, inner=inner, adapt=inner, families=(family,))
    drawn = initial_prior(config)
    rng = np.random.default_rng(2)
    changed = {
        name: vector + rng.normal(0, 1 if name == "alpha" else 0.3, vector.shape).astype(np.float32)
        for name, vector in drawn.vectors.items()
        if name == "alpha" or name.startswith("log_sigma/")
    }
    return replace(drawn, version=3, vectors={**drawn.vectors, **changed})


def request_for(
    inner: InnerConfig = INNER,
    learning_task: LearningTask | None = None,
    space: SpaceConfig = SPACE,
    network: NetworkConfig = NETWORK,
    **changes: Any,
) -> AdaptRequest:
    learning_task = task() if learning_task is None else learning_task
    plain = AdaptRequest(learning_task, space, network, inner, study_seed=7, version=3, relaxation="gumbel", tau=0.7)
    return replace(plain, **changes)


def scratch(space: SpaceConfig = SPACE, network: NetworkConfig = NETWORK) -> Supernet:
    return build_supernet(space, network, seed=99)


def run(
    request: AdaptRequest | None = None,
    episode: Episode | None = None,
    prior: Prior | None = None,
    supernet: Supernet | None = None,
) -> AdaptResult:
    request = request_for() if request is None else request
    return adapt(
        prior_for(request.inner, request.space, request.network) if prior is None else prior,
        request,
        synthetic() if episode is None else episode,
        scratch(request.space, request.network) if supernet is None else supernet,
    )


def same_update(a: AdaptResult, b: AdaptResult) -> bool:
    """Bitwise."""
    assert a.update is not None and b.update is not None
    pairs = [(a.update.alpha, b.update.alpha)]
    for mine, other in ((a.update.differences, b.update.differences), (a.update.log_sigma, b.update.log_sigma)):
        assert mine.keys() == other.keys()
        pairs += [(mine[name], other[name]) for name in mine]
    return a.train_losses == b.train_losses and all(np.array_equal(x, y) for x, y in pairs)


@dataclass
class Naive:
    """Every weight a parameter of its own, every gradient from autograd."""

    prior: Prior
    request: AdaptRequest
    episode: Episode
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        request, inner = self.request, self.request.inner
        self.supernet = build_supernet(request.space, request.network, seed=4)
        head = f"head/{request.task.image_size}"
        self.shapes: dict[str, dict[str, torch.Size]] = {"body": {}, head: {}}
        for name, parameter in self.supernet.named_parameters():
            if not name.startswith("heads."):
                self.shapes["body"][name] = parameter.shape
            elif name.startswith(f"heads.{request.task.image_size}."):
                self.shapes[head][name] = parameter.shape
        self.prior_mean = self.per_parameter(self.prior.vectors)
        self.mean = {name: nn.Parameter(values.clone()) for name, values in self.prior_mean.items()}
        self.prior_log_sigma: dict[str, Tensor] = {}
        if inner.weights == "gaussian":
            scales = {vector: self.prior.vectors[f"log_sigma/{vector}"] for vector in self.shapes}
            if inner.gaussian_scale == "element":
                self.prior_log_sigma = self.per_parameter(scales)
            else:
                for vector, names in self.shapes.items():
                    for name, value in zip(names, scales[vector], strict=True):
                        self.prior_log_sigma[name] = torch.tensor(value)
        self.log_s = {name: nn.Parameter(values.clone()) for name, values in self.prior_log_sigma.items()}
        num_classes = len(request.task.classes)
        self.matrix = nn.Parameter(torch.zeros(num_classes, self.supernet.num_features))
        self.offset = nn.Parameter(torch.zeros(num_classes))
        self.prior_phi = torch.tensor(self.prior.vectors["alpha"]).reshape(len(request.space.cell_kinds), -1, len(OPS))
        self.phi = nn.Parameter(self.prior_phi.clone())
        self.kind = request.relaxation if inner.relaxation == "prior" else inner.relaxation
        self.num_images = len(self.episode.train_images)

    def per_parameter(self, vectors: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        out = {}
        for vector, shapes in self.shapes.items():
            rest = torch.tensor(vectors[vector])
            for name, shape in shapes.items():
                out[name], rest = rest[: shape.numel()].reshape(shape), rest[shape.numel() :]
            assert len(rest) == 0
        return out

    def groups(self, values: Tensor) -> list[Tensor]:
        """The categoricals: rows of the first node are 0 and 1, of the second 2, 3 and 4."""
        if self.request.space.normalisation == "edge":
            return [row for kind in values for row in kind]
        return [rows.reshape(-1) for kind in values for rows in (kind[0:2], kind[2:5])]

    def ungroup(self, groups: list[Tensor]) -> Tensor:
        return torch.cat([group.reshape(-1) for group in groups]).reshape(self.phi.shape)

    def stream(self, step: int, purpose: str) -> np.random.Generator:
        return stream(self.request.study_seed, self.request.task.task_id, step, purpose)

    def batch_indices(self, indices: np.ndarray, step: int, purpose: str) -> np.ndarray:
        size = min(self.request.inner.batch_size, len(indices))
        batches: list[np.ndarray] = []
        pass_number = 0
        while len(batches) <= step:
            order = self.stream(pass_number, purpose).permutation(indices)
            batches += [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
            pass_number += 1
        return batches[step]

    def images(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        augment, chosen = self.request.inner.augment, self.episode.train_images[indices]
        side, padding = chosen.shape[1], self.request.inner.augment.crop_padding
        if padding:
            rows, columns = rng.integers(0, 2 * padding + 1, (2, len(indices)))
            padded = np.pad(chosen, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
            chosen = np.stack(
                [padded[i, rows[i] : rows[i] + side, columns[i] : columns[i] + side] for i in range(len(indices))]
            )
        if augment.flip:
            mirrored = rng.random(len(indices)) < 0.5
            chosen = np.stack([image[:, ::-1] if m else image for image, m in zip(chosen, mirrored, strict=True)])
        return floats(chosen)

    def mixtures(self, step: int, purpose: str) -> dict[str, Mixture]:
        noisy = self.phi
        if self.kind == "single_path":
            return self.one_network(self.stream(step, purpose + "gumbel").gumbel(size=tuple(self.phi.shape)))
        if self.kind != "softmax":
            noise = self.stream(step, purpose + "gumbel").gumbel(size=tuple(self.phi.shape))
            noisy = noisy + torch.tensor(noise, dtype=torch.float32)
        soft = [torch.softmax(group / self.request.tau, 0) for group in self.groups(noisy)]
        if self.kind != "straight_through":
            weights = self.ungroup(soft)
            return {kind: Mixture(weights[i]) for i, kind in enumerate(self.request.space.cell_kinds)}
        # Forward the sampled op alone, at weight 1; backward as if its weight were the soft one.
        on = self.ungroup([torch.arange(len(group)) == int(group.argmax()) for group in soft])
        weights = self.ungroup([group - group.detach() for group in soft]) + on.float()
        return {
            kind: Mixture(weights[i], tuple(tuple(torch.nonzero(row)[:, 0].tolist()) for row in on[i]))
            for i, kind in enumerate(self.request.space.cell_kinds)
        }

    def one_network(self, gumbel: np.ndarray) -> dict[str, Mixture]:
        """Two (source, op) pairs of each node; `none` is column 0. Rows as in `groups`."""
        log_p = self.ungroup([torch.log_softmax(group, 0) for group in self.groups(self.phi)])
        scores = log_p + torch.tensor(gumbel, dtype=torch.float32)
        mixtures = {}
        for kind, of_kind in zip(self.request.space.cell_kinds, scores, strict=True):
            weights = []
            for rows in (of_kind[0:2], of_kind[2:5]):
                candidates = rows[:, 1:].reshape(-1)
                soft = 2 * torch.softmax(candidates / self.request.tau, 0)
                on = torch.zeros_like(soft)
                on[torch.topk(candidates, 2).indices] = 1.0
                straight = (on + (soft - soft.detach())).reshape(len(rows), -1)
                weights.append(torch.cat([torch.zeros(len(rows), 1), straight], dim=1))
            both = torch.cat(weights)
            active = tuple(tuple(torch.nonzero(row.detach())[:, 0].tolist()) for row in both)
            mixtures[kind] = Mixture(both, active)
        return mixtures

    def scores(self, images: Tensor, mixtures: Mapping[str, Mixture], weights: Mapping[str, Tensor]) -> Tensor:
        size = self.request.task.image_size
        features = torch.func.functional_call(self.supernet, dict(weights), (images, mixtures, size))
        return features @ self.matrix.T + self.offset

    def drawn_weights(self, step: int) -> Mapping[str, Tensor]:
        if not self.log_s:
            return self.mean
        noise = {}
        for vector, shapes in self.shapes.items():
            size = sum(shape.numel() for shape in shapes.values())
            noise[vector] = self.stream(step, f"weights {vector}").standard_normal(size, dtype=np.float32)
        eps = self.per_parameter(noise)
        return {name: self.mean[name] + self.log_s[name].exp() * eps[name] for name in self.mean}

    def objective(self, step: int, indices: np.ndarray, purpose: str) -> Tensor:
        inner = self.request.inner
        beta_theta = 1 / self.num_images if inner.beta_theta is None else inner.beta_theta
        beta_alpha = 1 / self.num_images if inner.beta_alpha is None else inner.beta_alpha
        images = self.images(indices, self.stream(step, purpose + "augment"))
        labels = torch.tensor(self.episode.train_labels[indices])
        scores = self.scores(images, self.mixtures(step, purpose), self.drawn_weights(step))
        loss = -torch.log_softmax(scores, 1)[torch.arange(len(labels)), labels].mean()
        for name, mean in self.mean.items():
            if self.log_s:
                local = Normal(mean, self.log_s[name].exp().expand(mean.shape))
                shared = Normal(self.prior_mean[name], self.prior_log_sigma[name].exp().expand(mean.shape))
                loss = loss + beta_theta * kl_divergence(local, shared).sum()
            else:
                loss = loss + beta_theta * inner.prior_precision / 2 * ((mean - self.prior_mean[name]) ** 2).sum()
        if self.request.learns_alpha:
            for mine, shared in zip(self.groups(self.phi), self.groups(self.prior_phi), strict=True):
                q, p = Categorical(logits=mine.double()), Categorical(logits=shared.double())
                loss = loss + (beta_alpha * kl_divergence(q, p)).float()
            pi = self.ungroup([torch.softmax(group, 0) for group in self.groups(self.phi)])
            for op, penalty in inner.op_penalty.items():
                loss = loss + penalty * (pi[:, :, OPS.index(op)].mean() if op in OPS else 0.0)
            if inner.cost is not None:
                excess = self.expected_params(pi) / inner.cost.target - 1
                loss = loss + inner.cost.weight * torch.relu(excess)
        return loss

    def expected_params(self, pi: Tensor) -> Tensor:
        """Parameters of the networks that two draws per node without replacement give, one pair after the other."""
        space, size = self.request.space, self.request.task.image_size
        model = cost_model(space, self.request.network, size, len(self.request.task.classes))
        total = torch.tensor(float(model.constant.num_params))
        for kind, matrix in zip(space.cell_kinds, pi, strict=True):
            for rows in (range(0, 2), range(2, 5)):
                pairs = [
                    (matrix[row, OPS.index(op)], model.op(kind, source, op).num_params)
                    for source, row in enumerate(rows)
                    for op in OPS
                    if op != "none"
                ]
                whole = torch.stack([p for p, _ in pairs]).sum()
                for index, (mine, num_params) in enumerate(pairs):
                    p = mine / whole
                    others = [other / whole for at, (other, _) in enumerate(pairs) if at != index]
                    total = total + num_params * (p + sum(q * p / (1 - q) for q in others))
        return total

    def learn(self) -> "Naive":
        inner = self.request.inner
        weights = [*self.mean.values(), self.matrix, self.offset]
        optimizer = torch.optim.SGD(
            weights, inner.theta.lr, momentum=inner.theta.momentum, weight_decay=inner.theta.weight_decay
        )
        schedule = None
        if inner.theta.lr_end is not None:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, inner.steps - 1, inner.theta.lr_end)
        phi_optimizer = torch.optim.Adam([self.phi], lr=inner.alpha.lr, betas=inner.alpha.betas)
        scale_optimizer = torch.optim.Adam(list(self.log_s.values()), lr=inner.log_sigma_lr) if self.log_s else None
        everything = np.arange(self.num_images)
        bilevel = inner.level == "bilevel"
        if bilevel:
            mixed = stream(self.request.study_seed, self.request.task.task_id, "halves").permutation(everything)
        for step in range(inner.steps):
            if bilevel and self.request.learns_alpha:
                indices = self.batch_indices(mixed[1::2], step, "architecture order")
                (self.phi.grad,) = torch.autograd.grad(self.objective(step, indices, "architecture"), [self.phi])
                phi_optimizer.step()
            for parameter in [*weights, *self.log_s.values(), self.phi]:
                parameter.grad = torch.zeros_like(parameter)
            indices = self.batch_indices(mixed[::2], step, "weights order") if bilevel else None
            indices = self.batch_indices(everything, step, "order") if indices is None else indices
            loss = self.objective(step, indices, "")
            loss.backward()
            self.losses.append(loss.item())
            if inner.clip_norm is not None:
                norm = math.sqrt(sum(float((weight.grad**2).sum()) for weight in weights))
                for weight in weights:
                    weight.grad *= min(1.0, inner.clip_norm / (norm + 1e-6))
            optimizer.step()
            if schedule is not None:
                schedule.step()
            if scale_optimizer is not None:
                scale_optimizer.step()
            if not bilevel and self.request.learns_alpha:
                phi_optimizer.step()
        return self

    def differences(self) -> dict[str, np.ndarray]:
        return {
            vector: torch.cat(
                [(self.mean[name] - self.prior_mean[name]).detach().reshape(-1) for name in names]
            ).numpy()
            for vector, names in self.shapes.items()
        }

    def log_sigma(self) -> dict[str, np.ndarray]:
        if not self.log_s:
            return {}
        return {
            vector: torch.cat([self.log_s[name].detach().reshape(-1) for name in names]).numpy()
            for vector, names in self.shapes.items()
        }

    @torch.no_grad()
    def evaluate(self, part_size: int) -> tuple[float, float]:
        count = len(self.episode.test_images)
        tau = self.request.tau if self.kind == "softmax" else 1.0
        pi = self.ungroup([torch.softmax(group / tau, 0) for group in self.groups(self.phi)])
        mixtures = {kind: Mixture(pi[i]) for i, kind in enumerate(self.request.space.cell_kinds)}
        order = stream(self.request.study_seed, self.request.task.task_id, "test order").permutation(count)
        correct, loss = 0, 0.0
        for part in np.array_split(order, -(-count // part_size)):
            scores = self.scores(floats(self.episode.test_images[part]), mixtures, self.mean)
            for row, label in zip(scores, self.episode.test_labels[part], strict=True):
                correct += int(row.argmax()) == label
                loss -= float(torch.log_softmax(row, 0)[label])
        return correct / count, loss / count


def floats(images: np.ndarray) -> Tensor:
    return torch.tensor(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


PRIORED = {"prior_precision": 4.0, "beta_theta": 0.5}
NODE = SPACE.model_copy(update={"normalisation": "node"})


@dataclass(frozen=True)
class Case:
    """A way to learn, as changes of the defaults above."""

    inner: Mapping[str, object] = field(default_factory=dict)
    space: SpaceConfig = SPACE
    request: Mapping[str, object] = field(default_factory=dict)
    counts: tuple[int, ...] = (6, 6, 6, 6)


GAUSSIAN = {"weights": "gaussian", "log_sigma": -2.5, "log_sigma_lr": 0.02}
CASES = {
    # At node level with a penalty on none where one network is drawn: else a logit has no gradient but rounding errors,
    # as BatchNorm undoes a node's scale.
    "gumbel_edge": Case(),
    "gumbel_node": Case(space=NODE),
    "softmax_edge": Case({"relaxation": "softmax"}),
    "softmax_node": Case({"relaxation": "softmax"}, NODE),
    "straight_through_edge": Case({"relaxation": "straight_through"}),
    "straight_through_node": Case({"relaxation": "straight_through"}, NODE),
    "single_path_edge": Case({"relaxation": "single_path"}),
    "single_path_node": Case({"relaxation": "single_path", "op_penalty": {"none": 1.0}}, NODE),
    "relaxation_of_the_prior": Case(request={"relaxation": "softmax"}),
    "weights_near_the_prior": Case(PRIORED),
    "weights_near_the_prior_by_the_elbo": Case({"prior_precision": 50.0}),
    "architecture_near_the_prior": Case({"beta_alpha": 2.0}),
    "architecture_near_the_prior_node": Case({"beta_alpha": 2.0}, NODE),
    "op_penalty": Case({"op_penalty": {"skip_connect": 3.0, "none": 1.0}}),
    "op_penalty_node": Case({"op_penalty": {"skip_connect": 3.0}}, NODE),
    "penalised_op_not_in_the_space": Case({"op_penalty": {"avg_pool_3x3": 3.0}}),
    "cost": Case({"cost": {"measure": "params", "target": 500.0, "weight": 2.0}}),
    "cost_node": Case(
        {"cost": {"measure": "params", "target": 500.0, "weight": 2.0}, "op_penalty": {"none": 1.0}}, NODE
    ),
    "cost_bilevel": Case({"cost": {"measure": "params", "target": 500.0, "weight": 2.0}, "level": "bilevel"}),
    "cost_below_its_target": Case({"cost": {"measure": "params", "target": 1e9, "weight": 2.0}}),
    "cosine": Case({"theta": SgdConfig(lr=0.1, lr_end=0.001)}),
    "no_clip": Case({"clip_norm": None}),
    "tight_clip": Case({"clip_norm": 0.05}),
    "augmented": Case({"augment": {"crop_padding": 2, "flip": True}}),
    "weights_only": Case({"op_penalty": {"none": 5.0}}, request={"learns_alpha": False}),
    "bilevel": Case({"level": "bilevel", "beta_alpha": 0.5, "batch_size": 5}),
    "bilevel_near_the_prior": Case({"level": "bilevel", "batch_size": 5, **PRIORED}, NODE),
    "bilevel_augmented": Case({"level": "bilevel", "augment": {"crop_padding": 1, "flip": True}}),
    "bilevel_weights_only": Case({"level": "bilevel"}, request={"learns_alpha": False}),
    "fewer_images_than_a_batch": Case({"batch_size": 64}, counts=(2, 3, 1, 1)),
    "ragged_classes": Case(counts=(9, 2, 5, 1)),
    "gaussian_per_tensor": Case({**GAUSSIAN, "beta_theta": 0.001}),
    "gaussian_per_element": Case({**GAUSSIAN, "gaussian_scale": "element", "beta_theta": 0.2}),
    "gaussian_straight_through": Case({**GAUSSIAN, "relaxation": "straight_through", "beta_theta": 0.001}, NODE),
    "gaussian_bilevel": Case({**GAUSSIAN, "level": "bilevel", "beta_theta": 0.001}),
}


def close(actual: np.ndarray, expected: np.ndarray, atol: float = 2e-6) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


def close_by_adam(actual: np.ndarray, expected: np.ndarray, lr: float) -> None:
    """Nearly all equal, and none apart by a tenth of a step.

    Adam divides by a gradient's size: where it is near zero, the order of float32 sums shows, which is the CPU's.
    """
    assert actual.dtype == np.float32
    errors = np.abs(actual - expected) - 1e-5 * np.abs(expected)
    assert errors.max() <= lr / 10
    assert np.count_nonzero(errors > 1e-5) <= max(1, len(errors) // 500)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_inner_loop_equals_a_naive_loop(case: Case):
    inner = InnerConfig.model_validate({**INNER.model_dump(), **case.inner})
    request = request_for(inner, space=case.space, **case.request)
    prior, episode = prior_for(inner, case.space), synthetic(case.counts)

    update = (result := run(request, episode, prior)).update
    naive = Naive(prior, request, episode).learn()

    assert update is not None
    differences, log_sigma = naive.differences(), naive.log_sigma()
    assert update.differences.keys() == differences.keys()
    for name, expected in differences.items():
        assert np.abs(expected).max() > 1e-4
        close(update.differences[name], expected)
    assert update.log_sigma.keys() == log_sigma.keys()
    for name, expected in log_sigma.items():
        assert np.abs(expected - prior.vectors[f"log_sigma/{name}"]).max() > 1e-3
        close_by_adam(update.log_sigma[name], expected, inner.log_sigma_lr)
    close_by_adam(update.alpha, naive.phi.detach().reshape(-1).numpy(), inner.alpha.lr)
    assert result.train_losses == pytest.approx(naive.losses, rel=1e-4)
    assert (update.task_id, update.version, update.num_examples) == ("task", 3, sum(case.counts))


@pytest.mark.parametrize("kind", ["gumbel", "softmax", "straight_through"])
@pytest.mark.parametrize("space", [SPACE, NODE], ids=["edge", "node"])
@pytest.mark.parametrize("weights", [{}, GAUSSIAN], ids=["map", "gaussian"])
def test_evaluation_equals_a_naive_one_in_equal_parts(
    monkeypatch: pytest.MonkeyPatch, kind: str, space: SpaceConfig, weights: dict[str, object]
):
    monkeypatch.setattr(workers.adapt, "EVALUATION_BATCH", 8)  # 20 images make parts of 7, 7 and 6
    inner = InnerConfig.model_validate({**INNER.model_dump(), **weights, "relaxation": kind})
    request = request_for(inner, space=space, eval_steps=(inner.steps,))
    prior, episode = prior_for(inner, space), synthetic()

    (evaluation,) = run(request, episode, prior).evaluations

    accuracy, loss = Naive(prior, request, episode).learn().evaluate(part_size=8)
    assert evaluation.step == inner.steps
    assert evaluation.accuracy == accuracy
    assert evaluation.loss == pytest.approx(loss, rel=1e-4)


def test_weights_of_body_and_head_are_drawn_independently(monkeypatch: pytest.MonkeyPatch):
    drawn: list[np.ndarray] = []

    class Recorded:
        def __init__(self, generator: np.random.Generator) -> None:
            self.generator = generator

        def __getattr__(self, name: str) -> Any:
            return getattr(self.generator, name)

        def standard_normal(self, size: int, dtype: type) -> np.ndarray:
            drawn.append(self.generator.standard_normal(size, dtype=dtype))
            return drawn[-1]

    monkeypatch.setattr(workers.adapt, "stream", lambda *keys: Recorded(stream(*keys)))
    inner = INNER.model_copy(update={"weights": "gaussian", "steps": 2})

    run(request_for(inner))

    assert len(drawn) == 4  # body and head, twice
    starts = {tuple(noise[:5].tolist()) for noise in drawn}
    assert len(starts) == 4


def test_bilevel_reads_disjoint_halves_of_all_images(monkeypatch: pytest.MonkeyPatch):
    calls = recorded_batches(monkeypatch)
    inner = INNER.model_copy(update={"level": "bilevel", "steps": 6, "batch_size": 4})

    run(request_for(inner))  # 24 images: 3 batches of 4 per half and pass

    assert len(calls) == 12
    architecture = set(np.concatenate(calls[::2]).tolist())
    weights = set(np.concatenate(calls[1::2]).tolist())
    assert len(architecture) == len(weights) == 12
    assert architecture.isdisjoint(weights)


def test_bilevel_weights_and_architecture_each_learn_from_their_half(monkeypatch: pytest.MonkeyPatch):
    calls = recorded_batches(monkeypatch)
    # Two steps: in the first the classifier is still zero, so that nothing below it has a gradient.
    inner = INNER.model_copy(update={"level": "bilevel", "steps": 2, "batch_size": 64, "relaxation": "softmax"})
    frozen = inner.model_copy(update={"alpha": AdamConfig(lr=0)})
    episode = synthetic()
    learning, fixed = run(request_for(inner), episode), run(request_for(frozen), episode)
    of_architecture, of_weights = calls[0], calls[1]

    def repainted(indices: np.ndarray) -> Episode:
        images = episode.train_images.copy()
        images[indices] = 255 - images[indices]
        return replace(episode, train_images=images)

    assert not np.array_equal(run(request_for(inner), repainted(of_architecture)).update.alpha, learning.update.alpha)
    assert same_update(run(request_for(frozen), repainted(of_architecture)), fixed)
    assert not same_update(run(request_for(frozen), repainted(of_weights)), fixed)


@pytest.mark.parametrize("space", [SPACE, NODE], ids=["edge", "node"])
def test_architecture_and_scales_do_not_move_while_the_loss_tells_nothing(space: SpaceConfig):
    """With a zero classifier the first gradient is exactly zero: no rounding noise for Adam to blow up to a step."""
    inner = INNER.model_copy(update={"weights": "gaussian", "steps": 1, "beta_alpha": 10.0, "beta_theta": 10.0})
    prior = prior_for(inner, space)
    update = run(request_for(inner, space=space), prior=prior).update
    assert np.array_equal(update.alpha, prior.vectors["alpha"])
    for name, log_sigma in update.log_sigma.items():
        assert np.array_equal(log_sigma, prior.vectors[f"log_sigma/{name}"])


def recorded_batches(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    calls: list[np.ndarray] = []
    original = ResidentImages.augmented_batch

    def recording(self: ResidentImages, indices: Tensor, *rest: Any) -> Any:
        calls.append(indices.numpy())
        return original(self, indices, *rest)

    monkeypatch.setattr(ResidentImages, "augmented_batch", recording)
    return calls


def test_minibatches_pass_over_all_images_in_a_new_order_each_time():
    order = MinibatchOrder(np.arange(100, 112), 4, seed=0, task_id="t", purpose="order")
    passes = [np.concatenate([order.at(step) for step in range(start, start + 3)]) for start in (0, 3, 6)]
    for indices in passes:
        assert sorted(indices.tolist()) == list(range(100, 112))
    assert len({tuple(indices.tolist()) for indices in passes}) == 3
    assert np.array_equal(order.at(4), order.at(4))


def test_minibatches_leave_out_what_does_not_fill_one():
    order = MinibatchOrder(np.arange(11), 4, seed=0, task_id="t", purpose="order")
    seen = np.concatenate([order.at(0), order.at(1)])
    assert len(seen) == len(set(seen.tolist())) == 8
    assert [len(order.at(step)) for step in range(6)] == [4] * 6


def test_prior_and_episode_stay_as_they_were():
    inner = INNER.model_copy(update={"weights": "gaussian"})
    prior, episode = prior_for(inner), synthetic()
    for vector in prior.vectors.values():
        vector.setflags(write=False)  # as the object store hands them out
    digest, pixels = prior.digest(), episode.train_images.tobytes()
    run(request_for(inner, eval_steps=(0, 2)), episode, prior)
    assert prior.digest() == digest
    assert episode.train_images.tobytes() == pixels


@pytest.mark.parametrize("weights", ["map", "gaussian"])
def test_result_does_not_depend_on_what_the_supernet_did_before(weights: str):
    inner = INNER.model_copy(update={"weights": weights})
    supernet = scratch()
    fresh = run(request_for(inner), supernet=supernet)
    small = request_for(inner, task(3, image_size=8, task_id="other"), eval_steps=(1,))
    run(small, synthetic((4, 4, 4), size=8), supernet=supernet)
    bilevel = inner.model_copy(update={"level": "bilevel", "relaxation": "straight_through"})
    run(request_for(bilevel, study_seed=8), supernet=supernet)
    for parameter in supernet.parameters():
        parameter.data.fill_(torch.nan)
        if parameter.grad is not None:
            parameter.grad.fill_(torch.nan)
    assert same_update(run(request_for(inner), supernet=supernet), fresh)
    assert same_update(run(request_for(inner)), fresh)


def test_result_does_not_depend_on_global_random_state():
    augment = AugmentConfig(crop_padding=2, flip=True)
    inner = INNER.model_copy(update={"weights": "gaussian", "augment": augment})
    prior, results = prior_for(inner), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        results.append(run(request_for(inner), prior=prior))
    assert same_update(*results)


@pytest.mark.parametrize(
    "change",
    [{"study_seed": 8}, {"learning_task": task(task_id="another")}, {"tau": 0.8}, {"relaxation": "softmax"}],
    ids=["seed", "task_id", "tau", "relaxation"],
)
def test_result_depends_on_the_request(change: dict[str, Any]):
    assert not same_update(run(request_for(**change)), run())


@pytest.mark.parametrize("level", ["single", "bilevel"])
def test_every_step_draws_architecture_noise_of_its_own(monkeypatch: pytest.MonkeyPatch, level: str):
    noises: list[Tensor] = []
    original = workers.adapt.relax

    def recording(logits: Tensor, noise: Tensor, *rest: Any) -> Any:
        noises.append(noise)
        return original(logits, noise, *rest)

    monkeypatch.setattr(workers.adapt, "relax", recording)
    run(request_for(INNER.model_copy(update={"level": level})))
    assert len(noises) == (5 if level == "single" else 10)
    assert len({tuple(noise.reshape(-1).tolist()) for noise in noises}) == len(noises)


def test_update_holds_body_and_head_of_the_tasks_size_only():
    supernet = scratch()
    for size, expected in ((16, "head/16"), (8, "head/8")):
        result = run(request_for(learning_task=task(image_size=size)), synthetic(size=size), supernet=supernet)
        assert set(result.update.differences) == {"body", expected}
        assert result.update.log_sigma == {}
        heads = sum(p.numel() for name, p in supernet.named_parameters() if name.startswith(f"heads.{size}."))
        body = sum(p.numel() for name, p in supernet.named_parameters() if not name.startswith("heads."))
        assert result.update.differences[expected].shape == (heads,)
        assert result.update.differences["body"].shape == (body,)


def test_update_is_a_snapshot_that_later_tasks_do_not_change():
    supernet = scratch()
    first = run(supernet=supernet)
    copies = {name: vector.copy() for name, vector in first.update.differences.items()} | {
        "a": first.update.alpha.copy()
    }
    run(request_for(study_seed=9), supernet=supernet)
    assert all(np.array_equal(first.update.differences[name], copies[name]) for name in first.update.differences)
    assert np.array_equal(first.update.alpha, copies["a"])


@pytest.mark.parametrize("level", ["single", "bilevel"])
def test_architecture_stays_at_the_priors_where_it_does_not_learn(level: str):
    prior, inner = prior_for(), INNER.model_copy(update={"level": level})
    frozen = inner.model_copy(update={"alpha": AdamConfig(lr=0)})
    for request in (request_for(inner, learns_alpha=False), request_for(frozen)):
        update = run(request, prior=prior).update
        assert np.array_equal(update.alpha, prior.vectors["alpha"])
        assert np.linalg.norm(update.differences["body"]) > 0
    assert not np.array_equal(run(request_for(inner), prior=prior).update.alpha, prior.vectors["alpha"])


def test_no_update_where_none_is_asked_for():
    result = run(request_for(returns_update=False, eval_steps=(5,)))
    assert result.update is None
    assert len(result.evaluations) == 1
    assert len(result.train_losses) == 5


@pytest.mark.parametrize("space", [SPACE, NODE], ids=["edge", "node"])
def test_probabilities_are_those_of_the_local_architecture(space: SpaceConfig):
    result = run(request_for(space=space))
    logits = result.update.alpha.astype(np.float64).reshape(2, 5, len(OPS))
    rows = [[0], [1], [2], [3], [4]] if space is SPACE else [[0, 1], [2, 3, 4]]
    assert list(result.probabilities) == ["normal", "reduction"]
    for index, kind in enumerate(result.probabilities):
        assert result.probabilities[kind].shape == (5, len(OPS))
        for group in rows:
            weights = np.exp(logits[index, group])
            np.testing.assert_allclose(result.probabilities[kind][group], weights / weights.sum(), rtol=1e-12)


def test_prior_of_another_version_is_a_conflict():
    with pytest.raises(ConflictError, match="starts from version 4, the prior at hand is 3"):
        run(request_for(version=4))


def test_image_size_without_a_head_is_refused():
    with pytest.raises(InvalidInputError, match="24"):
        run(request_for(learning_task=task(image_size=24)), synthetic(size=24))


@pytest.mark.parametrize("num_classes", [2, 4, 7])
def test_before_the_first_step_all_classes_are_equally_likely(num_classes: int):
    request = request_for(learning_task=task(num_classes), eval_steps=(0,))
    result = run(request, synthetic((3,) * num_classes))
    (evaluation,) = result.evaluations
    assert evaluation.step == 0
    assert evaluation.accuracy == pytest.approx(1 / num_classes)
    assert evaluation.loss == pytest.approx(math.log(num_classes), rel=1e-6)
    assert result.train_losses[0] == pytest.approx(math.log(num_classes), rel=1e-5)


@pytest.mark.parametrize("weights", ["map", "gaussian"])
def test_evaluating_does_not_change_what_is_learned(weights: str):
    inner = INNER.model_copy(update={"weights": weights})
    often = run(request_for(inner, eval_steps=(0, 1, 2, 3, 4, 5)))
    assert [evaluation.step for evaluation in often.evaluations] == [0, 1, 2, 3, 4, 5]
    never = run(request_for(inner))
    assert never.evaluations == ()
    assert same_update(often, never)


def test_evaluation_after_a_step_is_that_of_a_run_that_ends_there():
    middle = run(request_for(eval_steps=(2, 5))).evaluations[0]
    end = run(request_for(INNER.model_copy(update={"steps": 2}), eval_steps=(2,))).evaluations[0]
    assert middle == end


def test_tasks_of_any_number_of_classes_give_updates_of_one_shape():
    shapes = set()
    for counts in ((4, 4), (5, 3, 1), (2,) * 7):
        result = run(request_for(learning_task=task(len(counts))), synthetic(counts))
        assert all(np.isfinite(vector).all() for vector in result.update.differences.values())
        assert result.update.num_examples == sum(counts)
        shapes.add(tuple((name, vector.size) for name, vector in result.update.differences.items()))
    assert len(shapes) == 1


def test_grayscale_images_count_as_colour_images_of_equal_channels():
    gray = synthetic(channels=1)
    colour = Episode(
        gray.train_images.repeat(3, axis=3), gray.train_labels, gray.test_images.repeat(3, axis=3), gray.test_labels
    )
    request = request_for(eval_steps=(5,))
    results = [run(request, episode) for episode in (gray, colour)]
    for name in ("body", "head/16"):
        close(results[0].update.differences[name], results[1].update.differences[name])
    assert results[0].evaluations[0].loss == pytest.approx(results[1].evaluations[0].loss, rel=1e-4)


def test_heads_for_grayscale_learn_from_colour_images():
    network = NETWORK.model_copy(update={"image_channels": 1})
    update = run(request_for(network=network)).update
    assert update.differences["head/16"].size == (1 * 4 + 4 * 12) * 3 * 3  # two convolutions: 1 to 4 to 12 channels
    assert np.linalg.norm(update.differences["head/16"]) > 0


def test_every_step_is_reported_once_it_is_done():
    steps: list[int] = []
    adapt(prior_for(), request_for(), synthetic(), scratch(), steps.append)
    assert steps == [1, 2, 3, 4, 5]


def test_throughput_counts_the_images_of_all_batches():
    result = run(request_for(INNER.model_copy(update={"batch_size": 64})))
    assert result.adapt_s > 0
    assert result.images_per_s * result.adapt_s == pytest.approx(5 * 24)


@pytest.mark.parametrize("kind", ["gumbel", "softmax", "straight_through"])
def test_bfloat16_learns_nearly_what_float32_learns(kind: str):
    inner = INNER.model_copy(update={"relaxation": kind, "weights": "gaussian"})
    half = run(request_for(inner, network=NETWORK.model_copy(update={"precision": "bfloat16"}), eval_steps=(5,)))
    full = run(request_for(inner, eval_steps=(5,)))
    assert half.train_losses != full.train_losses
    np.testing.assert_allclose(half.train_losses, full.train_losses, rtol=0.05)
    assert half.evaluations[0].loss == pytest.approx(full.evaluations[0].loss, rel=0.1)
    for name, expected in full.update.differences.items():
        assert half.update.differences[name].dtype == np.float32
        assert np.linalg.norm(half.update.differences[name] - expected) < 0.3 * np.linalg.norm(expected)
    close(half.update.alpha, full.update.alpha, atol=0.1)


def test_bfloat16_keeps_parameters_gradients_and_optimizers_in_float32():
    request = request_for(network=NETWORK.model_copy(update={"precision": "bfloat16"}))
    loop = InnerLoop(prior_for(), request, synthetic(), scratch())
    assert loop.step_(0).dtype == torch.float32
    optimizers = (loop.weight_optimizer, loop.alpha_optimizer)
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    assert len(states) > len(parameters)
    for tensor in (*parameters, *(parameter.grad for parameter in parameters), *states):
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("relaxation", ["gumbel", "softmax", "straight_through"])
def test_digits_are_learned(relaxation: str):
    inner = InnerConfig(steps=60, batch_size=32, theta=SgdConfig(lr=0.1), relaxation=relaxation)
    digits = task(train_per_class=40, test_per_class=20)
    request = request_for(inner, digits, eval_steps=(0, 60))
    result = run(request, load_episode(digits))
    before, after = result.evaluations
    assert np.mean(result.train_losses[-10:]) < 0.5 * np.mean(result.train_losses[:3])
    assert before.accuracy == pytest.approx(0.25)
    assert after.accuracy > 0.8
    assert after.loss < before.loss
    for vector in result.update.differences.values():
        assert np.linalg.norm(vector) > 0


# Derived networks, sampled and given


GENOTYPE = derive(
    {kind: np.random.default_rng(8).random((5, len(OPS))) for kind in SPACE.cell_kinds}, SPACE.topology, OPS
)


def test_use_is_the_share_of_steps_that_computed_an_op():
    seen: list[dict[str, Mixture]] = []

    class Watched(Supernet):
        def forward(self, images: Tensor, mixtures: Mapping[str, Mixture], image_size: int) -> Tensor:
            seen.append(dict(mixtures))
            return super().forward(images, mixtures, image_size)

    inner = INNER.model_copy(update={"relaxation": "single_path", "level": "bilevel", "batch_size": 5})
    update = run(request_for(inner), supernet=Watched(SPACE, NETWORK)).update
    assert update is not None
    assert update.use is not None
    # Of the two passes of a bilevel step, the second one is the weights'.
    expected = np.mean(
        [[(mixtures[kind].weights.detach() > 0).numpy() for kind in mixtures] for mixtures in seen[1::2]], 0
    )
    assert len(seen[1::2]) == INNER.steps
    np.testing.assert_array_equal(update.use.reshape(expected.shape), expected.astype(np.float32))
    assert update.use.dtype == np.float32
    # What was not used did not learn, but for weight decay.
    assert 0 < np.mean(expected == 0) < 1


@pytest.mark.parametrize("kind", ["gumbel", "softmax"])
def test_where_every_op_is_computed_there_is_no_use_to_tell(kind: str):
    update = run(request_for(INNER.model_copy(update={"relaxation": kind}))).update
    assert update is not None
    assert update.use is None


def test_training_a_genotype_inside_the_supernet_is_training_the_network_that_is_cut_out():
    inner = INNER.model_copy(update={"theta": SgdConfig(lr=0.05, weight_decay=0.0), "relaxation": "softmax"})
    request = request_for(inner, genotype=GENOTYPE, returns_weights=True, eval_steps=(0, 5))
    prior, episode = prior_for(inner), synthetic()
    result = run(request, episode, prior)
    assert result.weights is not None
    np.testing.assert_array_equal(result.weights["alpha"], prior.vectors["alpha"])
    found = inherited_network(result.weights, GENOTYPE, SPACE, NETWORK, 16)

    classifier = {"classifier/weight": np.zeros((4, 2 * 8), np.float32), "classifier/bias": np.zeros(4, np.float32)}
    network = inherited_network({**prior.vectors, **classifier}, GENOTYPE, SPACE, NETWORK, 16)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for parameter in (parameter for norm in norms for parameter in norm.parameters()):
        parameter.requires_grad_(False)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.05, momentum=0.9)
    naive = Naive(prior, request, episode)
    for step in range(inner.steps):
        indices = naive.batch_indices(np.arange(24), step, "order")
        images = naive.images(indices, naive.stream(step, "augment"))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), torch.tensor(episode.train_labels[indices]))
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 5.0)
        optimizer.step()
        assert loss.item() == pytest.approx(result.train_losses[step], rel=1e-4)
    for name, tensor in found.state_dict().items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    images = torch.from_numpy(episode.test_images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        correct = (network(images).argmax(dim=1).numpy() == episode.test_labels).mean()
    assert result.evaluations[-1].accuracy == pytest.approx(correct)


def test_a_given_genotype_leaves_the_architecture_and_what_it_does_not_use_alone():
    inner = INNER.model_copy(update={"theta": SgdConfig(lr=0.05, weight_decay=0.0)})
    update = run(request_for(inner, genotype=GENOTYPE)).update
    assert update is not None
    assert update.use is not None
    np.testing.assert_array_equal(update.alpha, prior_for(inner).vectors["alpha"])
    used = spread_over_ops(update.use.astype(float), StudyConfig(space=SPACE, network=NETWORK, families=FAMILIES))
    moved = update.differences["body"] != 0
    assert set(np.unique(used)) == {0.0, 1.0}
    assert not moved[used == 0].any()
    assert moved[used == 1].mean() > 0.9


def test_single_path_evaluates_the_network_that_is_derived():
    inner = INNER.model_copy(update={"relaxation": "single_path"})
    result = run(request_for(inner, eval_steps=(0,), learns_alpha=False))
    genotype = derive(result.probabilities, SPACE.topology, OPS)
    fixed = run(request_for(inner, eval_steps=(0,), genotype=genotype))
    assert result.evaluations == fixed.evaluations


def test_the_heavier_a_penalty_the_cheaper_is_what_the_posterior_stands_for():
    expected = []
    for weight in (0.0, 0.3, 1.0, 3.0):
        inner = INNER.model_copy(
            update={
                "steps": 20,
                "alpha": AdamConfig(lr=0.2),
                "cost": CostPenalty(measure="macs", target=1.0, weight=weight / 1e4),
            }
        )
        request = request_for(inner)
        found = run(request, prior=prior_for(INNER))
        cost = expected_cost(
            expense_of(CostPenalty(measure="macs", target=1.0, weight=0.0), SPACE, NETWORK, 16, 4),
            SPACE,
            1.0,
            torch.device("cpu"),
            torch.float64,
        )
        matrices = np.stack([found.probabilities[kind] for kind in SPACE.cell_kinds])
        expected.append(float(cost.relative(torch.from_numpy(np.log(matrices)))))
    assert expected == sorted(expected, reverse=True)
    assert expected[-1] < 0.9 * expected[0]


def test_a_penalty_without_weight_changes_no_bit():
    plain = run(request_for(INNER))
    weightless = INNER.model_copy(update={"cost": CostPenalty(measure="params", target=1.0, weight=0.0)})
    assert same_update(plain, run(request_for(weightless), prior=prior_for(INNER)))
