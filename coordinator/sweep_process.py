"""A sweep of the service as a process, and a Ray job, of its own: whatever ends it, Ray then frees all that it held.

Run by `coordinator.sweep_hosts`, as `python -m coordinator.sweep_process JOB_ID`. One line of JSON on standard input
says what to do; lines of JSON on standard output tell how far it is, and how it ended. It ends with its standard input.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import common.errors
from common.errors import AdaptationError, MetaSearchError
from common.messages import ArtifactInfo, JobResult, SweepRequest
from common.sweep_plan import SweepPlan
from coordinator.sweep import Trial, best_of

_TELL_EVERY_S = 1.0
# Of a worker's process, which this one is not.
_KEPT_OF_RAY = ("RAY_AUTH", "RAY_TLS")


def run_in_process(
    request: SweepRequest,
    concurrency: int,
    gpus_per_trial: float,
    address: str,
    on_progress: Callable[[int, Mapping[str, float]], None],
) -> JobResult | None:
    """Runs a sweep in a process of its own.

    Args:
        request: what to do.
        concurrency: trials at the same time.
        gpus_per_trial: GPUs of each.
        address: of the Ray cluster.
        on_progress: called with the number of trials that are over, and metrics as in `Progress` of search.proto.

    Returns:
        What was found; None where the process was killed.

    Raises:
        MetaSearchError: what the sweep raised.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith("RAY_") or name.startswith(_KEPT_OF_RAY)) and name != "CUDA_VISIBLE_DEVICES"
    }
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    asked = {
        "request": {**asdict(request), "plan": request.plan.model_dump(mode="json")},
        "concurrency": concurrency,
        "gpus_per_trial": gpus_per_trial,
        "address": address,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "coordinator.sweep_process", request.job_id],  # the id, for those who look at processes
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        for line in process.stdout:
            told = json.loads(line)
            if "result" in told:
                artifacts = tuple(ArtifactInfo(**each) for each in told["artifacts"])
                return JobResult(request.job_id, None, told["result"], artifacts)
            if "error" in told:
                kind = getattr(common.errors, told["error"], AdaptationError)
                raise kind(told["message"])
            on_progress(told["over"], told["metrics"])
    return None


def main() -> None:
    """See the module."""
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes elsewhere

    def tell(content: Mapping[str, Any]) -> None:
        output.write(json.dumps(content) + "\n")
        output.flush()

    try:
        tell(_run(asked, tell))
    except MetaSearchError as error:
        tell({"error": type(error).__name__, "message": str(error)})


def _run(asked: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
    from coordinator.cluster import connect, disconnect
    from coordinator.sweep_job import run_sweep_job

    plan = SweepPlan.model_validate(asked["request"]["plan"])
    request = SweepRequest(**{**asked["request"], "plan": plan})
    told_s = 0.0

    def note(trials: Sequence[Trial]) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _TELL_EVERY_S:
            told_s = time.monotonic()
            tell(_progress(trials, plan))

    connect(asked["address"], job_name=f"sweep of job {request.job_id}")
    try:
        found = run_sweep_job(request, asked["concurrency"], asked["gpus_per_trial"], note)
    finally:
        disconnect()
    return {"result": found.summary, "artifacts": [asdict(artifact) for artifact in found.artifacts]}


def _progress(trials: Sequence[Trial], plan: SweepPlan) -> dict[str, Any]:
    states = [trial.state for trial in trials]
    metrics = {"trials_running": float(states.count("running")), "trials_failed": float(states.count("failed"))}
    best = best_of(trials, plan)
    if best is not None and best.value is not None:
        metrics |= {"best_trial": float(best.number), "best_value": best.value}
    return {"over": sum(state not in ("waiting", "running") for state in states), "metrics": metrics}


def _end_with_input() -> None:
    """Ends this process, without ado, once whoever started it is gone."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
