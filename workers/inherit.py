"""A network that is ready to use: cut out of an adapted supernet, fine-tuned, with BatchNorm statistics of its own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult, Evaluation
from common.meta.inherit import inherited_network
from common.network_config import NETWORK, NETWORK_FOLDER, WEIGHTS
from common.nn.calibration import recalibrate_
from common.nn.full import FullNetwork
from common.nn.supernet import match_channels
from common.space.genotype import Genotype
from common.streams import stream
from workers.data.episodes import Episode
from workers.device import ResidentImages, resident

NETWORK_FILES = (f"{NETWORK_FOLDER}/{WEIGHTS}", f"{NETWORK_FOLDER}/{NETWORK}")
"""The network's files, by their names in a job's folder."""

_TEST_BATCH = 512


@dataclass(frozen=True, eq=False)
class ReadyNetwork:
    """A derived network, trained for one task.

    Attributes:
        network: on the CPU, in evaluation mode: a prediction depends on its own image alone.
        fine_tuned: its training inside the supernet; its evaluations are transductive.
        tested: the network on the held-out images as it is stored (inductive).
        num_calibration_images: training images that BatchNorm's statistics are measured on.
    """

    network: FullNetwork
    fine_tuned: AdaptResult
    tested: Evaluation
    num_calibration_images: int


def fine_tune_request(
    request: AdaptRequest, adapted: AdaptResult, genotype: Genotype, steps: int, eval_steps: tuple[int, ...]
) -> AdaptRequest:
    """The request that goes on from an adapted supernet with the ops of one genotype alone.

    Args:
        request: of the adaptation; its inner loop is used again, on all training images.
        adapted: its result, with weights.
        genotype: what was derived.
        steps: >= 1.
        eval_steps: when to measure.
    """
    changes = {"steps": steps, "batch_size": adapted.batch_size, "level": "single"}
    return replace(
        request,
        # Other batches than those that were just seen.
        task=request.task.model_copy(update={"task_id": f"{request.task.task_id}/fine_tune"}),
        inner=request.inner.model_copy(update=changes),
        genotype=genotype,
        start=adapted.weights,
        eval_steps=eval_steps,
        returns_update=False,
        returns_weights=True,
    )


def ready_network(request: AdaptRequest, fine_tuned: AdaptResult, episode: Episode) -> ReadyNetwork:
    """Cuts out what was fine-tuned, measures BatchNorm's statistics on the training images, and tests the network.

    Args:
        request: of `fine_tune_request`.
        fine_tuned: its result.
        episode: the task's images.

    Raises:
        AdaptationError: the fine-tuning diverged.
        InvalidInputError: as `common.nn.derived.cut`.
    """
    for step, loss in enumerate(fine_tuned.train_losses):
        if not math.isfinite(loss):
            raise AdaptationError(f"the loss is {loss} at step {step} of the fine-tuning; lower theta.lr")
    assert fine_tuned.weights is not None and request.genotype is not None
    task = request.task
    network = inherited_network(fine_tuned.weights, request.genotype, request.space, request.network, task.image_size)
    cpu = torch.device("cpu")
    train = resident(episode.train_images, episode.train_labels, cpu)
    test = resident(episode.test_images, episode.test_labels, cpu)
    order = stream(request.study_seed, task.task_id, "calibration order").permutation(train.num_images)
    parts = np.array_split(order, math.ceil(train.num_images / fine_tuned.batch_size))
    channels = request.network.image_channels
    recalibrate_(network, (match_channels(train.batch(part)[0], channels) for part in parts))
    return ReadyNetwork(network, fine_tuned, _test(network, test, request.inner.steps), train.num_images)


def describe_network(ready: ReadyNetwork, classes: tuple[str, ...]) -> dict[str, Any]:
    """What result.json holds about the network: plain values."""
    config = ready.network.config
    return {
        "folder": NETWORK_FOLDER,
        "fine_tune_steps": len(ready.fine_tuned.train_losses),
        "train_losses_nats": list(ready.fine_tuned.train_losses),
        "evaluations": [
            {"step": found.step, "accuracy": found.accuracy, "loss_nats": found.loss}
            for found in ready.fine_tuned.evaluations
        ],
        "evaluation_mode": "transductive: BatchNorm by the statistics of the test images",
        "inductive": {"accuracy": ready.tested.accuracy, "loss_nats": ready.tested.loss},
        "inductive_mode": f"BatchNorm by statistics of {ready.num_calibration_images} training images, as stored",
        "classes": list(classes),
        "input": f"{config.image_channels} x {config.image_size} x {config.image_size}, bytes / 127.5 - 1; "
        "the one channel of gray images is repeated",
        "fine_tune_s": ready.fine_tuned.adapt_s,
    }


def summary_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers of `describe_network` that travel with a job."""
    return {
        "steps": content["fine_tune_steps"],
        "accuracy": content["evaluations"][-1]["accuracy"],
        "inductive_accuracy": content["inductive"]["accuracy"],
        "inductive_loss_nats": content["inductive"]["loss_nats"],
    }


@torch.no_grad()
def _test(network: FullNetwork, test: ResidentImages, step: int) -> Evaluation:
    correct, total_loss = 0.0, 0.0
    for part in np.array_split(np.arange(test.num_images), math.ceil(test.num_images / _TEST_BATCH)):
        images, labels = test.batch(part)
        logits = network(match_channels(images, network.config.image_channels))
        correct += float((logits.argmax(dim=1) == labels).sum())
        total_loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Evaluation(step, correct / test.num_images, total_loss / test.num_images)
