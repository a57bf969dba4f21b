"""A trial of a sweep, a few rounds at a time: a study through the code of `metasearch train`, or a full network through
that of `metasearch evaluate`. Its folder is laid out as theirs. No Ray Tune.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from common.artifacts import PriorStore
from common.errors import CorruptArtifactError
from common.messages import AdaptResult
from common.storage import ArtifactFolder
from common.sweep_plan import SweepPlan
from common.sweep_space import Values, configured
from coordinator import study
from coordinator.experiment import Arm, accuracies, adapt_request, fresh_tasks, last_step
from coordinator.local import LocalExecutor
from coordinator.sinks import JsonLinesSink
from workers.data.cache import cache_root
from workers.data.fetch import fetch
from workers.data.whole import load_whole
from workers.evaluate import PLAN, EvaluationPlan, evaluate
from workers.training import TrainProgress

CURVE = "curve.json"
ROUNDS = "rounds.jsonl"


class Trial(Protocol):
    """What takes part in a sweep."""

    @property
    def rounds(self) -> int:
        """Rounds or epochs done."""
        ...

    @property
    def total(self) -> int:
        """Of all."""
        ...

    def advance(self) -> dict[str, Any]:
        """Goes on for `report_every` rounds, stores a checkpoint in the folder, and measures.

        Raises:
            MetaSearchError: the study or training fails.
        """
        ...

    def save(self, folder: Path) -> None:
        """Copies its state into a folder."""
        ...

    def restore(self, folder: Path) -> None:
        """Goes on from another folder's state: of this trial, or of one whose prior it takes over."""
        ...


class StudyTrial:
    """A study under way; see `Trial`.

    Args:
        plan: of the sweep.
        values: of the trial.
        folder: empty.
        device: to compute on.

    Raises:
        InvalidInputError: the configuration does not take the values.
    """

    def __init__(self, plan: SweepPlan, values: Values, folder: Path, device: torch.device) -> None:
        assert plan.study is not None
        self._plan = plan
        self._base = plan.study
        self._folder = folder
        self._config = configured(plan.study, values)
        self._executor = LocalExecutor(device)
        self._store = PriorStore(folder)
        self._prior = study.begin(self._store, self._config)
        self._curve: list[dict[str, Any]] = []

    @property
    def rounds(self) -> int:
        """See `Trial`."""
        return self._prior.version

    @property
    def total(self) -> int:
        """See `Trial`."""
        return self._config.rounds

    def advance(self) -> dict[str, Any]:
        """See `Trial`."""
        target = min(self.rounds + self._plan.config.report_every, self.total)
        made: dict[str, float] = {}
        sink = JsonLinesSink(self._folder / ROUNDS, self.rounds)
        try:
            self._prior = study.run(
                self._prior,
                self._config,
                self._executor,
                self._store,
                [sink],
                time.monotonic,
                should_stop=lambda: made.get("prior_version", 0) >= target,
                on_round=lambda prior, metrics: made.update(metrics),
            )
        finally:
            sink.close()
        if self._prior.version not in self._store.versions():
            self._store.save(self._prior)
        measured = {**self._measure(), **{name: made[name] for name in ("train_loss_first", "train_loss_last")}}
        return _noted(self._folder, self._curve, self.rounds, measured)

    def save(self, folder: Path) -> None:
        """See `Trial`."""
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

    def restore(self, folder: Path) -> None:
        """See `Trial`."""
        _replace(self._folder, folder)
        self._store.save_config(self._config)  # its own, whatever the other trial's was
        self._prior = self._store.load()
        self._curve = _read_curve(self._folder)

    def _measure(self) -> dict[str, Any]:
        """Held-out accuracy and loss after adapting the prior to fresh tasks, the same for all trials."""
        sweep, config = self._plan.config, self._config
        arm = Arm("trial", self._prior, config.adapt)
        found: list[AdaptResult] = []
        for family in self._base.families:
            tasks = fresh_tasks(family, sweep.split, sweep.tasks, sweep.seed)
            requests = [adapt_request(task, arm, config, (last_step(config.adapt, config),)) for task in tasks]
            for result in self._executor.run(self._prior, requests):
                assert isinstance(result, AdaptResult)
                found.append(result)
        last = accuracies(found)[:, -1]
        losses = [result.evaluations[-1].loss for result in found]
        return {"accuracy": float(last.mean()), "loss_nats": sum(losses) / len(losses), "accuracies": last.tolist()}


class ArchitectureTrial:
    """The full network of a candidate, in training; see `Trial`, which this counts in epochs for.

    Args:
        plan: of the sweep.
        index: of the candidate.
        folder: empty.
        device: to compute on.
    """

    def __init__(self, plan: SweepPlan, index: int, folder: Path, device: torch.device) -> None:
        assert plan.architectures is not None
        chosen = plan.architectures
        data = chosen.data
        if chosen.file is not None:
            data = data.model_copy(update={"source": str(fetch(chosen.file, cache_root()))})
        self._plan = plan
        self._folder = folder
        self._device = device
        self._evaluation = EvaluationPlan(
            name=f"architecture {index}",
            genotype=chosen.candidates[index].genotype,
            config=chosen.recipe,
            data=data,
        )
        PLAN.store(ArtifactFolder(folder), self._evaluation)
        self._curve: list[dict[str, Any]] = []
        self.total = chosen.recipe.last_epoch
        self.rounds = 0

    def advance(self) -> dict[str, Any]:
        """See `Trial`."""
        target = self.rounds + self._plan.config.report_every
        last: dict[str, TrainProgress] = {}
        folder = ArtifactFolder(self._folder)
        result = evaluate(
            self._evaluation,
            folder,
            self._device,
            on_progress=lambda progress: last.update(now=progress),
            should_stop=lambda: "now" in last and last["now"].epochs_done >= target,
        )
        self.rounds = last["now"].epochs_done
        record = last["now"].last
        measured: dict[str, Any] = {}
        if record is not None and record.accuracy is not None:
            source = load_whole(self._evaluation.data, self._evaluation.config)
            measured = {
                "accuracy": record.accuracy,
                "loss_nats": record.loss_nats,
                "train_loss_last": record.train_loss_nats,
                "num_images": source.validation.num_images,
            }
        if result is not None:
            names = ("accuracy", "interval_95", "num_test", "ended_by")
            cost = {name: result["network"][name] for name in ("num_params", "num_macs")}
            measured["test"] = {**{name: result[name] for name in names}, **cost}
            self.rounds = max(self.rounds, self.total)  # nothing is left, whatever ended it
        return _noted(self._folder, self._curve, self.rounds, measured)

    def save(self, folder: Path) -> None:
        """See `Trial`."""
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

    def restore(self, folder: Path) -> None:
        """See `Trial`."""
        _replace(self._folder, folder)
        self._curve = _read_curve(self._folder)
        self.rounds = self._curve[-1]["rounds"] if self._curve else 0


def open_trial(plan: SweepPlan, values: Values, folder: Path, device: torch.device) -> Trial:
    """The trial of a sweep with these values, from the start.

    Raises:
        InvalidInputError: the configuration does not take the values.
    """
    if plan.architectures is not None:
        return ArchitectureTrial(plan, int(values["architecture"]), folder, device)
    return StudyTrial(plan, values, folder, device)


def _noted(folder: Path, curve: list[dict[str, Any]], rounds: int, measured: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with the curve so far, which is stored in the folder."""
    numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
    curve.append({"rounds": rounds, **numbers})
    ArtifactFolder(folder).write(CURVE, json.dumps(curve).encode())
    return {"rounds": rounds, **measured, "curve": list(curve)}


def _read_curve(folder: Path) -> list[dict[str, Any]]:
    try:
        curve: list[dict[str, Any]] = json.loads((folder / CURVE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"{folder / CURVE} is not a trial's curve: {error}") from None
    return curve


def _replace(folder: Path, by: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(by, folder)
