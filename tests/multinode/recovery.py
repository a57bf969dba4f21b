"""What a fault costs: when it was noticed, when jobs ended again, when all was as before."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from multinode.service import GPU_HOSTS, TENANT, HostedService
from reference.audit import all_jobs, all_priors
from reference.kept import wait_until
from reference.processes import WORKER_AT_WORK

from common.errors import UnavailableError

RECOVERY_TIMEOUT_S = 300.0
_COLUMNS = {
    "noticed": "noticed_s",
    "next job": "next_job_s",
    "next version": "next_version_s",
    "no job for": "longest_without_job_s",
    "no version for": "longest_without_version_s",
    "repaired": "repaired_s",
    "whole": "whole_s",
}


@dataclass(frozen=True)
class Fault:
    """Something that breaks.

    Attributes:
        name: for the report.
        begin: breaks it.
        is_noticed: whether the service has drawn its conclusions; None where there are none to draw.
        repair: mends it, once it was noticed and has lasted; None where what was killed is started again.
        lasts_s: how long it lasts at least.
    """

    name: str
    begin: Callable[[], None]
    is_noticed: Callable[[], bool] | None = None
    repair: Callable[[], None] | None = None
    lasts_s: float = 0.0


@dataclass(frozen=True)
class Recovery:
    """What a fault cost, in seconds from its beginning.

    Attributes:
        fault: its name.
        noticed_s: until the service had drawn its conclusions; None where there were none.
        next_job_s: until the next job ended.
        next_version_s: until the next version of the trained prior was committed.
        longest_without_job_s: longest time without the end of a job, until all was as before.
        longest_without_version_s: the same for versions.
        repaired_s: until it was mended; None where what was killed was started again.
        whole_s: until workers on all GPU hosts took calls again.
        coordinator_hosts: where the coordinator was, before and after.
    """

    fault: str
    noticed_s: float | None
    next_job_s: float
    next_version_s: float
    longest_without_job_s: float
    longest_without_version_s: float
    repaired_s: float | None
    whole_s: float
    coordinator_hosts: tuple[str, str]


class Observer:
    """Breaks things, and watches how the service gets over it.

    Attributes:
        at_work: by GPU host, how often its workers were seen at tasks of rounds, and at jobs.
    """

    def __init__(self, service: HostedService, trained: str, adapted: str) -> None:
        self._service = service
        self._trained, self._adapted = trained, adapted
        self.at_work: dict[str, Counter[str]] = {name: Counter() for name in GPU_HOSTS}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def watch(self, fault: Fault) -> Recovery:
        """Begins a fault, mends it in due time, and waits until all is as before."""
        service = self._service
        wait_until(service.is_whole, RECOVERY_TIMEOUT_S)
        jobs, version = service.num_finished(), self.version()
        before = service.coordinator_host()
        began_s, clock_s = time.time(), time.monotonic()
        fault.begin()
        noticed_s = None if fault.is_noticed is None else wait_until(fault.is_noticed, RECOVERY_TIMEOUT_S)
        self._stopping.wait(max(fault.lasts_s - (time.monotonic() - clock_s), 0.0))
        if fault.repair is not None:
            fault.repair()
        repaired_s = None if fault.repair is None else time.monotonic() - clock_s
        wait_until(lambda: service.num_finished() > jobs and self.version() > version, RECOVERY_TIMEOUT_S)
        wait_until(service.is_whole, RECOVERY_TIMEOUT_S)
        whole_s = time.monotonic() - clock_s
        ended = [job.finished_s for job in all_jobs(service.store, TENANT, self._adapted) if job.finished_s is not None]
        made = [pointer.created_s for pointer in all_priors(service.store, TENANT, self._trained)]
        return Recovery(
            fault.name,
            noticed_s,
            min(moment for moment in ended if moment > began_s) - began_s,
            min(moment for moment in made if moment > began_s) - began_s,
            _longest_gap_s(ended, began_s, began_s + whole_s),
            _longest_gap_s(made, began_s, began_s + whole_s),
            repaired_s,
            whole_s,
            (before, service.coordinator_host()),
        )

    def version(self) -> int:
        """Of the trained prior; -1 while the store does not answer."""
        try:
            return self._service.store.head(TENANT, self._trained).version
        except UnavailableError:
            return -1

    def close(self) -> None:
        """Stops looking."""
        self._stopping.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._stopping.wait(0.5):
            for name, seen in self.at_work.items():
                titles = self._service.hosts[name].processes().values()
                at_work = [title for title in titles if title.startswith(WORKER_AT_WORK)]
                seen.update("jobs" if "attempt" in title else "tasks of rounds" for title in at_work)


def table(recoveries: Sequence[Recovery]) -> str:
    """Of seconds, a line for each."""
    width = max(len(found.fault) for found in recoveries)
    lines = [f"{'':{width}}" + "".join(f"{head:>16}" for head in _COLUMNS)]
    for found in recoveries:
        values = [getattr(found, name) for name in _COLUMNS.values()]
        cells = ["-" if value is None else f"{value:.1f} s" for value in values]
        lines.append(f"{found.fault:{width}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _longest_gap_s(moments: Sequence[float], from_s: float, to_s: float) -> float:
    within = sorted(moment for moment in moments if from_s < moment < to_s)
    return max(after - before for before, after in pairwise([from_s, *within, to_s]))
