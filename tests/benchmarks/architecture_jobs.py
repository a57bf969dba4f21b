"""The jobs of bench_architecture: what each is, and how it is computed, each a pure function of its fields."""

import hashlib
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from genotypes import random_genotype as drawn_genotype
from numpy.typing import NDArray

from common.artifacts import PriorStore
from common.config import StudyConfig, TrialsConfig
from common.cost import cost_model
from common.loading import load
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import ALPHA, Prior, initial_prior
from common.nn.supernet import Supernet, build_supernet
from common.space.genotype import Genotype, derive
from common.streams import derived_seed, stream
from common.tasks import LearningTask
from coordinator import study
from coordinator.experiment import Arm, adapt_request
from coordinator.outer import prior_genotype
from workers.adapt import adapt
from workers.data.episodes import Episode, load_episode
from workers.device import use_single_thread
from workers.trials import trial_accuracy, with_fresh_weights, with_trials

Block = tuple[str, int]  # condition and meta-seed


class Recipe(TypedDict):
    """How a network is trained: steps, and the learning rate at first, which falls to zero."""

    steps: int
    lr: float


TASK_SEED = 60_000  # used for nothing but this benchmark; methods were chosen on tasks of meta-training
CONDITIONS = {"clean": 0.0, "noise": 1.0}
SIZE_TOLERANCE = 0.1
FROM_SCRATCH: Recipe = {"steps": 80, "lr": 0.1}
TRIAL_STEPS = 40  # as in the preset `architecture`
INHERITED: Recipe = {"steps": 20, "lr": 0.05}


@dataclass(frozen=True)
class Learning:
    """A prior to learn: by trials, by gradient, or the weights of single paths."""

    method: str
    condition: str
    seed: int
    rounds: int


@dataclass(frozen=True)
class Derivation:
    """A genotype to derive for a task: from a prior, adapted or not; from scratch without a prior."""

    source: Learning | None
    condition: str
    seed: int
    task: str
    adapts: bool = True


@dataclass(frozen=True)
class TrialSearch:
    """A search on the task alone: random genotypes, each trained on three quarters of its training images, and scored
    on the rest; the best."""

    condition: str
    seed: int
    task: str
    trials: int
    steps: int


@dataclass(frozen=True)
class Training:
    """A genotype's network to train on a task and to test."""

    genotype: str
    condition: str
    seed: int
    task: str
    steps: int
    lr: float


@dataclass(frozen=True)
class Heir:
    """A random genotype's network on a task of the preset `single_path`, to train and to test.

    With a prior it starts from what that has for its ops, and takes fewer steps.
    """

    seed: int
    task: str
    prior: Learning | None


Job = Learning | Derivation | TrialSearch | Training | Heir


def compute(job: Job, folder: str) -> Any:
    """What a job comes to, as JSON holds it."""
    use_single_thread()
    if isinstance(job, Learning):
        return _learn(job, folder)
    task = LearningTask.model_validate_json(job.task)
    if isinstance(job, Heir):
        return _train_heir(job, task, folder)
    episode = with_pixel_noise(load_episode(task), CONDITIONS[job.condition], task.seed)
    if isinstance(job, Derivation):
        return _derive(job, task, episode, folder)
    if isinstance(job, TrialSearch):
        return _search(job, task, episode)
    config = study_of("trials", job.seed, 1)
    return _train(config, Genotype.from_json(job.genotype), task, episode, {"steps": job.steps, "lr": job.lr})


def with_pixel_noise(episode: Episode, deviation: float, seed: int) -> Episode:
    """The episode with normal noise on every pixel, of `deviation` standard deviations of the image it is added to.

    Contrast is divided by three first, so that hardly any sum leaves the range of bytes.
    """
    if not deviation:
        return episode

    def noisy(images: NDArray[np.uint8], part: str) -> NDArray[np.uint8]:
        centered = images.astype(np.float32) - 127.5
        noise = stream(seed, "pixel noise", part).normal(size=centered.shape).astype(np.float32)
        scale = deviation * centered.std(axis=(1, 2, 3), keepdims=True)
        return np.clip(np.rint(127.5 + (centered + scale * noise) / 3), 0, 255).astype(np.uint8)

    return replace(
        episode, train_images=noisy(episode.train_images, "train"), test_images=noisy(episode.test_images, "test")
    )


class NoisyTasks:
    """An executor (see `coordinator.rounds.Executor`) that adds noise to the images of every task."""

    max_workers = 1

    def __init__(self, config: StudyConfig, deviation: float) -> None:
        self._supernet = _supernet(config)
        self._deviation = deviation

    def run(self, prior: Prior, requests: Sequence[AdaptRequest]) -> Generator[AdaptResult, None, None]:
        """Yields results in the order of the requests."""
        for request in requests:
            episode = with_pixel_noise(load_episode(request.task), self._deviation, request.task.seed)
            result = adapt(prior, request, episode, self._supernet)
            if request.trials is not None:
                result = with_trials(result, prior, request, episode, self._supernet)
            yield result


@lru_cache(maxsize=64)
def study_of(method: str, seed: int, rounds: int) -> StudyConfig:
    """The study of a method. Those that learn architectures have the network and tasks of the preset `architecture`."""
    common = [f"seed={seed}", f"rounds={rounds}", "cluster.tasks_per_partial_sum=1"]
    architecture = load("architecture", common, environment={})
    if method == "trials":
        return architecture
    if method == "single_path":
        return load("single_path", common, environment={})
    demo = load("demo", common, environment={})  # whose way it is to learn by gradient
    return demo.model_copy(update={"network": architecture.network, "families": architecture.families})


def _learn(job: Learning, folder: str) -> dict[str, Any]:
    """Learns a prior into its folder, from the last round that is stored there."""
    config = study_of(job.method, job.seed, job.rounds)
    store = _store(job, folder)
    prior = study.resume(store, config) if store.has_config() else study.begin(store, config)
    started_s = time.monotonic()
    learnt = study.run(prior, config, NoisyTasks(config, CONDITIONS[job.condition]), store, [], time.monotonic)
    genotype = prior_genotype(learnt.vectors[ALPHA], config)
    return {"genotype": genotype.to_json(), "sha256": learnt.digest(), "seconds": time.monotonic() - started_s}


def _derive(job: Derivation, task: LearningTask, episode: Episode, folder: str) -> str:
    if job.source is None:
        config = study_of("gradient", job.seed, 1)
        prior = replace(_untrained(config.to_json()), tau=1.0)
        theta = config.adapt.theta.model_copy(update={"lr": 0.1})  # what suits an untrained supernet best
        arm = Arm("scratch", prior, config.adapt.model_copy(update={"theta": theta, "relaxation": "softmax"}))
    else:
        config = study_of(job.source.method, job.seed, job.source.rounds)
        arm = Arm("prior", _store(job.source, folder).load(), config.adapt)
        if not job.adapts:
            return prior_genotype(arm.prior.vectors[ALPHA], config).to_json()
    result = adapt(arm.prior, adapt_request(task, arm, config, ()), episode, _supernet(config))
    return derive(result.probabilities, config.space.topology, config.space.ops).to_json()


def _search(job: TrialSearch, task: LearningTask, episode: Episode) -> str:
    held_out = stream(job.seed, task.task_id, "held out").permutation(len(episode.train_labels))
    cut = len(held_out) // 4
    inner = Episode(
        episode.train_images[held_out[cut:]],
        episode.train_labels[held_out[cut:]],
        episode.train_images[held_out[:cut]],
        episode.train_labels[held_out[:cut]],
    )
    genotypes = [random_genotype(job.seed, task.task_id, "search", number) for number in range(job.trials)]
    recipe: Recipe = {"steps": job.steps, "lr": FROM_SCRATCH["lr"]}
    scores = [_train(study_of("trials", job.seed, 1), each, task, inner, recipe) for each in genotypes]
    return genotypes[int(np.argmax(scores))].to_json()


def _train_heir(job: Heir, task: LearningTask, folder: str) -> float:
    config, recipe = study_of("single_path", job.seed, 1), FROM_SCRATCH if job.prior is None else INHERITED
    genotype = random_genotype(job.seed, task.task_id, "heir")
    start = None if job.prior is None else _store(job.prior, folder).load()
    return _train(config, genotype, task, load_episode(task), recipe, start)


def _train(
    config: StudyConfig,
    genotype: Genotype,
    task: LearningTask,
    episode: Episode,
    recipe: Recipe,
    start: Prior | None = None,
) -> float:
    fresh, request = _fresh_start(config.to_json(), task)
    prior = start or fresh
    request = replace(request, version=prior.version, trials=TrialsConfig(**recipe))
    return trial_accuracy(genotype, prior, request, episode, _supernet(config))


@lru_cache(maxsize=64)
def _fresh_start(config_json: str, task: LearningTask) -> tuple[Prior, AdaptRequest]:
    """Weights that all networks of a task and meta-seed start from."""
    config = StudyConfig.model_validate_json(config_json)
    prior = _untrained(config_json)
    request = adapt_request(task, Arm("", prior, config.inner), config, ())
    return with_fresh_weights(prior, request, _supernet(config)), request


@lru_cache(maxsize=8)
def _untrained(config_json: str) -> Prior:
    return initial_prior(StudyConfig.model_validate_json(config_json))


def random_genotype(seed: int, *keys: str | int) -> Genotype:
    """One of the space that architectures are learnt in."""
    return drawn_genotype(study_of("trials", 0, 1).space, derived_seed(seed, *keys))


def equal_sized(genotype: Genotype, seed: int, *keys: str | int) -> Genotype:
    """A random genotype whose network has as many parameters, to 10 %."""
    wanted = num_params(genotype)
    for attempt in range(100_000):
        candidate = random_genotype(seed, *keys, attempt)
        if abs(num_params(candidate) - wanted) <= SIZE_TOLERANCE * wanted:
            return candidate
    raise AssertionError(f"no random genotype has about {wanted} parameters")


def num_params(genotype: Genotype) -> int:
    """Of its network, classifier included."""
    model = _cost_model()
    ops = ((kind, edge) for kind, nodes in genotype.cells.items() for node in nodes for edge in node)
    return model.constant.num_params + sum(model.op(kind, edge.source, edge.primitive).num_params for kind, edge in ops)


@cache
def _cost_model() -> Any:
    config = study_of("trials", 0, 1)
    return cost_model(config.space, config.network, config.families[0].image_size, config.families[0].num_ways)


@cache
def _supernet_of(config_json: str) -> Supernet:
    config = StudyConfig.model_validate_json(config_json)
    return build_supernet(config.space, config.network, seed=0)


def _supernet(config: StudyConfig) -> Supernet:
    # Only one per network: seeds and methods share it, as scratch memory.
    shared = StudyConfig(space=config.space, network=config.network, families=config.families)
    return _supernet_of(shared.to_json())


def _store(job: Learning, folder: str) -> PriorStore:
    return PriorStore(Path(folder) / "priors" / key(job))


def key(job: Job) -> str:
    """Names a job's files."""
    content = json.dumps([type(job).__name__, asdict(job)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
