"""Is a prior over architectures worth having? Networks derived from it against random ones, searches and best of N.

Every arm names a genotype for each fresh task of unseen scripts. Its network is then trained from scratch on the task,
all arms alike (the same first weights, batches and number of steps), and tested on held-out images (transductive
BatchNorm). Two conditions: glyphs as they are, and with noise on every pixel, of one standard deviation of the image.
A prior is learnt per meta-seed and condition, from scripts that no fresh task has. Last, random genotypes inherit their
weights from a prior of the preset `single_path`, are trained for 20 steps, and set against the same networks after 80
from scratch.

Intervals are Student's t over tasks, 95 %, of a task's mean over meta-seeds: they hold for other tasks, and for priors
of these meta-seeds, whose means are listed too. What was computed stays in --cache: a second call goes on from there.
"""

import hashlib
import json
import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from genotypes import random_genotype as drawn_genotype
from numpy.typing import NDArray
from reporting import arguments, console, finish
from rich.console import Console
from rich.table import Table

from common.artifacts import PriorStore
from common.config import StudyConfig, TrialsConfig
from common.cost import cost_model
from common.loading import load
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import ALPHA, Prior, initial_prior
from common.nn.supernet import Supernet, build_supernet
from common.space.genotype import Genotype, derive
from common.storage import ArtifactFolder
from common.streams import derived_seed, stream
from common.tasks import LearningTask
from coordinator import study
from coordinator.experiment import Arm, adapt_request, fresh_tasks
from coordinator.outer import prior_genotype
from coordinator.report import mean_interval
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
PRIOR, AS_LEARNT, GRADIENT = "prior, adapted", "prior, as learnt", "prior by gradient, adapted"
SCRATCH, SCRATCH_TRIALS = "scratch search, as many steps", "scratch search by trials"
RANDOM = "random, equal size"
BEST, BEST_AT_EQUAL_COST = "best of 20", "best of 64, trials as many as the prior's"
BEST_OF = {BEST: 20, BEST_AT_EQUAL_COST: 64}
HEADLINE = (PRIOR, SCRATCH, RANDOM, BEST)
ALL_ARMS = (*HEADLINE, BEST_AT_EQUAL_COST, AS_LEARNT, GRADIENT, SCRATCH_TRIALS)


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


class Results:
    """Results of jobs, computed in processes of one thread each, and kept on disk."""

    def __init__(self, folder: Path, num_processes: int) -> None:
        self._folder = folder
        self._artifacts = ArtifactFolder(str(folder / "results"))
        self._num_processes = num_processes

    def of(self, jobs: Sequence[Job], label: str) -> list[Any]:
        """The results of `jobs`, in their order; each is stored as soon as it is there."""
        found = {job: self._stored(job) for job in dict.fromkeys(jobs)}
        missing = [job for job, result in found.items() if result is None]
        started_s, last_s = time.monotonic(), time.monotonic()
        if missing:
            console.print(f"{label}: {len(missing)} of {len(found)} to compute")
            context = get_context("spawn")
            with ProcessPoolExecutor(self._num_processes, context) as pool:
                futures = {pool.submit(compute, job, str(self._folder)): job for job in missing}
                for done, future in enumerate(as_completed(futures), 1):
                    found[futures[future]] = future.result()
                    self._artifacts.write(f"{key(futures[future])}.json", json.dumps(future.result()).encode())
                    if time.monotonic() - last_s > 15 or done == len(missing):
                        last_s = time.monotonic()
                        left_s = (last_s - started_s) / done * (len(missing) - done)
                        console.print(f"{label}: {done}/{len(missing)}, about {left_s:.0f} s left")
        return [found[job] for job in jobs]

    def _stored(self, job: Job) -> Any:
        path = self._folder / "results" / f"{key(job)}.json"
        return json.loads(path.read_text()) if path.is_file() else None


@dataclass(frozen=True)
class Plan:
    """How much is compared."""

    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    tasks: tuple[LearningTask, ...]
    arms: tuple[str, ...]
    rounds: int
    gradient_rounds: int
    single_path_rounds: int
    other_tasks: int
    search_trials: int

    @property
    def blocks(self) -> list[Block]:
        """What a prior is learnt for."""
        return [(condition, seed) for condition in self.conditions for seed in self.seeds]

    def learning(self, method: str, block: Block) -> Learning:
        """The prior of a method."""
        rounds = {"trials": self.rounds, "gradient": self.gradient_rounds}
        return Learning(method, *block, rounds[method])

    def derivation(self, arm: str, block: Block, task: LearningTask) -> Derivation | TrialSearch:
        """How an arm finds its genotype for a task."""
        text = task.model_dump_json()
        if arm == SCRATCH_TRIALS:
            # One search per task and condition, whatever the meta-seed: nothing of it is learnt from other tasks.
            return TrialSearch(block[0], 0, text, self.search_trials, TRIAL_STEPS)
        method = {PRIOR: "trials", AS_LEARNT: "trials", GRADIENT: "gradient", SCRATCH: None}[arm]
        source = None if method is None else self.learning(method, block)
        return Derivation(source, *block, text, adapts=arm != AS_LEARNT)

    @property
    def best_of(self) -> dict[str, int]:
        """The arms that take the best of random genotypes, and of how many."""
        return {arm: number for arm, number in BEST_OF.items() if arm in self.arms}

    def trials_of(self, num_candidates: int, block: Block) -> list[Training]:
        """Random genotypes on other tasks, genotype by genotype; scored as the prior's trials are: the same signal."""
        condition, seed = block
        family = study_of("trials", seed, 1).families[0]
        others = fresh_tasks(family, "meta_train", self.other_tasks, TASK_SEED + seed)
        return [
            Training(genotype.to_json(), condition, seed, task.model_dump_json(), TRIAL_STEPS, FROM_SCRATCH["lr"])
            for genotype in candidates(num_candidates, seed)
            for task in others
        ]


def candidates(number: int, seed: int) -> list[Genotype]:
    """What the best of `number` is chosen from; of fewer, the first ones of these."""
    return [random_genotype(seed, "best of 20", index) for index in range(number)]


def genotypes_by_arm(plan: Plan, results: Results) -> dict[str, dict[Block, list[Genotype]]]:
    """The genotypes of each arm: per condition and meta-seed, one for each task."""
    derived = [arm for arm in plan.arms if arm not in (RANDOM, *BEST_OF)]
    methods = ["trials", *(["gradient"] if GRADIENT in derived else [])]
    learning: list[Job] = [plan.learning(method, block) for method in methods for block in plan.blocks]
    alone = [arm for arm in (SCRATCH, SCRATCH_TRIALS) if arm in derived]
    # Long ones first, and the many short ones that need no prior fill what is left.
    learning += [plan.derivation(arm, block, task) for arm in alone for block in plan.blocks for task in plan.tasks]
    learning += [
        job for number in plan.best_of.values() for block in plan.blocks for job in plan.trials_of(number, block)
    ]
    results.of(learning, "Priors, searches from scratch, best of N")

    jobs = [plan.derivation(arm, block, task) for arm in derived for block in plan.blocks for task in plan.tasks]
    found = iter(results.of(jobs, "Genotypes"))
    arms = {
        arm: {block: [Genotype.from_json(next(found)) for _ in plan.tasks] for block in plan.blocks} for arm in derived
    }
    arms[RANDOM] = {
        block: [
            equal_sized(genotype, block[1], task.task_id)
            for genotype, task in zip(arms[PRIOR][block], plan.tasks, strict=True)
        ]
        for block in plan.blocks
    }
    for arm, number in plan.best_of.items():
        arms[arm] = {}
        for block in plan.blocks:
            scores = np.array(results.of(plan.trials_of(number, block), arm)).reshape(number, -1)
            best = candidates(number, block[1])[int(scores.mean(axis=1).argmax())]
            arms[arm][block] = [best for _ in plan.tasks]
    return arms


def measured(plan: Plan, results: Results) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Test accuracies of each arm, (conditions, meta-seeds, tasks), and mean parameters of its networks."""
    arms = genotypes_by_arm(plan, results)
    jobs: dict[str, list[Training]] = {name: [] for name in arms}
    for block in plan.blocks:
        for index, task in enumerate(plan.tasks):
            text = task.model_dump_json()
            for name in arms:
                jobs[name].append(Training(arms[name][block][index].to_json(), *block, text, **FROM_SCRATCH))
    results.of([job for of_arm in jobs.values() for job in of_arm], "Trainings")
    shape = (len(plan.conditions), len(plan.seeds), len(plan.tasks))
    accuracies = {name: np.array(results.of(of_arm, name)).reshape(shape) for name, of_arm in jobs.items()}
    sizes = {
        name: float(np.mean([num_params(each) for by_task in of_arm.values() for each in by_task]))
        for name, of_arm in arms.items()
    }
    return accuracies, sizes


def inherited(plan: Plan, results: Results) -> dict[str, Any]:
    """Random genotypes after 20 steps from inherited weights, against the same after 80 from scratch."""
    config = study_of("single_path", 0, 1)
    tasks = [task.model_dump_json() for task in fresh_tasks(config.families[0], "unseen", len(plan.tasks), TASK_SEED)]
    priors = [Learning("single_path", "clean", seed, plan.single_path_rounds) for seed in plan.seeds]
    results.of(priors, "Single-path priors")
    after_few = [Heir(prior.seed, task, prior) for prior in priors for task in tasks]
    after_many = [Heir(prior.seed, task, None) for prior in priors for task in tasks]
    found = np.array(results.of([*after_few, *after_many], "Inherited weights, and scratch"))
    few, many = found.reshape(2, 1, len(priors), len(tasks))
    return {**difference(few, many), "accuracy": [float(few.mean()), float(many.mean())]}


def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, Any]:
    """Paired interval over tasks of (blocks, meta-seeds, tasks), and each meta-seed's mean."""
    values = first - second
    interval = mean_interval(values.mean(axis=(0, 1))[:, None])
    return {
        "mean": float(interval.mean[0]),
        "low": float(interval.low[0]),
        "high": float(interval.high[0]),
        "by_meta_seed": values.mean(axis=(0, 2)).tolist(),
    }


def differences(accuracies: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, Any]]:
    """What the benchmark is about."""
    pairs = {
        "prior_minus_random": (PRIOR, RANDOM),
        "prior_minus_scratch_search": (PRIOR, SCRATCH),
        "prior_minus_scratch_trials": (PRIOR, SCRATCH_TRIALS),
        "prior_minus_best_of_20": (PRIOR, BEST),
        "prior_minus_best_of_64": (PRIOR, BEST_AT_EQUAL_COST),
        "prior_as_learnt_minus_random": (AS_LEARNT, RANDOM),
        "prior_as_learnt_minus_best_of_20": (AS_LEARNT, BEST),
        "gradient_prior_minus_random": (GRADIENT, RANDOM),
    }
    return {
        name: difference(accuracies[first], accuracies[second])
        for name, (first, second) in pairs.items()
        if first in accuracies and second in accuracies
    }


def show(title: str, accuracies: dict[str, NDArray[np.float64]], sizes: dict[str, float]) -> None:
    """One table per condition: accuracy, and the paired difference to equally large random networks."""
    table = Table(title=title, show_edge=False)
    for column in ("arm", "accuracy", "minus random, equal size", "meta-seeds", "parameters"):
        table.add_column(column, no_wrap=True)
    for name, values in accuracies.items():
        own = mean_interval(values.mean(axis=(0, 1))[:, None])
        paired = difference(values, accuracies[RANDOM])
        table.add_row(
            name,
            f"{own.mean[0]:.3f} ± {own.high[0] - own.mean[0]:.3f}",
            "" if name == RANDOM else f"{paired['mean']:+.3f} ± {paired['high'] - paired['mean']:.3f}",
            "" if name == RANDOM else " ".join(f"{each:+.3f}" for each in paired["by_meta_seed"]),
            f"{sizes[name]:,.0f}",
        )
    Console(stderr=True, width=max(console.width, 120)).print(table)  # whole, also where it goes to a file


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", type=int, default=16, help="fresh tasks, at least 10 for a claim")
    parser.add_argument("--meta-seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument(
        "--arms", choices=("headline", "all"), default="all", help="without or with ablations and inherited weights"
    )
    parser.add_argument("--quick", action="store_true", help="noise, one meta-seed, few tasks and rounds: a look")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-architecture"), help="where results are kept")
    options = parser.parse_args()
    # Freed memory stays with the process: giving it back after every step costs more than the steps do.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**33))

    family = study_of("trials", 0, 1).families[0]
    tasks = tuple(fresh_tasks(family, "unseen", 6 if options.quick else options.tasks, TASK_SEED))
    arms = ALL_ARMS if options.arms == "all" else HEADLINE
    plan = Plan(tuple(options.conditions), tuple(options.meta_seeds), tasks, arms, 12, 30, 600, 3, 8)
    if options.quick:
        plan = Plan(("noise",), tuple(options.meta_seeds[:1]), tasks, HEADLINE, 6, 10, 40, 1, 0)
    started_s = time.monotonic()
    results = Results(options.cache, options.processes)
    accuracies, sizes = measured(plan, results)
    for index, condition in enumerate(plan.conditions):
        show(condition, {name: values[index : index + 1] for name, values in accuracies.items()}, sizes)
    found = differences(accuracies)
    if options.arms == "all":
        found["inherited20_minus_scratch80"] = inherited(plan, results)
    for name, interval in found.items():
        console.print(f"{name}: {interval['mean']:+.3f} ({interval['low']:+.3f} to {interval['high']:+.3f})")
    result = {
        **found,
        "conditions": {
            condition: differences({name: values[index : index + 1] for name, values in accuracies.items()})
            for index, condition in enumerate(plan.conditions)
        },
        "accuracy": {
            name: dict(zip(plan.conditions, values.mean(axis=(1, 2)).tolist(), strict=True))
            for name, values in accuracies.items()
        },
        "num_params": sizes,
        "steps_per_prior": {
            "hard_by_trials": plan.rounds * family.tasks_per_round * 8 * TRIAL_STEPS,
            **{
                f"hard_by_{arm.split(',')[0].replace(' ', '_')}": number * plan.other_tasks * TRIAL_STEPS
                for arm, number in plan.best_of.items()
            },
            "hard_per_task_by_scratch_trials": plan.search_trials * TRIAL_STEPS,
        },
        "num_tasks": len(tasks),
        "seconds": time.monotonic() - started_s,
    }
    finish(result, {"meta_seeds": list(plan.seeds), "task_seed": TASK_SEED}, options.json)


if __name__ == "__main__":
    main()
