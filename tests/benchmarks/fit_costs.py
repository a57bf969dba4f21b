"""What the coordinator's steps cost on this machine: the figures that `metasearch simulate --costs FILE` takes.

Of each step the least of several repeats, as whatever else the machine does only adds: seconds of this process's
processor for what only computes, of the clock for what waits for a disk or for Ray. Priors are as large as the paper's.
The pool's bookkeeping for many workers is timed with Ray's calls replaced by ones that return at once; Ray's own with
real actors, two of them, and as many calls as many workers would have.
"""

import argparse
import json
import logging
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import ray
from reporting import console

from common.config import DatasetRef, StudyConfig
from common.loading import load
from common.messages import AdaptResult, LocalUpdate, PartialSum, statistics_of
from common.meta.params import BODY, head_vector
from common.meta.prior import ALPHA, Prior, initial_prior
from common.meta.sums import UpdateSums
from common.tasks import TaskChoice
from coordinator.calls import Call
from coordinator.cluster import connect, disconnect
from coordinator.dispatcher import Dispatcher
from coordinator.jobs import AdaptSpec, Job
from coordinator.pool import RayPool
from coordinator.priors import StudyPriors
from coordinator.rounds import Round, RoundPlan, plan
from coordinator.settings import ServiceSettings
from coordinator.simulation.charged import InTheForeground
from coordinator.simulation.costs import Costs
from coordinator.store.jobs import JobStore
from coordinator.store.ledger import Ledger
from coordinator.store.memory import MemoryLedger
from coordinator.store.records import Quota, Study, read_job
from coordinator.store.sqlite import SqliteLedger
from coordinator.study import load_catalogs
from workers.device import use_single_thread

sys.path.append(str(Path(__file__).parents[1]))
from reference.redis_server import RedisServer

SEED = 7
TASKS = 16
SIZE = 32
NAME = "fit"
MANY, FEW = 2000, 500
CHOICE = TaskChoice(data=DatasetRef(source="digits"), classes=("1", "7", "4"), image_size=SIZE)


def least(action: Callable[[], object], repeats: int, now_s: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of several calls, the first not counted."""
    action()
    return min(_timed(action, now_s) for _ in range(repeats))


def _timed(action: Callable[[], object], now_s: Callable[[], float]) -> float:
    started_s = now_s()
    action()
    return now_s() - started_s


def study_like_the_papers() -> StudyConfig:
    """Networks of the paper's preset, images that are there."""
    small = load("smoke", [f"families.0.tasks_per_round={TASKS}"], environment={})
    paper = load("paper", environment={})
    network = paper.network.model_copy(update={"heads": {SIZE: paper.network.heads[SIZE]}})
    family = small.families[0].model_copy(update={"image_size": SIZE})
    return small.model_copy(update={"network": network, "space": paper.space, "families": (family,)})


def update_of(prior: Prior, task_id: str, generator: np.random.Generator) -> LocalUpdate:
    """An update as a task returns it."""
    names = (BODY, head_vector(SIZE))
    moves = {name: 0.01 * generator.standard_normal(prior.vectors[name].size, dtype=np.float32) for name in names}
    return LocalUpdate(task_id, prior.version, 100, moves, prior.vectors[ALPHA])


def fit_rounds(repeats: int) -> dict[str, float]:
    """Planning, absorbing, merging and stepping."""
    config = study_like_the_papers()
    prior, catalogs = initial_prior(config), load_catalogs(config)
    generator = np.random.default_rng(SEED)
    planned = plan(prior, config, catalogs)
    plan_s = least(lambda: plan(prior, config, catalogs), repeats, time.process_time)
    results = [
        AdaptResult(task_id, update_of(prior, task_id, generator), {}, (1.0, 0.5), (), 1.0, 1.0)
        for request in planned.requests
        for task_id in request.task_ids
    ]
    update = results[0].update
    assert isinstance(update, LocalUpdate)
    update_bytes = sum(vector.nbytes for vector in update.differences.values()) + update.alpha.nbytes

    absorbing: list[float] = []
    stepping: list[float] = []
    for _ in range(repeats):
        running = Round(prior, planned, config)
        started_s = time.process_time()
        for result in results:
            assert running.absorb(result) is None
        absorbed_s = time.process_time()
        running.finish()
        absorbing.append(absorbed_s - started_s)
        stepping.append(time.process_time() - absorbed_s)

    parts = []
    for start in range(0, TASKS, 4):
        sums = UpdateSums(prior, config)
        for result in results[start : start + 4]:
            assert result.update is not None
            sums.absorb(result.update)
        statistics = {result.task_id: statistics_of(result) for result in results[start : start + 4]}
        parts.append(PartialSum(prior.version, statistics, (), sums.sums()))
    sum_bytes = sum(each.totals.nbytes for each in parts[0].sums.values())
    merging = []
    for _ in range(repeats):
        running = Round(prior, RoundPlan(planned.version, planned.requests), config)
        started_s = time.process_time()
        for part in parts:
            assert running.absorb(part) is None
        merging.append(time.process_time() - started_s)
    return {
        "plan_per_task_s": plan_s / TASKS,
        "absorb_s_per_byte": min(absorbing) / TASKS / update_bytes,
        "merge_s_per_byte": min(merging) / len(parts) / sum_bytes,
        "step_s_per_byte": min(stepping) / prior.num_bytes,
    }


def fit_priors(folder: Path, repeats: int) -> dict[str, float]:
    """A new version's files, small and large."""
    seconds, sizes = [], []
    small = load("smoke", environment={})
    for config in (small, study_like_the_papers()):
        prior = initial_prior(config)
        store = JobStore(MemoryLedger())
        priors = StudyPriors(store, str(folder / str(len(sizes))), time.time)
        seconds.append(least(lambda: priors.save(NAME, NAME, replace(prior), "", {}), repeats))  # noqa: B023
        sizes.append(prior.num_bytes)
    per_byte = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    return {"save_s": max(seconds[0] - sizes[0] * per_byte, 0.0), "save_s_per_byte": per_byte}


def a_store(ledger: Ledger, num_jobs: int) -> tuple[JobStore, int, list[Job]]:
    """A store with a study, and jobs of it that run."""
    store = JobStore(ledger)
    epoch = store.take_charge(NAME)
    config = load("smoke", environment={}).model_dump(mode="json")
    store.create_study(Study(tenant=NAME, study=NAME, config=config, created_s=0.0))
    jobs = []
    for number in range(num_jobs):
        job = Job(tenant=NAME, study=NAME, job_id=f"{number:06d}", spec=AdaptSpec(choice=CHOICE), created_s=0.0)
        store.create_job(job, None, Quota())
        jobs.append(store.start(epoch, job, 0.0, 0, Quota(max_running=10**6)))
    return store, epoch, jobs


def fit_store(ledger: Ledger, repeats: int) -> dict[str, float]:
    """Commits and reads."""
    store, epoch, (job, *_) = a_store(ledger, 1)
    steps = iter(range(10**9))
    report_s = least(lambda: store.report(epoch, job, {"done": next(steps), "total": 9}), 20 * repeats)
    read_s = least(lambda: store.get_job(NAME, NAME, job.job_id), 20 * repeats)
    head_s = least(lambda: store.head(NAME, NAME), 20 * repeats, time.process_time)
    for number in range(1, FEW):
        store.create_job(
            Job(tenant=NAME, study=NAME, job_id=f"{number:06d}", spec=AdaptSpec(choice=CHOICE), created_s=0.0),
            None,
            Quota(),
        )
    scan_s = least(
        lambda: [read_job(found) for found in ledger.scan(f"job/{NAME}/{NAME}/")], repeats, time.process_time
    )
    return {"commit_s": report_s - read_s, "read_s": head_s, "read_per_record_s": scan_s / FEW}


class Quiet:
    """A pool in which nothing ever happens."""

    gpus_per_worker = 0.0
    num_workers = MANY
    max_workers = MANY
    num_pending = 0
    num_replaced = 0
    num_by_state: Mapping[str, int] = {"running": MANY}

    def submit(self, key: str, request: Call, prior: Prior | None) -> None:
        pass

    def poll(self, timeout_s: float) -> list[Any]:
        return []

    def abandon(self, key: str) -> None:
        pass

    def status(self, timeout_s: float = 0.0) -> list[Any]:
        return []

    def expect(self, load: object) -> None:
        pass


def fit_turns(folder: Path, repeats: int) -> dict[str, float]:
    """Turns of a dispatcher with jobs in which nothing is due."""
    ledger = MemoryLedger()
    store = JobStore(ledger)
    config = load("smoke", environment={}).model_dump(mode="json")
    store.create_study(Study(tenant=NAME, study=NAME, config=config, created_s=0.0))
    for number in range(FEW):
        job = Job(tenant=NAME, study=NAME, job_id=f"{number:06d}", spec=AdaptSpec(choice=CHOICE), created_s=0.0)
        store.create_job(job, None, Quota())
    settings = ServiceSettings(artifacts=str(folder / "turns"), quota=Quota(max_running=10**6))
    # The clock stands still: what is due once a second is not due in these turns.
    still: Callable[[], float] = lambda: 1.0  # noqa: E731
    dispatcher = Dispatcher(store, Quiet(), settings, NAME, still, still, logging.getLogger(NAME))
    dispatcher.background = InTheForeground(1)
    dispatcher.turn(0.0)
    assert len(dispatcher.running) == FEW

    def turns() -> None:
        for _ in range(100):
            dispatcher.turn(0.0)

    seconds = least(turns, repeats, time.process_time) / 100
    dispatcher.close()
    return {"turn_s": seconds}


class Ref(int):
    """The reference of a call."""

    def task_id(self) -> SimpleNamespace:
        return SimpleNamespace(hex=lambda: str(int(self)))


class AtOnce:
    """Ray's calls, as far as a pool makes them, which return at once: what is left is the pool's own work."""

    def __init__(self) -> None:
        self.answered: set[int] = set()
        self.results: dict[int, Any] = {}
        self.number = 0
        self.most = sys.maxsize
        """How many a wait finds ready, at most."""

    def call(self, *arguments: Any, **named: Any) -> Ref:
        self.number += 1
        return Ref(self.number)

    def wait(self, refs: list[int], num_returns: int = 1, timeout: float | None = None) -> tuple[list[int], list[int]]:
        return refs[: min(num_returns, self.most)], []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        method = mock.Mock(spec_set=["remote", "options"])
        method.remote = self.call
        method.options = lambda **options: method
        handle = mock.NonCallableMock(spec_set=["status", "adapt", "adapt_many", "run_job", "withdraw", "where"])
        for name in ("status", "adapt", "adapt_many", "run_job", "withdraw", "where"):
            setattr(handle, name, method)
        made = mock.NonCallableMock(spec_set=["remote"])
        made.remote = lambda *arguments, **named: handle
        actor_class = mock.NonCallableMock(spec_set=["options"])
        actor_class.options = lambda **options: made
        replaced = {
            "remote": lambda *arguments, **named: lambda cls: actor_class,
            "wait": self.wait,
            "get": lambda ref, **named: SimpleNamespace(node_id="node"),
            "put": lambda value: 0,
            "kill": lambda handle: None,
            "cancel": lambda ref: None,
        }
        with mock.patch.multiple(ray, **replaced):
            yield


def fit_pool(repeats: int) -> dict[str, float]:
    """A poll that returns one result and hands out the next call, with few workers and with many."""
    config = load("smoke", environment={})
    prior = initial_prior(config)
    (request, *_) = plan(prior, config, load_catalogs(config)).requests
    polls, hand_outs = [], []
    for num_workers in (FEW, MANY):
        calls = AtOnce()
        with calls.in_place():
            pool = RayPool(NAME, num_workers, 0.0, config.cluster, time.monotonic, logging.getLogger(NAME))
            pool.poll(0.0)
            calls.most = 1
            numbers = iter(range(10**9))

            def give(count: int, pool: RayPool = pool, numbers: Iterator[int] = numbers) -> None:
                for _ in range(count):
                    pool.submit(str(next(numbers)), request, prior)

            give(2 * num_workers)
            pool.poll(0.0)
            # All are busy, and nothing waits: a poll gives one result.
            polls.append(min(_timed(lambda: pool.poll(0.0), time.thread_time) for _ in range(10 * repeats)))  # noqa: B023
            give(30 * repeats)  # more than there is room for: a poll fills the place of what it gives
            pool.poll(0.0)
            hand_outs.append(min(_timed(lambda: pool.poll(0.0), time.thread_time) for _ in range(10 * repeats)))  # noqa: B023
    per_worker = (polls[1] - polls[0]) / (MANY - FEW)
    given = [with_call - without for with_call, without in zip(hand_outs, polls, strict=True)]
    return {
        "poll_s": max(polls[0] - FEW * per_worker, 0.0),
        "poll_per_worker_s": per_worker,
        # One search before the wait, and one after it.
        "search_per_worker_s": max((given[1] - given[0]) / (MANY - FEW) / 2, 0.0),
    }


class Worker:
    """Answers, and waits where it is told to."""

    def __init__(self) -> None:
        self._go = threading.Event()

    def adapt(self, request: Any, prior: Any) -> str:
        return "done"

    def block(self) -> None:
        self._go.wait()

    def status(self) -> str:
        return "well"


def fit_ray(repeats: int) -> dict[str, float]:
    """Calls, waits, results and puts of a real Ray."""
    config = study_like_the_papers()
    prior = initial_prior(config)
    (request, *_) = plan(prior, config, load_catalogs(config)).requests
    prior_bytes = prior.num_bytes
    connect(None, include_dashboard=False)
    try:
        actor_class: Any = ray.remote(max_concurrency=2)(Worker)
        workers = [actor_class.remote() for _ in range(2)]
        for worker in workers:
            ray.get(worker.status.remote())
        put_s = least(lambda: (replace(prior).digest(), ray.put(prior)), repeats)
        ref = ray.put(prior)
        count = 50
        calls: list[Any] = []

        def hand_out() -> None:
            calls[:] = [workers[n % 2].adapt.remote(request, ref) for n in range(count)]

        hand_out_s = least(hand_out, repeats) / count

        def receive() -> float:
            hand_out()
            ray.wait(calls, num_returns=count)
            started_s = time.perf_counter()
            for call in calls:
                ray.get(call)
            return time.perf_counter() - started_s

        receive_s = min(receive() for _ in range(repeats)) / count

        def statuses() -> None:
            asked = [workers[n % 2].status.remote() for n in range(count)]
            ray.wait(asked, num_returns=count)
            for ref in asked:
                ray.get(ref)

        status_s = least(statuses, repeats) / count
        latency_s = least(lambda: ray.get(workers[0].status.remote()), 10 * repeats) / 2
        blocker = actor_class.options(max_concurrency=1).remote()
        blocked = [blocker.block.remote() for _ in range(MANY)]
        done = workers[0].status.remote()
        ray.get(done)
        waits = [
            least(lambda refs=blocked[:number]: ray.wait([*refs, done], num_returns=1, timeout=1.0), repeats)
            for number in (FEW, MANY)
        ]
        ray.kill(blocker)
    finally:
        disconnect()
    wait_per_ref_s = max((waits[1] - waits[0]) / (MANY - FEW), 0.0)
    return {
        "put_s_per_byte": put_s / prior_bytes,
        "hand_out_s": hand_out_s,
        "receive_s": receive_s,
        "status_per_worker_s": status_s,
        "latency_s": latency_s,
        "wait_s": max(waits[0] - FEW * wait_per_ref_s, 0.0),
        "wait_per_ref_s": wait_per_ref_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--store", choices=("sqlite", "redis"), default="sqlite", help="which job store")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--without-ray", action="store_true", help="keep what is known of Ray's own calls")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    options = parser.parse_args()
    use_single_thread()
    found: dict[str, float] = {}

    def note(part: dict[str, float]) -> None:
        found.update(part)
        for name, value in part.items():
            console.print(f"{name:24s} {value:.3g}")

    with tempfile.TemporaryDirectory(prefix="metasearch-fit-", dir=options.folder) as name:
        folder = Path(name)
        note(fit_rounds(options.repeats))
        note(fit_priors(folder, options.repeats))
        note(fit_turns(folder, options.repeats))
        if options.store == "redis":
            from coordinator.store.redis import RedisLedger

            (folder / "redis").mkdir()
            server = RedisServer(folder / "redis", "always")
            try:
                redis = RedisLedger(server.url)
                note(fit_store(redis, options.repeats))
                redis.close()
            finally:
                server.stop()
        else:
            ledger = SqliteLedger(folder / "jobs.sqlite")
            note(fit_store(ledger, options.repeats))
            ledger.close()
    note(fit_pool(options.repeats))
    if not options.without_ray:
        note(fit_ray(options.repeats))
    # Ray's own share of a poll.
    found["poll_s"] += found.pop("wait_s", 0.0)
    found["poll_per_worker_s"] += found.pop("wait_per_ref_s", 0.0)
    found.pop("latency_s", None)
    machine = f"{_processor()}, Python {platform.python_version()}, Ray {ray.__version__}"
    without = ", Ray's own calls as by default" if options.without_ray else ""
    provenance = f"fit_costs.py --store {options.store}, least of {options.repeats} repeats, {machine}{without}"
    costs = Costs(provenance=provenance, **{name: float(f"{value:.3g}") for name, value in found.items()})
    options.out.write_text(json.dumps(costs.model_dump(mode="json"), indent=2) + "\n")
    console.print(provenance, soft_wrap=True)


def _processor() -> str:
    if shutil.which("lscpu") is None:
        return platform.machine()
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("Model name")), "")
    return name or platform.machine()


if __name__ == "__main__":
    main()
