"""How the service scales: simulated up to 10,000 workers, by every mode; and two real workers against one.

Simulated are priors as large as the paper's, whose tasks take 221 s at the mean (8 GPU-days for 130 rounds of 24), and
as much work as a busy service has: four studies, each with two tasks in a round for every worker, and a submitted task,
four times as long, for every other worker. More studies with smaller rounds where one round would have more than 4,096
tasks. With 1,000 workers harder work, too: fewer tasks, heavier tails, more deaths. A third of the simulated time, in
which the queues fill, is not counted; of more than 1,000 workers it is shorter, a little over one round, and fewer
modes are tried. What the coordinator's steps cost is fitted to such a machine, see `fit_costs.py`.

For real, rounds of the demo's study run on one worker and on two in turn, in one Ray. On two cores each of Ray's
processes takes up to a percent of a core from the second worker, and so does a worker that rests. So those of a head
that work does not need (dashboard, autoscaler, Ray client) are stopped, as if they were on a host of their own, and so
are workers whose turn it is not. The ratio is of whole rounds, by workers that are warm: plan, tasks, transfer, exact
sums, outer step. Beside it stands what the machine allows: the same tasks in two processes against one, without Ray and
all the rest. All four follow each other within four minutes, as a virtual machine is now faster, now slower.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bare_processes import bare_processes
from reporting import arguments, console, finish, spread

from common.config import StudyConfig
from common.loading import load
from common.meta.prior import Prior, initial_prior
from coordinator.pool import RayPool
from coordinator.rounds import Round, bundled, plan
from coordinator.simulate_cli import show
from coordinator.simulation.costs import Costs, Sizes, load_costs, sizes_of
from coordinator.simulation.models import Failures, TaskTimes
from coordinator.simulation.outcome import SimulationOutcome
from coordinator.simulation.plot import draw
from coordinator.simulation.simulator import Assumptions, Setup, simulate
from coordinator.simulation.workload import WHAT, Mode, Workload
from coordinator.study import load_catalogs

# The root first, for the processes that start: folders of the tests have the names of packages.
sys.path += [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
from reference.ray_hosts import RayHosts

SEED = 7
DEFAULT: Mode = "sums"
AT = 1000
"""Workers with which other work is tried, too."""
OF_MANY: tuple[Mode, ...] = ("sums", "host_sums", "buffered")
"""Modes that are tried with more workers than that."""
SHORTER = 15.0
"""Simulated time of more workers than that, in task times at the mean."""
QUIET = ("--num-cpus=3", "--include-log-monitor=false")
"""Of `ray start`, for real rounds: room for all workers, and nothing that sends logs to drivers."""
OF_HEAD = ("ray/dashboard/dashboard.py", "ray/autoscaler/_private/monitor.py", "ray.util.client.server")
"""What marks the processes of a head that rounds do not need."""
OTHER_WORK: Mapping[str, tuple[str, dict[str, Any]]] = {
    "two_studies": (
        "two studies, two tasks per worker each, and submitted tasks",
        {"workload": Workload(studies=2, tasks_per_worker=4.0)},
    ),
    "rounds_only": ("four studies, no submitted tasks", {"workload": Workload(adapt_jobs_per_worker=0.0)}),
    "one_study": (
        "one study, four tasks per worker, nothing else",
        {"workload": Workload(studies=1, tasks_per_worker=4.0, adapt_jobs_per_worker=0.0)},
    ),
    "one_task_each": (
        "one study, one task per worker, nothing else",
        {"workload": Workload(studies=1, tasks_per_worker=1.0, adapt_jobs_per_worker=0.0)},
    ),
    "heavy_tail": ("Pareto times, tail index 2.1", {"times": TaskTimes(distribution="pareto")}),
    "deaths": ("a worker dies every two hours", {"failures": Failures(deaths_per_hour=0.5)}),
    "short_tasks": ("tasks of 5 s", {"times": TaskTimes(mean_s=5.0)}),
    "no_taking_over": ("idle workers do not take over what others have not begun", {"takes_over": False}),
}


def assumed(num_workers: int, costs: Costs, **changes: Any) -> Assumptions:
    """What is assumed with so many workers."""
    shorter = {} if num_workers <= AT else {"duration_of_mean": SHORTER}
    return Assumptions(costs=costs, **{**shorter, **changes})


def setups(numbers: list[int], costs: Costs, sizes: Sizes) -> dict[str, Setup]:
    """What is simulated, by name: every number of workers by every mode, then other work by the default mode."""
    by_mode = {
        f"{number} workers, {mode}": Setup(number, mode, sizes, assumed(number, costs), SEED)
        for number in numbers
        for mode in WHAT
        if number <= AT or mode in OF_MANY
    }
    by_work = {
        name: Setup(AT, DEFAULT, sizes, assumed(AT, costs, **changes), SEED)
        for name, (_, changes) in OTHER_WORK.items()
    }
    return by_mode | by_work


def timed(named: tuple[str, Setup]) -> tuple[str, SimulationOutcome, float]:
    """A simulation, and how long it took."""
    started_s = time.perf_counter()
    return named[0], simulate(named[1]), time.perf_counter() - started_s


def simulated(wanted: Mapping[str, Setup]) -> dict[str, SimulationOutcome]:
    """All of them, side by side: each takes one core."""
    found = {}
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=4) as processes:
        for name, outcome, seconds in processes.imap(timed, wanted.items()):
            console.print(f"{name}: simulated in {seconds:.1f} s")
            found[name] = outcome
    return found


class RealWorkers:
    """A pool of one worker and one of two in the same Ray; those whose turn it is not are stopped, and cost nothing.

    Args:
        config: of the study.
    """

    def __init__(self, config: StudyConfig) -> None:
        self._config = config
        self._catalogs = load_catalogs(config)
        self._prior = initial_prior(config)
        logger = logging.getLogger("bench")
        self._pools = {
            number: RayPool(f"bench-{number}", number, 0.0, config.cluster, time.monotonic, logger) for number in (1, 2)
        }
        self._pids: dict[int, list[int]] = {}
        self.digests: set[str] = set()

    def __enter__(self) -> "RealWorkers":
        for number, pool in self._pools.items():
            while pool.num_workers != number:
                one_round(pool, self._prior, self._config, self._catalogs)
            one_round(pool, self._prior, self._config, self._catalogs)  # by workers that are warm from now on
            self._pids[number] = [status.pid for status in pool.status()]
            assert len(self._pids[number]) == number, "all workers answer"
        for number in self._pids:
            self._signal(number, signal.SIGSTOP)
        return self

    def __exit__(self, *error: object) -> None:
        for number, pool in self._pools.items():
            self._signal(number, signal.SIGCONT)
            pool.close()

    def round_s(self, number: int) -> float:
        """Seconds of a round by so many workers."""
        self._signal(number, signal.SIGCONT)
        started_s = time.perf_counter()
        following = one_round(self._pools[number], self._prior, self._config, self._catalogs)
        seconds = time.perf_counter() - started_s
        self._signal(number, signal.SIGSTOP)
        self.digests.add(following.digest())
        return seconds

    def _signal(self, number: int, what: signal.Signals) -> None:
        for pid in self._pids.get(number, ()):
            os.kill(pid, what)


def real(num_tasks: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of rounds on one worker and on two, and of the same tasks in bare processes."""
    config = load("demo", [f"families.0.tasks_per_round={num_tasks}", f"inner.steps={num_steps}"], environment={})
    seconds: dict[str, list[float]] = {name: [] for name in ("one", "two", "bare_one", "bare_two")}
    with RayHosts(head=QUIET) as hosts, RealWorkers(config) as workers, bare_processes(config) as bare:
        hosts.stop_processes(OF_HEAD)
        turns: dict[str, Callable[[], float]] = {
            "one": lambda: workers.round_s(1),
            "two": lambda: workers.round_s(2),
            "bare_one": lambda: bare.round_s(1),
            "bare_two": lambda: bare.round_s(2),
        }
        for repeat in range(repeats):
            # There and back, as a machine that becomes slower or faster would favour who comes first.
            for name in list(turns)[:: 1 if repeat % 2 == 0 else -1]:
                seconds[name].append(turns[name]())
            last = {name: found[-1] for name, found in seconds.items()}
            console.print(
                f"rounds of {repeat + 1}/{repeats}: {last['one']:.2f} s on one, {last['two']:.2f} s on two; "
                f"bare {last['bare_one']:.2f} s and {last['bare_two']:.2f} s"
            )
    assert len(workers.digests) == 1, "the prior does not depend on the number of workers"
    one, two, bare_one, bare_two = (np.array(found) for found in seconds.values())
    return {
        "ratio": spread(one / two),
        "ratio_of_bare_processes": spread(bare_one / bare_two),
        "share_of_bare": spread((one / two) / (bare_one / bare_two)),
        "overhead_of_one": spread(one / bare_one),
        "round_s": {name: spread(found) for name, found in seconds.items()},
        "num_tasks": num_tasks,
        "num_steps": num_steps,
        "repeats": repeats,
    }


def one_round(pool: RayPool, prior: Prior, config: StudyConfig, catalogs: list[Any]) -> Prior:
    """As `coordinator.study.run` does it, but for files."""
    planned = plan(prior, config, catalogs)
    running = Round(prior, planned, config)
    for result in pool.run(prior, bundled(planned.requests, config, pool.max_workers)):
        assert running.absorb(result) is None
    following, _ = running.finish()
    return following


def capacity(found: list[SimulationOutcome], mode: Mode) -> str:
    """The rows of a capacity table in Markdown."""
    rows = ["| workers | busy | tasks/s | jobs/s | coordinator | commits/s | MB/s in | MB/s out | limited by |"]
    rows.append("|" + "---|" * 9)
    for each in (each for each in found if each.mode == mode):
        rows.append(
            f"| {each.num_workers:,} | {each.utilisation:.3f} | {each.tasks_per_s:.2f} | {each.jobs_per_s:.4f} | "
            f"{each.coordinator_load:.1%} | "
            f"{each.commits_per_s:.1f} | {each.inward_bytes_per_s / 1e6:.1f} | {each.outward_bytes_per_s / 1e6:.1f} | "
            f"{each.limit} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--workers", default="10,100,1000,10000", help="simulated, separated by commas")
    parser.add_argument("--preset", default="paper", help="of what size priors are")
    parser.add_argument("--costs", type=Path, help="what fit_costs.py wrote; else the figures that are kept")
    parser.add_argument("--plot", type=Path, default=Path("runs/scale.png"))
    parser.add_argument("--only", choices=("simulated", "real"), help="one part of it")
    parser.add_argument("--tasks", type=int, default=192, help="of a real round")
    parser.add_argument("--steps", type=int, default=5, help="of a real task")
    parser.add_argument("--repeats", type=int, default=5, help="of real rounds")
    options = parser.parse_args()

    result: dict[str, object] = {}
    if options.only != "simulated":
        measured = real(options.tasks, options.steps, options.repeats)
        ratio, one = measured["ratio"], measured["round_s"]["one"]
        console.print(
            f"2 workers against 1: {ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f}); bare processes "
            f"{measured['ratio_of_bare_processes']['median']:.2f}x; rounds of {options.tasks} tasks take "
            f"{one['median']:.2f} s on one, {measured['overhead_of_one']['median']:.2f} times bare"
        )
        result["real"] = measured
    if options.only != "real":
        costs = Costs() if options.costs is None else load_costs(options.costs)
        sizes = sizes_of(load(options.preset, environment={}))
        found = simulated(setups([int(number) for number in options.workers.split(",")], costs, sizes))
        others = {name: found.pop(name) for name in OTHER_WORK}
        outcomes = list(found.values())
        show(outcomes, console)
        console.print(f"with {AT:,} workers, {DEFAULT}:")
        for name, each in others.items():
            console.print(
                f"  {OTHER_WORK[name][0]}: busy {each.utilisation:.3f}, coordinator {each.coordinator_load:.1%}, "
                f"limited by {each.limit}"
            )
        title = f"{options.preset}: priors of {sizes.prior_bytes / 1e6:.1f} MB, tasks of {TaskTimes().mean_s:.0f} s"
        draw(outcomes, title, options.plot)
        console.print(f"the figure is {options.plot}\n{capacity(outcomes, DEFAULT)}", soft_wrap=True)
        at = {each.num_workers: each.utilisation for each in outcomes if each.mode == DEFAULT}
        result["utilisation_at_1000"] = at.get(AT)
        result["simulated"] = [each.plain() for each in outcomes]
        result["other_work"] = {name: each.plain() for name, each in others.items()}
        result["assumptions"] = Assumptions(costs=costs).model_dump(mode="json")
    finish(result, {"simulation": SEED}, options.json)


if __name__ == "__main__":
    main()
