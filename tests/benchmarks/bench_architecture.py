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

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from architecture_jobs import (
    CONDITIONS,
    FROM_SCRATCH,
    TASK_SEED,
    TRIAL_STEPS,
    Block,
    Derivation,
    Heir,
    Job,
    Learning,
    Training,
    TrialSearch,
    compute,
    equal_sized,
    key,
    num_params,
    random_genotype,
    study_of,
)
from numpy.typing import NDArray
from reporting import arguments, console, finish
from rich.console import Console
from rich.table import Table

from common.space.genotype import Genotype
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from coordinator.experiment import fresh_tasks
from coordinator.report import mean_interval

PRIOR, AS_LEARNT, GRADIENT = "prior, adapted", "prior, as learnt", "prior by gradient, adapted"
SCRATCH, SCRATCH_TRIALS = "scratch search, as many steps", "scratch search by trials"
RANDOM = "random, equal size"
BEST, BEST_AT_EQUAL_COST = "best of 20", "best of 64, trials as many as the prior's"
BEST_OF = {BEST: 20, BEST_AT_EQUAL_COST: 64}
HEADLINE = (PRIOR, SCRATCH, RANDOM, BEST)
ALL_ARMS = (*HEADLINE, BEST_AT_EQUAL_COST, AS_LEARNT, GRADIENT, SCRATCH_TRIALS)


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
    parser.add_argument("--arms", choices=("headline", "all"), default="headline", help="without or with ablations")
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
