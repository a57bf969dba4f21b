"""Few-shot tasks: what one teaches the prior, how well it is solved, which labels unlabelled images get.

Pure functions of their arguments, as `workers.adapt`: random numbers are keyed by (study seed, task, step, purpose).
Every inner step sees the whole support set, the training half of an episode; the query set is the held-out half. No
image is augmented.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from common.errors import AdaptationError, ConflictError
from common.few_shot_config import BatchStatistics, FewShotConfig
from common.messages import AdaptRequest, AdaptResult, Evaluation, MetaGradient
from common.meta.embedding import Objective, meta_gradient, value_and_gradient
from common.meta.few_shot_network import FewShotNetwork, Path
from common.meta.params import ALPHA
from common.meta.posterior import evaluation_weights, probabilities, relax
from common.meta.prior import Prior, Vector
from common.nn.cell import Mixture
from common.nn.ops import take_statistics, use_statistics
from common.space.primitives import NONE
from common.streams import stream
from workers.data.arrays import Images
from workers.data.episodes import Episode
from workers.device import ResidentImages, autocast, resident, to_float

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """What a task's adapted network says of images.

    Attributes:
        probabilities: (num_images, num_ways).
        statistics: whose BatchNorm statistics it is of.
        path: what computed the cells of these passes.
    """

    probabilities: NDArray[np.float64]
    statistics: BatchStatistics
    path: Path

    @property
    def labels(self) -> Labels:
        """The most probable class of each image, (num_images,)."""
        found: Labels = self.probabilities.argmax(axis=1)
        return found


@dataclass(frozen=True)
class Adapted:
    """A prior after inner steps on a support set.

    Attributes:
        vectors: all parameters, by their names in the prior.
        probabilities: architecture posterior per kind of cell, (num_edges, num_primitives); empty where none learns.
        train_losses: support cross-entropy before each step, nats.
        prediction: of the query images.
        adapt_s: seconds spent stepping.
        path: what computed the cells of the steps.
    """

    vectors: Mapping[str, Vector]
    probabilities: Mapping[str, NDArray[np.float64]]
    train_losses: tuple[float, ...]
    prediction: Prediction
    adapt_s: float
    path: Path


def learn(
    prior: Prior,
    request: AdaptRequest,
    episode: Episode,
    network: FewShotNetwork,
    on_step: Callable[[int], None] = lambda step: None,
) -> AdaptResult:
    """A few-shot request: the task's meta-gradient where an update is wanted, else a test of the prior on the task.

    Args:
        prior: where the task starts; unchanged.
        request: the task, with `few_shot`; evaluations are of the query set, at `eval_steps` inner steps.
        episode: support set (training half) and query set (held-out half).
        network: of the request.
        on_step: called with the number of steps done, after each.

    Raises:
        ConflictError: the prior is not the version that the request names.
        AdaptationError: a test diverged. A meta-gradient that is not finite is returned: the outer step rejects it.
    """
    loop = _FewShotTask(prior, request, network, episode.train_images, episode.train_labels)
    query = resident(episode.test_images, episode.test_labels, loop.device)
    return loop.teach(query, on_step) if request.returns_update else loop.test(query, on_step)


def predict(
    prior: Prior,
    request: AdaptRequest,
    network: FewShotNetwork,
    support_images: Images,
    support_labels: Labels,
    query_images: Images,
    on_step: Callable[[int], None] = lambda step: None,
) -> Adapted:
    """Adapts the prior to a support set by `few_shot.test_steps` inner steps, and labels other images.

    Args:
        prior: where the task starts; unchanged.
        request: the task, with `few_shot`.
        network: of the request.
        support_images: uint8 (num_support, height, width, channels).
        support_labels: int64 (num_support,), below the network's number of classes.
        query_images: uint8 (num_queries, height, width, channels); may be none.
        on_step: called with the number of steps done, after each.

    Raises:
        ConflictError: the prior is not the version that the request names.
        AdaptationError: a loss is not finite.
    """
    loop = _FewShotTask(prior, request, network, support_images, support_labels)
    queries = resident(query_images, np.zeros(len(query_images), np.int64), loop.device) if len(query_images) else None
    return loop.predict(queries, on_step)


class _FewShotTask:
    """A task at work; see `learn` for the arguments."""

    def __init__(
        self, prior: Prior, request: AdaptRequest, network: FewShotNetwork, images: Images, labels: Labels
    ) -> None:
        assert request.few_shot is not None, "a few-shot request"
        if prior.version != request.version:
            raise ConflictError(f"the task starts from version {request.version}, the prior at hand is {prior.version}")
        self._request = request
        self._few_shot: FewShotConfig = request.few_shot
        self._network = network
        weight = next(network.module.parameters())
        self.device, self._dtype = weight.device, weight.dtype
        self._support = resident(images, labels, self.device)
        space = request.space
        self._none_column = space.ops.index(NONE) if NONE in space.ops else None
        vectors = [torch.from_numpy(np.array(prior.vectors[name])) for name in network.names]
        self._start = torch.cat(vectors).to(self.device, self._dtype)
        alpha_lr = self._few_shot.alpha_lr if request.learns_alpha else 0.0
        rates = [
            torch.full((size,), alpha_lr if name == ALPHA else self._few_shot.theta_lr)
            for name, size in network.sizes.items()
        ]
        self._rates = torch.cat(rates).to(self.device, self._dtype)

    def teach(self, query: ResidentImages, on_step: Callable[[int], None]) -> AdaptResult:
        """The meta-gradient, and an evaluation after the last step, of images that no step has seen."""
        few_shot = self._few_shot
        started_s = time.perf_counter()
        learnt_on = self._support
        if few_shot.method == "reptile":
            # There is no query loss: the steps themselves take all that is labelled (Nichol et al. 2018, section 4).
            learnt_on = ResidentImages(
                torch.cat([self._support.images, query.images]), torch.cat([self._support.labels, query.labels])
            )
        inner = [self._objective(learnt_on, step) for step in range(few_shot.steps)]
        estimate = meta_gradient(
            few_shot.method, self._start, self._rates, inner, self._objective(query, "query"), few_shot.displacement
        )
        adapt_s = time.perf_counter() - started_s
        on_step(few_shot.steps)
        # What diverged is not an error here: the outer step rejects a gradient that is not finite, and goes on.
        losses = tuple(torch.stack(estimate.losses).tolist())
        gradients = {
            name: np.array(part.detach().to("cpu", torch.float32).numpy())
            for name, part in self._network.split(estimate.gradient).items()
        }
        task_id = self._request.task.task_id
        update = MetaGradient(task_id, self._request.version, self._support.num_images, gradients)
        is_held_out = few_shot.method != "reptile"
        is_wanted = is_held_out and few_shot.steps in self._request.eval_steps
        evaluations = [self._evaluation(few_shot.steps, estimate.end, query)] if is_wanted else []
        return self._result(estimate.end, losses, evaluations, adapt_s, update)

    def test(self, query: ResidentImages, on_step: Callable[[int], None]) -> AdaptResult:
        """Evaluations at the steps that are asked for."""
        evaluations: list[Evaluation] = []

        def look(step: int, parameters: Tensor) -> None:
            if step in self._request.eval_steps:
                evaluations.append(self._evaluation(step, parameters, query))

        end, losses, adapt_s = self._descend(on_step, look)
        return self._result(end, losses, evaluations, adapt_s, None)

    def predict(self, queries: ResidentImages | None, on_step: Callable[[int], None]) -> Adapted:
        """The adapted state, and what it says of images."""
        end, losses, adapt_s = self._descend(on_step, lambda step, parameters: None)
        if queries is None:
            path: Path = "pytorch" if self._few_shot.evaluation == "inductive" else self._network.path
            none = np.zeros((0, self._network.num_ways))
            prediction = Prediction(none, self._few_shot.evaluation, path)
        else:
            prediction = self._prediction(end, queries)
        return Adapted(self._vectors(end), self._probabilities(end), losses, prediction, adapt_s, self._network.path)

    def _descend(
        self, on_step: Callable[[int], None], look: Callable[[int, Tensor], None]
    ) -> tuple[Tensor, tuple[float, ...], float]:
        """The parameters after `test_steps` steps, the loss before each, seconds; `look` sees every iterate."""
        parameters, losses, adapt_s = self._start, list[Tensor](), 0.0
        look(0, parameters)
        for step in range(self._few_shot.test_steps):
            started_s = time.perf_counter()
            loss, gradient = value_and_gradient(self._objective(self._support, step), parameters)
            parameters = parameters - self._rates * gradient
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the clock counts work done, not work queued
            adapt_s += time.perf_counter() - started_s
            losses.append(loss)
            look(step + 1, parameters)
            on_step(step + 1)
        found = self._finite(losses, len(losses))
        if not torch.isfinite(parameters).all():
            raise AdaptationError(f"task {self._request.task.task_id}: the last step diverged; {_REMEDY}")
        return parameters, found, adapt_s

    def _objective(self, images: ResidentImages, step: int | str) -> Objective:
        """Mean cross-entropy, nats, of all parameters, with the noise of a step; the query set has its own."""
        batch, labels = to_float(images.images).to(self._dtype), images.labels
        noise = None
        if self._network.has_architecture and self._request.relaxation != "softmax":
            request = self._request
            drawn = stream(request.study_seed, request.task.task_id, step, "few-shot gumbel").gumbel(
                size=tuple(self._network.alpha(self._start).shape)
            )
            noise = torch.from_numpy(drawn).to(self.device, self._dtype)

        def objective(parameters: Tensor) -> Float[Tensor, ""]:
            return F.cross_entropy(self._logits(parameters, batch, self._mixtures(parameters, noise)), labels)

        return objective

    def _logits(self, parameters: Tensor, batch: Tensor, mixtures: Mapping[str, Mixture] | None) -> Tensor:
        with autocast(self.device, self._request.network.precision):
            logits = self._network.logits(parameters, batch, mixtures)
        return logits.to(self._dtype)

    def _mixtures(self, parameters: Tensor, noise: Tensor | None) -> Mapping[str, Mixture] | None:
        if not self._network.has_architecture:
            return None
        request, space = self._request, self._request.space
        relaxed = relax(
            self._network.alpha(parameters),
            noise,
            request.tau,
            request.relaxation,
            space.topology,
            space.normalisation,
            self._none_column,
        )
        return relaxed.mixtures(tuple(space.cell_kinds))

    def _evaluation_mixtures(self, parameters: Tensor) -> Mapping[str, Mixture] | None:
        """What training saw on average: the noise-free posterior, as its relaxation computes it."""
        if not self._network.has_architecture:
            return None
        request, space = self._request, self._request.space
        if request.relaxation == "single_path":
            return self._mixtures(parameters, None)
        alpha = self._network.alpha(parameters)
        weights = evaluation_weights(alpha, request.tau, request.relaxation, space.topology, space.normalisation)
        return {kind: Mixture(weights[index]) for index, kind in enumerate(space.cell_kinds)}

    @torch.no_grad()
    def _query_logits(self, parameters: Tensor, queries: ResidentImages) -> Tensor:
        """Logits (num_queries, num_ways) without noise, by the BatchNorm statistics that `few_shot.evaluation` names.

        Inductive: the means and variances that the support images have in the adapted network; so what is said of an
        image does not depend on which others are asked about.
        """
        mixtures = self._evaluation_mixtures(parameters)
        batch = to_float(queries.images).to(self._dtype)
        if self._few_shot.evaluation == "transductive":
            return self._logits(parameters, batch, mixtures)
        with take_statistics() as statistics:
            self._logits(parameters, to_float(self._support.images).to(self._dtype), mixtures)
        with use_statistics(statistics):
            return self._logits(parameters, batch, mixtures)

    def _prediction(self, parameters: Tensor, queries: ResidentImages) -> Prediction:
        likely = self._query_logits(parameters, queries).double().softmax(dim=1).cpu().numpy()
        if not np.isfinite(likely).all():
            raise AdaptationError(f"task {self._request.task.task_id}: predictions are not finite; {_REMEDY}")
        path: Path = "pytorch" if self._few_shot.evaluation == "inductive" else self._network.path
        return Prediction(likely, self._few_shot.evaluation, path)

    def _evaluation(self, step: int, parameters: Tensor, query: ResidentImages) -> Evaluation:
        logits = self._query_logits(parameters, query)
        correct = int((logits.argmax(dim=1) == query.labels).sum())
        return Evaluation(step, correct / query.num_images, float(F.cross_entropy(logits, query.labels)))

    def _result(
        self,
        end: Tensor,
        losses: tuple[float, ...],
        evaluations: Sequence[Evaluation],
        adapt_s: float,
        update: MetaGradient | None,
    ) -> AdaptResult:
        num_images = self._support.num_images
        return AdaptResult(
            task_id=self._request.task.task_id,
            update=update,
            probabilities=self._probabilities(end),
            train_losses=losses,
            evaluations=tuple(evaluations),
            adapt_s=adapt_s,
            images_per_s=len(losses) * num_images / adapt_s if adapt_s else 0.0,
            batch_size=num_images,
            weights=self._vectors(end) if self._request.returns_weights else None,
            path=self._network.path,
        )

    def _vectors(self, parameters: Tensor) -> dict[str, Vector]:
        parts = self._network.split(parameters)
        return {name: np.array(part.detach().to("cpu", torch.float32).numpy()) for name, part in parts.items()}

    def _probabilities(self, parameters: Tensor) -> dict[str, NDArray[np.float64]]:
        if not self._network.has_architecture:
            return {}
        space = self._request.space
        alpha = self._network.alpha(parameters).detach().double()
        values = probabilities(alpha, space.topology, space.normalisation).cpu().numpy()
        return {kind: values[index] for index, kind in enumerate(space.cell_kinds)}

    def _finite(self, losses: Sequence[Tensor], num_steps: int) -> tuple[float, ...]:
        values = torch.stack(list(losses)).tolist() if losses else []
        for step, value in enumerate(values):
            if not np.isfinite(value):
                place = f"task {self._request.task.task_id}, step {step + 1} of {num_steps}"
                raise AdaptationError(f"{place}: the loss is {value}; {_REMEDY}")
        return tuple(values)


_REMEDY = "lower few_shot.theta_lr or few_shot.alpha_lr"
