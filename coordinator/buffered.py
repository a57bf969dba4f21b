"""Buffered asynchronous aggregation as plain values: what is under way, what has come back. No Ray, no clock, no disk.

After Nguyen et al. 2022 (FedBuff), with one difference: updates are averaged by their weights, where they divide by
their number, so that a step is as long for stale updates as for fresh ones (reconstruction; the paper has rounds).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from common.config import StudyConfig
from common.errors import AdaptationError
from common.intake import DoneTasks, Intake
from common.messages import AdaptRequest, AdaptResult, Rejection, RejectionReason, TaskStatistics, statistics_of
from common.meta.prior import ALPHA, Prior, Vector
from common.meta.sums import Origin
from coordinator.outer import OuterStep
from coordinator.rounds import round_metrics


@dataclass(frozen=True)
class TaskUnderWay:
    """A task by its number, and the version of the prior that it began from."""

    number: int
    version: int


class BufferedAggregation:
    """A study in buffered mode: hands tasks out one after the other, and steps whenever enough updates are back.

    Each task number is handed out once, whatever the order in which results come, and again only if its result was
    lost. No more are handed out than the versions that are left need. What a version took in is its `Intake`; a study
    that was interrupted goes on from that of its last version: tasks that were under way then, or waited in the
    buffer, begin again from that version.

    Updates of the present version count as in a synchronous round of the same tasks, bit for bit; stale ones by
    `Origin`. The sums are exact, so the order within a buffer changes nothing.

    Few-shot studies do the same with stale meta-gradients, as asynchronous gradient descent does: they are applied to a
    prior that has moved on since, and Adam's moments follow the versions.

    Args:
        prior: where it starts.
        config: of the study.
        draw: the request of a task number from a prior; see `coordinator.rounds.request_of`.
        done: tasks that made `prior`, and never count again.
        target: version to end at; the study's last where not given.
    """

    def __init__(
        self,
        prior: Prior,
        config: StudyConfig,
        draw: Callable[[int, Prior], AdaptRequest],
        done: DoneTasks = DoneTasks(),  # noqa: B008 a frozen value
        target: int | None = None,
    ) -> None:
        self._config = config
        self._draw = draw
        self._size = config.schedule.buffer_size or config.tasks_per_round
        self._target = config.rounds if target is None else target
        self._done = done
        self._lost = deque(done.gaps)
        self._next_number = done.end
        self._under_way: dict[str, TaskUnderWay] = {}
        self._alphas: dict[int, Vector | None] = {}
        self._prior = prior
        self._empty()

    def _empty(self) -> None:
        """A new buffer, for updates to the present version."""
        self._outer = OuterStep(self._prior, self._config)
        self._accepted: dict[int, TaskUnderWay] = {}
        self._statistics: dict[int, TaskStatistics] = {}
        self._rejected: dict[int, Rejection] = {}
        # Of earlier versions only what tasks under way need.
        needed = {task.version for task in self._under_way.values()}
        self._alphas = {version: alpha for version, alpha in self._alphas.items() if version in needed}
        self._alphas[self._prior.version] = self._prior.vectors.get(ALPHA)

    @property
    def prior(self) -> Prior:
        """The latest version, from which tasks begin now."""
        return self._prior

    @property
    def is_over(self) -> bool:
        """Whether the last version is made."""
        return self._prior.version >= self._target

    @property
    def is_full(self) -> bool:
        """Whether `step` is due: enough updates are in the buffer, or too few results were good ones."""
        return len(self._accepted) >= self._size or self._fails

    @property
    def under_way(self) -> tuple[TaskUnderWay, ...]:
        """Tasks whose results are awaited, by number."""
        return tuple(sorted(self._under_way.values(), key=lambda task: task.number))

    def hand_out(self, most: int) -> tuple[AdaptRequest, ...]:
        """The next tasks, to begin from `prior`.

        Args:
            most: how many there is room for.
        """
        limit = self._config.schedule.max_in_flight
        room = most if limit is None else min(most, limit - len(self._under_way))
        versions_left = max(self._target - self._prior.version, 0)
        needed = versions_left * self._size - len(self._accepted) - len(self._under_way)
        return tuple(self._hand_out(self._next()) for _ in range(min(room, needed)))

    def hand_out_again(self, task_id: str) -> AdaptRequest:
        """A task under way whose result was lost, to begin again, from `prior`."""
        return self._hand_out(self._under_way[task_id].number)

    def _next(self) -> int:
        if self._lost:
            return self._lost.popleft()
        self._next_number += 1
        return self._next_number - 1

    def _hand_out(self, number: int) -> AdaptRequest:
        request = self._draw(number, self._prior)
        self._under_way[request.task.task_id] = TaskUnderWay(number, self._prior.version)
        return request

    def absorb(self, result: AdaptResult) -> Rejection | None:
        """Takes the result of a task under way, once; says why if it does not count."""
        task = self._under_way.pop(result.task_id, None)
        if task is None:
            return Rejection(result.task_id, RejectionReason.UNEXPECTED_TASK, "not under way, or absorbed before")
        rejection = self._refusal(task, result)
        if rejection is None:
            self._accepted[task.number] = task
            self._statistics[task.number] = statistics_of(result)
        else:
            self._rejected[task.number] = rejection
        return rejection

    def _refusal(self, task: TaskUnderWay, result: AdaptResult) -> Rejection | None:
        """Adds a result's update to the buffer, or says why not."""
        schedule, update = self._config.schedule, result.update
        staleness = self._prior.version - task.version
        if update is None or update.task_id != result.task_id:
            detail = "the result carries no update of its task"
            return Rejection(result.task_id, RejectionReason.UNEXPECTED_TASK, detail)
        if staleness > schedule.max_staleness:
            detail = f"began {staleness} versions ago, schedule.max_staleness is {schedule.max_staleness}"
            return Rejection(result.task_id, RejectionReason.TOO_STALE, detail)
        if not staleness:
            return self._outer.absorb(update)
        origin = Origin(task.version, self._alphas[task.version], schedule.staleness_weight(staleness))
        return self._outer.absorb(update, origin)

    @property
    def _num_bad(self) -> int:
        """Results that were refused for what they are; that others were faster is no fault of theirs."""
        return sum(each.reason is not RejectionReason.TOO_STALE for each in self._rejected.values())

    @property
    def _fails(self) -> bool:
        return self._size < self._config.outer.min_accepted_fraction * (self._size + self._num_bad)

    def step(self) -> tuple[Prior, dict[str, float], Intake]:
        """Empties the buffer into the next version: that, its metrics but for the time, and what it took in.

        Raises:
            AdaptationError: too few results since the version before were good ones.
        """
        before = self._prior
        if self._fails:
            reasons = "; ".join(f"{r.task_id}: {r.reason} ({r.detail})" for r in self._rejected.values())
            raise AdaptationError(
                f"{len(self._accepted)} of {len(self._accepted) + self._num_bad} updates since version "
                f"{before.version} are acceptable: {reasons}"
            )
        assert self.is_full, "the buffer waits for more updates"
        self._prior = self._outer.finish()
        taken = [self._accepted[number] for number in sorted(self._accepted)]
        self._done = self._done.plus([*self._accepted, *self._rejected])
        intake = Intake(
            accepted=tuple((task.number, task.version) for task in taken),
            rejected=tuple(sorted(self._rejected)),
            done=self._done,
        )
        metrics = round_metrics(
            before,
            self._prior,
            [self._statistics[task.number] for task in taken],
            list(self._rejected.values()),
            self._config,
            [before.version - task.version for task in taken],
        )
        self._empty()
        return self._prior, metrics, intake
