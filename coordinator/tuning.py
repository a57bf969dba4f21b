"""Sweeps on Ray Tune: trials as its trainables, our words for its searchers and schedulers, runs that it restores.

Tune keeps its state in pickles: go on only with sweeps of people whom you trust.
"""

import contextlib
import importlib.util
import logging
import math
import os
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow.fs  # comes with ray[tune]
from fsspec.implementations.local import LocalFileSystem
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.stopper import Stopper

from common.errors import MetaSearchError, UnavailableError
from common.sweep_config import SweepConfig
from common.sweep_plan import SweepPlan
from common.sweep_space import Values
from coordinator.sweep import Trial
from coordinator.trial import open_trial
from coordinator.tune_terms import ROUNDS, decoded, scheduler_of, search_space, searcher_of
from workers.device import choose_device, use_single_thread

TUNE = "tune"  # the folder of its state
TUNE_STOPS = signal.SIGUSR1  # makes it store its state and end, while it runs
_FAILED = "failed"
_GPUS = "gpus"  # of a trial, among the values that it is given
_MAX_FAILURES = 3  # times that a trial starts again after its process was lost

_ENVIRONMENT = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has measured nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the curves are in the checkpoints
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the command has its own, and passes it on
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}

Listener = Callable[[Sequence[Trial]], None]
Item = TypeVar("Item")
# When the sweep that runs in this process has to end, by time.monotonic; and who hears of it. Both are kept out of what
# Tune stores with the sweep.
_deadlines_s: list[float] = []
_listeners: list[Callable[[Sequence[Any], bool], None]] = []


class SweepTrial(tune.Trainable):
    """A trial in a process of its own; see `coordinator.trial`."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """One CPU, and its share of GPUs."""
        return PlacementGroupFactory([{"CPU": 1.0, "GPU": float(config[_GPUS])}])

    def setup(self, config: dict[str, Any], plan: str = "") -> None:
        """Begins the trial."""
        use_single_thread()
        self._plan = SweepPlan.model_validate_json(plan)
        self._values = decoded(self._plan.config.space, config)
        self._temporary = tempfile.TemporaryDirectory(prefix="metasearch-trial-")
        self._failed: str | None = None
        self._rounds = 0
        try:
            self._trial = open_trial(self._plan, self._values, Path(self._temporary.name) / "trial", choose_device())
        except UnavailableError:
            raise
        except MetaSearchError as error:
            self._failed = str(error)

    def __repr__(self) -> str:
        return f"trial {self.trial_id}"

    def step(self) -> dict[str, Any]:
        """A few rounds, and what was measured. What another attempt would meet again ends the trial."""
        try:
            if self._failed is None:
                measured = self._trial.advance()
                self._rounds = self._trial.rounds
                return {**measured, "done": self._rounds >= self._trial.total}
        except UnavailableError:
            raise  # Tune starts it again
        except MetaSearchError as error:
            self._failed = str(error)
        return {ROUNDS: self._rounds, _FAILED: self._failed, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copies the trial's folder."""
        if self._failed is None:
            self._trial.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from a copy, of this trial or of one whose prior it takes over."""
        if self._failed is None:
            self._trial.restore(Path(checkpoint))
            self._rounds = self._trial.rounds

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Makes room for another trial in this process."""
        self.cleanup()
        # `setup` of the class that carries the plan, see `tune.with_parameters`.
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Removes the folder."""
        self._temporary.cleanup()


class Watcher(Callback):
    """Tells the listeners of this process how far all trials are."""

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called often; whoever listens should be quick."""
        for listen in _listeners:
            listen(trials, False)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Called once more at the end, when what was still running has been told to stop."""
        for listen in _listeners:
            listen(trials, True)


class Budget(Stopper):
    """Ends all trials once the time is up."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial ends for itself."""
        return False

    def stop_all(self) -> bool:
        """Whether the time is up."""
        return bool(_deadlines_s) and time.monotonic() >= _deadlines_s[-1]


def check_installed(sweep: SweepConfig) -> None:
    """Refuses a searcher whose package is missing.

    Raises:
        UnavailableError: names the extra that installs it.
    """
    if sweep.searcher in ("optuna", "hyperopt") and importlib.util.find_spec(sweep.searcher) is None:
        raise UnavailableError(
            f"searcher {sweep.searcher!r} needs the package {sweep.searcher}, which is not installed: "
            "pip install 'meta-arch-search[sweep]', or set searcher to 'random'"
        )


def run_sweep(
    plan: SweepPlan, url: str, concurrency: int, gpus_per_trial: float, listener: Listener, spent_s: float = 0.0
) -> tuple[Trial, ...]:
    """Runs what is left of a sweep on the connected cluster, in this thread.

    Args:
        plan: what to try.
        url: of the sweep's folder; local, or on any fsspec URL that all nodes reach.
        concurrency: trials at the same time.
        gpus_per_trial: GPUs of each.
        listener: hears of the trials now and then, in this thread.
        spent_s: of the budget, by earlier calls.

    Returns:
        The trials, in the order in which they were begun. Some are not over where the run was interrupted (SIGUSR1 in
        the main thread).

    Raises:
        UnavailableError: a searcher's package is missing, or the storage refuses.
    """
    check_installed(plan.config)
    seen: list[Trial] = []

    def note(trials: Sequence[Any], is_end: bool) -> None:
        if seen and is_end:
            return  # after an interruption, unfinished trials look as if they had been ended
        # A sweep that was restored has them in another order.
        begun = sorted(trials, key=_begun)
        seen[:] = [_trial(number, trial, plan) for number, trial in enumerate(begun)]
        listener(seen)

    filesystem, root = _storage(url)
    path = f"{root.rstrip('/')}/{TUNE}"
    trainable = tune.with_parameters(SweepTrial, plan=plan.model_dump_json())
    budget_s = plan.config.max_seconds
    deadline_s = math.inf if budget_s is None else time.monotonic() + budget_s - spent_s
    with _quiet(), _kept(_listeners, note), _kept(_deadlines_s, deadline_s):
        try:
            if Tuner.can_restore(path, storage_filesystem=filesystem):
                tuner = Tuner.restore(path, trainable, resume_errored=True, storage_filesystem=filesystem)
            else:
                tuner = _new_tuner(plan, trainable, root, filesystem, concurrency, gpus_per_trial)
            tuner.fit()
        except OSError as error:
            raise UnavailableError(f"cannot keep the sweep's state in {url}: {error}") from error
    return tuple(seen)


def _new_tuner(
    plan: SweepPlan,
    trainable: Any,
    root: str,
    filesystem: Any,
    concurrency: int,
    gpus_per_trial: float,
) -> Tuner:
    sweep = plan.config
    return Tuner(
        trainable,
        param_space={**search_space(plan), _GPUS: gpus_per_trial},
        tune_config=TuneConfig(
            metric=sweep.metric,
            mode="max" if sweep.is_maximised else "min",
            search_alg=searcher_of(sweep, concurrency),
            scheduler=scheduler_of(plan),
            num_samples=sweep.num_samples if plan.architectures is None else 1,
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
        ),
        run_config=RunConfig(
            name=TUNE,
            storage_path=root,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            # Under PBT others may still be reading an older one.
            checkpoint_config=CheckpointConfig(
                checkpoint_frequency=1, num_to_keep=4 if sweep.scheduler == "pbt" else 2, checkpoint_at_end=False
            ),
            callbacks=[Watcher()],
            stop=Budget(),
            verbose=0,
            log_to_file=False,
        ),
    )


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _begun(trial: Any) -> int:
    """Which of the sweep's trials it is: Tune's tags begin with a number that counts up."""
    found = re.match(r"\d+", trial.experiment_tag or "")
    return int(found[0]) if found else 0


def _trial(number: int, trial: Any, plan: SweepPlan) -> Trial:
    """A trial of Tune's in our terms."""
    last: Mapping[str, Any] = trial.last_result or {}
    rounds = int(last.get(ROUNDS, 0))
    failure = str(last.get(_FAILED, ""))
    value = last.get(plan.config.metric)
    values = decoded(plan.config.space, trial.config)
    state: Any = "running" if trial.status == "RUNNING" else "waiting"
    if trial.status == "ERROR":
        state, failure = "failed", f"its process was lost {_MAX_FAILURES + 1} times"
    elif failure:
        state = "failed"
    elif trial.status == "TERMINATED":
        state = "complete" if last.get("done") and rounds >= _rounds_of(plan, values) else "stopped"
    return Trial(
        number=number,
        state=state,
        values=values,
        rounds=rounds,
        value=None if value is None else float(value),
        measured={
            name: last[name] for name in ("accuracy", "loss_nats", "accuracies", "num_images", "test") if name in last
        },
        curve=tuple(last.get("curve", ())),
        failure=failure,
        folder=None if trial.checkpoint is None else trial.checkpoint.path,
    )


def _rounds_of(plan: SweepPlan, values: Values) -> int:
    """Rounds of a trial with these values."""
    if plan.architectures is not None:
        return plan.most_rounds
    assert plan.study is not None
    return next((int(value) for key, value in values.items() if key == "rounds"), plan.study.rounds)


def _storage(url: str) -> tuple[Any, str]:
    """Where Tune keeps its state: pyarrow's view of a file system, and a path in it."""
    filesystem, path = fsspec.core.url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


@contextlib.contextmanager
def _kept(values: list[Item], value: Item) -> Iterator[None]:
    """A value in a list, for as long as the sweep runs."""
    values.append(value)
    try:
        yield
    finally:
        values.remove(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tune says nothing: progress is ours."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air", "optuna", "hyperopt")]
    levels = [logger.level for logger in loggers]
    os.environ.update(_ENVIRONMENT)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
