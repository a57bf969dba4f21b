"""A study: version after version of its prior, each checkpointed, from wherever the last one ended."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

from common.artifacts import PriorStore, check_same_config
from common.config import StudyConfig
from common.errors import AdaptationError, ConflictError
from common.intake import DoneTasks, Intake
from common.messages import Rejection
from common.meta.prior import Prior, initial_prior
from common.telemetry import MetricSink
from coordinator.buffered import BufferedAggregation
from coordinator.rounds import Executor, Result, Round, bundled, drawn_task, plan, request_of
from workers.data.arrays import ClassArrays
from workers.data.sources import load_arrays


def begin(store: PriorStore, config: StudyConfig) -> Prior:
    """Starts a study in an empty folder.

    Raises:
        ConflictError: a study has begun there.
    """
    if store.has_config():
        raise ConflictError(f"{store.folder.url} holds a study; add --resume to go on with it, or choose another --run")
    prior = initial_prior(config)
    store.save_config(config)
    store.save(prior)
    return prior


def resume(store: PriorStore, config: StudyConfig | None = None, version: int | None = None) -> Prior:
    """The prior that a study goes on from: its last version, or the one named; later ones are discarded.

    Raises:
        NotFoundError: no study has begun there, or there is no such version.
        ConflictError: `config` is not what the study was started with.
        CorruptArtifactError: the version is truncated or altered.
    """
    stored = store.load_config()
    if config is not None:
        check_same_config(stored, config)
    if not store.versions() and not version:
        return initial_prior(stored)  # stopped between writing the configuration and the first prior
    prior = store.load(version)
    store.discard_after(prior.version)
    return prior


def load_catalogs(config: StudyConfig) -> list[ClassArrays]:
    """Images of each family of tasks; prepared and cached on first use.

    Raises:
        InvalidInputError: a source is unknown or unreadable, or has too few classes or images for its tasks.
    """
    catalogs = [load_arrays(family.data, family.image_size) for family in config.families]
    for family, arrays in zip(config.families, catalogs, strict=True):
        drawn_task(arrays, family, config, "can it be drawn at all?")
    return catalogs


def run(
    prior: Prior,
    config: StudyConfig,
    executor: Executor,
    store: PriorStore,
    sinks: Sequence[MetricSink],
    now_s: Callable[[], float],
    should_stop: Callable[[], bool] = lambda: False,
    on_result: Callable[[Result, Rejection | None], None] = lambda result, rejection: None,
    on_round: Callable[[Prior, Mapping[str, float]], None] = lambda prior, metrics: None,
) -> Prior:
    """Runs the rounds that are left and stores the versions that they make.

    Args:
        prior: to start from.
        config: of the study.
        executor: runs the tasks.
        store: receives the priors.
        sinks: receive each round's metrics.
        now_s: a monotonic clock.
        should_stop: asked after every result; what is given up leaves no trace, and begins again another time.
        on_result: called with every result, of one task or several, and why it was rejected if it was.
        on_round: called with every new prior and its metrics.

    Returns:
        The last prior that was made.

    Raises:
        AdaptationError: a round failed; what was made before it is stored.
        CorruptArtifactError: in buffered mode, the store does not know which tasks made `prior`.
    """
    catalogs = load_catalogs(config)
    if config.schedule.mode == "buffered":
        done = store.load_intake(prior.version).done if prior.version else None
        made = _from_a_buffer(prior, config, catalogs, executor, now_s, should_stop, on_result, done or DoneTasks())
    else:
        made = _in_rounds(prior, config, catalogs, executor, now_s, should_stop, on_result)
    with closing(made):
        for prior, metrics, intake in made:
            # Metrics first: a round whose prior was not stored runs again, and its metrics replace these.
            for sink in sinks:
                sink.record(prior.version, metrics)
            if intake is not None:
                store.save_intake(prior.version, intake)
            if prior.version % config.checkpoint.every_rounds == 0 or prior.version == config.rounds:
                store.save(prior)
                store.prune(config.checkpoint.keep_last)
            on_round(prior, metrics)
    return prior


_Version = tuple[Prior, dict[str, float], Intake | None]
"""A version of the prior, its metrics, and what it took in where that was not settled before."""


def _in_rounds(
    prior: Prior,
    config: StudyConfig,
    catalogs: Sequence[ClassArrays],
    executor: Executor,
    now_s: Callable[[], float],
    should_stop: Callable[[], bool],
    on_result: Callable[[Result, Rejection | None], None],
) -> Generator[_Version, None, None]:
    """The versions that synchronous rounds make. Each is kept before the next round begins."""
    deadline_s = config.schedule.deadline_s
    while prior.version < config.rounds and not should_stop():
        started_s = now_s()
        round_plan = plan(prior, config, catalogs)
        running = Round(prior, round_plan, config)
        requests = bundled(round_plan.requests, config, executor.max_workers)

        def is_over(running: Round = running, started_s: float = started_s) -> bool:
            return deadline_s is not None and running.has_quorum and now_s() - started_s >= deadline_s

        arguments = (prior, requests) if deadline_s is None else (prior, requests, is_over)
        with closing(executor.run(*arguments)) as results:
            for result in results:
                on_result(result, running.absorb(result))
                if should_stop():
                    break
        if not (running.is_complete or is_over()):
            if not should_stop():
                raise AdaptationError(f"the round after version {prior.version} ended without all of its results")
            break
        intake = running.intake
        prior, metrics = running.finish()
        metrics["round_seconds"] = now_s() - started_s
        yield prior, metrics, intake


def _from_a_buffer(
    prior: Prior,
    config: StudyConfig,
    catalogs: Sequence[ClassArrays],
    executor: Executor,
    now_s: Callable[[], float],
    should_stop: Callable[[], bool],
    on_result: Callable[[Result, Rejection | None], None],
    done: DoneTasks,
) -> Generator[_Version, None, None]:
    """The versions that buffered mode makes. Each is kept before another task begins from it."""
    course = BufferedAggregation(prior, config, lambda number, prior: request_of(number, prior, config, catalogs), done)
    started_s = now_s()
    with closing(executor.stream(course)) as results:
        for result in results:
            on_result(result, course.absorb(result))
            if course.is_full:
                prior, metrics, intake = course.step()
                before_s, started_s = started_s, now_s()
                metrics["round_seconds"] = started_s - before_s
                yield prior, metrics, intake
            if should_stop():
                return
    if not (course.is_over or should_stop()):
        raise AdaptationError(f"version {course.prior.version} has no successor: results that were due did not come")
