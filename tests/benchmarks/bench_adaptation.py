"""What the prior is worth on tasks it has never seen: accuracy after few steps, against the same supernet from scratch.

Trains the demo's prior through Ray, then adapts every arm to the same fresh tasks. The scratch arm that the prior is
compared with is, at every step, the best of several: without Gumbel noise at three learning rates, and with it.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from reporting import arguments, console, finish

from common.artifacts import PriorStore
from common.config import DatasetRef, Split, StudyConfig, TaskFamily
from common.loading import load
from common.meta.prior import Prior, initial_prior, with_alpha_of, with_theta_of
from coordinator import study
from coordinator.driver import Session, open_session
from coordinator.experiment import Arm, accuracies, compare, fresh_tasks
from coordinator.report import Panel, interval_by_step, intervals_by_step, paired_interval, results_table

STEPS = (1, 5, 10, 20)
PAIRED_STEPS = (5, 10, 20)
TASK_SEED = 30_000  # used for nothing but this benchmark


def target_family(name: str, image_size: int) -> tuple[TaskFamily, Split]:
    """The tasks that the arms are compared on."""
    if name == "glyphs":
        return TaskFamily(data=DatasetRef(source="glyphs"), image_size=image_size), "unseen"
    return TaskFamily(data=DatasetRef(source=name), image_size=image_size), "all"


def all_arms(prior: Prior, config: StudyConfig) -> tuple[list[Arm], list[str]]:
    """Every arm, and the names of those from scratch."""
    inner = config.adapt.model_copy(update={"steps": max(STEPS)})
    # An untrained architecture gains nothing from a temperature other than one.
    fresh = replace(initial_prior(config), tau=1.0)

    def scratch(name: str, lr: float, relaxation: str) -> Arm:
        theta = inner.theta.model_copy(update={"lr": lr})
        return Arm(name, fresh, inner.model_copy(update={"theta": theta, "relaxation": relaxation}))

    from_scratch = [
        scratch("scratch, no noise, lr 0.05", 0.05, "softmax"),
        scratch("scratch, no noise, lr 0.1", 0.1, "softmax"),
        scratch("scratch, no noise, lr 0.2", 0.2, "softmax"),
        scratch("scratch, gumbel, lr 0.1", 0.1, "gumbel"),
    ]
    untrained = initial_prior(config)
    arms = [
        Arm("prior", prior, inner),
        Arm("prior, no noise", prior, inner.model_copy(update={"relaxation": "softmax"})),
        Arm("prior, frozen alpha", prior, inner, learns_alpha=False),
        Arm("theta only", with_alpha_of(prior, untrained), inner),
        Arm("alpha only", with_theta_of(prior, untrained), inner),
    ]
    return arms + from_scratch, [arm.name for arm in from_scratch]


def trained_prior(config: StudyConfig, run: Path, session: Session) -> Prior:
    """The prior of a run in `run`, trained there if need be."""
    store = PriorStore(run)
    prior = study.resume(store, config) if store.has_config() else study.begin(store, config)
    session.train(run, config, prior)
    return store.load()


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--target", choices=("glyphs", "digits", "fashion-mnist"), default="glyphs")
    parser.add_argument("--tasks", type=int, default=12, help="fresh tasks, at least 10 for a claim")
    parser.add_argument("--seed", type=int, default=1, help="of the meta-training; the demo's is 0")
    parser.add_argument("--run", type=Path, help="folder with a prior to use again; trained there if it holds none")
    options = parser.parse_args()

    config = load("demo", [f"seed={options.seed}"], environment={})
    family, split = target_family(options.target, config.families[0].image_size)
    tasks = fresh_tasks(family, split, options.tasks, TASK_SEED)
    study.load_catalogs(config)
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_session("bench-adaptation", config.cluster, None, console) as session,
    ):
        prior = trained_prior(config, options.run or Path(temporary) / "run", session)
        arms, scratch_names = all_arms(prior, config)
        results = compare(arms, tasks, config, STEPS, session.adapt)
    curves = {name: accuracies(of_arm) for name, of_arm in results.items()}
    # The best scratch arm at each step, chosen with hindsight: in favour of scratch.
    best = np.stack(
        [
            max((curves[name][:, column] for name in scratch_names), key=lambda values: float(values.mean()))
            for column in range(len(STEPS))
        ],
        axis=1,
    )
    curves["best scratch"] = best
    title = f"{options.target}, {family.num_ways}-way, {len(tasks)} fresh tasks"
    panel = Panel(title, STEPS, curves)
    console.print(results_table([panel]))
    paired = interval_by_step(paired_interval(curves["prior"], best), STEPS)
    for step in PAIRED_STEPS:
        values = paired[str(step)]
        span = f"{values['low']:+.3f} to {values['high']:+.3f}"
        console.print(f"prior - best scratch at {step:2d} steps: {values['mean']:+.3f} ({span})")
    at5, at20 = curves["prior"][:, STEPS.index(5)].mean(), best[:, STEPS.index(20)].mean()
    console.print(f"prior at 5 steps {at5:.3f}, best scratch at 20 steps {at20:.3f}")
    result = {
        "target": options.target,
        "paired": {str(step): paired[str(step)] for step in PAIRED_STEPS},
        "arms": intervals_by_step(panel),
        "prior_at_5_minus_best_scratch_at_20": float(at5 - at20),
    }
    finish(result, {"meta_seed": options.seed, "task_seed": TASK_SEED}, options.json)


if __name__ == "__main__":
    main()
