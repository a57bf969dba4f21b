"""Few-shot architecture search against MAML and Reptile on four convolutions; what meta-gradients are worth, and cost.

5-way 5-shot episodes of characters; 600 test episodes of scripts that no arm has seen. Every arm meets as many episodes
of meta-training: BASE spends the first half on the search, the second on the genotype's network, which starts afresh;
MAML and Reptile spend all on their network. A random genotype, trained as long as the one that was found, tells what
the search itself is worth. All are tested alike, by BatchNorm statistics of the query images (transductive).

Intervals are Student's t over episodes, 95 %: they hold for other episodes, not for other meta-seeds.
What was computed stays in --cache: a second call goes on from there.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from bench_few_shot_job import images_of, local_service, seconds_to_answer
from genotypes import random_genotype
from numpy.typing import NDArray
from reporting import arguments, console, finish, interleaved, spread
from rich.console import Console
from rich.table import Table

from common.artifacts import PriorStore
from common.config import StudyConfig, validate
from common.few_shot_config import MetaGradientMethod
from common.loading import load
from common.messages import AdaptRequest, MetaGradient
from common.meta.few_shot_network import network_of
from common.meta.prior import ALPHA, Prior
from common.space.genotype import Genotype
from common.streams import derived_seed
from coordinator import meta_test, study
from coordinator.local import LocalExecutor
from coordinator.meta_test_run import run_meta_test
from coordinator.outer import prior_genotype
from coordinator.rounds import plan
from workers.data.episodes import load_episode
from workers.data.sources import load_arrays
from workers.device import use_single_thread
from workers.few_shot import learn

TEST_SEED = 70_000  # used for nothing but this benchmark
BASE = {"base_gumbel": "gumbel", "base_softmax": "softmax"}
CONTROL = "random_genotype"
BASELINES = {"maml": "maml", "reptile": "reptile"}
ARMS = (*BASE, CONTROL, *BASELINES)
FULL_CHANNELS = 16
PROGRESS_S = 20.0


@dataclass(frozen=True)
class Budget:
    """What every arm may spend.

    Attributes:
        rounds: of meta-training in all, of `tasks_per_round` episodes each.
        episodes: to test on.
    """

    rounds: int
    episodes: int


def run_arm(arm: str, seed: int, budget: Budget, folder: Path) -> dict[str, Any]:
    """Meta-trains an arm and tests it; all of it goes on from what the folder holds."""
    use_single_thread()
    overrides = [f"seed={seed}"]
    if arm in BASELINES:
        config = load(BASELINES[arm], [*overrides, f"rounds={budget.rounds}"], environment={})
        prior, seconds = meta_trained(config, folder / "training", f"{arm}, seed {seed}")
        return tested(prior, config, budget, folder / "test") | {"meta_train_s": seconds}
    search = load(
        "few_shot",
        [*overrides, f"rounds={budget.rounds // 2}", f"relaxation.kind={BASE.get(arm, 'gumbel')}"],
        environment={},
    )
    search_s = 0.0
    if arm == CONTROL:
        genotype = random_genotype(search.space, derived_seed(seed, "random genotype"))
    else:
        found, search_s = meta_trained(search, folder / "search", f"{arm}, seed {seed}, search")
        genotype = prior_genotype(found.vectors[ALPHA], search)
    config = trained_by_itself(search, genotype)
    prior, seconds = meta_trained(config, folder / "training", f"{arm}, seed {seed}, training")
    return tested(prior, config, budget, folder / "test") | {
        "meta_train_s": search_s + seconds,
        "genotype": genotype.model_dump(mode="json"),
    }


def trained_by_itself(search: StudyConfig, genotype: Genotype) -> StudyConfig:
    """The study that meta-trains the network of one genotype, wider than the search's, on its episodes."""
    tree = search.model_dump(mode="json")
    tree["network"]["channels"] = FULL_CHANNELS
    tree["few_shot"] |= {"network": "genotype", "genotype": genotype.model_dump(mode="json")}
    return validate(tree)


def meta_trained(config: StudyConfig, folder: Path, label: str) -> tuple[Prior, float]:
    """The last prior of a study, and the seconds that its rounds took, also in earlier calls."""
    store = PriorStore(folder)
    prior = study.resume(store, config) if store.has_config() else study.begin(store, config)
    seconds = folder / "seconds"
    spent_s = float(seconds.read_text()) if seconds.is_file() else 0.0
    report = progress(label, config.rounds, prior.version)
    started_s = time.monotonic()

    def on_round(made: Prior, metrics: Any) -> None:
        seconds.write_text(str(spent_s + time.monotonic() - started_s))
        report(made.version, f"query accuracy {metrics.get('query_accuracy', float('nan')):.3f}")

    executor = LocalExecutor(torch.device("cpu"))
    prior = study.run(prior, config, executor, store, [], time.monotonic, on_round=on_round)
    return prior, float(seconds.read_text())


def tested(prior: Prior, config: StudyConfig, budget: Budget, folder: Path) -> dict[str, Any]:
    """Accuracy on unseen episodes after the last step, mean and 95 % interval."""
    options = meta_test.MetaTestOptions(split="unseen", seed=TEST_SEED)
    family = meta_test.family_of(config, options)
    arrays = load_arrays(family.data, family.image_size)
    planned = meta_test.plan_meta_test(prior, config, options, arrays, family)
    folder.mkdir(parents=True, exist_ok=True)

    def learn_episodes(requests: Sequence[AdaptRequest], num_before: int) -> bool:
        report = progress(f"{folder.parent.name}, test episodes", budget.episodes, num_before)
        with meta_test.opened_log(folder) as log:
            for done, result in enumerate(LocalExecutor(torch.device("cpu")).run(prior, requests), num_before + 1):
                log.add(meta_test.outcome_of(result))
                report(done, "")
        return True

    result = run_meta_test(folder, planned, prior, config, arrays, budget.episodes, learn_episodes)
    assert result is not None, "nothing interrupts it"
    network = network_of(config)
    return {
        **result.last.model_dump(),
        "by_step": {step: interval.mean for step, interval in result.accuracy.items()},
        "evaluation": result.evaluation,
        "num_params": sum(size for name, size in network.sizes.items() if name != ALPHA),
        "path": network.path,
    }


def progress(label: str, total: int, first: int) -> Callable[[int, str], None]:
    """Says every now and then how far something is, and how long it still takes."""
    started_s = last_s = time.monotonic()

    def report(done: int, note: str) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > PROGRESS_S and done > first:
            last_s = time.monotonic()
            left_s = (last_s - started_s) / (done - first) * (total - done)
            console.print(f"{label}: {done}/{total}, about {left_s:.0f} s left {note}")

    return report


def estimators(prior: Prior, config: StudyConfig, num_tasks: int, repeats: int) -> dict[str, Any]:
    """Every method's meta-gradient against the exact one, on tasks of the supernet: cosine and norm, and its cost.

    Weights and classifier together, and architecture logits, apart: the norms of the two differ widely.
    """
    catalogs = study.load_catalogs(config)
    wider = config.model_copy(
        update={"families": (config.families[0].model_copy(update={"tasks_per_round": num_tasks}),)}
    )
    tasks = plan(prior, wider, catalogs).requests
    methods: Sequence[MetaGradientMethod] = get_args(MetaGradientMethod)
    assert config.few_shot is not None
    networks, paths = {}, {}
    for method in methods:
        of_method = config.few_shot.model_copy(update={"method": method})
        networks[method] = network_of(config.model_copy(update={"few_shot": of_method}))
        paths[method] = networks[method].path

    def gradients(method: MetaGradientMethod, request: AdaptRequest) -> dict[str, NDArray[np.float64]]:
        assert request.few_shot is not None
        asked = replace(request, eval_steps=(), few_shot=request.few_shot.model_copy(update={"method": method}))
        update = learn(prior, asked, load_episode(request.task), networks[method]).update
        assert isinstance(update, MetaGradient)
        weights = [vector for name, vector in update.gradients.items() if name != ALPHA]
        return {
            "weights": np.concatenate(weights).astype(np.float64),
            "architecture": update.gradients[ALPHA].astype(np.float64),
        }

    cosines: dict[str, dict[str, list[float]]] = {m: {"weights": [], "architecture": []} for m in methods}
    norms: dict[str, dict[str, list[float]]] = {m: {"weights": [], "architecture": []} for m in methods}
    for request in tasks:
        exact = gradients("exact", request)
        for method in methods:
            found = exact if method == "exact" else gradients(method, request)
            for part, values in found.items():
                length, reference = float(np.linalg.norm(values)), float(np.linalg.norm(exact[part]))
                norms[method][part].append(length / reference)
                cosines[method][part].append(float(values @ exact[part]) / (length * reference))
    candidates = {method: _call(gradients, method, tasks[0]) for method in methods}
    seconds = interleaved(candidates, repeats)
    return {
        method: {
            "cosine": {part: spread(values) for part, values in cosines[method].items()},
            "norm_over_exact": {part: spread(values) for part, values in norms[method].items()},
            "seconds": spread(seconds[method]),
            "seconds_over_exact": spread(seconds[method] / seconds["exact"]),
            "path": paths[method],
        }
        for method in methods
    }


def _call(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def answered(repeats: int) -> dict[str, Any]:
    """Seconds from submitting a handful of images to their labels, through a service of its own on this machine."""
    family = load("few_shot", [], environment={}).families[0]
    support, queries = images_of(family)
    with tempfile.TemporaryDirectory() as folder, local_service(Path(folder), 1) as client:
        name = client.create_study("few-shot", preset="few_shot").name
        first, _ = seconds_to_answer(client, name, support, queries, 1)
        warm, on_worker = seconds_to_answer(client, name, support, queries, repeats)
    return {"first_s": first[0], "warm_s": spread(warm), "of_that_on_worker_s": spread(on_worker)}


def show(arms: dict[str, dict[str, Any]], found: dict[str, Any], seconds: dict[str, Any]) -> None:
    """Tables for people."""
    wide = Console(stderr=True, width=max(console.width, 120))  # whole, also where it goes to a file
    table = Table(title="5-way 5-shot, unseen scripts, transductive", show_edge=False)
    for column in ("arm", "accuracy", "parameters", "meta-training, s", "cells by"):
        table.add_column(column)
    for arm, result in arms.items():
        interval = f"{result['mean']:.3f} ({result['low']:.3f} to {result['high']:.3f})"
        table.add_row(arm, interval, f"{result['num_params']:,}", f"{result['meta_train_s']:.0f}", str(result["path"]))
    wide.print(table)
    table = Table(title="Meta-gradients against the exact one, medians", show_edge=False)
    for column in ("method", "cosine, weights", "cosine, architecture", "time over exact", "cells by"):
        table.add_column(column)
    for method, result in found.items():
        cosine = result["cosine"]
        table.add_row(
            method,
            f"{cosine['weights']['median']:.4f}",
            f"{cosine['architecture']['median']:.4f}",
            f"{result['seconds_over_exact']['median']:.2f}",
            result["path"],
        )
    wide.print(table)
    console.print(f"submit to answer: first {seconds['first_s']:.2f} s, warm {seconds['warm_s']['median']:.2f} s")


def over_seeds(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One arm: the mean over meta-seeds; the interval is that of episodes, so of one meta-seed where there are more."""
    mean, low, high = (float(np.mean([result[name] for result in results])) for name in ("mean", "low", "high"))
    return {**results[0], "mean": mean, "low": low, "high": high, "by_meta_seed": [r["mean"] for r in results]}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=300, help="of meta-training, for every arm")
    parser.add_argument("--episodes", type=int, default=600, help="of the test")
    parser.add_argument("--meta-seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--quick", action="store_true", help="a look: few rounds and episodes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-few-shot"), help="where results are kept")
    options = parser.parse_args()
    budget = Budget(20, 20) if options.quick else Budget(options.rounds, options.episodes)
    folder = options.cache / f"{budget.rounds}-rounds"

    started_s = time.monotonic()
    jobs = [(arm, seed) for seed in options.meta_seeds for arm in options.arms]
    results: dict[tuple[str, int], dict[str, Any]] = {}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        futures = {pool.submit(run_arm, arm, seed, budget, folder / f"{arm}-{seed}"): (arm, seed) for arm, seed in jobs}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            arm, seed = futures[future]
            console.print(f"{arm}, seed {seed}: accuracy {results[arm, seed]['mean']:.3f}")
    arms = {arm: over_seeds([results[arm, seed] for seed in options.meta_seeds]) for arm in options.arms}

    use_single_thread()
    first = options.meta_seeds[0]
    config = load("few_shot", [f"seed={first}", f"rounds={budget.rounds // 2}"], environment={})
    searched, _ = meta_trained(config, folder / f"base_gumbel-{first}" / "search", "search")
    found = estimators(searched, config, 2 if options.quick else 8, 3 if options.quick else 7)
    seconds = answered(3 if options.quick else 10)
    show(arms, found, seconds)
    result = {
        **arms,
        "estimators": found,
        "submit_to_answer": seconds,
        "rounds": budget.rounds,
        "episodes": budget.episodes,
        "seconds": time.monotonic() - started_s,
    }
    finish(result, {"meta_seeds": options.meta_seeds, "test_seed": TEST_SEED}, options.json)


if __name__ == "__main__":
    main()
