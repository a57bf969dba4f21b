"""A sweep job: runs what is left of a sweep, and stores what was found.

The folder of an attempt that came to an end:
    result.json, best.json    see `coordinator.sweep`
    config.json, 00000012.safetensors, 00000012.json    the best trial's configuration and prior: `common.artifacts`
    weights.safetensors, network.json    instead of them: the best architecture's network: `common.network_config`
    manifest.json             names, sizes and SHA-256 of all of them, written last
"""

import time

from common.errors import UnavailableError
from common.messages import ArtifactInfo, JobResult, SweepRequest
from common.storage import ArtifactFolder
from coordinator.sweep import (
    BEST,
    BEST_FOLDER,
    PLAN,
    RESULT,
    best_content,
    check_any,
    spent_s,
    store_results,
)
from coordinator.tuning import Listener, run_sweep
from workers.results import begin_results, write_files, write_manifest

_TRIAL_FIELDS = ("trial", "state", "values", "rounds", "value", "interval_95", "failure")


def run_sweep_job(request: SweepRequest, concurrency: int, gpus_per_trial: float, listener: Listener) -> JobResult:
    """See the module.

    Args:
        request: what to do.
        concurrency: trials at the same time.
        gpus_per_trial: GPUs of each.
        listener: hears of the trials.

    Raises:
        AdaptationError: no trial came to a result.
        UnavailableError: a searcher's package is missing, or the storage refuses.
    """
    state = ArtifactFolder(request.state_url)
    PLAN.store(state, request.plan)
    before_s, started_s = spent_s(state), time.monotonic()
    trials = run_sweep(request.plan, request.state_url, concurrency, gpus_per_trial, listener, before_s)
    if not trials or any(trial.state in ("waiting", "running") for trial in trials):
        raise UnavailableError("the sweep was interrupted; it goes on from the state that it stored")
    seconds = before_s + time.monotonic() - started_s
    content = store_results(state, request.plan, trials, True, seconds)
    best = check_any(trials, request.plan)
    summary = {
        **{name: content[name] for name in ("metric", "best", "seconds")},
        "trials": [{name: row[name] for name in _TRIAL_FIELDS} for row in content["trials"]],
        "best_content": best_content(best, request.plan),
    }
    return JobResult(request.job_id, None, summary, _store(state, ArtifactFolder(request.result_url)))


def _store(state: ArtifactFolder, folder: ArtifactFolder) -> tuple[ArtifactInfo, ...]:
    begin_results(folder)
    files: dict[str, bytes] = {name: state.read(name) for name in (RESULT, BEST)}
    for below, suffixes in (
        ("", (".json",)),
        ("priors", (".safetensors", ".json")),
        ("network", (".safetensors", ".json")),
    ):
        files |= _latest(state, below, suffixes)
    artifacts = write_files(folder, files)
    write_manifest(folder, artifacts)
    return artifacts


def _latest(state: ArtifactFolder, below: str, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Files of the best trial by name; of a prior's versions, those of the latest."""
    where = f"{BEST_FOLDER}/{below}".rstrip("/")
    found: dict[str, bytes] = {}
    for suffix in suffixes:
        names = state.names(where, suffix)
        if not below:
            names = [name for name in names if name == "config"]
        elif below == "priors":
            names = names[-1:]
        found |= {f"{name}{suffix}": state.read(f"{where}/{name}{suffix}") for name in names}
    return found
