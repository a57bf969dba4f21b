"""Our words for a sweep in Ray Tune's terms: domains, searchers, schedulers."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from common.sweep_config import SweepConfig
from common.sweep_plan import SweepPlan
from common.sweep_space import Domain, Space

ROUNDS = "rounds"  # what a trial reports its rounds as


def search_space(plan: SweepPlan) -> dict[str, Any]:
    """What Tune draws values from, by key of the space."""
    if plan.architectures is not None:
        return {"architecture": tune.grid_search(list(range(len(plan.architectures.candidates))))}
    is_grid = plan.config.searcher == "grid"
    return {key: _domain(domain, is_grid) for key, domain in plan.config.space.items()}


def _domain(domain: Domain, is_grid: bool) -> Any:
    """A domain in Tune's terms. Listed values travel as JSON, so that tables and lists are values like any other."""
    if domain.is_listed:
        texts = [json.dumps(value) for value in domain.parameters]
        return tune.grid_search(texts) if is_grid or domain.kind == "grid" else tune.choice(texts)
    return getattr(tune, domain.kind)(*domain.parameters)


def decoded(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial, from what Tune gave it."""
    if not space:
        return {"architecture": int(config["architecture"])}
    values: dict[str, Any] = {}
    for key, domain in space.items():
        value = config[key]
        if domain.is_listed:
            values[key] = json.loads(value)
        else:  # searchers may give numbers of numpy
            values[key] = int(value) if domain.is_whole else float(value)
    return values


def searcher_of(sweep: SweepConfig, concurrency: int) -> Any:
    """Who chooses the points, for so many trials at the same time."""
    metric, mode = sweep.metric, "max" if sweep.is_maximised else "min"
    if sweep.searcher == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return ConcurrencyLimiter(OptunaSearch(metric=metric, mode=mode, seed=sweep.seed), concurrency)
    if sweep.searcher == "hyperopt":
        from coordinator.hyperopt_search import FailingHyperOptSearch

        search = FailingHyperOptSearch(metric=metric, mode=mode, random_state_seed=sweep.seed)
        return ConcurrencyLimiter(search, concurrency)
    return BasicVariantGenerator(max_concurrent=concurrency, random_state=sweep.seed)


def scheduler_of(plan: SweepPlan) -> Any:
    """Who ends trials early, by the rounds that they report."""
    sweep, most = plan.config, plan.most_rounds
    if sweep.scheduler == "asha":
        return AsyncHyperBandScheduler(
            time_attr=ROUNDS,
            max_t=most,
            grace_period=min(sweep.asha.grace, most),
            reduction_factor=sweep.asha.reduction_factor,
            stop_last_trials=False,  # the trial says itself when it is done
        )
    if sweep.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return PopulationBasedTraining(
        time_attr=ROUNDS,
        perturbation_interval=sweep.pbt.perturb_every,
        hyperparam_mutations={
            key: [json.dumps(value) for value in domain.parameters] if domain.is_listed else _domain(domain, False)
            for key, domain in sweep.space.items()
        },
        quantile_fraction=sweep.pbt.quantile_fraction,
        resample_probability=sweep.pbt.resample_probability,
        custom_explore_fn=partial(_within, dict(sweep.space)),
        require_attrs=False,
        log_config=False,
    )


def _within(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """What PBT has moved, back in its range."""
    return {**config, **{key: domain.clipped(config[key]) for key, domain in space.items()}}
