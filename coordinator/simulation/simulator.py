"""Runs the service on simulated workers for a while."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import fsspec
import numpy as np
from pydantic import Field

from common.config import Frozen, StudyConfig
from common.meta.prior import Prior
from coordinator.calls import Call
from coordinator.dispatcher import Dispatcher
from coordinator.jobs import AdaptSpec, Job, MetaTrainSpec
from coordinator.settings import ServiceSettings
from coordinator.simulation.charged import ChargedLedger, ChargedPriors, InTheForeground
from coordinator.simulation.costs import Costs, Sizes
from coordinator.simulation.events import Clock
from coordinator.simulation.models import Failures, Network, TaskTimes
from coordinator.simulation.outcome import SimulationOutcome, Spread
from coordinator.simulation.pool import SimulatedPool
from coordinator.simulation.workload import CHOICE, Mode, Workload, made_up, seconds_of, study_config
from coordinator.store.jobs import JobStore
from coordinator.store.memory import MemoryLedger
from coordinator.store.records import Quota, RoundRecord, Study
from workers.device import use_single_thread

# Longer than the service's own 0.1 s: while nothing arrives nothing is due more often than once a second.
_TURN_S = 1.0
_NO_QUOTA = Quota(max_queued=10**9, max_running=10**9)
_FOLDERS = count()


class Assumptions(Frozen):
    """What a simulation assumes."""

    costs: Costs = Costs()
    workload: Workload = Workload()
    times: TaskTimes = TaskTimes()
    failures: Failures = Failures()
    network: Network = Network()
    takes_over: bool = True
    """Workers without calls take over what others have not begun."""
    duration_of_mean: float = Field(36.0, gt=0)
    """Simulated time, in task times at the mean; the first third is not counted."""


@dataclass(frozen=True)
class Setup:
    """A service to simulate.

    Attributes:
        num_workers: that it has.
        mode: see `workload.WHAT`.
        sizes: bytes that its studies move.
        assumptions: all else.
        seed: of everything random.
    """

    num_workers: int
    mode: Mode
    sizes: Sizes
    assumptions: Assumptions = field(default_factory=Assumptions)
    seed: int = 0


class SimulatedService:
    """Store, dispatcher and workers of a setup; time passes in `run_until`.

    Args:
        setup: what to simulate.
        compute: what workers return.
        config: of all studies, but for the seed; `study_config`'s where not given.
    """

    def __init__(
        self,
        setup: Setup,
        compute: Callable[[Call, Prior | None], Any] = made_up,
        config: StudyConfig | None = None,
    ) -> None:
        assumed = setup.assumptions
        self.setup = setup
        self.clock = Clock()
        self.ledger = MemoryLedger()
        self.users = JobStore(self.ledger)
        self._charged = ChargedLedger(self.ledger, self.clock, assumed.costs)
        store = JobStore(self._charged)
        total_s = assumed.duration_of_mean * assumed.times.mean_s
        self.window_s = (total_s / 3, total_s)
        tasks_per_round = assumed.workload.tasks_per_round(setup.num_workers)
        self._config = config or study_config(setup.mode, tasks_per_round, assumed.times.mean_s, setup.seed)
        self.pool = SimulatedPool(
            setup.num_workers,
            self.clock,
            assumed.costs,
            setup.sizes,
            assumed.network,
            assumed.failures,
            setup.seed,
            seconds_of(assumed.times, assumed.workload, setup.seed),
            compute,
            self._config if setup.mode == "host_sums" else None,
            self.window_s,
            assumed.takes_over,
        )
        self._url = f"memory://simulation-{next(_FOLDERS)}"
        settings = ServiceSettings(artifacts=self._url, quota=_NO_QUOTA)
        now_s = lambda: self.clock.now_s  # noqa: E731
        self.dispatcher = Dispatcher(store, self.pool, settings, "simulation", now_s, now_s, _silent())
        self.dispatcher.background = InTheForeground(1)
        self.dispatcher.priors = ChargedPriors(store, self._url, now_s, self.clock, assumed.costs, setup.sizes)
        self._num_jobs = 0
        self._studies: list[str] = []

    def add_study(self, name: str) -> None:
        """A study of a tenant of its own, which is meta-trained."""
        seed = self._config.seed + len(self._studies)
        config = self._config.model_copy(update={"seed": seed}).model_dump(mode="json")
        self.users.create_study(Study(tenant=name, study=name, config=config, created_s=self.clock.now_s))
        self._studies.append(name)
        self._submit(name, MetaTrainSpec())

    def add_adapt_job(self) -> None:
        """A task that a user submits, to one study after the other."""
        self._submit(self._studies[self._num_jobs % len(self._studies)], AdaptSpec(choice=CHOICE))

    def _submit(self, study: str, spec: AdaptSpec | MetaTrainSpec) -> None:
        job_id = f"{self._num_jobs:08d}"
        self._num_jobs += 1
        job = Job(tenant=study, study=study, job_id=job_id, spec=spec, created_s=self.clock.now_s)
        self.users.create_job(job, None, _NO_QUOTA)

    def run_until(self, time_s: float, between: Callable[[], None] = lambda: None) -> None:
        """Turns of the dispatcher until then; `between` is called before each."""
        costs = self.setup.assumptions.costs
        while self.clock.now_s < time_s:
            between()
            self.clock.charge("turn", costs.turn_s)
            self.dispatcher.turn(_TURN_S)

    @property
    def num_commits(self) -> int:
        """That the coordinator made."""
        return self._charged.num_commits

    @property
    def num_jobs_done(self) -> int:
        """Jobs that have succeeded."""
        return self.ledger.counter("finished/succeeded")

    def rounds(self) -> dict[str, list[RoundRecord]]:
        """Of all studies."""
        return {name: list(self.users.rounds(name, name)) for name in self._studies}

    def head(self, name: str) -> str:
        """The digest of a study's latest prior."""
        return self.users.head(name, name).digest

    def close(self) -> None:
        """Removes what was stored."""
        self.dispatcher.close()
        files, root = fsspec.core.url_to_fs(self._url)
        if files.exists(root):
            files.rm(root, recursive=True)


@dataclass
class _Seen:
    """Counters at some time."""

    busy_s: dict[str, float] = field(default_factory=dict)
    inward_bytes: float = 0.0
    outward_bytes: float = 0.0
    num_commits: int = 0
    num_jobs: int = 0
    num_rounds: dict[str, int] = field(default_factory=dict)
    num_calls: int = 0
    waited_s: float = 0.0


def simulate(setup: Setup) -> SimulationOutcome:
    """A service in the middle of its life: what its workers and its coordinator did."""
    use_single_thread()
    service = SimulatedService(setup)
    workload, num_workers = setup.assumptions.workload, setup.num_workers
    try:
        for number in range(workload.num_studies(num_workers)):
            service.add_study(f"study-{number:03d}")
        num_jobs = workload.num_adapt_jobs(num_workers)
        submitted = 0

        def submit() -> None:
            nonlocal submitted
            while submitted < num_jobs + service.num_jobs_done:
                service.add_adapt_job()
                submitted += 1

        start_s, _ = service.window_s
        service.run_until(start_s, submit)
        before = _seen(service)
        start_s = service.clock.now_s
        service.run_until(service.window_s[1], submit)
        service.pool.finish()
        return _outcome(service, before, start_s)
    finally:
        service.close()


def _seen(service: SimulatedService) -> _Seen:
    tally = service.pool.tally
    return _Seen(
        dict(service.clock.busy_s),
        service.pool.inward.num_bytes,
        tally.outward_bytes,
        service.num_commits,
        service.num_jobs_done,
        {name: len(records) for name, records in service.rounds().items()},
        tally.num_calls,
        tally.waited_s,
    )


def _outcome(service: SimulatedService, before: _Seen, start_s: float) -> SimulationOutcome:
    setup, tally, after = service.setup, service.pool.tally, _seen(service)
    window_s = service.clock.now_s - start_s
    worker_s = setup.num_workers * (service.window_s[1] - service.window_s[0])
    load_by = {
        name: (seconds - before.busy_s.get(name, 0.0)) / window_s for name, seconds in sorted(after.busy_s.items())
    }
    made = [
        record.metrics for name, records in service.rounds().items() for record in records[before.num_rounds[name] :]
    ]
    num_accepted = sum(metrics["tasks_accepted"] for metrics in made)
    num_late = sum(metrics.get("tasks_late", 0.0) for metrics in made)
    seconds = [metrics["round_seconds"] for metrics in made]
    num_calls = after.num_calls - before.num_calls
    inward_bytes_per_s = (after.inward_bytes - before.inward_bytes) / window_s
    return SimulationOutcome(
        num_workers=setup.num_workers,
        mode=setup.mode,
        window_s=window_s,
        utilisation=tally.useful_s / worker_s,
        wasted_fraction=tally.wasted_s / worker_s,
        tasks_per_s=num_accepted / window_s,
        jobs_per_s=(after.num_jobs - before.num_jobs) / window_s,
        coordinator_load=sum(load_by.values()),
        load_by=load_by,
        result_wait_s=(after.waited_s - before.waited_s) / max(num_calls, 1),
        inward_bytes_per_s=inward_bytes_per_s,
        network_load=inward_bytes_per_s / setup.assumptions.network.bytes_per_s,
        outward_bytes_per_s=(after.outward_bytes - before.outward_bytes) / window_s,
        commits_per_s=(after.num_commits - before.num_commits) / window_s,
        num_rounds=len(made),
        round_s=Spread(float(np.median(seconds)), float(np.quantile(seconds, 0.95)), max(seconds)) if seconds else None,
        staleness_mean=float(np.mean([metrics.get("staleness_mean", 0.0) for metrics in made])) if made else 0.0,
        staleness_max=max((metrics.get("staleness_max", 0.0) for metrics in made), default=0.0),
        tasks_late_fraction=num_late / max(num_accepted + num_late, 1.0),
        num_deaths=tally.num_deaths,
        num_studies=setup.assumptions.workload.num_studies(setup.num_workers),
        tasks_per_round=setup.assumptions.workload.tasks_per_round(setup.num_workers),
        num_adapt_jobs=setup.assumptions.workload.num_adapt_jobs(setup.num_workers),
    )


def _silent() -> logging.Logger:
    """Workers die by the thousand here."""
    logger = logging.getLogger("metasearch.simulation")
    logger.setLevel(logging.CRITICAL)
    return logger
