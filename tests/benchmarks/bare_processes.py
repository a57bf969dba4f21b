"""What two processes on this machine can be worth to each other: a round's tasks, without Ray, transfer or sums."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from common.config import StudyConfig
from common.meta.prior import initial_prior
from coordinator.rounds import plan
from coordinator.study import load_catalogs
from workers.device import choose_device, use_single_thread
from workers.runner import TaskRunner


class BareProcesses:
    """Two processes that adapt the first prior of a study to tasks of its first round."""

    def __init__(self, connections: list[Connection], num_tasks: int) -> None:
        self._connections = connections
        self._num_tasks = num_tasks

    def round_s(self, number: int) -> float:
        """Seconds for all tasks, on one of them or divided between both."""
        started_s = time.perf_counter()
        for first in range(number):
            self._connections[first].send(range(first, self._num_tasks, number))
        for first in range(number):
            self._connections[first].recv()
        return time.perf_counter() - started_s


@contextmanager
def bare_processes(config: StudyConfig) -> Iterator[BareProcesses]:
    """Both, warm."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_adapt, args=(config.model_dump_json(), theirs), daemon=True))
        processes[-1].start()
        connections.append(ours)
    found = BareProcesses(connections, config.tasks_per_round)
    found.round_s(2)
    try:
        yield found
    finally:
        for process in processes:
            process.kill()
            process.join()


def _adapt(config_text: str, connection: Connection) -> None:
    use_single_thread()
    config = StudyConfig.model_validate_json(config_text)
    prior, runner = initial_prior(config), TaskRunner(choose_device())
    requests = plan(prior, config, load_catalogs(config)).requests
    while True:
        for index in connection.recv():
            runner.run(prior, requests[index], lambda *_: None)
        connection.send(None)
