"""What inherited weights are worth: a derived network after 20 steps of fine-tuning, against 80 steps from scratch.

Meta-trains the preset `single_path` through Ray, then gives every fresh task a random genotype. Both sides train that
same network on the same images; the learning rate from scratch is the best of three after 80 steps, on tasks of
meta-training. A third side adapts the whole supernet first, as a job does, and fine-tunes what is cut out of that.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from genotypes import random_genotype
from numpy.typing import NDArray
from reporting import arguments, console, finish

from common.artifacts import PriorStore
from common.config import DatasetRef, StudyConfig, TaskFamily
from common.loading import load
from common.messages import AdaptRequest, AdaptResult
from common.meta.prior import Prior, initial_prior
from common.space.genotype import Genotype
from common.tasks import LearningTask
from coordinator import study
from coordinator.driver import Session, open_session
from coordinator.experiment import Arm, accuracies, adapt_request, fresh_tasks
from coordinator.report import Panel, interval_by_step, intervals_by_step, paired_interval, results_table
from workers.data.episodes import load_episode
from workers.inherit import fine_tune_request, ready_network

FEW, MANY = 20, 80
STEPS = (5, 10, FEW, 40, MANY)
SCRATCH_RATES = (0.05, 0.1, 0.2)
TUNING_SEED, TASK_SEED = 40_000, 41_000  # used for nothing but this benchmark
BAR = -0.02


def random_genotypes(config: StudyConfig, count: int, seed: int) -> list[Genotype]:
    """As many, one for each of the seeds from `seed` on."""
    return [random_genotype(config.space, seed + index) for index in range(count)]


def requests(
    prior: Prior,
    config: StudyConfig,
    tasks: Sequence[LearningTask],
    genotypes: Sequence[Genotype],
    steps: int,
    lr: float,
) -> list[AdaptRequest]:
    """Each task with its genotype alone."""
    theta = config.adapt.theta.model_copy(update={"lr": lr})
    arm = Arm("", prior, config.adapt.model_copy(update={"steps": steps, "theta": theta}))
    return [
        replace(adapt_request(task, arm, config, STEPS), genotype=genotype, returns_weights=True)
        for task, genotype in zip(tasks, genotypes, strict=True)
    ]


def inductive(requests: Sequence[AdaptRequest], results: Sequence[AdaptResult]) -> NDArray[np.float64]:
    """Accuracies (num_tasks, 1) of the networks that are cut out, by statistics of their training images."""
    cut = (
        ready_network(request, result, load_episode(request.task))
        for request, result in zip(requests, results, strict=True)
    )
    return np.array([[ready.tested.accuracy] for ready in cut])


def after_adapting(
    prior: Prior, config: StudyConfig, tasks: Sequence[LearningTask], genotypes: Sequence[Genotype], session: Session
) -> NDArray[np.float64]:
    """Accuracies of fine-tuning what is cut out of the adapted supernet."""
    arm = Arm("", prior, config.adapt.model_copy(update={"steps": FEW}))
    adapting = [replace(adapt_request(task, arm, config, ()), returns_weights=True) for task in tasks]
    adapted = session.adapt(prior, adapting, "adapting the supernet")
    tuning = [
        fine_tune_request(request, result, genotype, FEW, tuple(step for step in STEPS if step <= FEW))
        for request, result, genotype in zip(adapting, adapted, genotypes, strict=True)
    ]
    return accuracies(session.adapt(prior, tuning, "fine-tuning"))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--target", choices=("glyphs", "digits", "fashion-mnist"), default="glyphs")
    parser.add_argument("--tasks", type=int, default=24, help="fresh tasks, at least 16 for a claim")
    parser.add_argument("--tuning-tasks", type=int, default=8, help="tasks of meta-training that choose scratch's rate")
    parser.add_argument("--seed", type=int, default=0, help="of the meta-training")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="changes the preset")
    parser.add_argument("--run", type=Path, help="folder with a prior to use again; trained there if it holds none")
    options = parser.parse_args()

    config = load("single_path", [f"seed={options.seed}", *options.set], environment={})
    family = config.families[0]
    if options.target != "glyphs":
        family = TaskFamily(data=DatasetRef(source=options.target), image_size=family.image_size)
    tasks = fresh_tasks(family, "unseen" if options.target == "glyphs" else "all", options.tasks, TASK_SEED)
    genotypes = random_genotypes(config, len(tasks), TASK_SEED)
    tuning_tasks = fresh_tasks(config.families[0], "meta_train", options.tuning_tasks, TUNING_SEED)
    tuning_genotypes = random_genotypes(config, len(tuning_tasks), TUNING_SEED)
    study.load_catalogs(config)
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_session("bench-inherit", config.cluster, None, console) as session,
    ):
        store = PriorStore(options.run or Path(temporary) / "run")
        begun = study.resume(store, config) if store.has_config() else study.begin(store, config)
        session.train(Path(store.folder.url), config, begun)
        prior, untrained = store.load(), initial_prior(config)

        tuned = {}
        for lr in SCRATCH_RATES:
            wanted = requests(untrained, config, tuning_tasks, tuning_genotypes, MANY, lr)
            found = session.adapt(untrained, wanted, f"scratch at {lr}, tasks of meta-training")
            tuned[lr] = float(accuracies(found)[:, -1].mean())
        best = max(tuned, key=lambda lr: tuned[lr])
        wanted = requests(untrained, config, tasks, genotypes, MANY, best)
        found = session.adapt(untrained, wanted, "from scratch")
        scratch, scratch_inductive = accuracies(found), inductive(wanted, found)
        wanted = requests(prior, config, tasks, genotypes, FEW, config.adapt.theta.lr)
        found = session.adapt(prior, wanted, "inherited")
        inherited, inherited_inductive = accuracies(found), inductive(wanted, found)
        adapted = after_adapting(prior, config, tasks, genotypes, session)
    few = STEPS[: inherited.shape[1]]
    panels = [
        Panel(f"{options.target}, {len(tasks)} fresh tasks", few, {"inherited": inherited, "adapted first": adapted}),
        Panel(f"from scratch at {best}", STEPS, {"scratch": scratch}),
    ]
    for panel in panels:
        console.print(results_table([panel]))
    compared = {}
    pairs = {
        "inherited": (inherited[:, -1:], scratch[:, -1:]),
        "adapted first": (adapted[:, -1:], scratch[:, -1:]),
        "inherited, image by image": (inherited_inductive, scratch_inductive),
    }
    for name, (after_few, after_many) in pairs.items():
        difference = paired_interval(after_few, after_many)
        compared[name] = interval_by_step(difference, (FEW,))
        low, high = float(difference.low[0]), float(difference.high[0])
        console.print(
            f"{name}, {FEW} steps - scratch, {MANY} steps: {float(difference.mean[0]):+.3f} "
            f"({low:+.3f} to {high:+.3f}), {after_few.mean():.3f} and {after_many.mean():.3f}; "
            f"the bar, above {BAR}, is {'met' if low > BAR else 'missed'}"
        )
    result = {
        "target": options.target,
        "prior": prior.digest(),
        "scratch_rates": {str(lr): accuracy for lr, accuracy in tuned.items()},
        "arms": [intervals_by_step(panel) for panel in panels],
        "paired": compared,
    }
    finish(result, {"meta_seed": options.seed, "task_seed": TASK_SEED}, options.json)


if __name__ == "__main__":
    main()
