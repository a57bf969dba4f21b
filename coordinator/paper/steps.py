"""Carries out what a target needs, step by step, into a run's folder; what is there already is not done again.

A run's folder:
    paper.json                         the resolved configuration, and what it was computed with; written first
    images/                            see `coordinator.paper.images`
    meta/                              the meta-training: a run as `metasearch train` leaves it
    adaptations/GROUP/NUMBER/          each adaptation: result.json as of `metasearch adapt`, and body.safetensors
    figure4/ARM/NUMBER/                likewise, of figure 4
    few_shot/                          table 4, see `coordinator.paper.few_shot_steps`
    evaluations/TABLE/ROW/attempt-1/   each training of a full network: results as of an evaluate job
    results.json, paper.html, figures/, cells/    what came out, see `coordinator.paper.outcome` and `page`
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from common.config import InnerConfig
from common.errors import ConflictError, CorruptArtifactError, NotFoundError
from common.limits import Limits
from common.messages import EvaluateRequest
from common.meta.params import BODY
from common.meta.prior import Prior, initial_prior
from common.space.genotype import Genotype, derive
from common.space.released import released_genotype
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from common.values import explain
from coordinator import study
from coordinator.evaluations import attempts_in
from coordinator.experiment import Arm, adapt_request, fresh_tasks
from coordinator.outer import prior_genotype
from coordinator.paper.anchors import TITLES, TableName
from coordinator.paper.experiments import (
    FIGURE3_GROUPS,
    ROWS,
    GroupName,
    PaperConfig,
    TableRow,
    Target,
    TaskGroup,
    figure4_family,
    figure4_steps,
    groups_of,
    needs_figure4,
    needs_prior,
    recipe_of,
    tables_of,
    task_groups,
)
from coordinator.paper.few_shot_steps import FEW_SHOT, run_few_shot
from coordinator.paper.images import FOLDER as IMAGES
from coordinator.paper.images import PreparedImages, prepare_images
from coordinator.paper.studies import Lazily, OpenWorkers, Say, finished_prior, meta_train
from workers.environment import environment
from workers.job import describe, evaluation_steps, find_genotype
from workers.results import MANIFEST, RESULT

PAPER = "paper.json"
META, ADAPTATIONS, FIGURE4, EVALUATIONS = "meta", "adaptations", "figure4", "evaluations"
BODY_FILE = "body.safetensors"
SLICE_S = 120.0
BASE_ARM, FROZEN_ARM, SCRATCH_ARM = "base", "frozen", "scratch"


def carry_out(config: PaperConfig, target: Target, folder: Path, open_workers: OpenWorkers, say: Say) -> None:
    """Computes what a target needs and the folder lacks.

    Args:
        config: of the run.
        target: what is wanted.
        folder: of the run; made where missing.
        open_workers: starts workers.
        say: tells people what happens.

    Raises:
        ConflictError: the folder's run has another configuration.
        KeyboardInterrupt: it was interrupted; another call goes on.
        MetaSearchError: what a step raised.
    """
    config = begin(config, target, folder)
    say("Preparing images ...")
    with ExitStack() as stack:
        workers = Lazily(open_workers, stack)
        if not needs_prior(target):
            run_few_shot(config.few_shot, folder, workers, say)
            return
        study.load_catalogs(config.study)
        images = prepare_images(config, folder)
        prior = _meta_train(config, folder, workers, say)
        groups = task_groups(config, images.search)
        for name in groups_of(target):
            _adapt_group(config, groups[name], prior, folder, workers, say)
        if needs_figure4(target):
            _run_figure4(config, prior, folder, workers, say)
        for table in tables_of(target):
            _evaluate_table(config, table, images, folder, workers, say)


def begin(config: PaperConfig, target: Target, folder: Path) -> PaperConfig:
    """Stores the configuration, or checks that it is the stored one.

    Table 4 shares nothing with the other targets. So whichever of the two a run has not begun yet may still be
    configured, and what a target does not need stays as it is stored.

    Returns:
        The configuration that the run goes on with.

    Raises:
        ConflictError: the folder's run has another configuration.
    """
    artifacts = ArtifactFolder(folder)
    if artifacts.exists(PAPER):
        stored = stored_config(folder)
        asked = {name for name in PaperConfig.model_fields if (name != "few_shot") == needs_prior(target)} | {"scale"}
        merged = stored.model_copy(update={name: getattr(config, name) for name in asked})
        if merged == stored:
            return stored
        begun = (IMAGES, META) if needs_prior(target) else (FEW_SHOT,)
        if stored.scale != config.scale or any((folder / name).exists() for name in begun):
            raise ConflictError(
                f"{folder} holds a run of --scale {stored.scale} with other settings or images; choose another --run"
            )
        config = merged
    content = {"config": config.model_dump(mode="json"), "environment": environment()}
    artifacts.write(PAPER, json.dumps(content, indent=2).encode())
    return config


def stored_config(folder: Path) -> PaperConfig:
    """The configuration of a folder's run.

    Raises:
        NotFoundError: the folder holds none.
        CorruptArtifactError: its file is damaged.
        ConflictError: it was written by another version of this program.
    """
    content = _read_json(ArtifactFolder(folder), PAPER)
    try:
        return PaperConfig.model_validate(content["config"])
    except ValidationError as error:
        raise ConflictError(
            f"{folder / PAPER} is of another version of this program: {explain(error)}; choose another --run"
        ) from None


def stored_prior(folder: Path, config: PaperConfig) -> Prior | None:
    """The meta-trained prior; None where the meta-training has not ended."""
    return finished_prior(folder / META, config.study)


def adaptation(folder: Path, group: str, number: int, where: str = ADAPTATIONS) -> dict[str, Any] | None:
    """What result.json of an adaptation holds; None where it has not been run."""
    try:
        return _read_json(ArtifactFolder(folder / where / group / str(number)), RESULT)
    except NotFoundError:
        return None


def adapted_body(folder: Path, group: str, number: int) -> NDArray[np.float32]:
    """The adapted weights of the cells: heads and classifier are left out.

    Raises:
        NotFoundError: the adaptation has not been run.
    """
    data = ArtifactFolder(folder / ADAPTATIONS / group / str(number)).read(BODY_FILE)
    body: NDArray[np.float32] = load_tensors(data)[BODY]
    return body


def evaluation(folder: Path, table: TableName, row: TableRow) -> dict[str, Any] | None:
    """What result.json of a row's training holds; None where it has not ended."""
    for url in reversed(attempts_in(str(folder / EVALUATIONS / table / row.key))):
        attempt = ArtifactFolder(url)
        if attempt.exists(MANIFEST):
            return _read_json(attempt, RESULT)
    return None


def group_genotype(config: PaperConfig, folder: Path, group: GroupName, num_tasks: int) -> Genotype | None:
    """The genotype of the mean posterior of a group's first adaptations; None where they have not been run."""
    found = [adaptation(folder, group, number) for number in range(num_tasks)]
    posteriors = [each["architecture_posterior"]["probabilities"] for each in found if each is not None]
    if len(posteriors) < num_tasks:
        return None
    space = config.study.space
    means = {kind: np.mean([posterior[kind] for posterior in posteriors], axis=0) for kind in space.cell_kinds}
    return derive(means, space.topology, space.ops)


def num_derived(config: PaperConfig, group: GroupName) -> int:
    """How many adaptations of a group its genotype is derived from."""
    if group == "imagenet32":
        return config.num_posteriors
    tuned: Mapping[GroupName, TableName] = {
        "cifar10_tuned": "cifar10",
        "svhn_tuned": "svhn",
        "imagenet_tuned": "imagenet",
    }
    return config.image_set(tuned[group]).tuning.num_tasks


def row_genotype(config: PaperConfig, folder: Path, row: TableRow) -> Genotype | None:
    """The genotype of a table's row; None where the steps that lead to it have not been run."""
    if row.released is not None:
        return released_genotype(row.released)
    if row.group == "prior":
        prior = stored_prior(folder, config)
        return None if prior is None else prior_genotype(prior.vectors["alpha"], config.study)
    assert row.group is not None
    return group_genotype(config, folder, row.group, num_derived(config, row.group))


def figure4_arms(config: PaperConfig, prior: Prior) -> dict[str, Arm]:
    """The three ways to adapt that figure 4 compares; all see the same images in the same order.

    From scratch: the same supernet with freshly drawn weights and DARTS's relaxation (a softmax mixture), in one level
    as the others, since in two it would see other batches.
    """
    inner = config.study.adapt.model_copy(update={"steps": figure4_steps(config)[-1]})
    theta = inner.theta.model_copy(update={"lr": config.figure4.scratch_lr})
    scratch: InnerConfig = inner.model_copy(update={"relaxation": "softmax", "theta": theta})
    fresh = initial_prior(config.study)
    fresh = Prior(fresh.version, 1.0, fresh.vectors)  # a softmax mixture as in DARTS: temperature 1
    return {
        BASE_ARM: Arm(BASE_ARM, prior, inner),
        FROZEN_ARM: Arm(FROZEN_ARM, prior, inner, learns_alpha=False),
        SCRATCH_ARM: Arm(SCRATCH_ARM, fresh, scratch),
    }


def _meta_train(config: PaperConfig, folder: Path, workers: Lazily, say: Say) -> Prior:
    return meta_train(folder / META, config.study, "Meta-training", workers, say)


def _adapt_group(config: PaperConfig, group: TaskGroup, prior: Prior, folder: Path, workers: Lazily, say: Say) -> None:
    tasks = fresh_tasks(group.family, group.split, group.num_tasks, config.task_seed)
    arm = Arm(group.name, prior, group.inner)
    _run_arm(config, arm, tasks, evaluation_steps(group.inner.steps), folder, ADAPTATIONS, workers, say)


def _run_figure4(config: PaperConfig, prior: Prior, folder: Path, workers: Lazily, say: Say) -> None:
    tasks = fresh_tasks(figure4_family(config), "all", config.figure4.repeats, config.task_seed)
    for arm in figure4_arms(config, prior).values():
        _run_arm(config, arm, tasks, (0, *figure4_steps(config)), folder, FIGURE4, workers, say)


def _run_arm(
    config: PaperConfig,
    arm: Arm,
    tasks: Sequence[LearningTask],
    eval_steps: Sequence[int],
    folder: Path,
    where: str,
    workers: Lazily,
    say: Say,
) -> None:
    """Adapts to the tasks that have no result yet, and stores what was found.

    Raises:
        ConflictError: a stored result started from another prior.
    """
    missing = []
    digest = arm.prior.digest()
    for number in range(len(tasks)):
        found = adaptation(folder, arm.name, number, where)
        if found is None:
            missing.append(number)
        elif found["prior"]["sha256"] != digest:
            raise ConflictError(
                f"{folder / where / arm.name / str(number)} started from another prior; remove {folder / where}"
            )
    if not missing:
        return
    label = f"{'Figure 4' if where == FIGURE4 else 'Adapting'}: {arm.name}"
    say(f"{label}, {len(missing)} times {arm.inner.steps} steps")
    keeps_body = where == ADAPTATIONS and arm.name in FIGURE3_GROUPS
    requests = []
    for number in missing:
        request = adapt_request(tasks[number], arm, config.study, eval_steps)
        requests.append(replace(request, returns_weights=keeps_body))
    for number, result in zip(missing, workers.get().adapt(arm.prior, requests, label), strict=True):
        target = ArtifactFolder(folder / where / arm.name / str(number))
        if result.weights is not None:
            target.write(BODY_FILE, save_tensors({BODY: np.ascontiguousarray(result.weights[BODY])}))
        scored = find_genotype(result.probabilities, tasks[number], config.study, "top2_pairs", Limits())
        content = describe(result, tasks[number], arm.prior, config.study, "top2_pairs", scored, Limits())
        target.write(RESULT, json.dumps(content, indent=2).encode())  # last: with it, the adaptation is there


def _evaluate_table(
    config: PaperConfig, table: TableName, images: PreparedImages, folder: Path, workers: Lazily, say: Say
) -> None:
    requests = []
    for row in ROWS[table]:
        if evaluation(folder, table, row) is not None:
            continue
        genotype = row_genotype(config, folder, row)
        assert genotype is not None, "the steps before have found it"
        requests.append(
            EvaluateRequest(
                job_id=f"{table}/{row.key}",
                attempt=1,
                genotype=genotype,
                config=recipe_of(config.image_set(table), row),
                data=images.trained[table],
                file=None,
                result_url=str((folder / EVALUATIONS / table / row.key).resolve()),
                slice_s=SLICE_S,
            )
        )
    if requests:
        say(f"{TITLES[table]}: training {len(requests)} full networks")
        workers.get().evaluate(requests, TITLES[table])


def _read_json(folder: ArtifactFolder, name: str) -> dict[str, Any]:
    data = folder.read(name)
    try:
        content: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise CorruptArtifactError(f"{folder.path(name)} is damaged: {error}; remove it") from None
    return content
