"""What a round costs beside its tasks' own work: dispatch, transfer, checks, exact sums.

Every task copies a prior of 8 MB and adds a vector to it, nothing else. The same copies and additions in a plain loop
are the bare work; both run in turn, in one process tree.
"""

import logging
import time
from dataclasses import replace

import numpy as np
from reporting import arguments, console, finish, interleaved, spread

from common.loading import load
from common.messages import AdaptRequest, AdaptResult, LocalUpdate
from common.meta.prior import ALPHA, Prior, initial_prior
from coordinator.cluster import connect, disconnect
from coordinator.pool import RayPool
from coordinator.rounds import Round, RoundPlan, plan
from coordinator.study import load_catalogs

BODY_SIZE, HEAD_SIZE = 2_000_000, 1_000
SEED = 7


def bare_work(body: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """A local copy that takes one step."""
    local = body.copy()
    local += np.float32(0.1) * gradient
    return local


class CopyingWorker:
    """Does the bare work, and returns it as a task's update."""

    def __init__(self, name: str) -> None:
        self._gradient = np.ones(BODY_SIZE, np.float32)

    def adapt(self, request: AdaptRequest, prior: Prior) -> AdaptResult:
        local = bare_work(prior.vectors["body"], self._gradient)
        local -= prior.vectors["body"]
        update = LocalUpdate(
            request.task.task_id,
            request.version,
            num_examples=200,
            differences={"body": local, "head/16": np.zeros(HEAD_SIZE, np.float32)},
            alpha=prior.vectors[ALPHA],
        )
        return AdaptResult(request.task.task_id, update, {}, (1.0, 0.5), (), 1.0, 1.0)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()

    config = load("smoke", [f"families.0.tasks_per_round={options.tasks}"], environment={})
    generator = np.random.default_rng(SEED)
    start = initial_prior(config)
    body = generator.standard_normal(BODY_SIZE, dtype=np.float32)
    prior = replace(
        start, vectors={"body": body, "head/16": np.zeros(HEAD_SIZE, np.float32), ALPHA: start.vectors[ALPHA]}
    )
    round_plan: RoundPlan = plan(prior, config, load_catalogs(config))
    gradient = np.ones(BODY_SIZE, np.float32)
    connect(None, include_dashboard=False)
    pool = RayPool(
        "bench-round",
        options.workers,
        0.0,
        config.cluster,
        time.monotonic,
        logging.getLogger("bench"),
        worker_class=CopyingWorker,
    )
    versions = iter(range(1, 10_000))

    def one_round() -> None:
        # A new version each time, so that the prior enters the object store each time, as in a study.
        version = next(versions)
        current = replace(prior, version=version)
        requests = tuple(replace(request, version=version) for request in round_plan.requests)
        running = Round(current, RoundPlan(version, requests), config)
        for result in pool.run(current, requests):
            assert running.absorb(result) is None
        running.finish()

    def bare() -> None:
        for _ in round_plan.requests:
            bare_work(body, gradient)

    seconds = interleaved({"round": one_round, "bare": bare}, options.repeats)
    pool.close()
    disconnect()
    per_task_ms = {name: spread(values / options.tasks * 1e3) for name, values in seconds.items()}
    ratio = spread(seconds["round"] / seconds["bare"])
    for name, value in per_task_ms.items():
        console.print(f"{name:6s} {value['median']:7.2f} ms per task ({value['low']:.2f} to {value['high']:.2f})")
    console.print(
        f"ratio  {ratio['median']:7.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}); whole differences travel"
    )
    result = {
        "ratio": ratio,
        "ms_per_task": per_task_ms,
        "num_tasks": options.tasks,
        "num_workers": options.workers,
        "prior_bytes": 4 * BODY_SIZE,
    }
    finish(result, {"vectors": SEED}, options.json)


if __name__ == "__main__":
    main()
