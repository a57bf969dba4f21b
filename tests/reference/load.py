"""Jobs without end, as clients have them, and whether each of them was done once."""

import functools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import MetaSearchError, UnavailableError
from coordinator.api.client import SearchClient
from coordinator.api.requests import JobOptions
from coordinator.api.stubs import search_pb2 as pb

_INSISTENCE = 3


@dataclass
class Load:
    """Clients that submit a job, follow it to its end, and submit the next one, until they are told to stop.

    Attributes:
        connect: makes a client; each thread has its own.
        study: `studies/{study}` that the jobs belong to; some contribute to its prior.
        min_jobs: at least as many are submitted.
        num_clients: threads.
        seed: of what the jobs ask for.
        names: of the jobs, as they were submitted.
        states: that they ended in, counted.
        problems: what went wrong for a client, or ended otherwise than well.
        asked_again: errors after which a client had to ask again.
    """

    connect: Callable[[], SearchClient]
    study: str
    min_jobs: int
    num_clients: int
    seed: int = 0
    names: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    asked_again: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(n,), daemon=True) for n in range(self.num_clients)]
        for thread in self._threads:
            thread.start()

    def finish(self, timeout_s: float) -> None:
        """No more jobs than are needed; waits for those that run."""
        self._enough.set()
        until_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until_s - time.monotonic(), 0.1))
        assert not any(thread.is_alive() for thread in self._threads), f"clients still wait; {self.states}"
        assert not self.problems, self.problems

    def _client(self, number: int) -> None:
        choices = random.Random(f"{self.seed}/{number}")
        with self.connect() as client:
            while not self._enough.is_set() or len(self.names) < self.min_jobs:
                request = {
                    "num_ways": 3,
                    # Most are over at once; some are long enough to be at work when something is killed.
                    "steps": choices.choice((1, 1, 2, 2, 20)),
                    "train_per_class": 8,
                    "test_per_class": 4,
                    "seed": choices.randrange(1000),
                    "contribute": choices.random() < 0.15,
                    "request_id": str(uuid.uuid4()),
                    "max_attempts": 100,
                }
                try:
                    name = insist(
                        lambda request=request: client.submit(self.study, "digits", **request), self.asked_again
                    ).name
                    with self._lock:
                        self.names.append(name)
                    ended = insist(functools.partial(client.wait, name), self.asked_again)
                except MetaSearchError as error:
                    self.problems.append(f"client {number}: {error!r}")
                    return
                with self._lock:
                    self.states[pb.JobState.Name(ended.state)] += 1
                if ended.state != pb.JOB_STATE_SUCCEEDED:
                    self.problems.append(str(ended))


@dataclass
class Training:
    """A client that has a study's prior trained, a job after the other, until it is told to stop.

    Attributes:
        connect: makes the client.
        study: `studies/{study}`.
        rounds: of each job.
        names: of the jobs, as they were submitted.
        asked_again: errors after which the client had to ask again.
    """

    connect: Callable[[], SearchClient]
    study: str
    rounds: int
    names: list[str] = field(default_factory=list)
    asked_again: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._enough = threading.Event()
        self._last: pb.Job | BaseException | None = None
        self._thread = threading.Thread(target=self._client, daemon=True)
        self._thread.start()

    def finish(self, timeout_s: float) -> tuple[int, str]:
        """Waits for the job that runs; returns the last version and its SHA-256."""
        self._enough.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"{self.names[-1]} still runs"
        assert isinstance(self._last, pb.Job), self._last
        assert self._last.state == pb.JOB_STATE_SUCCEEDED, self._last
        return self._last.meta_train_result.prior_version, self._last.meta_train_result.prior_sha256

    def _client(self) -> None:
        try:
            with self.connect() as client:
                while not self._enough.is_set():
                    until = self.rounds * (len(self.names) + 1)
                    options: JobOptions = {"request_id": str(uuid.uuid4()), "max_attempts": 100}
                    submit = functools.partial(client.meta_train, self.study, until, **options)
                    self.names.append(insist(submit, self.asked_again).name)
                    self._last = insist(functools.partial(client.wait, self.names[-1]), self.asked_again)
        except MetaSearchError as error:
            self._last = error


def insist(call: Callable[[], pb.Job], asked_again: list[str]) -> pb.Job:
    """Asks again, in the same words, where the client's own patience did not do."""
    for _ in range(_INSISTENCE):
        try:
            return call()
        except UnavailableError as error:
            asked_again.append(str(error))
    return call()
