"""Does a study without rounds learn as well? The demo's study in rounds and in buffered mode, on the same fresh tasks.

Workers are logical: their tasks take times drawn from a log-normal distribution, in order of which results come; the
training is real, in this process, one task after the other. So staleness is that of so many workers, and nothing is
timed.
"""

import heapq
import tempfile
from collections import deque
from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from reporting import arguments, console, finish
from rich.table import Table

from common.artifacts import PriorStore
from common.config import StudyConfig
from common.loading import load
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior
from common.streams import stream as random_stream
from coordinator import study
from coordinator.calls import Outcome
from coordinator.experiment import Arm, accuracies, compare, fresh_tasks
from coordinator.local import LocalExecutor
from coordinator.report import mean_interval, paired_interval
from coordinator.rounds import Supply
from coordinator.streaming import stream
from workers.runner import TaskRunner

SPREAD = 0.5  # standard deviation of the logarithm of a task's time


class LogicalWorkers:
    """Workers that take a drawn time for each task; see `coordinator.streaming.Calls`."""

    def __init__(self, num_workers: int, seed: int, runner: TaskRunner) -> None:
        self.max_workers = num_workers
        self._random = random_stream(seed, "times")
        self._runner = runner
        self._now = 0.0
        self._waiting: deque[tuple[str, AdaptRequest, Prior]] = deque()
        self._at_work: list[tuple[float, str, AdaptRequest, Prior]] = []

    @property
    def num_pending(self) -> int:
        return len(self._waiting) + len(self._at_work)

    def submit(self, key: str, request: AdaptRequest, prior: Prior) -> None:
        self._waiting.append((key, request, prior))

    def poll(self, timeout_s: float) -> list[Outcome]:
        while self._waiting and len(self._at_work) < self.max_workers:
            end = self._now + float(self._random.lognormal(0.0, SPREAD))
            heapq.heappush(self._at_work, (end, *self._waiting.popleft()))
        self._now, key, request, prior = heapq.heappop(self._at_work)
        return [Outcome(key, self._runner.run(prior, request))]

    def give_up(self) -> None:
        self._waiting.clear()
        self._at_work.clear()

    def stream(self, supply: Supply) -> Generator[AdaptResult, None, None]:
        return stream(self, supply, per_worker=2, max_attempts=1)


class Staleness:
    """A sink that keeps how stale the updates of each version were."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.most = 0.0

    def record(self, version: int, values: dict[str, float]) -> None:
        self.means.append(values["staleness_mean"])
        self.most = max(self.most, values["staleness_max"])

    def close(self) -> None:
        pass


def trained(config: StudyConfig, num_workers: int, seed: int, folder: Path) -> tuple[Prior, Staleness]:
    """The study's last prior, and how stale its updates were."""
    device = torch.device("cpu")
    executor = LogicalWorkers(num_workers, seed, TaskRunner(device)) if num_workers else LocalExecutor(device)
    store, sink = PriorStore(folder), Staleness()
    prior = study.run(study.begin(store, config), config, executor, store, [sink], lambda: 0.0)  # type: ignore[arg-type]
    return prior, sink


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--set", action="append", default=[], help="changes a field of the preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--workers", type=int, nargs="+", default=[4], help="logical ones of buffered mode")
    parser.add_argument("--tasks", type=int, default=40, help="fresh tasks per seed")
    options = parser.parse_args()
    runner = LocalExecutor(torch.device("cpu"))
    found: dict[str, list[np.ndarray]] = {}
    stale: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            variants = {"rounds": ([], 0)} | {f"{n} workers": (["schedule.mode=buffered"], n) for n in options.workers}
            arms = []
            for name, (overrides, num_workers) in variants.items():
                config = load(options.preset, [f"seed={seed}", *options.set, *overrides], environment={})
                run = Path(folder) / f"{seed}-{len(arms)}"
                prior, staleness = trained(config, num_workers, seed, run)
                arms.append(Arm(name, prior, config.adapt))
                stale.setdefault(name, []).append((float(np.mean(staleness.means)), staleness.most))
            tasks = fresh_tasks(config.families[0], "unseen", options.tasks, seed=1000 + seed)
            results = compare(
                arms,
                tasks,
                config,
                (config.adapt.steps,),
                lambda prior, requests, _: list(runner.run(prior, requests)),  # type: ignore[arg-type]
            )
            for name, each in results.items():
                found.setdefault(name, []).append(accuracies(each))
    table = Table(title="Held-out accuracy on fresh tasks, mean and 95 % interval over tasks", show_edge=False)
    for column in ("arm", "staleness", "at most", "accuracy", "against rounds"):
        table.add_column(column, no_wrap=True)
    result = {}
    base = np.concatenate(found["rounds"])
    for name, values in found.items():
        accuracy = np.concatenate(values)
        mean, difference = mean_interval(accuracy), paired_interval(accuracy, base)
        staleness_mean = float(np.mean([each for each, _ in stale[name]]))
        most = max(each for _, each in stale[name])
        half, half_difference = (float(i.high[-1] - i.mean[-1]) for i in (mean, difference))
        table.add_row(
            name,
            f"{staleness_mean:.2f}",
            f"{most:.0f}",
            f"{mean.mean[-1]:.3f} ± {half:.3f}",
            f"{difference.mean[-1]:+.3f} ± {half_difference:.3f}",
        )
        result[name] = {
            "staleness_mean": staleness_mean,
            "staleness_max": most,
            "accuracy": float(mean.mean[-1]),
            "accuracy_half_interval": half,
            "difference": float(difference.mean[-1]),
            "difference_half_interval": half_difference,
            "num_tasks": len(accuracy),
        }
    console.print(table)
    finish({"arms": result}, {"meta_seeds": options.seeds}, options.json)


if __name__ == "__main__":
    main()
