"""Meta-test: how well a few-shot study's prior learns episodes of classes that it has not seen.

A test's folder:
    plan.json        what is tested, see `MetaTestPlan`; written first
    episodes.jsonl   one line for each episode, in the order in which they ended
    result.json      means over the episodes, with their intervals, see `MetaTestResult`; written last

Episode i is a function of the plan alone, so a test that goes on, or gets more episodes, has the same ones.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from common.config import DatasetRef, Split, StudyConfig, TaskFamily
from common.errors import ConflictError, CorruptArtifactError, InvalidInputError, NotFoundError, UnavailableError
from common.few_shot_config import BatchStatistics, FewShotConfig
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from common.storage import ArtifactFolder
from common.values import Frozen, explain
from coordinator.experiment import Arm, adapt_request
from coordinator.report import interval_by_step, mean_interval
from workers.data.arrays import ClassArrays
from workers.data.episodes import sample_task
from workers.data.splits import split_counts, split_digest
from workers.job import evaluation_steps

FOLDER = "test"  # of a run, with a folder for each test
PLAN, EPISODES, RESULT = "plan.json", "episodes.jsonl", "result.json"
KIND: Literal["meta-test"] = "meta-test"

STATISTICS: Mapping[BatchStatistics, str] = {
    "transductive": "BatchNorm by the query images, all of an episode together",
    "inductive": "BatchNorm by the support images, each query image by itself",
}
PATHS: Mapping[str, str] = {"native": "the native cell", "pytorch": "PyTorch"}
SPLITS: Mapping[Split, str] = {
    "meta_train": "classes of meta-training",
    "validation": "validation classes",
    "unseen": "unseen classes",
    "all": "all classes",
}


class MetaTestPlan(Frozen):
    """What is tested, on which episodes."""

    version: int = Field(ge=0)
    prior: str
    """SHA-256 of the prior."""
    few_shot: FewShotConfig
    """How an episode is learnt; `test_steps` steps."""
    family: TaskFamily
    """Episodes: `num_ways` classes, `train_per_class` support images and `test_per_class` query images of each."""
    split: Split
    split_sha256: str
    """Of the names of the classes of all parts, see `workers.data.splits.split_digest`."""
    num_classes: Mapping[str, int]
    """By part."""
    seed: int = Field(0, ge=0)
    """Chooses classes and images."""
    eval_steps: tuple[int, ...]
    """When query images are tested."""

    @property
    def name(self) -> str:
        """Of the test's folder: equal plans have equal names."""
        family = self.family
        source = "".join(letter if letter.isalnum() else "-" for letter in Path(family.data.source).stem)
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.split}-{source}-{family.num_ways}way-{family.train_per_class}shot-v{self.version}-{digest}"

    @property
    def title(self) -> str:
        """In words."""
        family = self.family
        return (
            f"{family.num_ways}-way {family.train_per_class}-shot, {SPLITS[self.split]} of {family.data.source} at "
            f"{family.image_size} pixels, {family.test_per_class} query images per class, {self.few_shot.evaluation}"
        )


class EpisodeOutcome(Frozen):
    """An episode that was learnt; accuracies from 0 to 1 and losses in nats are of its query images, by step."""

    episode: int = Field(ge=0)
    accuracy: tuple[float, ...]
    loss_nats: tuple[float, ...]
    adapt_s: float
    path: str
    """What computed the inner steps, `native` or `pytorch`."""


class StepInterval(Frozen):
    """A mean over episodes and its 95 % interval (Student's t), which are None for a single episode."""

    mean: float
    low: float | None
    high: float | None


class MetaTestResult(Frozen):
    """What a test found."""

    format: Literal[1] = 1
    kind: Literal["meta-test"] = KIND
    plan: MetaTestPlan
    num_episodes: int
    evaluation: BatchStatistics
    """Whose BatchNorm statistics query images were tested with."""
    accuracy: Mapping[str, StepInterval]
    """From 0 to 1, by step."""
    loss_nats: Mapping[str, StepInterval]
    chance: float
    adapt_s: float
    """Of an episode, mean; one thread of a worker."""
    paths: Mapping[str, int]
    """How many episodes had their inner steps computed by each of `native` and `pytorch`."""
    environment: Mapping[str, Any]

    @property
    def last(self) -> StepInterval:
        """Accuracy after the last step."""
        return self.accuracy[str(self.plan.eval_steps[-1])]


@dataclass(frozen=True)
class MetaTestOptions:
    """What a user says about a test; None leaves it as the study has it.

    Attributes:
        data: images; those of the study's first family where None.
        split: classes; unseen ones where None, all where the study has not learnt from the source.
        ways: classes of an episode.
        shots: support images per class.
        queries: query images per class.
        image_size: pixels.
        steps: inner steps.
        evaluation: whose BatchNorm statistics.
        seed: chooses the episodes.
    """

    data: DatasetRef | None = None
    split: Split | None = None
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    image_size: int | None = None
    steps: int | None = None
    evaluation: BatchStatistics | None = None
    seed: int = 0


def family_of(config: StudyConfig, options: MetaTestOptions) -> TaskFamily:
    """The episodes that options ask for.

    Raises:
        InvalidInputError: the study is none of few-shot learning, or a value is out of range or does not fit it.
    """
    if config.few_shot is None:
        raise InvalidInputError(
            "the run is none of few-shot learning, which its configuration has few_shot for; meta-train one with "
            "metasearch train few_shot --run RUN"
        )
    first = config.families[0]
    family = next((each for each in config.families if options.data in (None, each.data)), first)
    if options.ways not in (None, family.num_ways):
        raise InvalidInputError(
            f"--ways is {options.ways}, the prior's classifier is of {family.num_ways} classes; leave --ways out, or "
            "meta-train a run with families.0.num_ways changed"
        )
    changes = {
        "data": options.data,
        "train_per_class": options.shots,
        "test_per_class": options.queries,
        "image_size": options.image_size,
    }
    tree = family.model_dump() | {name: value for name, value in changes.items() if value is not None}
    try:
        family = TaskFamily.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError(f"test: {explain(error)}") from None
    if family.image_size != first.image_size:
        raise InvalidInputError(
            f"--image-size is {family.image_size}, the prior's weights are of images of {first.image_size} pixels; "
            "leave --image-size out: images of any size are scaled to that"
        )
    return family


def plan_meta_test(
    prior: Prior, config: StudyConfig, options: MetaTestOptions, arrays: ClassArrays, family: TaskFamily
) -> MetaTestPlan:
    """The plan of a test.

    Args:
        prior: to test.
        config: of its study.
        options: what a user says.
        arrays: the images that `family` names.
        family: see `family_of`.

    Raises:
        InvalidInputError: there are no such episodes: too few classes or images, or a split that the data have not.
    """
    assert config.few_shot is not None, "family_of has looked"
    learnt_from = any(each.data.source == family.data.source for each in config.families)
    split = options.split or ("unseen" if learnt_from else "all")
    steps = config.few_shot.test_steps if options.steps is None else options.steps
    few_shot = config.few_shot.model_copy(
        update={"test_steps": steps, "evaluation": options.evaluation or config.few_shot.evaluation}
    )
    plan = MetaTestPlan(
        version=prior.version,
        prior=prior.digest(),
        few_shot=few_shot,
        family=family,
        split=split,
        split_sha256=split_digest(arrays, family.data),
        num_classes=split_counts(arrays, family.data),
        seed=options.seed,
        eval_steps=evaluation_steps(steps),
    )
    episode_request(plan, prior, config, arrays, 0)  # refuses before the work
    return plan


def episode_request(
    plan: MetaTestPlan, prior: Prior, config: StudyConfig, arrays: ClassArrays, episode: int
) -> AdaptRequest:
    """The request to learn an episode.

    Raises:
        InvalidInputError: the split has too few classes with enough images.
    """
    task = sample_task(
        arrays, plan.family, plan.split, f"{plan.split}/episode-{episode:05d}", plan.seed, plan.family.train_per_class
    )
    request = adapt_request(task, Arm("meta-test", prior, config.adapt), config, ())
    return replace(request, few_shot=plan.few_shot, eval_steps=plan.eval_steps)


def episode_of_task(task_id: str) -> int:
    """The episode that a task of `episode_request` is."""
    return int(task_id.rpartition("-")[2])


def begin(folder: ArtifactFolder, plan: MetaTestPlan) -> None:
    """Stores the plan, or goes on with the same one.

    Raises:
        ConflictError: the folder's test is of something else.
        CorruptArtifactError: its plan is damaged.
    """
    try:
        stored = MetaTestPlan.model_validate_json(folder.read(PLAN))
    except NotFoundError:
        folder.write(PLAN, plan.model_dump_json(indent=2).encode())
        return
    except ValidationError as error:
        raise CorruptArtifactError(f"{folder.path(PLAN)} is damaged: {explain(error)}; remove the folder") from None
    if stored != plan:
        raise ConflictError(f"{folder.url} holds another test; give another --out")


def read_episodes(folder: ArtifactFolder, plan: MetaTestPlan) -> dict[int, EpisodeOutcome]:
    """The episodes that ended, by number. A last line that a crash cut short is taken away.

    Raises:
        CorruptArtifactError: another line is damaged.
    """
    if not folder.exists(EPISODES):
        return {}
    lines = folder.read(EPISODES).decode(errors="replace").splitlines()
    found: dict[int, EpisodeOutcome] = {}
    for number, line in enumerate(lines, start=1):
        try:
            outcome = EpisodeOutcome.model_validate_json(line)
        except ValidationError:
            if number == len(lines):
                folder.write(EPISODES, "".join(f"{kept}\n" for kept in lines[:-1]).encode())
                break
            raise CorruptArtifactError(
                f"line {number} of {folder.path(EPISODES)} is damaged; remove it: its episode is then learnt again"
            ) from None
        if len(outcome.accuracy) == len(outcome.loss_nats) == len(plan.eval_steps):
            found[outcome.episode] = outcome
    return found


def outcome_of(result: AdaptResult) -> EpisodeOutcome:
    """What is kept of an episode."""
    return EpisodeOutcome(
        episode=episode_of_task(result.task_id),
        accuracy=tuple(each.accuracy for each in result.evaluations),
        loss_nats=tuple(each.loss for each in result.evaluations),
        adapt_s=result.adapt_s,
        path=result.path or "pytorch",
    )


@contextmanager
def opened_log(folder: Path) -> Iterator["EpisodeLog"]:
    """Where episodes are added as they end.

    Raises:
        UnavailableError: the file cannot be written to.
    """
    try:
        with (folder / EPISODES).open("a", encoding="utf-8") as file:
            yield EpisodeLog(file)
    except OSError as error:
        raise UnavailableError(f"cannot write {folder / EPISODES}: {error}; check space and permissions") from None


class EpisodeLog:
    """Episodes that ended, in a file, line by line."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def add(self, outcome: EpisodeOutcome) -> None:
        """Adds an episode; it is there for whoever reads the file from now on."""
        self._file.write(outcome.model_dump_json() + "\n")
        self._file.flush()


def summarise(plan: MetaTestPlan, outcomes: Sequence[EpisodeOutcome], environment: Mapping[str, Any]) -> MetaTestResult:
    """Means and intervals over episodes.

    Args:
        plan: of the test.
        outcomes: at least one.
        environment: what was computed with.
    """
    by_measure = {
        name: interval_by_step(mean_interval(np.array(values, dtype=np.float64)), plan.eval_steps)
        for name, values in (
            ("accuracy", [outcome.accuracy for outcome in outcomes]),
            ("loss_nats", [outcome.loss_nats for outcome in outcomes]),
        )
    }
    accuracy, loss_nats = (
        {
            step: StepInterval.model_validate({key: None if value != value else value for key, value in point.items()})
            for step, point in points.items()
        }
        for points in by_measure.values()
    )
    return MetaTestResult(
        plan=plan,
        num_episodes=len(outcomes),
        evaluation=plan.few_shot.evaluation,
        accuracy=accuracy,
        loss_nats=loss_nats,
        chance=1 / plan.family.num_ways,
        adapt_s=float(np.mean([outcome.adapt_s for outcome in outcomes])),
        paths=Counter(outcome.path for outcome in outcomes),
        environment=environment,
    )


def read_results(run: Path) -> list[MetaTestResult]:
    """The tests of a run that ended, by the names of their folders.

    Raises:
        CorruptArtifactError: a result is damaged.
    """
    found = []
    for path in sorted((run / FOLDER).glob(f"*/{RESULT}")):
        try:
            found.append(MetaTestResult.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            raise CorruptArtifactError(f"{path} is damaged: {explain(error)}; test again") from None
        except OSError as error:
            raise UnavailableError(f"cannot read {path}: {error}; check permissions") from None
    return found
