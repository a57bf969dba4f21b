"""A job: adapts to a task that a user brings, or trains and tests a full network, and stores what was found.

The folder of a job that adapts:
    weights.safetensors    the adapted vectors, see `AdaptResult.weights`
    network/               with fine-tuning: the derived network, ready to use, see `common.network_config`
    result.json            all else that was found, see `describe`
    manifest.json          names, sizes and SHA-256 of all, written last: a result without one is not complete

Of one that evaluates:
    checkpoints/           see `workers.checkpoint`
    weights.safetensors, network.json    the trained network, see `common.network_config`
    result.json            all else, see `workers.evaluate.describe`
    manifest.json          as above, of the three files
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.config import SpaceConfig, StudyConfig
from common.cost import network_cost
from common.derivation import ScoredGenotype, genotype_probability, select, top_genotypes
from common.derived_config import derived_config
from common.errors import AdaptationError, InvalidInputError
from common.latency import network_ms
from common.limits import Limits
from common.messages import (
    AdaptRequest,
    AdaptResult,
    ArtifactInfo,
    EvaluateRequest,
    EvaluateResult,
    Evaluation,
    Interim,
    JobRequest,
    JobResult,
)
from common.meta.posterior import num_categoricals
from common.meta.prior import Prior
from common.network_config import NETWORK
from common.nn.stored import save_network
from common.space.genotype import DerivationRule, derive
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from workers.checkpoint import CheckpointFolder
from workers.data.cache import cache_root
from workers.data.choice import task_of
from workers.data.episodes import load_episode
from workers.data.fetch import fetch
from workers.data.whole import load_whole
from workers.environment import environment
from workers.evaluate import CHECKPOINTS, EvaluationPlan
from workers.evaluate import describe as describe_evaluation
from workers.inherit import (
    describe_network,
    fine_tune_request,
    ready_network,
    summary_of,
)
from workers.results import (
    RESULT,
    WEIGHTS,
    begin_results,
    info_of,
    json_bytes,
    plain,
    store_results,
    weights_bytes,
    write_files,
    write_manifest,
)
from workers.runner import TaskRunner
from workers.training import TrainProgress, train

# Every job's task has this id, for its random numbers: equal requests find the same, whatever the job is called.
TASK_ID = "adapt"

NUM_TOP_GENOTYPES = 5

Probabilities = Mapping[str, NDArray[np.float64]]


def run_job(
    runner: TaskRunner,
    prior: Prior,
    request: JobRequest,
    on_step: Callable[[int], None] = lambda step: None,
    on_interim: Callable[[Interim], None] = lambda interim: None,
) -> JobResult:
    """Fetches the images, adapts the prior to them, derives an architecture, stores everything.

    Args:
        runner: does the adapting.
        prior: of the version that the request names.
        request: what to do.
        on_step: called with the number of steps done, after each.
        on_interim: called at each evaluation with the best found so far, by accuracy; the latest of equals.

    Raises:
        InvalidInputError: the choice of images or classes is wrong, or no architecture is within the limits.
        NotFoundError: the images do not exist.
        ConflictError: the prior is of another version.
        UnavailableError: the images cannot be fetched, or the results not be stored.
        CorruptArtifactError: the file of images does not have its SHA-256.
        AdaptationError: the adaptation diverged, or ran out of memory.
    """
    check_limits(request.derivation, request.limits)
    task = _task(request)
    if request.fine_tune_steps is not None:  # before the work, not after it
        derived_config(request.config.space, request.config.network, task.image_size, len(task.classes))
    best: Interim | None = None

    def note(evaluation: Evaluation, probabilities: Probabilities) -> None:
        nonlocal best
        _check_finite(evaluation.loss, evaluation.step)
        if best is None or evaluation.accuracy >= best.accuracy:
            found = find_genotype(probabilities, task, request.config, request.derivation, request.limits)
            best = Interim(evaluation.step, evaluation.accuracy, found.genotype)
        on_interim(best)

    adapting = _adapt_request(request, task, prior)
    result = runner.run(prior, adapting, on_step, note)
    for step, loss in enumerate(result.train_losses):
        _check_finite(loss, step)
    found = find_genotype(result.probabilities, task, request.config, request.derivation, request.limits)
    content = describe(result, task, prior, request.config, request.derivation, found, request.limits)
    content["job"] = {
        "job_id": request.job_id,
        "attempt": request.attempt,
        "file": None if request.file is None else request.file.model_dump(mode="json"),
    }
    assert result.weights is not None
    ready = None
    if request.fine_tune_steps is not None:
        steps = request.fine_tune_steps
        tuning = fine_tune_request(adapting, result, found.genotype, steps, evaluation_steps(steps))
        tuned = runner.run(prior, tuning, lambda step: on_step(request.inner.steps + step))
        ready = ready_network(tuning, tuned, load_episode(task))
        content["derived_network"] = describe_network(ready, task.classes)
    return JobResult(
        job_id=request.job_id,
        update=None if result.update is None else replace(result.update, task_id=request.job_id),
        summary=_summary(content),
        artifacts=store_results(
            ArtifactFolder(request.result_url),
            {WEIGHTS: weights_bytes(result.weights), RESULT: json_bytes(content)},
            None if ready is None else ready.network,
        ),
    )


def run_evaluation(
    request: EvaluateRequest,
    device: torch.device,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock_s: Callable[[], float] = time.monotonic,
) -> EvaluateResult:
    """Trains a full network for a while, from where an earlier call or attempt stopped; once done, tests and stores it.

    Args:
        request: what to do.
        device: to compute on.
        on_progress: called after every step.
        should_stop: asked after every step; once true, the call ends before its time.
        clock_s: seconds.

    Raises:
        InvalidInputError: the images or the recipe do not fit.
        MetaSearchError: of the other kinds, as `run_job` and `workers.training.train`.
    """
    data = request.data
    if request.file is not None:
        data = data.model_copy(update={"source": str(fetch(request.file, cache_root()))})
    source = load_whole(data, request.config)
    folder = ArtifactFolder(request.result_url)
    checkpoints = ArtifactFolder(f"{request.result_url}/{CHECKPOINTS}")
    CheckpointFolder(checkpoints).adopt_(_earlier_checkpoints(request.result_url))
    ends_s = clock_s() + request.slice_s
    steps: list[int] = []  # done so far: at the start, and after each of this call's

    def note(progress: TrainProgress) -> None:
        steps.append(progress.steps_done)
        on_progress(progress)

    def is_over() -> bool:
        """A call shorter than a step makes one all the same: else it would be called for ever."""
        return (clock_s() >= ends_s or should_stop()) and len(steps) > 1

    outcome = train(
        request.genotype,
        request.config,
        source,
        checkpoints,
        device,
        on_progress=note,
        should_stop=is_over,
        clock_s=clock_s,
    )
    if outcome.tested is None:
        return EvaluateResult(request.job_id, outcome.state.epoch, None, ())
    plan = EvaluationPlan(name=request.job_id, genotype=request.genotype, config=request.config, data=request.data)
    content = describe_evaluation(plan, source, outcome, num_processes=1)
    content["job"] = {
        "job_id": request.job_id,
        "attempt": request.attempt,
        "file": None if request.file is None else request.file.model_dump(mode="json"),
    }
    begin_results(folder)
    stored = save_network(folder, outcome.network)
    network = ArtifactInfo(WEIGHTS, stored.num_bytes, stored.sha256)
    artifacts = (network, info_of(NETWORK, folder.read(NETWORK)), *write_files(folder, {RESULT: json_bytes(content)}))
    write_manifest(folder, artifacts)
    return EvaluateResult(request.job_id, outcome.state.epoch, _evaluation_summary(content), artifacts)


def check_limits(rule: DerivationRule, limits: Limits) -> None:
    """Refuses limits that the rule of derivation cannot keep.

    Raises:
        InvalidInputError: there are limits, and the rule is not top2_pairs.
    """
    if rule != "top2_pairs" and limits != Limits():
        raise InvalidInputError(f"limits need the derivation top2_pairs, got {rule!r}; change it, or remove the limits")


def evaluation_steps(steps: int) -> tuple[int, ...]:
    """When to measure: 0, 1, 2, 5, 10, 20, 50, ... and at the end."""
    marks = {0, steps}
    scale = 1
    while scale <= steps:
        marks |= {mark for mark in (scale, 2 * scale, 5 * scale) if mark <= steps}
        scale *= 10
    return tuple(sorted(marks))


def find_genotype(
    probabilities: Probabilities, task: LearningTask, config: StudyConfig, rule: DerivationRule, limits: Limits
) -> ScoredGenotype:
    """The architecture that an adapted posterior stands for, and its probability.

    Raises:
        InvalidInputError: no architecture is within the limits, or the rule takes none.
    """
    check_limits(rule, limits)
    space = config.space
    if rule == "top2_pairs":
        return select(probabilities, space, config.network, task.image_size, len(task.classes), limits)
    genotype = derive(probabilities, space.topology, space.ops, rule, seed=task.seed)
    return ScoredGenotype(genotype, genotype_probability(genotype, probabilities, space))


def describe(
    result: AdaptResult,
    task: LearningTask,
    prior: Prior,
    config: StudyConfig,
    rule: DerivationRule,
    found: ScoredGenotype,
    limits: Limits,
) -> dict[str, Any]:
    """What result.json holds about an adaptation: plain values."""
    space = config.space
    cost = network_cost(found.genotype, space, config.network, task.image_size, len(task.classes))
    network: dict[str, float] = {"num_params": cost.num_params, "num_macs": cost.num_macs}
    if limits.latency_table is not None:
        network["latency_ms"] = network_ms(found.genotype, limits.latency_table)
    return {
        "task": task.model_dump(mode="json"),
        "prior": {"version": prior.version, "sha256": prior.digest()},
        "genotype": plain(found.genotype),
        "probability": found.probability,
        "derivation": rule,
        "limits": limits.plain(),
        "top_genotypes": [
            {"genotype": plain(scored.genotype), "probability": scored.probability}
            for scored in top_genotypes(result.probabilities, space, NUM_TOP_GENOTYPES)
        ],
        "network": network,
        "architecture_posterior": {
            "ops": list(space.ops),
            "probabilities": {kind: values.tolist() for kind, values in result.probabilities.items()},
            "entropy_nats": entropies(result.probabilities, space),
        },
        "evaluations": [
            {"step": evaluation.step, "accuracy": evaluation.accuracy, "loss_nats": evaluation.loss}
            for evaluation in result.evaluations
        ],
        "evaluation_mode": "transductive: BatchNorm by the statistics of the test images",
        "train_losses_nats": list(result.train_losses),
        "batch_size": result.batch_size,
        "adapt_s": result.adapt_s,
        "images_per_s": result.images_per_s,
        "environment": environment(),
    }


def entropies(probabilities: Probabilities, space: SpaceConfig) -> dict[str, float]:
    """Mean entropy of the categoricals of each kind of cell, in nats."""
    count = num_categoricals(space.topology, space.normalisation)
    return {
        kind: float(torch.special.entr(torch.from_numpy(np.array(values))).sum()) / count
        for kind, values in probabilities.items()
    }


def _task(request: JobRequest) -> LearningTask:
    choice = request.choice
    if request.file is not None:
        path = fetch(request.file, cache_root())
        choice = choice.model_copy(update={"data": choice.data.model_copy(update={"source": str(path)})})
    return task_of(choice, request.config, TASK_ID)


def _adapt_request(request: JobRequest, task: LearningTask, prior: Prior) -> AdaptRequest:
    config = request.config
    relaxation, _ = config.relaxation.at(request.version, config.rounds)
    return AdaptRequest(
        task=task,
        space=config.space,
        network=config.network,
        inner=request.inner,
        study_seed=config.seed,
        version=request.version,
        relaxation=relaxation,
        tau=prior.tau,
        eval_steps=evaluation_steps(request.inner.steps),
        returns_update=request.returns_update,
        returns_weights=True,
    )


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise AdaptationError(f"the loss is {loss} at step {step}: the adaptation diverged; lower theta.lr")


def _summary(content: Mapping[str, Any]) -> dict[str, Any]:
    evaluations = content["evaluations"]
    return {
        "genotype": content["genotype"],
        "probability": content["probability"],
        "top_genotypes": content["top_genotypes"],
        "accuracy": evaluations[-1]["accuracy"],
        "num_params": content["network"]["num_params"],
        "num_macs": content["network"]["num_macs"],
        **{name: value for name, value in content["network"].items() if name == "latency_ms"},
        "entropy_nats": content["architecture_posterior"]["entropy_nats"],
        "evaluations": evaluations,
        "prior_version": content["prior"]["version"],
        "steps": len(content["train_losses_nats"]),
        "seconds": content["adapt_s"],
        **({"fine_tuned": summary_of(content["derived_network"])} if "derived_network" in content else {}),
    }


def _earlier_checkpoints(result_url: str) -> list[CheckpointFolder]:
    """Those of the folders beside this attempt's, which are of earlier attempts."""
    job_url, _, own = result_url.rstrip("/").rpartition("/")
    names = ArtifactFolder(job_url).names("", "")
    return [CheckpointFolder(ArtifactFolder(f"{job_url}/{name}/{CHECKPOINTS}")) for name in names if name != own]


def _evaluation_summary(content: Mapping[str, Any]) -> dict[str, Any]:
    low, high = content["interval_95"]
    fields = ("epoch", "lr", "train_loss_nats", "train_accuracy", "accuracy")
    return {
        "genotype": content["genotype"],
        "accuracy": content["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "num_test": content["num_test"],
        "num_params": content["network"]["num_params"],
        "num_macs": content["network"]["num_macs"],
        "epochs": content["epochs"],
        "ended_by": content["ended_by"],
        "train_s": content["train_s"],
        "learning_curve": [{name: record[name] for name in fields} for record in content["learning_curve"]],
    }
