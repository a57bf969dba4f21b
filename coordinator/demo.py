"""The demo: meta-learn a small prior, adapt it to tasks it has never seen, and show what the prior was worth.

All of it goes through the service: a gateway, a coordinator and a local Ray, as `metasearch serve --local` runs them.
From scratch is a second study, whose prior is never trained.
"""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from common.config import DatasetRef, Split, StudyConfig, TaskFamily
from common.errors import AdaptationError
from common.loading import load
from common.space.genotype import Genotype, derive
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from coordinator.api.client import TERMINAL_STATES, SearchClient
from coordinator.api.stubs import search_pb2 as pb
from coordinator.experiment import fresh_tasks
from coordinator.local_service import LocalService, local_settings, local_token
from coordinator.progress import Bar
from coordinator.report import Panel, draw_cells, draw_curves, intervals_by_step, results_table
from coordinator.study import load_catalogs
from workers.environment import environment

EVAL_STEPS = (0, 1, 2, 5, 10, 20)
# Never used while the recipe was chosen.
TASK_SEED = 7
NUM_SCRIPT_TASKS = 8
NUM_DIGIT_TASKS = 6
PRIOR_ARM = "from the prior"
SCRATCH_ARM = "from scratch"
SCRIPTS_TITLE = "Unseen scripts"
DIGITS_TITLE = "Handwritten digits"
PRIOR_STUDY = "demo"
SCRATCH_STUDY = "scratch"


@dataclass(frozen=True)
class _Comparison:
    """Tasks of one kind, on which both arms are tried."""

    title: str
    family: TaskFamily
    split: Split
    num_tasks: int


def run_demo(run: Path, overrides: Sequence[str], address: str | None, console: Console) -> Mapping[str, object]:
    """Runs the demo into folder `run`: result.json, curves.png, cells.png, and a service's files in `run`/service.

    An interrupted demo goes on where it was; a finished one uses its prior again. No study is ever removed.

    Returns:
        What result.json holds.

    Raises:
        AlreadyExistsError: the folder holds a study of another configuration.
        KeyboardInterrupt: it was interrupted; a second call goes on.
    """
    started_s = time.monotonic()
    config = load("demo", overrides)
    folder = (run / "service").resolve()
    console.print("Preparing images (characters of many scripts are drawn once, then cached) ...")
    load_catalogs(config)
    settings = local_settings(folder, listen="127.0.0.1:0")
    logger = logging.getLogger("metasearch.demo")
    token = local_token(settings, folder)
    console.print("Starting the service: gateway, coordinator, Ray ...")
    service = LocalService(settings, logger, folder / "logs", address=address)
    try:
        service.start()
        with SearchClient(f"127.0.0.1:{service.port}", token) as client:
            client.create_study(PRIOR_STUDY, config=config.model_dump(mode="json"))
            client.create_study(SCRATCH_STUDY, config=scratch_config(config).model_dump(mode="json"))
            prior = _train(client, service, config, console)
            train_s = time.monotonic() - started_s
            panels, digits = _evaluate(client, service, config, console)
            genotype = _mean_genotype(client, digits, config, run / "artifacts")
    finally:
        service.stop()
    draw_curves(panels, run / "curves.png")
    draw_cells(genotype, run / "cells.png", "Cells found for handwritten digits")
    for panel in panels:
        console.print(results_table([panel], steps=[step for step in EVAL_STEPS if step > 1]))
    console.print("Accuracy on held-out images, mean over tasks and half of its 95 % interval. From scratch: the same")
    console.print("supernet with the settings that suit it best, without Gumbel noise and at learning rate 0.1.")
    result = {
        "prior": {"version": prior.prior_version, "sha256": prior.prior_sha256},
        "panels": {panel.title: intervals_by_step(panel) for panel in panels},
        "genotype": json.loads(genotype.to_json()),
        "train_s": round(train_s, 1),
        "total_s": round(time.monotonic() - started_s, 1),
        "environment": environment(),
        "config": json.loads(config.to_json()),
    }
    ArtifactFolder(run).write("result.json", json.dumps(result, indent=2).encode())
    return result


def scratch_config(config: StudyConfig) -> StudyConfig:
    """A study whose first prior is the same supernet without a prior, with the settings that suit it best.

    No Gumbel noise, temperature 1 and learning rate 0.1: Gumbel noise handicaps an untrained network; with it, the
    comparison would flatter the prior.
    """
    theta = config.adapt.theta.model_copy(update={"lr": 0.1})
    adapt = config.adapt.model_copy(update={"relaxation": "softmax", "theta": theta})
    relaxation = config.relaxation.model_copy(update={"tau_start": 1.0})
    return config.model_copy(update={"adapt": adapt, "relaxation": relaxation})


def _train(client: SearchClient, service: LocalService, config: StudyConfig, console: Console) -> pb.MetaTrainResult:
    """Has the service run the study's rounds, or go on with them."""
    study = f"studies/{PRIOR_STUDY}"
    unfinished = [
        job
        for job in client.list_jobs(study)
        if job.spec.WhichOneof("kind") == "meta_train" and job.state not in TERMINAL_STATES
    ]
    trained = client.get_study(study).prior_version
    if trained >= config.rounds:
        console.print("The prior is trained already, and would be the same again; remove the folder to watch it.")
    else:
        console.print(
            f"Meta-training {config.rounds} rounds of {config.families[0].tasks_per_round} ten-way tasks of characters"
        )
    job = unfinished[-1] if unfinished else client.meta_train(study)
    is_announced = False
    with Bar(console, "Rounds", config.rounds, trained) as bar:
        for response in client.watch(job.name):
            job = response.job
            if job.state == pb.JOB_STATE_RUNNING and not is_announced:
                is_announced = True
                for line in service.dashboard_lines():
                    console.print(line)
            loss = job.progress.metrics.get("train_loss_last")
            bar.show(job.progress.done, note="" if loss is None else f"loss {loss:.3f}")
    _check(job)
    return job.meta_train_result


def _evaluate(
    client: SearchClient, service: LocalService, config: StudyConfig, console: Console
) -> tuple[list[Panel], list[pb.Job]]:
    """Accuracy curves of both arms on unseen scripts and on digits; and the prior's jobs on digits."""
    scripts = config.families[0]
    digits = TaskFamily(data=DatasetRef(source="digits"), image_size=scripts.image_size)
    comparisons = (
        _Comparison(SCRIPTS_TITLE, scripts, "unseen", NUM_SCRIPT_TASKS),
        _Comparison(DIGITS_TITLE, digits, "all", NUM_DIGIT_TASKS),
    )
    panels = []
    for comparison in comparisons:
        family = comparison.family
        console.print(f"Submitting {comparison.num_tasks} tasks, to each study: {comparison.title.lower()}")
        tasks = fresh_tasks(family, comparison.split, comparison.num_tasks, TASK_SEED)
        arms = {
            arm: [_submit(client, f"studies/{study}", task) for task in tasks]
            for arm, study in ((PRIOR_ARM, PRIOR_STUDY), (SCRATCH_ARM, SCRATCH_STUDY))
        }
        finished: dict[str, list[pb.Job]] = {arm: [] for arm in arms}
        with Bar(console, comparison.title, 2 * comparison.num_tasks, 0) as bar:
            for arm, jobs in arms.items():
                for job in jobs:
                    finished[arm].append(_follow(client, job.name, bar))
        curves = {arm: _accuracies(jobs) for arm, jobs in finished.items()}
        title_and_size = f"{comparison.title}, {family.num_ways}-way, {comparison.num_tasks} tasks"
        panels.append(Panel(title_and_size, EVAL_STEPS, curves, chance=1 / family.num_ways))
    return panels, finished[PRIOR_ARM]


def _submit(client: SearchClient, study: str, task: LearningTask) -> pb.Job:
    """A job for a task; an earlier demo's, unless that failed: the same request again makes no new job."""
    digest = hashlib.sha256(f"{study} {task.model_dump_json()}".encode()).digest()
    for request_id in (str(uuid.UUID(bytes=digest[:16], version=4)), None):
        job = client.submit(
            study,
            task.data.source,
            request_id=request_id,
            classes=task.classes,
            image_size=task.image_size,
            train_per_class=task.train_per_class,
            test_per_class=task.test_per_class,
            steps=max(EVAL_STEPS),
            seed=task.seed % 2**31,
        )
        if job.state not in (pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED):
            break
    return job


def _follow(client: SearchClient, name: str, bar: Bar) -> pb.Job:
    """Watches a job to its end."""
    job = pb.Job()
    for response in client.watch(name):
        job = response.job
        if job.progress.HasField("accuracy"):
            bar.show(
                bar.done, note=f"step {job.progress.done} of {job.progress.total}, best {job.progress.accuracy:.2f}"
            )
    _check(job)
    bar.show(bar.done + 1, note=f"accuracy {job.adapt_result.accuracy:.2f}")
    return job


def _check(job: pb.Job) -> None:
    if job.state != pb.JOB_STATE_SUCCEEDED:
        raise AdaptationError(f"{job.name} did not succeed: {job.failure.message or job.note}")


def _accuracies(jobs: Sequence[pb.Job]) -> NDArray[np.float64]:
    """Held-out accuracy 0..1, (num_tasks, num_eval_steps)."""
    by_step = [{point.step: point.accuracy for point in job.adapt_result.evaluations} for job in jobs]
    return np.array([[found[step] for step in EVAL_STEPS] for found in by_step])


def _mean_genotype(client: SearchClient, jobs: Sequence[pb.Job], config: StudyConfig, folder: Path) -> Genotype:
    """The genotype of the mean posterior over several tasks (BASE: how the ImageNet architecture is derived)."""
    posteriors: list[Any] = []
    for job in jobs:
        (path,) = client.download(job.name, folder / job.name.rpartition("/")[2], ["result.json"])
        posteriors.append(json.loads(path.read_text("utf-8"))["architecture_posterior"]["probabilities"])
    means = {kind: np.mean([posterior[kind] for posterior in posteriors], axis=0) for kind in config.space.cell_kinds}
    return derive(means, config.space.topology, config.space.ops)
