"""What a simulation has found, as a value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Of several values: the median, the 95th percentile, the largest."""

    median: float
    p95: float
    largest: float


@dataclass(frozen=True)
class SimulationOutcome:
    """A service over the window of a simulation that was counted, after its start.

    Attributes:
        num_workers: simulated.
        mode: see `workload.WHAT`.
        window_s: simulated seconds that were counted.
        utilisation: share of the workers' time in which they computed what counted.
        wasted_fraction: share in which they computed what was lost with a worker, or given up.
        tasks_per_s: tasks of meta-training that entered a prior.
        jobs_per_s: submitted tasks that were finished.
        coordinator_load: share of the window in which the coordinator computed; at 1 it is what limits all.
        load_by: the same by what it computed.
        result_wait_s: from the arrival of a result until the coordinator took it, mean.
        inward_bytes_per_s: that arrive at the coordinator's host.
        network_load: the same as a share of what its interface carries.
        outward_bytes_per_s: of priors that leave it.
        commits_per_s: of the job store, by the coordinator.
        num_rounds: versions of all priors that were made.
        round_s: seconds of a round; None without any.
        staleness_mean: versions made since the tasks began, over versions; 0 in synchronous modes.
        staleness_max: of the stalest update.
        tasks_late_fraction: tasks of meta-training that a quorum did without.
        num_deaths: of workers, from the start.
        num_studies: meta-trained side by side.
        tasks_per_round: of each.
        num_adapt_jobs: in the service at any time.
    """

    num_workers: int
    mode: str
    window_s: float
    utilisation: float
    wasted_fraction: float
    tasks_per_s: float
    jobs_per_s: float
    coordinator_load: float
    load_by: Mapping[str, float]
    result_wait_s: float
    inward_bytes_per_s: float
    network_load: float
    outward_bytes_per_s: float
    commits_per_s: float
    num_rounds: int
    round_s: Spread | None
    staleness_mean: float
    staleness_max: float
    tasks_late_fraction: float
    num_deaths: int
    num_studies: int
    tasks_per_round: int
    num_adapt_jobs: int

    @property
    def limit(self) -> str:
        """What keeps the workers from computing more, or would next."""
        busiest = max(self.load_by, key=lambda name: self.load_by[name], default="nothing")
        if self.coordinator_load > 0.9:
            return f"the coordinator: {busiest}"
        if self.network_load > 0.9:
            return "the interface of the coordinator's host"
        if self.utilisation < 0.9:
            return "too few tasks at hand"
        return f"nothing yet; next the coordinator: {busiest}"

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "limit": self.limit}
