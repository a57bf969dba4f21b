"""What a worker's work is counted by: calls and how long they take, steps, seconds at work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.metrics import ADAPT_SECONDS, WORKER_BUSY_SECONDS, WORKER_STEPS, MetricRecorder

_RECORD_EVERY_S = 0.5  # steps may take less than a millisecond


class Meter:
    """Thread-safe: a worker may be at several calls at once, which count as one while they last.

    Args:
        recorder: takes the figures.
        now_s: a monotonic clock.
    """

    def __init__(self, recorder: MetricRecorder, now_s: Callable[[], float]) -> None:
        self._recorder = recorder
        self._now_s = now_s
        self._lock = threading.Lock()
        self._num_open = 0
        self._num_steps = 0  # not recorded yet
        self._recorded_until_s = now_s()

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A call of this name is under way; how long it took is recorded unless it raises."""
        start_s = self._now_s()
        with self._lock:
            self._record(start_s)
            self._num_open += 1
        try:
            yield
            self._recorder.observe(ADAPT_SECONDS, self._now_s() - start_s, call=name)
        finally:
            with self._lock:
                self._record(self._now_s())
                self._num_open -= 1

    def step(self) -> None:
        """A step has ended."""
        with self._lock:
            self._num_steps += 1
            now_s = self._now_s()
            if now_s - self._recorded_until_s >= _RECORD_EVERY_S:
                self._record(now_s)

    def look(self) -> None:
        """Records what was done so far, where steps take long or there are none."""
        with self._lock:
            self._record(self._now_s())

    def _record(self, now_s: float) -> None:
        self._recorder.add(WORKER_STEPS, self._num_steps)
        if self._num_open:
            self._recorder.add(WORKER_BUSY_SECONDS, max(now_s - self._recorded_until_s, 0.0))
        self._num_steps, self._recorded_until_s = 0, now_s
