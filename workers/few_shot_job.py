"""A few-shot job: learns classes from a handful of images, labels others, and stores what was learnt.

The folder of the job:
    predictions.json       classes; name, label and probabilities of every query
    weights.safetensors    the adapted vectors, by their names in the prior
    network/               where the study's networks are of one genotype: the adapted one, ready to use, see
                           `common.network_config`
    result.json            all else: architecture and its posterior, losses of the support images
    manifest.json          names, sizes and SHA-256 of all, written last: a result without one is not complete
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common.config import DatasetRef
from common.derivation import ScoredGenotype
from common.limits import Limits
from common.messages import AdaptRequest, FewShotRequest, JobResult
from common.meta.few_shot_network import FewShotNetwork
from common.meta.inherit import genotype_network
from common.meta.params import ALPHA, CLASSIFIER
from common.meta.prior import Prior
from common.nn.calibration import recalibrate_
from common.nn.full import FullNetwork
from common.nn.supernet import match_channels
from common.space.genotype import Genotype
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from workers.data.arrays import Images
from workers.data.handful import Handful, handful_from_bytes
from workers.device import to_float, use_single_thread
from workers.environment import environment
from workers.few_shot import Adapted, predict
from workers.job import entropies, find_genotype
from workers.results import RESULT, WEIGHTS, json_bytes, plain, store_results, weights_bytes
from workers.runner import TaskRunner

PREDICTIONS = "predictions.json"
MAX_SHOWN = 100
"""Predictions that travel with the job; the file has all."""


def run_few_shot(runner: TaskRunner, prior: Prior, request: FewShotRequest) -> JobResult:
    """Reads the images, adapts the prior to them, labels the queries, stores everything.

    Args:
        runner: keeps the network from one job to the next.
        prior: of the version that the request names.
        request: what to do.

    Raises:
        ConflictError: the prior is of another version.
        UnavailableError: the images cannot be read, or the results not be stored.
        CorruptArtifactError: the file of images does not have its SHA-256.
        AdaptationError: the adaptation diverged, or memory does not suffice.
    """
    started_s = time.perf_counter()
    use_single_thread()
    handful = _images(request)
    adapting = adapt_request(request, prior)
    network = runner.few_shot_network(adapting)
    labels = np.array(request.task.labels, np.int64)
    start = of_ways(prior, len(request.task.classes), request.config.families[0].num_ways)
    adapted = runner.within_memory(
        adapting, lambda: predict(start, adapting, network, handful.support, labels, handful.queries)
    )
    found = None
    if adapted.probabilities:
        found = find_genotype(adapted.probabilities, adapting.task, request.config, "top2_pairs", Limits())
    given = None if adapting.few_shot is None else adapting.few_shot.genotype
    ready = None if given is None else ready_network(network, given, adapted, handful.support)
    content = _describe(request, prior, adapted, network, found, ready)
    predictions = _predictions(request, adapted)
    seconds = time.perf_counter() - started_s
    files = {
        PREDICTIONS: json_bytes({"classes": list(request.task.classes), "predictions": predictions}),
        WEIGHTS: weights_bytes(adapted.vectors),
        RESULT: json_bytes({**content, "seconds": seconds}),
    }
    artifacts = store_results(ArtifactFolder(request.result_url), files, ready)
    summary = {name: content[name] for name in _SUMMARY}
    summary |= {
        "prior_version": prior.version,
        "predictions": predictions[:MAX_SHOWN],
        "entropy_nats": {} if found is None else content["architecture_posterior"]["entropy_nats"],
        "has_network": ready is not None,
        "seconds": seconds,
    }
    return JobResult(request.job_id, None, summary, artifacts)


_SUMMARY = (
    *("classes", "num_queries", "statistics", "steps", "support_losses_nats"),
    *("genotype", "genotype_probability", "num_params", "path"),
)


def adapt_request(request: FewShotRequest, prior: Prior) -> AdaptRequest:
    """What `workers.few_shot` is asked for. Equal images, options and seeds find the same, whatever the job's name."""
    config, task = request.config, request.task
    relaxation, _ = config.relaxation.at(request.version, config.rounds)
    return AdaptRequest(
        task=LearningTask(
            task_id=f"few_shot/{request.seed}",
            data=DatasetRef(source="a request"),
            classes=task.classes,
            image_size=task.image_size,
        ),
        space=config.space,
        network=config.network,
        inner=config.adapt,
        study_seed=config.seed,
        version=request.version,
        relaxation=relaxation,
        tau=prior.tau,
        returns_update=False,
        returns_weights=True,
        few_shot=config.few_shot,
    )


def of_ways(prior: Prior, num_ways: int, most: int) -> Prior:
    """The prior for tasks of fewer classes than its own: with the first rows of its classifier.

    Labels of meta-training's tasks are in random order, so no row is better placed than another.

    Args:
        prior: of tasks of `most` classes.
        num_ways: classes, at most as many.
        most: rows of the prior's classifier.
    """
    classifier = prior.vectors[CLASSIFIER]
    num_weights = len(classifier) - most
    num_features = num_weights // most
    parts = (classifier[: num_ways * num_features], classifier[num_weights : num_weights + num_ways])
    return replace(prior, vectors={**prior.vectors, CLASSIFIER: np.concatenate(parts)})


def ready_network(network: FewShotNetwork, genotype: Genotype, adapted: Adapted, support: Images) -> FullNetwork:
    """The adapted network of a genotype, by itself, on the CPU: inductive, by the BatchNorm statistics of `support`."""
    parameters = torch.cat([torch.from_numpy(adapted.vectors[name]) for name in network.names])
    ready = genotype_network(network, genotype, parameters)
    images = to_float(torch.from_numpy(support).permute(0, 3, 1, 2))
    recalibrate_(ready, [match_channels(images, ready.config.image_channels)])
    return ready


def _images(request: FewShotRequest) -> Handful:
    folder, _, name = request.file.url.rpartition("/")
    assert request.file.sha256 is not None, "the gateway has written the file"
    return handful_from_bytes(ArtifactFolder(folder).read(name), request.file.sha256, request.file.url)


def _predictions(request: FewShotRequest, adapted: Adapted) -> list[dict[str, Any]]:
    task, prediction = request.task, adapted.prediction
    return [
        {
            "name": name,
            "label": task.classes[label],
            "probability": float(row[label]),
            "probabilities": row.tolist(),
        }
        for name, label, row in zip(task.query_names, prediction.labels, prediction.probabilities, strict=True)
    ]


def _describe(
    request: FewShotRequest,
    prior: Prior,
    adapted: Adapted,
    network: FewShotNetwork,
    found: ScoredGenotype | None,
    ready: FullNetwork | None,
) -> dict[str, Any]:
    """What result.json holds, but for the seconds: plain values."""
    task, config = request.task, request.config
    assert config.few_shot is not None
    genotype = config.few_shot.genotype if found is None else found.genotype
    posterior = None
    if found is not None:
        posterior = {
            "ops": list(config.space.ops),
            "probabilities": {kind: values.tolist() for kind, values in adapted.probabilities.items()},
            "entropy_nats": entropies(adapted.probabilities, config.space),
        }
    return {
        "kind": "few_shot",
        "job": {"job_id": request.job_id, "attempt": request.attempt, "images": request.file.model_dump(mode="json")},
        "prior": {"version": prior.version, "sha256": prior.digest()},
        "classes": list(task.classes),
        "support": [
            {"name": name, "label": task.classes[label]}
            for name, label in zip(task.support_names, task.labels, strict=True)
        ],
        "num_queries": len(task.query_names),
        "few_shot": config.few_shot.model_dump(mode="json"),
        "seed": request.seed,
        "statistics": adapted.prediction.statistics,
        "steps": len(adapted.train_losses),
        "support_losses_nats": list(adapted.train_losses),
        "genotype": None if genotype is None else plain(genotype),
        "genotype_probability": None if found is None else found.probability,
        "architecture_posterior": posterior,
        "num_params": network.size - network.sizes.get(ALPHA, 0),
        "path": adapted.path,
        "network_statistics": None if ready is None else "inductive: BatchNorm by the support images",
        "adapt_s": adapted.adapt_s,
        "environment": environment(),
    }
