"""Studies that a run consists of: who computes them, how they are meta-trained, what that took."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common.artifacts import PriorStore
from common.config import StudyConfig
from common.messages import AdaptRequest, AdaptResult, EvaluateRequest, EvaluateResult
from common.meta.prior import Prior
from common.storage import ArtifactFolder
from coordinator import study
from coordinator.sinks import read_lines

_WORKERS = "workers.json"
_ROUNDS = "rounds.jsonl"


class Workers(Protocol):
    """Who computes; `coordinator.driver.Session` on a Ray cluster."""

    @property
    def num_workers(self) -> int:
        """How many compute side by side."""
        ...

    def train(self, run: Path, config: Any, prior: Prior) -> Any:
        """Runs the rounds that are left of a study."""
        ...

    def adapt(self, prior: Prior, requests: Sequence[AdaptRequest], label: str) -> Sequence[AdaptResult]:
        """Adapts a prior to tasks; results in their order."""
        ...

    def meta_test(self, test_folder: Path, prior: Prior, requests: Sequence[AdaptRequest], done: int) -> bool:
        """Learns episodes, adds each to the log of a test's folder; whether all ended."""
        ...

    def evaluate(self, requests: Sequence[EvaluateRequest], label: str) -> Sequence[EvaluateResult]:
        """Trains and tests full networks; results in the order of the requests."""
        ...


Say = Callable[[str], None]
OpenWorkers = Callable[[], AbstractContextManager[Workers]]


class Lazily:
    """Workers that are started when they are first needed: a run that is complete needs none."""

    def __init__(self, opened: OpenWorkers, stack: ExitStack) -> None:
        self._opened = opened
        self._stack = stack
        self._workers: Workers | None = None

    def get(self) -> Workers:
        """The workers."""
        if self._workers is None:
            self._workers = self._stack.enter_context(self._opened())
        return self._workers


@dataclass(frozen=True)
class MetaTraining:
    """What a meta-training took.

    Attributes:
        rounds: of the study.
        tasks_per_round: likewise.
        seconds: wall clock of all rounds.
        num_workers: that computed side by side, in the last session.
    """

    rounds: int
    tasks_per_round: int
    seconds: float
    num_workers: int

    @property
    def device_s(self) -> float:
        """Seconds of one worker's device."""
        return self.seconds * self.num_workers


def finished_prior(run: Path, config: StudyConfig) -> Prior | None:
    """The last prior of a study; None where its meta-training has not ended."""
    store = PriorStore(run)
    versions = store.versions()
    return store.load(versions[-1]) if versions and versions[-1] == config.rounds else None


def meta_train(run: Path, config: StudyConfig, label: str, workers: Lazily, say: Say) -> Prior:
    """Runs the rounds of a study that its folder lacks.

    Args:
        run: of the study, as `metasearch train` leaves it; made where missing.
        config: of the study.
        label: what it is, for people.
        workers: compute it.
        say: tells people what happens.

    Raises:
        ConflictError: the folder's study is another.
        KeyboardInterrupt: it was interrupted; another call goes on.
        MetaSearchError: what a round raised.
    """
    prior = finished_prior(run, config)
    if prior is not None:
        return prior
    store = PriorStore(run)
    started = workers.get()
    prior = study.resume(store, config) if store.has_config() else study.begin(store, config)
    say(f"{label}: {config.rounds} rounds of {_tasks(config)} tasks, from version {prior.version}")
    ArtifactFolder(run).write(_WORKERS, json.dumps({"num_workers": started.num_workers}).encode())
    started.train(run, config, prior)
    prior = finished_prior(run, config)
    if prior is None:
        raise KeyboardInterrupt
    return prior


def what_it_took(run: Path, config: StudyConfig) -> MetaTraining:
    """Of a meta-training that ended.

    Raises:
        NotFoundError: a file of its folder is missing.
    """
    num_workers = json.loads(ArtifactFolder(run).read(_WORKERS))["num_workers"]
    seconds = sum(values["round_seconds"] for values in read_lines(run / _ROUNDS))
    return MetaTraining(config.rounds, _tasks(config), seconds, num_workers)


def _tasks(config: StudyConfig) -> int:
    return sum(family.tasks_per_round for family in config.families)
