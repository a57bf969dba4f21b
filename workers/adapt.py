"""The inner loop: from a prior and a task's images to local weights and a local architecture (BASE alg. 1).

A pure function of its arguments: random numbers are keyed by (study seed, task, step, purpose), optimizers start fresh,
and the supernet that is passed in is scratch memory.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import HardKind, RelaxationKind
from common.errors import ConflictError, InvalidInputError
from common.messages import AdaptRequest, AdaptResult, Evaluation, LocalUpdate
from common.meta.inherit import CLASSIFIER_BIAS, CLASSIFIER_WEIGHT
from common.meta.params import BODY, BoundVector, head_vector, named_vectors
from common.meta.posterior import evaluation_weights, kl_architecture, probabilities, relax
from common.meta.prior import ALPHA, LOG_SIGMA_PREFIX, Prior, Vector
from common.nn.cell import Mixture
from common.nn.derived import genotype_mixtures
from common.nn.supernet import Supernet
from common.space.primitives import NONE
from common.streams import stream
from workers.data.episodes import Episode
from workers.device import (
    AugmentDraws,
    ResidentImages,
    StepRecorder,
    autocast,
    can_record,
    draw_augmentation,
    on_device,
    resident,
)
from workers.weights import LocalWeights

# Test images that share their batch statistics; larger test sets are cut into equal parts.
EVALUATION_BATCH = 512

OnEvaluation = Callable[[Evaluation, Mapping[str, NDArray[np.float64]]], None]


def adapt(
    prior: Prior,
    request: AdaptRequest,
    episode: Episode,
    supernet: Supernet,
    on_step: Callable[[int], None] = lambda step: None,
    on_evaluation: OnEvaluation = lambda evaluation, probabilities: None,
) -> AdaptResult:
    """Adapts a local copy of the prior to one task.

    Args:
        prior: where the task starts; unchanged.
        request: the task and how to learn it.
        episode: the task's images.
        supernet: of the request's search space and network, on the device to compute on; its weights are overwritten.
        on_step: called with the number of steps done, after each.
        on_evaluation: called at each evaluation, with the architecture posterior of that moment by kind of cell.

    Raises:
        ConflictError: the prior is not the version that the request names.
        InvalidInputError: the supernet has no head for the task's image size.
    """
    if prior.version != request.version:
        raise ConflictError(f"the task starts from version {request.version}, the prior at hand is {prior.version}")
    if request.task.image_size not in supernet.network.heads:
        sizes = ", ".join(str(size) for size in sorted(supernet.network.heads))
        raise InvalidInputError(f"no head for image_size {request.task.image_size}; network.heads has {sizes}")
    loop = InnerLoop(prior, request, episode, supernet)
    evaluations: list[Evaluation] = []
    losses: list[Tensor] = []
    adapt_s = 0.0
    for step in range(request.inner.steps + 1):
        if step in request.eval_steps:
            evaluations.append(loop.evaluate(step))
            on_evaluation(evaluations[-1], loop.probabilities())
        if step < request.inner.steps:
            started_s = time.perf_counter()
            losses.append(loop.step_(step))
            if loop.device.type == "cuda" and (step + 1 in request.eval_steps or step + 1 == request.inner.steps):
                torch.cuda.synchronize(loop.device)  # the clock counts work done, not work queued
            adapt_s += time.perf_counter() - started_s
            on_step(step + 1)
    num_images = request.inner.steps * loop.batches.batch_size
    return AdaptResult(
        task_id=request.task.task_id,
        update=loop.update() if request.returns_update else None,
        probabilities=loop.probabilities(),
        train_losses=tuple(torch.stack(losses).tolist()),
        evaluations=tuple(evaluations),
        adapt_s=adapt_s,
        images_per_s=num_images / adapt_s,
        batch_size=loop.batches.batch_size,
        weights=loop.local_state() if request.returns_weights else None,
    )


@dataclass(frozen=True)
class MinibatchOrder:
    """Which images each step sees: pass after pass over a set, each in an order of its own."""

    indices: NDArray[np.int64]
    batch_size: int
    seed: int
    task_id: str
    purpose: str

    def at(self, step: int) -> NDArray[np.int64]:
        """Indices of the images of `step`."""
        per_pass = max(len(self.indices) // self.batch_size, 1)
        pass_number, position = divmod(step, per_pass)
        order = stream(self.seed, self.task_id, pass_number, self.purpose).permutation(self.indices)
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclass(frozen=True)
class BatchInputs:
    """What one backward pass is given.

    Attributes:
        indices: of the images.
        augmentation: their random changes.
        gumbel: noise of the architecture's relaxation, (kind, edge, primitive); None under softmax.
    """

    indices: Int[Tensor, "batch"]
    augmentation: AugmentDraws
    gumbel: Float[Tensor, "kind edge primitive"] | None


@dataclass(frozen=True)
class StepInputs:
    """All that tells one step of a task from another: drawn on the host, then moved to the device.

    Attributes:
        lr: of the weights; a tensor where steps are recorded, since a recording would keep a number as it is.
        noise: of each vector of weights, (size,); None under map.
        batch: for the weights, and for the architecture where both learn from one pass.
        alpha_batch: for the architecture alone (bilevel).
    """

    lr: float | Float[Tensor, ""]
    noise: tuple[Float[Tensor, "size"] | None, ...]
    batch: BatchInputs
    alpha_batch: BatchInputs | None


class InnerLoop:
    """The state of one adaptation; see `adapt` for the arguments."""

    def __init__(self, prior: Prior, request: AdaptRequest, episode: Episode, supernet: Supernet) -> None:
        self.request = request
        self.inner = request.inner
        self.kind: RelaxationKind = request.relaxation if self.inner.relaxation == "prior" else self.inner.relaxation
        self.device = next(supernet.parameters()).device
        # Hard steps ask the host which op was sampled, and each runs other ops; those of a genotype run the same.
        genotype = request.genotype
        hard = genotype is None and self.kind in get_args(HardKind)
        self.is_recorded = request.network.cuda_graphs and can_record(self.device) and not hard
        self._recorder = StepRecorder(self.device) if self.is_recorded else None
        self.supernet = supernet
        self.train = resident(episode.train_images, episode.train_labels, self.device)
        self.test = resident(episode.test_images, episode.test_labels, self.device)

        vectors = named_vectors(supernet)
        self.weight_names = [BODY, head_vector(request.task.image_size)]
        self.weights = [
            LocalWeights(
                BoundVector(vectors[name]),
                prior.vectors[name],
                prior.vectors.get(LOG_SIGMA_PREFIX + name),
                self.inner.prior_precision,
            )
            for name in self.weight_names
        ]
        self.classifier = nn.utils.skip_init(
            nn.Linear, supernet.num_features, len(request.task.classes), device=self.device
        )
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)
            parameter.grad = torch.zeros_like(parameter)
        if request.start is not None:
            self._start_at_(request.start)

        space = request.space
        self.none_column = space.ops.index(NONE) if NONE in space.ops else None
        self.fixed = None if genotype is None else genotype_mixtures(genotype, space, self.device)
        self.learns_alpha = request.learns_alpha and genotype is None
        shape = (len(space.cell_kinds), space.topology.num_edges, len(space.ops))
        self._num_uses = np.zeros(shape, np.int64)
        self._num_steps = 0
        self.prior_alpha = torch.tensor(prior.vectors[ALPHA], device=self.device).reshape(shape)
        self.alpha = nn.Parameter(self.prior_alpha.clone())
        self.alpha.grad = torch.zeros_like(self.alpha)
        self.penalty = torch.tensor([self.inner.op_penalty.get(op, 0.0) for op in space.ops], device=self.device)

        self.weight_parameters = [local.mean for local in self.weights] + list(self.classifier.parameters())
        theta = self.inner.theta
        self.weight_optimizer = torch.optim.SGD(
            self.weight_parameters,
            lr=theta.lr,
            momentum=theta.momentum,
            weight_decay=theta.weight_decay,
            fused=self.is_recorded or None,  # reads a learning rate on the device without asking the host for it
        )
        self.alpha_optimizer = self._adam([self.alpha], self.inner.alpha.lr, self.inner.alpha.betas)
        scales = [local.log_s for local in self.weights if local.log_s is not None]
        self.scale_optimizer = self._adam(scales, self.inner.log_sigma_lr) if scales else None

        num_examples = self.train.num_images
        self.beta_theta = 1 / num_examples if self.inner.beta_theta is None else self.inner.beta_theta
        self.beta_alpha = 1 / num_examples if self.inner.beta_alpha is None else self.inner.beta_alpha
        everything = np.arange(num_examples)
        if self.inner.level == "bilevel":
            halves = stream(request.study_seed, request.task.task_id, "halves").permutation(everything)
            self.batches = self._order(halves[::2], "weights order")
            self.alpha_batches = self._order(halves[1::2], "architecture order")
        else:
            self.batches = self.alpha_batches = self._order(everything, "order")

    def _start_at_(self, start: Mapping[str, Vector]) -> None:
        for name, local in zip(self.weight_names, self.weights, strict=True):
            local.start_at_(start[name])
        for name, parameter in ((CLASSIFIER_WEIGHT, self.classifier.weight), (CLASSIFIER_BIAS, self.classifier.bias)):
            parameter.data.copy_(torch.from_numpy(np.array(start[name])))

    def _order(self, indices: NDArray[np.int64], purpose: str) -> MinibatchOrder:
        size = min(self.inner.batch_size, len(indices))
        return MinibatchOrder(indices, size, self.request.study_seed, self.request.task.task_id, purpose)

    def _adam(
        self, parameters: Sequence[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999)
    ) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, lr, betas, fused=self.is_recorded or None, capturable=self.is_recorded)

    def step_(self, step: int) -> Tensor:
        """One step of the inner loop; returns the objective, in nats, on the device."""
        inputs = self._inputs(step)
        if self._recorder is not None:
            return self._recorder.run(self._compute_, inputs)
        return self._compute_(on_device(inputs, self.device))

    def _inputs(self, step: int) -> StepInputs:
        named = zip(self.weight_names, self.weights, strict=True)
        lr = self._learning_rate(step)
        has_own_pass = self.inner.level == "bilevel" and self.learns_alpha
        return StepInputs(
            lr=torch.tensor(lr) if self.is_recorded else lr,
            noise=tuple(local.draw_noise(self._stream(step, f"weights {name}")) for name, local in named),
            batch=self._batch_inputs(step, self.batches, ""),
            alpha_batch=self._batch_inputs(step, self.alpha_batches, "architecture") if has_own_pass else None,
        )

    def _batch_inputs(self, step: int, batches: MinibatchOrder, purpose: str) -> BatchInputs:
        indices = batches.at(step)
        augmentation = draw_augmentation(len(indices), self.inner.augment, self._stream(step, purpose + "augment"))
        gumbel = None
        if self.kind != "softmax" and self.fixed is None:
            noise = self._stream(step, purpose + "gumbel").gumbel(size=tuple(self.alpha.shape))
            gumbel = torch.from_numpy(noise.astype(np.float32))
        return BatchInputs(torch.from_numpy(indices), augmentation, gumbel)

    def _compute_(self, inputs: StepInputs) -> Tensor:
        """The part of a step that runs on the device; but for hard sampling it never waits for it."""
        for group in self.weight_optimizer.param_groups:
            group["lr"] = inputs.lr
        for local, noise in zip(self.weights, inputs.noise, strict=True):
            local.use_noise_(noise)
        if inputs.alpha_batch is not None:
            self._backward(inputs.alpha_batch, self._mixtures(inputs.alpha_batch.gumbel))
            self.alpha_optimizer.step()
        mixtures = self._mixtures(inputs.batch.gumbel)
        self._count_uses(mixtures)
        loss = self._backward(inputs.batch, mixtures)
        if self.inner.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.weight_parameters, self.inner.clip_norm)
        self.weight_optimizer.step()
        if self.scale_optimizer is not None:
            self.scale_optimizer.step()
        if self.inner.level == "single" and self.learns_alpha:
            self.alpha_optimizer.step()
        return loss

    def _count_uses(self, mixtures: Mapping[str, Mixture]) -> None:
        """Notes which ops this step computes, where it leaves any out. Nothing of it is on the device."""
        for index, mixture in enumerate(mixtures[kind] for kind in self.request.space.cell_kinds):
            for edge, columns in enumerate(mixture.active or ()):
                self._num_uses[index, edge, list(columns)] += 1
        self._num_steps += 1

    def _backward(self, batch: BatchInputs, mixtures: dict[str, Mixture]) -> Tensor:
        """Gradients of mean cross-entropy + beta KL with respect to everything local, from one backward pass."""
        for local in self.weights:
            local.zero_grad_()
        self.classifier.zero_grad(set_to_none=False)
        assert self.alpha.grad is not None
        self.alpha.grad.zero_()
        images, labels = self.train.augmented_batch(batch.indices, self.inner.augment, batch.augmentation)
        logits = self._logits(images, mixtures)
        loss = F.cross_entropy(logits, labels)
        if self.learns_alpha:
            loss = loss + self._alpha_terms()
        loss.backward()
        for local in self.weights:
            local.add_divergence_grad_(self.beta_theta)
        divergence = torch.stack([local.divergence() for local in self.weights]).sum()
        return loss.detach() + self.beta_theta * divergence

    def _alpha_terms(self) -> Float[Tensor, ""]:
        space = self.request.space
        terms = self.beta_alpha * kl_architecture(self.alpha, self.prior_alpha, space.topology, space.normalisation)
        if self.inner.op_penalty:
            p = probabilities(self.alpha, space.topology, space.normalisation)
            terms = terms + (p.mean(dim=(0, 1)) * self.penalty).sum()
        return terms

    def _logits(self, images: Tensor, mixtures: dict[str, Mixture]) -> Float[Tensor, "batch classes"]:
        with autocast(self.device, self.request.network.precision):
            logits: Tensor = self.classifier(self.supernet(images, mixtures, self.request.task.image_size))
        return logits.float()

    def _mixtures(self, noise: Tensor | None) -> dict[str, Mixture]:
        if self.fixed is not None:
            return self.fixed
        space = self.request.space
        relaxed = relax(
            self.alpha, noise, self.request.tau, self.kind, space.topology, space.normalisation, self.none_column
        )
        return relaxed.mixtures(tuple(space.cell_kinds))

    def _evaluation_mixtures(self) -> dict[str, Mixture]:
        """What training saw on average: the genotype, or the noise-free posterior as its relaxation computes it."""
        if self.fixed is not None or self.kind == "single_path":
            return self._mixtures(None)
        space = self.request.space
        weights = evaluation_weights(self.alpha, self.request.tau, self.kind, space.topology, space.normalisation)
        return {kind: Mixture(weights[index]) for index, kind in enumerate(space.cell_kinds)}

    def _stream(self, step: int, purpose: str) -> np.random.Generator:
        return stream(self.request.study_seed, self.request.task.task_id, step, purpose)

    def _learning_rate(self, step: int) -> float:
        theta = self.inner.theta
        if theta.lr_end is None:
            return theta.lr
        progress = step / max(self.inner.steps - 1, 1)
        return theta.lr_end + (theta.lr - theta.lr_end) * 0.5 * (1 + math.cos(math.pi * progress))

    @torch.no_grad()
    def evaluate(self, step: int) -> Evaluation:
        """Held-out accuracy of the present local state."""
        for local in self.weights:
            local.use_mean_()
        mixtures = self._evaluation_mixtures()
        correct, total_loss = 0.0, 0.0
        for part in self._test_parts(self.test):
            images, labels = self.test.batch(part)
            logits = self._logits(images, mixtures)
            correct += float((logits.argmax(dim=1) == labels).sum())
            total_loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        return Evaluation(step, correct / self.test.num_images, total_loss / self.test.num_images)

    def _test_parts(self, test: ResidentImages) -> Sequence[NDArray[np.int64]]:
        # Shuffled, so that every part's batch statistics come from all classes.
        order = stream(self.request.study_seed, self.request.task.task_id, "test order").permutation(test.num_images)
        return np.array_split(order, math.ceil(test.num_images / EVALUATION_BATCH))

    def probabilities(self) -> dict[str, NDArray[np.float64]]:
        """The architecture posterior by kind of cell."""
        space = self.request.space
        values = probabilities(self.alpha.detach().double(), space.topology, space.normalisation).cpu().numpy()
        return {kind: values[index] for index, kind in enumerate(space.cell_kinds)}

    def update(self) -> LocalUpdate:
        """What the prior learns from this task."""
        named = dict(zip(self.weight_names, self.weights, strict=True))
        scales = {name: local.local_log_sigma() for name, local in named.items()}
        return LocalUpdate(
            task_id=self.request.task.task_id,
            version=self.request.version,
            num_examples=self.train.num_images,
            differences={name: local.difference() for name, local in named.items()},
            alpha=self.alpha.detach().reshape(-1).cpu().numpy(),
            log_sigma={name: scale for name, scale in scales.items() if scale is not None},
            use=self._use(),
        )

    def _use(self) -> Vector | None:
        """See `LocalUpdate.use`."""
        if self.fixed is None and self.kind not in get_args(HardKind):
            return None
        return (self._num_uses.reshape(-1) / self._num_steps).astype(np.float32)

    def local_state(self) -> dict[str, NDArray[np.float32]]:
        """Copies of all that was learnt, by name; see `AdaptResult.weights`."""
        named = dict(zip(self.weight_names, self.weights, strict=True))
        tensors = {name: local.mean for name, local in named.items()}
        tensors |= {LOG_SIGMA_PREFIX + name: local.log_s for name, local in named.items() if local.log_s is not None}
        tensors[ALPHA] = self.alpha.reshape(-1)
        tensors[CLASSIFIER_WEIGHT], tensors[CLASSIFIER_BIAS] = self.classifier.weight, self.classifier.bias
        return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
