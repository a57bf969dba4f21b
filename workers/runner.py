"""Runs adaptation requests one after the other, keeping what is worth keeping between them: a warm supernet."""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from common.config import NetworkConfig, SpaceConfig
from common.errors import AdaptationError
from common.messages import AdaptRequest, AdaptResult, PartialSum, PartialSumRequest, statistics_of
from common.meta.few_shot_network import FewShotNetwork
from common.meta.prior import Prior
from common.meta.sums import UpdateSums
from common.nn.supernet import Supernet, build_supernet
from workers.adapt import OnEvaluation, adapt
from workers.data.episodes import Episode, load_episode
from workers.device import use_single_thread
from workers.few_shot import learn
from workers.trials import with_trials

MIN_BATCH_SIZE = 2

Outcome = TypeVar("Outcome")

_logger = logging.getLogger(__name__)


class TaskRunner:
    """What a worker does, without the actor around it.

    Args:
        device: to compute on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._warm: tuple[SpaceConfig, NetworkConfig, Supernet] | None = None
        self._warm_few_shot: tuple[tuple[object, ...], FewShotNetwork] | None = None

    def run(
        self,
        prior: Prior,
        request: AdaptRequest,
        on_step: Callable[[int], None] = lambda step: None,
        on_evaluation: OnEvaluation = lambda evaluation, probabilities: None,
    ) -> AdaptResult:
        """Loads the task's images and adapts to them; see `workers.adapt.adapt`.

        Where memory runs out, the task starts again with half the batch size, and the result says which one it was.

        Raises:
            AdaptationError: memory does not even suffice for batches of two images.
        """
        # Here, not at construction: the setting belongs to the calling thread.
        use_single_thread()
        episode = load_episode(request.task)
        if request.few_shot is not None:
            network = self.few_shot_network(request)
            return self.within_memory(request, lambda: learn(prior, request, episode, network, on_step))
        batch_size = min(request.inner.batch_size, len(episode.train_images))
        while True:
            fitting = replace(request, inner=request.inner.model_copy(update={"batch_size": batch_size}))
            result = self._adapt_if_memory_suffices(prior, fitting, episode, on_step, on_evaluation)
            if result is not None:
                return result
            if batch_size <= MIN_BATCH_SIZE:
                raise AdaptationError(
                    f"task {request.task.task_id}: {self.device} runs out of memory even with batches of {batch_size} "
                    f"images; lower network.channels, image_size (now {request.task.image_size}) or the number of "
                    "workers per device"
                )
            halved = max(batch_size // 2, MIN_BATCH_SIZE)
            _logger.warning(
                "task %s: out of memory with a batch size of %d; starting again with %d",
                request.task.task_id,
                batch_size,
                halved,
            )
            batch_size = halved

    def run_many(
        self,
        prior: Prior,
        request: PartialSumRequest,
        on_task: Callable[[str], None] = lambda task_id: None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> PartialSum:
        """Runs tasks one after the other and adds up their updates; see `run`. `on_task` hears of each as it begins."""
        sums = UpdateSums(prior, request.config)
        statistics, rejections = {}, []
        for task in request.requests:
            (task_id,) = task.task_ids
            on_task(task_id)
            result = self.run(prior, task, on_step)
            assert result.update is not None, "tasks of a partial sum return an update"
            rejection = sums.absorb(result.update)
            if rejection is None:
                statistics[task_id] = statistics_of(result)
            else:
                rejections.append(rejection)
        return PartialSum(prior.version, statistics, tuple(rejections), sums.sums())

    def few_shot_network(self, request: AdaptRequest) -> FewShotNetwork:
        """The network of a few-shot request, kept from one to the next as long as they are alike."""
        assert request.few_shot is not None, "a few-shot request"
        of_it = (request.few_shot, request.space, request.network, request.task.image_size, len(request.task.classes))
        if self._warm_few_shot is None or self._warm_few_shot[0] != of_it:
            self._warm_few_shot = (of_it, FewShotNetwork(*of_it, self.device))
        return self._warm_few_shot[1]

    def within_memory(self, request: AdaptRequest, work: Callable[[], Outcome]) -> Outcome:
        """What `work` on a few-shot request comes to, which sees all images at once.

        Raises:
            AdaptationError: memory does not suffice.
        """
        assert request.few_shot is not None, "a few-shot request"
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        self._free_memory()
        less = (
            "few_shot.method to 'finite_difference'" if request.few_shot.method == "exact" else "network.channels lower"
        )
        raise AdaptationError(
            f"task {request.task.task_id}: {self.device} runs out of memory by method {request.few_shot.method!r}; set "
            f"{less}, or image_size (now {request.task.image_size})"
        )

    def _adapt_if_memory_suffices(
        self,
        prior: Prior,
        request: AdaptRequest,
        episode: Episode,
        on_step: Callable[[int], None],
        on_evaluation: OnEvaluation,
    ) -> AdaptResult | None:
        try:
            supernet = self._supernet(request.space, request.network)
            result = adapt(prior, request, episode, supernet, on_step, on_evaluation)
            return result if request.trials is None else with_trials(result, prior, request, episode, supernet)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        self._free_memory()
        return None

    def _free_memory(self) -> None:
        """Gives back what a failure held on to. Call it once the traceback is gone, or that holds on."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _supernet(self, space: SpaceConfig, network: NetworkConfig) -> Supernet:
        if self._warm is None or self._warm[:2] != (space, network):
            supernet = build_supernet(space, network, seed=0).to(self.device)
            self._warm = (space, network, supernet)
        return self._warm[2]


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU's allocator has no exception of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
