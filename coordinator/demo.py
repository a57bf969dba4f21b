"""The demo: meta-learn a small prior, adapt it to tasks it has never seen, and show what the prior was worth."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from common.artifacts import PriorStore
from common.config import DatasetRef, Split, StudyConfig, TaskFamily
from common.loading import load
from common.messages import AdaptResult
from common.meta.prior import Prior
from coordinator import study
from coordinator.driver import Session, open_session
from coordinator.experiment import Arm, accuracies, compare, environment, fresh_tasks, mean_genotype, scratch_arm
from coordinator.report import Panel, draw_cells, draw_curves, intervals_by_step, results_table

EVAL_STEPS = (0, 1, 2, 5, 10, 20)
# Never used while the recipe was chosen.
TASK_SEED = 20_000
NUM_SCRIPT_TASKS = 8
NUM_DIGIT_TASKS = 6
PRIOR_ARM = "from the prior"
SCRATCH_ARM = "from scratch"
SCRIPTS_TITLE = "Unseen scripts"
DIGITS_TITLE = "Handwritten digits"


def run_demo(run: Path, overrides: Sequence[str], address: str | None, console: Console) -> Mapping[str, object]:
    """Runs the demo into folder `run`: result.json, curves.png, cells.png, and the study itself.

    An interrupted demo goes on where it was; a finished one uses its prior again. No study is ever removed.

    Returns:
        What result.json holds.

    Raises:
        ConflictError: the folder holds another study.
        KeyboardInterrupt: it was interrupted; a second call goes on.
    """
    started_s = time.monotonic()
    config = load("demo", overrides)
    store = PriorStore(run)
    prior = study.resume(store, config) if store.has_config() else study.begin(store, config)
    if prior.version == config.rounds:
        console.print(f"The prior in {run} is trained already, and would be the same again; remove {run} to watch it.")
    console.print("Preparing images (characters of many scripts are drawn once, then cached) ...")
    study.load_catalogs(config)
    console.print("Starting Ray ...")
    with open_session("demo", config.cluster, address, console) as session:
        session.show_dashboard()
        console.print(
            f"Meta-training {config.rounds} rounds of {config.families[0].tasks_per_round} ten-way tasks of characters"
        )
        outcome = session.train(run, config, prior)
        if not outcome.is_complete:
            raise KeyboardInterrupt
        trained = store.load()
        train_s = time.monotonic() - started_s
        panels, digits = _evaluate(session, trained, config, console)
    genotype = mean_genotype(digits, config)
    draw_curves(panels, run / "curves.png")
    draw_cells(genotype, run / "cells.png", "Cells found for handwritten digits")
    for panel in panels:
        console.print(results_table([panel], steps=[step for step in EVAL_STEPS if step > 1]))
    console.print("Accuracy on held-out images, mean over tasks and half of its 95 % interval. From scratch: the same")
    console.print("supernet with the settings that suit it best, without Gumbel noise and at learning rate 0.1.")
    result = {
        "prior": {"version": outcome.version, "sha256": outcome.digest},
        "panels": {panel.title: intervals_by_step(panel) for panel in panels},
        "genotype": json.loads(genotype.to_json()),
        "train_s": round(train_s, 1),
        "total_s": round(time.monotonic() - started_s, 1),
        "environment": environment(),
        "config": json.loads(config.to_json()),
    }
    store.folder.write("result.json", json.dumps(result, indent=2).encode())
    return result


def _evaluate(
    session: Session, prior: Prior, config: StudyConfig, console: Console
) -> tuple[list[Panel], list[AdaptResult]]:
    """Accuracy curves of both arms on unseen scripts and on digits; and the prior's results on digits."""
    steps = max(EVAL_STEPS)
    arms = [
        Arm(PRIOR_ARM, prior, config.adapt.model_copy(update={"steps": steps})),
        scratch_arm(config, steps, SCRATCH_ARM),
    ]
    scripts = config.families[0]
    digits = TaskFamily(data=DatasetRef(source="digits"), image_size=scripts.image_size)
    comparisons: tuple[tuple[str, TaskFamily, Split, int], ...] = (
        (SCRIPTS_TITLE, scripts, "unseen", NUM_SCRIPT_TASKS),
        (DIGITS_TITLE, digits, "all", NUM_DIGIT_TASKS),
    )
    panels, from_prior = [], {}
    for title, family, split, num_tasks in comparisons:
        tasks = fresh_tasks(family, split, num_tasks, TASK_SEED)
        console.print(f"Adapting to {num_tasks} tasks: {title.lower()}, {family.num_ways}-way")
        results = compare(arms, tasks, config, EVAL_STEPS, session.adapt)
        curves = {name: accuracies(of_arm) for name, of_arm in results.items()}
        title_and_size = f"{title}, {family.num_ways}-way, {num_tasks} tasks"
        panels.append(Panel(title_and_size, EVAL_STEPS, curves, chance=1 / family.num_ways))
        from_prior[title] = results[PRIOR_ARM]
    return panels, from_prior[DIGITS_TITLE]
